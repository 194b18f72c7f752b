"""Which search a bank's setting names, and what `"auto"` takes."""

from __future__ import annotations

from torch import Tensor

from gloss_graph.neighbors.approximate import HNSWSearch, IVFSearch
from gloss_graph.neighbors.cells import Cells, suitable_cells
from gloss_graph.neighbors.exact import Nearest
from gloss_graph.neighbors.graph_walk import DescentSearch
from gloss_graph.neighbors.lists import LinkTable
from gloss_graph.neighbors.quantized import Rows
from gloss_graph.neighbors.settings import (
    KINDS,
    DescentSettings,
    ExactSearch,
    HNSWSettings,
    IVFSettings,
    RowSearch,
    Search,
)

# From so many rows on "auto" walks the links for stored documents, and looks for the others in
# inverted lists: see examples/benchmarks/search.py.
DESCENT_ROWS = 32_768
AUTO_ROWS = 200_000


class AutoSearch(RowSearch):
    """Exact while it is as fast, inverted lists from 200,000 rows on (CPU only).

    Args:
        cells: Of a bank that can hold so many rows.
    """

    def __init__(self, cells: Cells | None) -> None:
        self.exact = ExactSearch("auto")
        self.ivf = None if cells is None else IVFSearch(IVFSettings(), cells)

    def _now(self, rows: Rows, size: int) -> RowSearch:
        if self.ivf is not None and size >= AUTO_ROWS and rows.device.type == "cpu":
            return self.ivf
        return self.exact

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`."""
        return self._now(rows, size).allowed(queries, rows, size, k, banned)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        return self._now(rows, size).others(queries, rows, size, own, k)

    def wrote(self, rows: Rows, size: int, slots: Tensor, version: int) -> None:
        """See `RowSearch`."""
        self._now(rows, size).wrote(rows, size, slots, version)


def cells_for(search: Search, capacity: int, dim: int) -> Cells | None:
    """Room for the cells of the inverted lists a bank may come to search in; None if never."""
    settings = KINDS[search]() if search in KINDS else search
    if isinstance(settings, IVFSettings):
        return Cells(capacity, dim, settings.cells or suitable_cells(capacity))
    if isinstance(settings, DescentSettings) or settings == "auto":
        return Cells(capacity, dim, suitable_cells(capacity)) if capacity >= AUTO_ROWS else None
    return None


def row_search(search: Search, links: LinkTable, cells: Cells | None) -> RowSearch:
    """The search a bank's setting names; checked before by `check_search`.

    Args:
        search: The setting.
        links: The lists of the bank.
        cells: What `cells_for` gave.
    """
    settings = KINDS[search]() if search in KINDS else search
    if isinstance(settings, HNSWSettings):
        return HNSWSearch(settings)
    if isinstance(settings, IVFSettings):
        return IVFSearch(settings, cells or Cells(0, 1, 1))
    if isinstance(settings, DescentSettings):
        return DescentSearch(settings, links, AutoSearch(cells))
    if settings == "auto":
        return DescentSearch(DescentSettings(), links, AutoSearch(cells), DESCENT_ROWS)
    return ExactSearch(settings)


def thorough(searcher: RowSearch) -> RowSearch:
    """The search that needs no links, to make them with."""
    return searcher.fallback if isinstance(searcher, DescentSearch) else searcher


def retuned(searcher: RowSearch, wanted: RowSearch) -> bool:
    """Whether `searcher` could take the settings of `wanted` over and keep its index."""
    if isinstance(searcher, IVFSearch) and isinstance(wanted, IVFSearch):
        old, new = searcher.settings, wanted.settings
        if (old.cells, old.seed) == (new.cells, new.seed):
            searcher.settings = new
            return True
    if isinstance(searcher, HNSWSearch) and isinstance(wanted, HNSWSearch):
        before, after = searcher.settings, wanted.settings
        if (before.m, before.ef_build) == (after.m, after.ef_build):
            searcher.settings = after
            return True
    return False
