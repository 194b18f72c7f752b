"""Search over the graph the bank keeps: neighbours of neighbours of where a document lay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gloss_graph.neighbors.adjacency import Ints, SymmetricLinks, ragged
from gloss_graph.neighbors.exact import Nearest, pair_distances, without_own
from gloss_graph.neighbors.quantized import Rows, Searched, asked, searched
from gloss_graph.neighbors.settings import DescentSettings, RowSearch

if TYPE_CHECKING:
    from gloss_graph.neighbors.lists import LinkTable

# Queries that walk at a time: bounds the candidates held.
_QUERIES = 512


class DescentSearch(RowSearch):
    """Walks from the slot a document has, over the links of the bank; `fallback` for all others.

    A neighbour of a neighbour is likely a neighbour (NN-descent, Dong et al., 2011), so a document
    that comes back finds its new neighbours around its old ones. The bank keeps that graph anyway:
    there is no index to build or to keep in step, and the cost does not depend on its size.

    Args:
        settings: See `DescentSettings`.
        links: The lists of the bank.
        fallback: Searches for documents that are not stored, or whose walk finds too few.
        least: Rows from which on walks are used.
    """

    def __init__(
        self,
        settings: DescentSettings,
        links: LinkTable,
        fallback: RowSearch,
        least: int = 0,
    ) -> None:
        self.settings, self.links, self.fallback, self.least = settings, links, fallback, least

    def _walks(self, rows: Rows, size: int) -> bool:
        return rows.device.type == "cpu" and size >= self.least and self.links.k > 0

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """Who asks is not known: see the fallback."""
        return self.fallback.allowed(queries, rows, size, k, banned)

    def around(
        self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor, places: Tensor
    ) -> Nearest:
        """See `RowSearch`."""
        if not self._walks(rows, size):
            return self.allowed(queries, rows, size, k, banned)
        return self._walk(queries, rows, size, k, places, banned)

    def _walk(
        self, queries: Tensor, rows: Rows, size: int, k: int, start: Tensor, banned: Tensor
    ) -> Nearest:
        squared = queries.new_full((queries.size(0), k), torch.inf)
        index = torch.full((queries.size(0), k), -1, dtype=torch.long)
        is_banned = np.zeros(size, dtype=bool)
        is_banned[banned.numpy()] = True
        x, known, graph = asked(queries, rows), searched(rows), self.links.symmetric(size)
        for part in (start >= 0).nonzero().squeeze(1).split(_QUERIES):
            found = self._descend(x[part], known, graph, start[part].numpy(), is_banned, k)
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

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        if not self._walks(rows, size):
            return self.fallback.others(queries, rows, size, own, k)
        k = min(k, size - 1)
        return without_own(self._walk(queries, rows, size, k + 1, own, own[:0]), own)

    def wrote(self, rows: Rows, size: int, slots: Tensor, version: int) -> None:
        """The links follow by themselves."""
        self.fallback.wrote(rows, size, slots, version)

    def _descend(
        self,
        x: Tensor,
        rows: Searched,
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
            # The batch's own stale rows may lead on, but are nobody's neighbours.
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
        """Neighbours (n, width) int32 of the slots `front` (n, f), -1 where none."""
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
    """Slots (n, c) sorted, -1 in place of those that stand in their row before."""
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
