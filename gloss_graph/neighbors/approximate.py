"""Approximate search that follows the writes of a bank: inverted lists and a small-world graph.

Both keep rows in 8 bits an entry (4 where the bank itself keeps few), fetch a few candidates more
than asked for, and recompute the distances of these in torch on the bank's own rows. So what is
returned has true distances and is in true order; only a neighbour may be missing.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as _faiss
import numpy as np
import torch
from torch import Tensor

from gloss_graph.neighbors.cells import Cells, suitable_cells
from gloss_graph.neighbors.exact import Nearest, faiss_blas_path, squared_distances, without_own
from gloss_graph.neighbors.quantized import Rows, Searched, TurnedRows, asked, searched, version_of
from gloss_graph.neighbors.settings import ExactSearch, HNSWSettings, IVFSettings, RowSearch, take

# Its type stubs know neither keyword arguments nor all classes.
faiss: Any = _faiss

_MIN_ROWS = 4096
# FAISS calls fewer points a cell too few to find its centre.
_ROWS_PER_CELL = 39
_TRAIN_ROWS_PER_CELL = 64
_TRAIN_ROUNDS = 10
_GROWTH = 4
_TILE_ROWS = 16_384
_QUERIES = 1024


def _kind(rows: Searched) -> int:
    """Of an index's own copy: rows of few bits hold no more than four an entry."""
    few = isinstance(rows, TurnedRows)
    kinds = faiss.ScalarQuantizer
    return int(kinds.QT_4bit if few else kinds.QT_8bit)


class ApproximateSearch(RowSearch, ABC):
    """A FAISS index over a bank's rows, filled at the first search and kept in step with them.

    Writes that `wrote` tells of are carried over at the next search; any other change of the
    buffer (loading, moving, in-place arithmetic) is noticed by its version.

    Args:
        fallback: Exact search for as long as there are too few rows.
    """

    def __init__(self) -> None:
        self.fallback = ExactSearch("auto")
        self._buffer: weakref.ref[Searched] | None = None
        self._version = 0
        self.forget()

    def forget(self) -> None:
        """Drop the index; the next search fills it."""
        self._index: Any = None
        self._size = 0
        self._pending: list[Tensor] = []

    def wrote(self, rows: Rows, size: int, slots: Tensor, version: int) -> None:
        """See `RowSearch`."""
        known = searched(rows)
        self._look_at(known, version)
        if self._index is not None:
            self._pending.append(slots.cpu())
        if size >= self._fewest(known.size(0)):
            self._sort_in(known, size, slots)
        self._version = version_of(known)

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`; fewer than k rows may be found where more are allowed."""
        known = searched(rows)
        if not self._ready(known, size):
            return self.fallback.allowed(queries, rows, size, k, banned)
        x = asked(queries, rows)
        squared = x.new_full((x.size(0), k), torch.inf)
        index = torch.full((x.size(0), k), -1, dtype=torch.long, device=x.device)
        wanted = min(k, size - banned.numel())
        if wanted <= 0:
            return Nearest(squared, index)
        fetched = min(k + max(8, k // 2), size)
        live = np.ones(size, dtype=bool)
        live[banned.cpu().numpy()] = False
        for first in range(0, x.size(0), _QUERIES):
            part = slice(first, first + _QUERIES)
            with faiss_blas_path():
                hits, tied = self._find(take(x, part).numpy(), fetched, live, wanted)
            # In the order of slots, so that rows at one distance come in that order.
            found = torch.from_numpy(hits).to(x.device).sort(dim=1).values
            distance = squared_distances(x[part], known, found.clamp(min=0))
            distance = distance.masked_fill(found < 0, torch.inf)
            distance, order = distance.sort(dim=1, stable=True)
            squared[part, :wanted] = distance[:, :wanted]
            index[part, :wanted] = found.gather(1, order)[:, :wanted]
            if tied.any():
                again = first + torch.from_numpy(tied.nonzero()[0]).to(x.device)
                exact = self.fallback.allowed(queries[again], rows, size, k, banned)
                squared[again], index[again] = exact.squared_distances, exact.indices
        return Nearest(squared, index)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        if not self._ready(searched(rows), size):
            return self.fallback.others(queries, rows, size, own, k)
        k = min(k, size - 1)
        found = self.allowed(queries, rows, size, k + 1, own[:0])
        return without_own(found, own)

    # ------------------------------------------------------------------ upkeep

    def _look_at(self, rows: Searched, version: int) -> None:
        """Drop what belongs to another buffer, or to this one before someone changed it."""
        same = self._buffer is not None and self._buffer() is rows
        if same and self._version != version:
            self._changed()
        if not same or self._version != version:
            self.forget()
        self._buffer, self._version = weakref.ref(rows), version

    def _ready(self, rows: Searched, size: int) -> bool:
        """Bring the index up to date; False where rows are too few for one."""
        if size < self._fewest(rows.size(0)):
            self.forget()
            return False
        self._look_at(rows, version_of(rows))
        if self._index is None or (self._pending and not self._carry_over(rows, size)):
            # The old index goes first: two of them may not fit.
            self.forget()
            with faiss_blas_path():
                self._index = self._filled(rows, size)
            self._size = size
        return True

    def _carry_over(self, rows: Searched, size: int) -> bool:
        """Pass pending writes on; False where the index must be filled again instead."""
        slots = torch.cat(self._pending).unique()
        self._pending = []
        old, new = slots[slots < self._size], slots[slots >= self._size]
        gap = new.tolist() != list(range(self._size, size))
        if self._due(old.numel(), size) or gap or 2 * slots.numel() > size:
            return False
        with faiss_blas_path():
            for part in old.split(_TILE_ROWS):
                if part.numel() and not self._overwrite(part.numpy(), take(rows, part).numpy()):
                    return False
            for part in new.split(_TILE_ROWS):
                if part.numel():
                    self._append(part.numpy(), take(rows, part).numpy())
        self._size = size
        return True

    def _changed(self) -> None:
        """The rows were changed by something other than a write of the bank."""

    def _sort_in(self, rows: Searched, size: int, slots: Tensor) -> None:
        """Bring what is part of the bank's state up to date with rows written into `slots`."""

    @abstractmethod
    def _fewest(self, capacity: int) -> int:
        """Rows from which on the index is used."""

    @abstractmethod
    def _filled(self, rows: Searched, size: int) -> Any:
        """An index of the first `size` rows."""

    @abstractmethod
    def _due(self, overwritten: int, size: int) -> bool:
        """Whether the index must be filled again, with so many more rows overwritten."""

    @abstractmethod
    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> bool:
        """Rows `slots` (n,) are `x` (n, D) now; False where the index cannot follow."""

    @abstractmethod
    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        """New rows `x` (n, D), whose `slots` (n,) follow the last ones."""

    @abstractmethod
    def _find(
        self, queries: np.ndarray, k: int, live: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slots near the queries, and which queries must be answered exactly.

        Slots (B, k) are among those `live` (size,) bool, -1 where none; (B,) bool.
        """


class IVFSearch(ApproximateSearch):
    """Inverted lists of 8-bit rows; a row that is overwritten moves to the list of its new cell.

    What is found depends on the rows and on `cells` alone, which are part of the bank's state, and
    not on how the lists came about: so a restored bank finds the same.

    Args:
        settings: See `IVFSettings`.
        cells: Of the bank; written when rows are, or at the first search.
    """

    def __init__(self, settings: IVFSettings, cells: Cells) -> None:
        self.settings, self.cells = settings, cells
        super().__init__()

    def forget(self) -> None:
        """See `ApproximateSearch`."""
        super().forget()
        self._centers: Any = None

    def _fewest(self, capacity: int) -> int:
        cells = self.settings.cells
        return _MIN_ROWS if cells is None else max(1, min(_ROWS_PER_CELL * cells, capacity))

    def _changed(self) -> None:
        self.cells.reset()

    def _sort_in(self, rows: Searched, size: int, slots: Tensor) -> None:
        cells = self.cells
        cells.overwritten += (cells.cell_of[slots] >= 0).sum()
        grown = self.settings.cells is None and size >= _GROWTH * int(cells.found_at)
        stale = int(cells.overwritten) > self.settings.retrain_every * size
        with faiss_blas_path():
            if int(cells.count) == 0 or grown or stale:
                self.forget()
                self._build(rows, size)
            else:
                self._assign(rows, slots)

    def _empty(self, rows: Searched, cells: int) -> Any:
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatL2(rows.size(1)),
            rows.size(1),
            cells,
            _kind(rows),
            faiss.METRIC_L2,
            False,
        )
        return index

    def _build(self, rows: Searched, size: int) -> None:
        """Find cells for the first `size` rows."""
        count = self.settings.cells or suitable_cells(size)
        index = self._empty(rows, count)
        index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = (
            self.settings.seed,
            _TRAIN_ROUNDS,
            1,
        )
        draw = torch.Generator().manual_seed(self.settings.seed)
        sample = torch.randperm(size, generator=draw)[: _TRAIN_ROWS_PER_CELL * count]
        index.train(take(rows, sample.sort().values.to(rows.device)).numpy())
        centers = faiss.downcast_index(index.quantizer).reconstruct_n(0, count)
        self.cells.replace(
            torch.from_numpy(centers),
            torch.from_numpy(faiss.vector_to_array(index.sq.trained)).view(2, -1),
            size,
        )
        self._assign(rows, torch.arange(size, device=rows.device))

    def _nearest_centers(self, x: np.ndarray) -> np.ndarray:
        """The cell (n,) of rows (n, D)."""
        if self._centers is None:
            self._centers = faiss.IndexFlatL2(x.shape[1])
            self._centers.add(take(self.cells.centers, slice(int(self.cells.count))).numpy())
        cell: np.ndarray = self._centers.assign(x, 1).ravel()
        return cell

    def _assign(self, rows: Searched, slots: Tensor) -> None:
        for part in slots.split(_TILE_ROWS):
            if part.numel():
                cell = torch.from_numpy(self._nearest_centers(take(rows, part).numpy()))
                self.cells.cell_of[part] = cell.to(self.cells.cell_of)

    def _filled(self, rows: Searched, size: int) -> Any:
        cells = self.cells
        if int(cells.count) == 0:
            self._build(rows, size)
        index = self._empty(rows, int(cells.count))
        centers = take(cells.centers, slice(int(cells.count))).numpy()
        index.quantizer.add(centers)
        faiss.copy_array_to_vector(
            take(cells.ranges, slice(None)).numpy().ravel(), index.sq.trained
        )
        index.is_trained = True
        cell = cells.cell_of[:size].cpu().numpy().astype(np.int64)
        # Lists that grow by themselves take up to twice the memory.
        for number, count in enumerate(np.bincount(cell, minlength=index.nlist).tolist()):
            index.invlists.resize(number, count)
            index.invlists.resize(number, 0)
        for start in range(0, size, _TILE_ROWS):
            x = take(rows, slice(start, min(start + _TILE_ROWS, size))).numpy()
            own = cell[start : start + _TILE_ROWS]
            index.add_core(len(x), faiss.swig_ptr(x), None, faiss.swig_ptr(own))
        index.set_direct_map_type(faiss.DirectMap.Array)
        return index

    def _due(self, overwritten: int, size: int) -> bool:
        return False

    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> bool:
        # Among other rows than when it was written one between two cells may fall to the other.
        cell = self.cells.cell_of[torch.from_numpy(slots)].cpu().numpy()
        if not np.array_equal(self._nearest_centers(x), cell):
            return False
        self._index.update_vectors(slots, x)
        return True

    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        cell = self.cells.cell_of[torch.from_numpy(slots)].cpu().numpy().astype(np.int64)
        self._index.add_core(len(x), faiss.swig_ptr(x), None, faiss.swig_ptr(cell))

    def _find(
        self, queries: np.ndarray, k: int, live: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        bits = np.packbits(live, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        settings = faiss.SearchParametersIVF(
            nprobe=min(self.settings.probes, self._index.nlist), sel=selector
        )
        distance, slots = self._index.search(queries, k, params=settings)
        # Of rows as far as the last one others may have been left out, by their place in a list.
        cut = (slots[:, -1:] >= 0) & (distance == distance[:, -1:])
        slots[cut] = -1
        return slots, cut.any(axis=1) & ((slots >= 0).sum(axis=1) < wanted)


class HNSWSearch(ApproximateSearch):
    """A small-world graph of 8-bit rows; overwritten ones stay as waypoints until a rebuild.

    The graph depends on all rows there were, so a copy or a restored bank has another one.

    Args:
        settings: See `HNSWSettings`.
    """

    def __init__(self, settings: HNSWSettings) -> None:
        self.settings = settings
        super().__init__()

    def _fewest(self, capacity: int) -> int:
        return _MIN_ROWS

    def _filled(self, rows: Searched, size: int) -> Any:
        index = faiss.IndexHNSWSQ(rows.size(1), _kind(rows), self.settings.m)
        index.hnsw.efConstruction = self.settings.ef_build
        draw = torch.Generator().manual_seed(0)
        sample = torch.randperm(size, generator=draw)[:_TILE_ROWS]
        index.train(take(rows, sample.sort().values.to(rows.device)).numpy())
        with self._building():
            for start in range(0, size, _TILE_ROWS):
                index.add(take(rows, slice(start, min(start + _TILE_ROWS, size))).numpy())
        # Node -> slot, -1 for one that was overwritten, and slot -> node.
        self._slot = np.arange(size)
        self._node = np.arange(size)
        self._overwritten = 0
        return index

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Threads race for the links of a node, so a repeatable graph takes one."""
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.settings.threads or before)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(before)

    def _due(self, overwritten: int, size: int) -> bool:
        self._overwritten += overwritten
        return self._overwritten > self.settings.rebuild * (size + self._overwritten)

    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> bool:
        self._slot[self._node[slots]] = -1
        self._node[slots] = len(self._slot) + np.arange(len(slots))
        self._slot = np.concatenate([self._slot, slots])
        with self._building():
            self._index.add(x)
        return True

    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        self._node = np.concatenate([self._node, len(self._slot) + np.arange(len(slots))])
        self._slot = np.concatenate([self._slot, slots])
        with self._building():
            self._index.add(x)

    def _find(
        self, queries: np.ndarray, k: int, live: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        alive = np.zeros(len(self._slot), dtype=bool)
        alive[self._node] = live
        bits = np.packbits(alive, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        settings = faiss.SearchParametersHNSW(efSearch=max(self.settings.ef, k), sel=selector)
        nodes = self._index.search(queries, k, params=settings)[1]
        slots = np.where(nodes < 0, -1, self._slot[nodes.clip(min=0)])
        return slots, np.zeros(len(queries), dtype=bool)
