"""What a bank searches with: the names and settings of `MemoryBank(search=...)`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Union

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph.neighbors.exact import Nearest, nearest_allowed, nearest_others
from gloss_graph.neighbors.quantized import Rows, Searched, asked, searched

SEARCHES = ("auto", "exact", "descent", "ivf", "hnsw", "faiss", "matmul")


@dataclass(frozen=True, kw_only=True)
class IVFSettings:
    """Inverted lists: rows are grouped into cells, a query looks into the nearest ones only.

    Recall depends on the data: measure it with `MemoryBank.recall`, raise `probes` until it is
    enough. Below 39 rows a cell (4,096 rows where `cells` is None) the bank searches exactly.

    Attributes:
        cells: Cells; None = about the square root of the rows, adapted as the bank grows.
        probes: Cells a query looks into, at most `cells`.
        retrain_every: Cells are found anew after this share of the bank was overwritten, as the
            rows drift away from the cells they were sorted into.
        seed: Of the cells.
    """

    cells: int | None = None
    probes: int = 32
    retrain_every: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cells is not None:
            check_positive_int("cells", self.cells)
        check_positive_int("probes", self.probes)
        check_range("retrain_every", self.retrain_every, 0, math.inf, open_low=True, open_high=True)
        check_positive_int("seed", self.seed, minimum=0)


@dataclass(frozen=True, kw_only=True)
class HNSWSettings:
    """A navigable small-world graph over the rows (Malkov & Yashunin, 2016, arXiv 1603.09320).

    Nodes cannot be taken out: overwritten rows stay as waypoints until the graph is rebuilt.
    Building is slow, 1 to 3 ms a row on one thread, so IVF suits banks that are rewritten.
    Below 4,096 rows the bank searches exactly. The graph depends on all rows there ever were and is
    no part of the state of the bank: a restored or copied bank builds another, and where that finds
    other neighbors training does not go on bit for bit, as it does with every other search.

    Attributes:
        m: Links a node.
        ef: Candidates a search keeps; more = better recall, slower.
        ef_build: The same while building.
        rebuild: The graph is rebuilt when more than this share of its nodes is overwritten.
        threads: Of building. More than one is faster, and results then differ from run to run;
            None = FAISS's own setting.
    """

    m: int = 32
    ef: int = 64
    ef_build: int = 80
    rebuild: float = 0.3
    threads: int | None = 1

    def __post_init__(self) -> None:
        check_positive_int("m", self.m, minimum=2)
        check_positive_int("ef", self.ef)
        check_positive_int("ef_build", self.ef_build)
        check_range("rebuild", self.rebuild, 0, 1, open_low=True, open_high=True)
        if self.threads is not None:
            check_positive_int("threads", self.threads)


@dataclass(frozen=True, kw_only=True)
class DescentSettings:
    """Walks over the bank's own links, for documents that come back (Dong et al., 2011).

    A stored document looks among the neighbours of its old neighbours, at a cost that does not
    depend on the bank's size; one that is not stored is searched as by `"auto"` below.

    Attributes:
        width: Best candidates whose neighbours are looked at, at least k.
        rounds: How often; further rounds look around what the last one found.
        reach: Neighbours looked at of one candidate: some have thousands.
    """

    width: int = 16
    rounds: int = 1
    reach: int = 64

    def __post_init__(self) -> None:
        check_positive_int("width", self.width)
        check_positive_int("rounds", self.rounds)
        check_positive_int("reach", self.reach)


Search = Union[str, DescentSettings, IVFSettings, HNSWSettings]  # noqa: UP007 - an alias, evaluated on 3.10

KINDS: dict[str, Any] = {"descent": DescentSettings, "ivf": IVFSettings, "hnsw": HNSWSettings}


class RowSearch(Protocol):
    """Nearest rows among the first `size` of the buffer `rows` (capacity, D) of a bank.

    What it holds is derived from the bank's state: it may be thrown away at any time, and is by
    pickle, deepcopy and loading.
    """

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """The k nearest rows but for `banned` (n,), padded to (B, k) with `inf` and -1."""
        ...

    def around(
        self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor, places: Tensor
    ) -> Nearest:
        """As `allowed`, for documents that lie at `places` (B,) long, -1 where not stored."""
        del places
        return self.allowed(queries, rows, size, k, banned)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """The k nearest rows of queries that are rows themselves, row `own[i]` left out."""
        ...

    def wrote(self, rows: Rows, size: int, slots: Tensor, version: int) -> None:
        """The rows `slots` were written; `version` was that of the buffer before."""


class ExactSearch(RowSearch):
    """Exact search, nothing to keep in step.

    Args:
        backend: See `nearest`.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """See `nearest_allowed`."""
        x, known = asked(queries, rows), searched(rows, size)
        return nearest_allowed(x, known, k, banned, backend=self.backend)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `nearest_others`."""
        x, known = asked(queries, rows), searched(rows, size)
        return nearest_others(x, known, own, k, backend=self.backend)

    def wrote(self, rows: Rows, size: int, slots: Tensor, version: int) -> None:
        """Nothing to do."""


def check_search(search: Any, capacity: int) -> None:
    """Raise unless `search` is a name or settings that a bank of `capacity` rows can use.

    Raises:
        TypeError: Neither.
        ValueError: An unknown name, or more cells than rows.
    """
    if isinstance(search, str):
        check_choice("search", search, SEARCHES)
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
    check_choice("search", kind, tuple(KINDS))
    settings: Search = KINDS[str(kind)](**values)
    return settings


def take(rows: Searched, index: Tensor | slice) -> Tensor:
    """Some rows as float32 on the CPU, as FAISS reads them."""
    return rows[index].to(device="cpu", dtype=torch.float32).contiguous()
