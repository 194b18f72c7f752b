"""Which search a bank's setting names, and what `"auto"` takes."""

from __future__ import annotations

from torch import Tensor

from gloss_graph.memory.approximate import HNSWSearch, IVFSearch
from gloss_graph.memory.descent import DescentSearch
from gloss_graph.memory.indexes import (
    KINDS,
    DescentSettings,
    ExactSearch,
    HNSWSettings,
    IVFSettings,
    RowSearch,
    Search,
)
from gloss_graph.memory.links import LinkTable
from gloss_graph.memory.quantized import Rows
from gloss_graph.memory.search import Nearest

# From so many rows on "auto" walks the links for stored documents, and looks for the others in
# inverted lists: see examples/benchmarks/search.py.
DESCENT_ROWS = 32_768
AUTO_ROWS = 200_000


class AutoSearch(RowSearch):
    """Exact while it is as fast, inverted lists from 200,000 rows on (CPU only)."""

    def __init__(self) -> None:
        self.exact = ExactSearch("auto")
        self.ivf = IVFSearch(IVFSettings())

    def _now(self, rows: Rows, size: int) -> ExactSearch | IVFSearch:
        return self.ivf if size >= AUTO_ROWS and rows.device.type == "cpu" else self.exact

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`."""
        return self._now(rows, size).allowed(queries, rows, size, k, banned)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        return self._now(rows, size).others(queries, rows, size, own, k)

    def wrote(self, rows: Rows, slots: Tensor, version: int) -> None:
        """See `RowSearch`."""
        self.ivf.wrote(rows, slots, version)


def row_search(search: Search, links: LinkTable) -> RowSearch:
    """The search a bank's setting names, over its lists; checked before by `check_search`."""
    settings = KINDS[search]() if search in KINDS else search
    if isinstance(settings, HNSWSettings):
        return HNSWSearch(settings)
    if isinstance(settings, IVFSettings):
        return IVFSearch(settings)
    if isinstance(settings, DescentSettings):
        return DescentSearch(settings, links, AutoSearch())
    if settings == "auto":
        return DescentSearch(DescentSettings(), links, AutoSearch(), DESCENT_ROWS)
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
