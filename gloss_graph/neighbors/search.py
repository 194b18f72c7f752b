"""Which search a bank uses: the names and settings of `MemoryBank(search=...)`, and its recall."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Union

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.neighbors.exact import ExactSearch, RowSearch
from gloss_graph.neighbors.graph_walk import DescentSearch, DescentSettings
from gloss_graph.neighbors.inverted_lists import Cells, IVFSearch, IVFSettings, suitable_cells
from gloss_graph.neighbors.lists import LinkTable

SEARCHES = ("auto", "exact", "descent", "ivf", "faiss", "matmul")
Search = Union[str, DescentSettings, IVFSettings]  # noqa: UP007 - an alias, evaluated on 3.10
KINDS: dict[str, Any] = {"descent": DescentSettings, "ivf": IVFSettings}

# From so many rows on "auto" walks the links for stored documents, and looks for the others in
# inverted lists: see examples/benchmarks/search.py.
DESCENT_ROWS = 32_768
AUTO_ROWS = 200_000
# Two rows at one distance are as good as each other, up to rounding.
_TIE = 1e-5
_CHUNK = 1024


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


def _settings_of(search: Search) -> Search:
    return KINDS[search]() if search in KINDS else search


def cells_for(search: Search, capacity: int, dim: int) -> Cells | None:
    """Room for the cells of inverted lists that a bank may come to use; None if it never will."""
    settings = _settings_of(search)
    if isinstance(settings, IVFSettings):
        return Cells(capacity, dim, settings.cells or suitable_cells(capacity))
    if isinstance(settings, DescentSettings) or settings == "auto":
        return Cells(capacity, dim, suitable_cells(capacity)) if capacity >= AUTO_ROWS else None
    return None


def row_search(search: Search, links: LinkTable, cells: Cells | None) -> RowSearch:
    """The search that a bank's setting names; checked before by `check_search`."""
    settings = _settings_of(search)
    if isinstance(settings, IVFSettings):
        return IVFSearch(settings, cells or Cells(0, 1, 1))
    if isinstance(settings, DescentSettings) or settings == "auto":
        least = DESCENT_ROWS if settings == "auto" else 0
        known = settings if isinstance(settings, DescentSettings) else DescentSettings()
        # Documents that are not stored are searched exactly, or from so many rows on in lists.
        rest = ExactSearch() if cells is None else IVFSearch(IVFSettings(), cells, AUTO_ROWS)
        return DescentSearch(known, links, rest, least)
    return ExactSearch(settings)


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
        exact = ExactSearch().others(queries, rows, size, position, k).squared_distances
        found = searcher.others(queries, rows, size, position, k).squared_distances
        hits += int(near_enough(found, exact).sum())
    return hits / (draw.numel() * k)


def near_enough(found: Tensor, exact: Tensor) -> Tensor:
    """Which squared distances (B, k) are no larger than the last of the exact ones (B, k)."""
    return found <= exact[:, -1:] * (1 + _TIE) + _TIE * _TIE
