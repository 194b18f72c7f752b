"""Search over the graph that a bank keeps: neighbors of neighbors of a document's old slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.neighbors.adjacency import Ints, SymmetricLinks, ragged
from gloss_graph.neighbors.exact import Nearest, RowSearch, pair_distances, without_itself
from gloss_graph.neighbors.lists import LinkTable

# Queries that walk at a time: bounds the candidates held.
_QUERIES = 512


@dataclass(frozen=True, kw_only=True)
class DescentSettings:
    """Walks over the bank's own links, for documents that come back (Dong et al., 2011).

    A stored document looks among the neighbors of its old neighbors, at a cost that does not
    depend on the bank's size. One that is not stored is searched for exactly, and in inverted
    lists from 200,000 rows on.

    Attributes:
        width: Best candidates whose neighbors are examined, at least k.
        rounds: Number of times; each further round starts from the result of the one before.
        reach: Neighbors examined per candidate: some have thousands.
    """

    width: int = 16
    rounds: int = 1
    reach: int = 64

    def __post_init__(self) -> None:
        check_positive_int("width", self.width)
        check_positive_int("rounds", self.rounds)
        check_positive_int("reach", self.reach)


class DescentSearch(RowSearch):
    """Walks from a document's slot over the links of the bank; `fallback` for all others.

    A neighbor of a neighbor is likely a neighbor (NN-descent, Dong et al., 2011), so a document
    that comes back finds its new neighbors around its old ones. The bank keeps that graph anyway:
    there is no index to build or to keep in step, and the cost does not depend on its size.
    """

    def __init__(
        self,
        settings: DescentSettings,
        links: LinkTable,
        fallback: RowSearch,
        least: int = 0,
    ) -> None:
        self.settings, self.links, self.fallback, self.least = settings, links, fallback, least

    def _walks(self, rows: Tensor, size: int) -> bool:
        return rows.device.type == "cpu" and size >= self.least and self.links.k > 0

    def allowed(self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`; the slots of the queries are unknown, so the fallback searches."""
        return self.fallback.allowed(queries, rows, size, k, banned)

    def around(
        self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor, places: Tensor
    ) -> Nearest:
        """See `RowSearch`."""
        if not self._walks(rows, size):
            return self.allowed(queries, rows, size, k, banned)
        return self._walk(queries, rows, size, k, places, banned)

    def _walk(
        self, queries: Tensor, rows: Tensor, size: int, k: int, start: Tensor, banned: Tensor
    ) -> Nearest:
        squared = queries.new_full((queries.size(0), k), torch.inf)
        index = torch.full((queries.size(0), k), -1, dtype=torch.long)
        is_banned = np.zeros(size, dtype=bool)
        is_banned[banned.numpy()] = True
        graph = self.links.symmetric(size)
        for part in (start >= 0).nonzero().squeeze(1).split(_QUERIES):
            found = self._descend(queries[part], rows, graph, start[part].numpy(), is_banned, k)
            squared[part], index[part] = found[0].to(squared.dtype), found[1]
        wanted = min(k, size - banned.numel())
        if wanted < 1:
            return Nearest(squared, index)
        # Too few where links died or were never made.
        short = (index[:, wanted - 1] < 0).nonzero().squeeze(1)
        if short.numel():
            rest = self.fallback.allowed(queries[short], rows, size, k, banned)
            squared[short], index[short] = rest.squared_distances, rest.indices
        return Nearest(squared, index)

    def others(self, queries: Tensor, rows: Tensor, size: int, position: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        if not self._walks(rows, size):
            return self.fallback.others(queries, rows, size, position, k)
        k = min(k, size - 1)
        none = position[:0]
        return without_itself(self._walk(queries, rows, size, k + 1, position, none), position)

    def without_links(self) -> RowSearch:
        """See `RowSearch`."""
        return self.fallback

    def wrote(self, rows: Tensor, size: int, slots: Tensor, version: int) -> None:
        """Tell the fallback; the links follow by themselves."""
        self.fallback.wrote(rows, size, slots, version)

    def _descend(
        self,
        x: Tensor,
        rows: Tensor,
        graph: SymmetricLinks,
        start: Ints,
        banned: Any,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """Squared distances and slots (n, k), ascending, `inf` and -1 where none."""
        width, count = max(self.settings.width, k), start.size
        front, expanded = start[:, None], np.empty((count, 0), dtype=np.int64)
        slots = np.empty((count, 0), dtype=np.int32)
        for _ in range(self.settings.rounds + 1):
            slots = _unique(np.concatenate([slots, self._around(front, graph)], axis=1))
            row, place = (slots >= 0).nonzero()
            squared = np.full(slots.shape, np.inf, dtype=np.float32)
            ends = torch.from_numpy(row), torch.from_numpy(slots[row, place].astype(np.int64))
            squared[row, place] = pair_distances(x, ends[0], rows, ends[1]).numpy()
            # The batch's own stale rows may lead on, but are no neighbors.
            order = _smallest(squared, 2 * width)
            slots, squared = (
                np.take_along_axis(slots, order, 1),
                np.take_along_axis(squared, order, 1),
            )
            best = slots[:, :width]
            known = (best[:, :, None] == expanded[:, None, :]).any(axis=2)
            front, expanded = np.where(known, -1, best), np.concatenate([expanded, best], axis=1)
        squared[banned[slots] | (slots < 0)] = np.inf
        order = _smallest(squared, k)
        near = np.full((count, k), np.inf, dtype=np.float32)
        index = np.full((count, k), -1, dtype=np.int64)
        near[:, : order.shape[1]] = np.take_along_axis(squared, order, 1)
        index[:, : order.shape[1]] = np.take_along_axis(slots, order, 1)
        index[np.isinf(near)] = -1
        return torch.from_numpy(near), torch.from_numpy(index)

    def _around(self, front: Ints, graph: SymmetricLinks) -> Ints:
        """Neighbors (n, width) int32 of the slots `front` (n, f), -1 where none."""
        row, place = (front >= 0).nonzero()
        slot, pointer = front[row, place], graph.pointer.numpy()
        first = pointer[slot].astype(np.int64)
        last = np.minimum(pointer[slot + 1], first + self.settings.reach)
        position, row = ragged(first, last, row)
        counts = np.bincount(row, minlength=front.shape[0])
        out = np.full((front.shape[0], int(counts.max(initial=0))), -1, dtype=np.int32)
        before = np.repeat(counts.cumsum() - counts, counts)
        out[row, np.arange(row.size) - before] = graph.column.numpy()[position]
        return out


def _unique(slots: Ints) -> Ints:
    """Slots (n, c) sorted, repeated ones replaced by -1."""
    slots = np.sort(slots, axis=1)
    slots[:, 1:][slots[:, 1:] == slots[:, :-1]] = -1
    return slots


def _smallest(values: Any, count: int) -> Ints:
    """Places (n, <= count) of the smallest values of every row, ascending."""
    if values.shape[1] <= count:
        return np.argsort(values, axis=1, kind="stable")
    near = np.sort(np.argpartition(values, count, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(values, near, 1), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1)
