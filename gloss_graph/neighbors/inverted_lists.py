"""Inverted lists (IVF): an approximate search that follows the writes of a bank.

Rows are grouped into cells and a query looks into the nearest cells only. The lists keep rows in 8
bits per entry, fetch a few more candidates than requested and recompute their distances in torch
on the original rows. So what is returned has true distances in true order; only a neighbor may be
missing.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np
import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph.neighbors.exact import (
    ExactSearch,
    Nearest,
    RowSearch,
    faiss_blas_path,
    none_found,
    squared_distances,
    version_of,
)

# Its type stubs know neither keyword arguments nor all classes.
faiss: Any = _faiss

_MIN_ROWS = 4096
# FAISS calls fewer points per cell too few to find its center.
_ROWS_PER_CELL = 39
_TRAIN_ROWS_PER_CELL = 64
_TRAIN_ROUNDS = 10
_GROWTH = 4
_TILE_ROWS = 16_384
_QUERIES = 1024


@dataclass(frozen=True, kw_only=True)
class IVFSettings:
    """Inverted lists: rows are grouped into cells, a query looks into the nearest ones only.

    Below 39 rows per cell (4,096 rows if `cells` is None) the bank searches exactly. Measure the
    recall with `MemoryBank.recall` and raise `probes` until it is enough.

    Attributes:
        cells: Number of cells; None = about the square root of the rows, adapted as the bank grows.
        probes: Cells that a query looks into, at most `cells`.
        retrain_every: Share of the bank that is overwritten before cells are trained again.
        seed: Seed of the cells.
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


def suitable_cells(rows: int) -> int:
    """About the square root of the rows; a power of two, so that it seldom changes."""
    return 1 << round(0.5 * math.log2(max(1, rows)))


class Cells(nn.Module):
    """The cells of inverted lists, and the cell each row was assigned to when it was written.

    Cells are trained on the rows of one moment and stay while rows change, so they are part of the
    bank's state: a restored bank searches bit for bit as the one that was saved.
    """

    centers: Tensor
    ranges: Tensor
    cell_of: Tensor
    count: Tensor
    found_at: Tensor
    overwritten: Tensor

    def __init__(self, capacity: int, dim: int, most: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(most, dim))
        # Least value and width of every dimension, by which the lists round their rows.
        self.register_buffer("ranges", torch.zeros(2, dim))
        self.register_buffer("cell_of", torch.full((capacity,), -1, dtype=torch.int32))
        # Number of cells; 0 = none yet.
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        # Rows when the cells were trained, and how many were overwritten since.
        self.register_buffer("found_at", torch.zeros((), dtype=torch.long))
        self.register_buffer("overwritten", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget all cells."""
        self.cell_of.fill_(-1)
        for buffer in (self.centers, self.ranges, self.count, self.found_at, self.overwritten):
            buffer.zero_()

    def known_centers(self) -> np.ndarray:
        """The centers (c, D) of all cells."""
        return _take(self.centers, slice(int(self.count))).numpy()

    def replace(self, centers: Tensor, ranges: Tensor, rows: int) -> None:
        """Take other cells: centers (c, D) and ranges (2, D), trained on so many rows."""
        self.reset()
        self.centers[: centers.size(0)] = centers.to(self.centers)
        self.ranges.copy_(ranges)
        self.count.fill_(centers.size(0))
        self.found_at.fill_(rows)


class IVFSearch(RowSearch):
    """A FAISS index of inverted lists over a buffer of rows, filled at the first search.

    Writes reported by `wrote` are carried over at the next search; any other change of the buffer
    is noticed by its version and drops the index. What is found depends only on the rows and on
    `cells`, not on how the lists came about. With `least`, fewer rows are searched exactly, and so
    are rows that are not on the CPU.
    """

    def __init__(self, settings: IVFSettings, cells: Cells, least: int = 0) -> None:
        self.settings, self.cells, self.least = settings, cells, least
        self.fallback = ExactSearch()
        self._buffer: weakref.ref[Tensor] | None = None
        self._version = 0
        self._drop_index()

    @property
    def indexed(self) -> int:
        """Number of rows in the index; 0 if there is none at present."""
        return 0 if self._index is None else int(self._index.ntotal)

    def _drop_index(self) -> None:
        self._index: Any = None
        self._centers: Any = None
        self._pending: list[Tensor] = []

    def allowed(self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`; fewer than k rows may be found where more are allowed."""
        if not self._ready(rows, size):
            return self.fallback.allowed(queries, rows, size, k, banned)
        squared, index = none_found(queries, k)
        wanted = min(k, size - banned.numel())
        if wanted <= 0 or queries.size(0) == 0:
            return Nearest(squared, index)
        fetched = min(k + max(8, k // 2), size)
        live = np.ones(size, dtype=bool)
        live[banned.cpu().numpy()] = False
        selector = faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))
        probes = min(self.settings.probes, self._index.nlist)
        settings = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        for part in torch.arange(queries.size(0), device=queries.device).split(_QUERIES):
            with faiss_blas_path():
                x = _take(queries, part).numpy()
                scores, slots = self._index.search(x, fetched, params=settings)
            # Of rows as far as the last one others may have been left out, by their place in a
            # list. Where too few remain, the query is answered exactly.
            cut = (slots[:, -1:] >= 0) & (scores == scores[:, -1:])
            slots[cut] = -1
            tied = cut.any(axis=1) & ((slots >= 0).sum(axis=1) < wanted)
            # Sorted by slot, so that rows at one distance come in that order.
            found = torch.from_numpy(slots).to(queries.device).sort(dim=1).values
            distance = squared_distances(queries[part], rows, found.clamp(min=0))
            distance, order = distance.masked_fill(found < 0, torch.inf).sort(dim=1, stable=True)
            squared[part, :wanted] = distance[:, :wanted]
            index[part, :wanted] = found.gather(1, order)[:, :wanted]
            if tied.any():
                again = part[torch.from_numpy(tied).to(part.device)]
                exact = self.fallback.allowed(queries[again], rows, size, k, banned)
                squared[again], index[again] = exact
        return Nearest(squared, index)

    def wrote(self, rows: Tensor, size: int, slots: Tensor, version: int) -> None:
        """See `RowSearch`."""
        self._look_at(rows, version)
        if self._index is not None:
            self._pending.append(slots.cpu())
        if self._pays(rows, size):
            cells = self.cells
            cells.overwritten += (cells.cell_of[slots] >= 0).sum()
            grown = self.settings.cells is None and size >= _GROWTH * int(cells.found_at)
            stale = int(cells.overwritten) > self.settings.retrain_every * size
            with faiss_blas_path():
                if int(cells.count) == 0 or grown or stale:
                    self._drop_index()
                    self._train(rows, size)
                else:
                    self._assign(rows, slots)
        self._version = version_of(rows)

    def take_settings(self, other: RowSearch) -> bool:
        """See `RowSearch`: only `probes` and `retrain_every` leave the index as it is."""
        if not isinstance(other, IVFSearch):
            return False
        old, new = self.settings, other.settings
        if (old.cells, old.seed) != (new.cells, new.seed):
            return False
        self.settings = new
        return True

    def _pays(self, rows: Tensor, size: int) -> bool:
        """Whether there are rows enough for an index."""
        if self.least and (size < self.least or rows.device.type != "cpu"):
            return False
        cells, capacity = self.settings.cells, rows.size(0)
        fewest = _MIN_ROWS if cells is None else max(1, min(_ROWS_PER_CELL * cells, capacity))
        return size >= fewest

    def _look_at(self, rows: Tensor, version: int) -> None:
        """Drop what belongs to another buffer, or to this one before someone else changed it."""
        same = self._buffer is not None and self._buffer() is rows
        if same and self._version != version:
            self.cells.reset()
        if not same or self._version != version:
            self._drop_index()
        self._buffer, self._version = weakref.ref(rows), version

    def _ready(self, rows: Tensor, size: int) -> bool:
        """Bring the index up to date; False if there are too few rows for one."""
        if not self._pays(rows, size):
            self._drop_index()
            return False
        self._look_at(rows, version_of(rows))
        with faiss_blas_path():
            if self._index is None or (self._pending and not self._carry_over(rows, size)):
                # The old index goes first: two of them may not fit.
                self._drop_index()
                self._index = self._filled(rows, size)
        return True

    def _carry_over(self, rows: Tensor, size: int) -> bool:
        """Pass pending writes on; False if the index must be filled again instead."""
        slots = torch.cat(self._pending).unique()
        self._pending = []
        before = self.indexed
        old, new = slots[slots < before], slots[slots >= before]
        gap = new.tolist() != list(range(before, size))
        if gap or 2 * slots.numel() > size:
            return False
        for part in old.split(_TILE_ROWS) if old.numel() else ():
            x = _take(rows, part).numpy()
            # In another batch of rows one between two cells may fall to the other.
            if not np.array_equal(self._nearest_centers(x), self._cells_of(part)):
                return False
            self._index.update_vectors(part.numpy(), x)
        self._append(self._index, rows, new)
        return True

    def _cells_of(self, slots: Tensor) -> np.ndarray:
        cells: np.ndarray = self.cells.cell_of[slots].cpu().numpy().astype(np.int64)
        return cells

    def _append(self, index: Any, rows: Tensor, slots: Tensor) -> None:
        """Add the rows `slots` (n,), which follow the last ones, to an index."""
        for part in slots.split(_TILE_ROWS) if slots.numel() else ():
            x, cell = _take(rows, part).numpy(), self._cells_of(part)
            index.add_core(len(x), faiss.swig_ptr(x), None, faiss.swig_ptr(cell))

    def _train(self, rows: Tensor, size: int) -> None:
        """Find cells for the first `size` rows."""
        count = self.settings.cells or suitable_cells(size)
        index = _empty_index(rows, count)
        index.cp.seed, index.cp.niter = self.settings.seed, _TRAIN_ROUNDS
        index.cp.min_points_per_centroid = 1
        draw = torch.Generator().manual_seed(self.settings.seed)
        sample = torch.randperm(size, generator=draw)[: _TRAIN_ROWS_PER_CELL * count]
        index.train(_take(rows, sample.sort().values.to(rows.device)).numpy())
        centers = faiss.downcast_index(index.quantizer).reconstruct_n(0, count)
        ranges = faiss.vector_to_array(index.sq.trained)
        self.cells.replace(torch.from_numpy(centers), torch.from_numpy(ranges).view(2, -1), size)
        self._assign(rows, torch.arange(size, device=rows.device))

    def _nearest_centers(self, x: np.ndarray) -> np.ndarray:
        """The cell (n,) of rows (n, D)."""
        if self._centers is None:
            self._centers = faiss.IndexFlatL2(x.shape[1])
            self._centers.add(self.cells.known_centers())
        cell: np.ndarray = self._centers.assign(x, 1).ravel()
        return cell

    def _assign(self, rows: Tensor, slots: Tensor) -> None:
        """Write down the cells of the rows `slots` (n,)."""
        for part in slots.split(_TILE_ROWS) if slots.numel() else ():
            cell = torch.from_numpy(self._nearest_centers(_take(rows, part).numpy()))
            self.cells.cell_of[part] = cell.to(self.cells.cell_of)

    def _filled(self, rows: Tensor, size: int) -> Any:
        """An index of the first `size` rows."""
        if int(self.cells.count) == 0:
            self._train(rows, size)
        index = _empty_index(rows, int(self.cells.count))
        index.quantizer.add(self.cells.known_centers())
        ranges = _take(self.cells.ranges, slice(None)).numpy().ravel()
        faiss.copy_array_to_vector(ranges, index.sq.trained)
        index.is_trained = True
        slots = torch.arange(size, device=rows.device)
        # Lists that grow by themselves take up to twice the memory.
        counts = np.bincount(self._cells_of(slots), minlength=index.nlist)
        for number, count in enumerate(counts.tolist()):
            index.invlists.resize(number, count)
            index.invlists.resize(number, 0)
        self._append(index, rows, slots)
        index.set_direct_map_type(faiss.DirectMap.Array)
        return index


def _empty_index(rows: Tensor, cells: int) -> Any:
    kind, dim = faiss.ScalarQuantizer.QT_8bit, rows.size(1)
    return faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(dim), dim, cells, kind, faiss.METRIC_L2, False
    )


def _take(rows: Tensor, index: Tensor | slice) -> Tensor:
    """Some rows as float32 on the CPU, as FAISS reads them."""
    return rows[index].to(device="cpu", dtype=torch.float32).contiguous()
