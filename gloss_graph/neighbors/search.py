"""Which search a bank uses (`MemoryBank(search=...)`), its recall, and the walks over its links."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Union

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.neighbors.adjacency import Ints, SymmetricLinks, ragged
from gloss_graph.neighbors.exact import (
    ExactSearch,
    Nearest,
    RowSearch,
    nearest_others,
    none_found,
    pair_distances,
)
from gloss_graph.neighbors.inverted_lists import Cells, IVFSearch, IVFSettings, suitable_cells
from gloss_graph.neighbors.lists import LinkTable

SEARCHES = ("auto", "exact", "descent", "ivf", "faiss", "matmul")

# From so many rows on "auto" walks the links for stored documents, and looks for the others in
# inverted lists: see examples/benchmarks/search.py.
DESCENT_ROWS = 32_768
AUTO_ROWS = 200_000
# Two rows at one distance are as good as each other, up to rounding.
_TIE = 1e-5
_CHUNK = 1024
# Queries that walk at a time: bounds the candidates held.
_QUERIES = 512


@dataclass(frozen=True, kw_only=True)
class DescentSettings:
    """Walks over the links of the bank, for documents that come back (Dong et al., 2011).

    A stored document looks among the neighbors of its old neighbors, at a cost that does not
    depend on the bank's size. Others are searched exactly, or in inverted lists from 200,000 rows
    on.

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


Search = Union[str, DescentSettings, IVFSettings]  # noqa: UP007 - an alias, evaluated on 3.10
KINDS: dict[str, Any] = {"descent": DescentSettings, "ivf": IVFSettings}


def check_search(search: Any, capacity: int) -> None:
    """Raise unless `search` is a name or settings that a bank of `capacity` rows can use."""
    if isinstance(search, str):
        _check_kind(search, SEARCHES)
    elif not isinstance(search, tuple(KINDS.values())):
        names = ", ".join(kind.__name__ for kind in KINDS.values())
        raise TypeError(
            f"'search' must be one of {', '.join(SEARCHES)}, or {names} "
            f"(got {type(search).__name__})."
        )
    if isinstance(search, IVFSettings) and (search.cells or 0) > capacity:
        raise ValueError(
            f"'cells' must be at most the capacity of the bank, {capacity} (got {search.cells}). "
            "Leave it out, and it follows the number of rows."
        )


def _check_kind(name: Any, known: tuple[str, ...]) -> None:
    if name == "hnsw":
        raise ValueError("'search' must not be 'hnsw', which version 0.2 removed. Use 'ivf'.")
    check_choice("search", name, known)


def describe_search(search: Search) -> str | dict[str, Any]:
    """`search` as plain values, ready for JSON; see `search_of`."""
    if isinstance(search, str):
        return search
    kind = next(name for name, settings in KINDS.items() if isinstance(search, settings))
    return {"kind": kind, **asdict(search)}


def search_of(description: str | dict[str, Any]) -> Search:
    """What `describe_search` described."""
    if isinstance(description, str):
        return description
    values = dict(description)
    kind = values.pop("kind", None)
    _check_kind(kind, tuple(KINDS))
    settings: Search = KINDS[str(kind)](**values)
    return settings


def _resolved(search: Search) -> tuple[Search, bool]:
    """The settings that a name stands for, and whether a bank follows its links with them."""
    search = KINDS[search]() if search in KINDS else search
    return search, isinstance(search, DescentSettings) or search == "auto"


def cells_for(search: Search, capacity: int, dim: int) -> Cells | None:
    """Room for the cells of inverted lists that a bank may come to use; None if it never will."""
    settings, walks = _resolved(search)
    if isinstance(settings, IVFSettings):
        return Cells(capacity, dim, settings.cells or suitable_cells(capacity))
    return (
        Cells(capacity, dim, suitable_cells(capacity)) if walks and capacity >= AUTO_ROWS else None
    )


def row_search(search: Search, links: LinkTable, cells: Cells | None) -> RowSearch:
    """The search that a bank's setting names; checked before by `check_search`."""
    settings, walks = _resolved(search)
    if isinstance(settings, IVFSettings):
        return IVFSearch(settings, cells or Cells(0, 1, 1))
    if not walks:
        return ExactSearch(str(settings))
    # Documents that are not stored are searched exactly, or from so many rows on in lists.
    rest = ExactSearch() if cells is None else IVFSearch(IVFSettings(), cells, AUTO_ROWS)
    if isinstance(settings, DescentSettings):
        return DescentSearch(settings, links, rest)
    return DescentSearch(DescentSettings(), links, rest, least=DESCENT_ROWS)


@torch.no_grad()
def measure_recall(
    searcher: RowSearch, rows: Tensor, size: int, k: int, sample: int, seed: int
) -> float:
    """Share of the exact k nearest other rows that a search finds, for a sample of the rows."""
    check_positive_int("k", k)
    check_positive_int("sample", sample)
    check_positive_int("seed", seed, minimum=0)
    if size < 2:
        raise ValueError(
            f"'recall' needs a bank of at least 2 rows, each looks for the others (got {size}). "
            "Enqueue or prefill first."
        )
    k = min(k, size - 1)
    draw = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:sample]
    hits = 0
    for position in draw.to(rows.device).split(_CHUNK):
        queries = rows[position].float()
        exact = nearest_others(queries, rows[:size], position, k).squared_distances
        found = searcher.others(queries, rows, size, position, k).squared_distances
        hits += int(near_enough(found, exact).sum())
    return hits / (draw.numel() * k)


def near_enough(found: Tensor, exact: Tensor) -> Tensor:
    """Which squared distances (B, k) are no larger than the last of the exact ones (B, k)."""
    return found <= exact[:, -1:] * (1 + _TIE) + _TIE * _TIE


class DescentSearch(RowSearch):
    """Walks from a document's slot over the links of the bank; `fallback` for all others.

    A neighbor of a neighbor is likely a neighbor, so a document that comes back finds its new
    neighbors around its old ones, in the graph that the bank keeps anyway.
    """

    def __init__(
        self, settings: DescentSettings, links: LinkTable, fallback: RowSearch, least: int = 0
    ) -> None:
        self.settings, self.links, self.fallback, self.least = settings, links, fallback, least

    def allowed(self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`; the slots of the queries are unknown, so the fallback searches."""
        return self.fallback.allowed(queries, rows, size, k, banned)

    def around(
        self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor, places: Tensor
    ) -> Nearest:
        """See `RowSearch`."""
        if rows.device.type != "cpu" or size < self.least or self.links.k == 0:
            return self.allowed(queries, rows, size, k, banned)
        squared, index = none_found(queries, k)
        is_banned = np.zeros(size, dtype=bool)
        is_banned[banned.numpy()] = True
        graph = self.links.symmetric(size)
        for part in (places >= 0).nonzero().squeeze(1).split(_QUERIES):
            found = self._descend(queries[part], rows, graph, places[part].numpy(), is_banned, k)
            squared[part], index[part] = found[0].to(squared.dtype), found[1]
        wanted = min(k, size - banned.numel())
        if wanted < 1:
            return Nearest(squared, index)
        # Too few where links died or were never made.
        short = (index[:, wanted - 1] < 0).nonzero().squeeze(1)
        if short.numel():
            squared[short], index[short] = self.allowed(queries[short], rows, size, k, banned)
        return Nearest(squared, index)

    def without_links(self) -> RowSearch:
        """See `RowSearch`."""
        return self.fallback

    def wrote(self, rows: Tensor, size: int, slots: Tensor, version: int) -> None:
        """Tell the fallback; the links follow by themselves."""
        self.fallback.wrote(rows, size, slots, version)

    def _descend(
        self, x: Tensor, rows: Tensor, graph: SymmetricLinks, start: Ints, banned: Any, k: int
    ) -> tuple[Tensor, Tensor]:
        """Squared distances and slots (n, k), ascending, `inf` and -1 where none."""
        width, count = max(self.settings.width, k), start.size
        front, expanded = start[:, None], np.empty((count, 0), dtype=np.int64)
        slots = np.empty((count, 0), dtype=np.int32)
        for _ in range(self.settings.rounds + 1):
            slots = np.concatenate([slots, self._next(front, graph)], axis=1)
            slots.sort(axis=1)
            slots[:, 1:][slots[:, 1:] == slots[:, :-1]] = -1  # each once
            row, place = (slots >= 0).nonzero()
            squared = np.full(slots.shape, np.inf, dtype=np.float32)
            ends = torch.from_numpy(row), torch.from_numpy(slots[row, place].astype(np.int64))
            squared[row, place] = pair_distances(x, ends[0], rows, ends[1]).numpy()
            # The batch's own stale rows may lead on, but are no neighbors.
            order = _smallest(squared, 2 * width)
            slots = np.take_along_axis(slots, order, 1)
            squared = np.take_along_axis(squared, order, 1)
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

    def _next(self, front: Ints, graph: SymmetricLinks) -> Ints:
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


def _smallest(values: Any, count: int) -> Ints:
    """Places (n, <= count) of the smallest values of every row, ascending."""
    if values.shape[1] <= count:
        return np.argsort(values, axis=1, kind="stable")
    near = np.sort(np.argpartition(values, count, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(values, near, 1), axis=1, kind="stable")
    return np.take_along_axis(near, order, 1)
