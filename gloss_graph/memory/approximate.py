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

from gloss_graph.memory.indexes import ExactSearch, HNSWSettings, IVFSettings, RowSearch, take
from gloss_graph.memory.quantized import Rows, Searched, TurnedRows, asked, searched
from gloss_graph.memory.search import Nearest, faiss_blas_path, squared_distances, without_own

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
    """A FAISS index over a bank's rows, built at the first search and kept in step with them.

    Writes that `wrote` tells of are carried over at the next search; any other change of the
    buffer (loading, moving, in-place arithmetic) is noticed by its version and has the index
    built anew.

    Args:
        fallback: Exact search for as long as there are too few rows.
    """

    def __init__(self) -> None:
        self.fallback = ExactSearch("auto")
        self.forget()

    def forget(self) -> None:
        """Drop the index; the next search builds it."""
        self._index: Any = None
        self._buffer: weakref.ref[Searched] | None = None
        self._version = self._size = self._overwritten = self._built_size = 0
        self._pending: list[Tensor] = []

    def wrote(self, rows: Rows, slots: Tensor, version: int) -> None:
        """See `RowSearch`."""
        if self._index is None:
            return
        known = searched(rows)
        if self._buffer is None or self._buffer() is not known or version != self._version:
            self.forget()
            return
        self._version = rows._version
        self._pending.append(slots.cpu())

    def allowed(self, queries: Tensor, rows: Rows, size: int, k: int, banned: Tensor) -> Nearest:
        """See `RowSearch`; fewer than k rows may be found where more are allowed."""
        known = searched(rows)
        if not self._ready(known, size):
            return self.fallback.allowed(queries, rows, size, k, banned)
        queries = asked(queries, rows)
        squared = queries.new_full((queries.size(0), k), torch.inf)
        index = torch.full((queries.size(0), k), -1, dtype=torch.long, device=queries.device)
        wanted = min(k, size - banned.numel())
        if wanted <= 0:
            return Nearest(squared, index)
        fetched = min(k + max(8, k // 2), size)
        live = np.ones(size, dtype=bool)
        live[banned.cpu().numpy()] = False
        for first in range(0, queries.size(0), _QUERIES):
            part = slice(first, first + _QUERIES)
            with faiss_blas_path():
                hits = self._find(take(queries, part).numpy(), fetched, live)
            found = torch.from_numpy(hits).to(queries.device)
            distance = squared_distances(queries[part], known, found.clamp(min=0))
            distance = distance.masked_fill(found < 0, torch.inf)
            distance, order = distance.sort(dim=1, stable=True)
            squared[part, :wanted] = distance[:, :wanted]
            index[part, :wanted] = found.gather(1, order)[:, :wanted]
        return Nearest(squared, index)

    def others(self, queries: Tensor, rows: Rows, size: int, own: Tensor, k: int) -> Nearest:
        """See `RowSearch`."""
        if not self._ready(searched(rows), size):
            return self.fallback.others(queries, rows, size, own, k)
        k = min(k, size - 1)
        found = self.allowed(queries, rows, size, k + 1, own[:0])
        return without_own(found, own)

    # ------------------------------------------------------------------ upkeep

    def _ready(self, rows: Searched, size: int) -> bool:
        """Bring the index up to date; False where rows are too few for one."""
        if size < self._fewest(rows.size(0)):
            self.forget()
            return False
        same = self._buffer is not None and self._buffer() is rows
        followed = self._index is not None and same and self._version == rows._version
        if not followed or (self._pending and not self._carry_over(rows, size)):
            self._start(rows, size)
        return True

    def _start(self, rows: Searched, size: int) -> None:
        # The old index goes first: two of them may not fit.
        self.forget()
        with faiss_blas_path():
            self._index = self._build(rows, size)
        self._buffer, self._version = weakref.ref(rows), rows._version
        self._size = self._built_size = size

    def _carry_over(self, rows: Searched, size: int) -> bool:
        """Pass pending writes on; False where building anew is due instead."""
        slots = torch.cat(self._pending).unique()
        self._pending = []
        old, new = slots[slots < self._size], slots[slots >= self._size]
        self._overwritten += old.numel()
        gap = new.tolist() != list(range(self._size, size))
        if gap or 2 * slots.numel() > size or self._due(size):
            return False
        with faiss_blas_path():
            for part in old.split(_TILE_ROWS):
                if part.numel():
                    self._overwrite(part.numpy(), take(rows, part).numpy())
            for part in new.split(_TILE_ROWS):
                if part.numel():
                    self._append(part.numpy(), take(rows, part).numpy())
        self._size = size
        return True

    @abstractmethod
    def _fewest(self, capacity: int) -> int:
        """Rows from which on the index is used."""

    @abstractmethod
    def _build(self, rows: Searched, size: int) -> Any:
        """An index of the first `size` rows."""

    @abstractmethod
    def _due(self, size: int) -> bool:
        """Whether to build anew, as the rows have changed too much."""

    @abstractmethod
    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> None:
        """Rows `slots` (n,) are `x` (n, D) now."""

    @abstractmethod
    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        """New rows `x` (n, D), whose `slots` (n,) follow the last ones."""

    @abstractmethod
    def _find(self, queries: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        """Slots (B, k) near the queries among those `live` (size,) bool, -1 where none."""


class IVFSearch(ApproximateSearch):
    """Inverted lists of 8-bit rows; a row that is overwritten moves to the list of its new cell.

    Args:
        settings: See `IVFSettings`.
    """

    def __init__(self, settings: IVFSettings) -> None:
        self.settings = settings
        super().__init__()

    def _fewest(self, capacity: int) -> int:
        cells = self.settings.cells
        return _MIN_ROWS if cells is None else max(1, min(_ROWS_PER_CELL * cells, capacity))

    def _build(self, rows: Searched, size: int) -> Any:
        # A power of two, so that the number changes seldom as the bank grows.
        cells = self.settings.cells or 1 << round(0.5 * float(np.log2(size)))
        quantizer = faiss.IndexFlatL2(rows.size(1))
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, rows.size(1), cells, _kind(rows), faiss.METRIC_L2, False
        )
        index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = (
            self.settings.seed,
            _TRAIN_ROUNDS,
            1,
        )
        draw = torch.Generator().manual_seed(self.settings.seed)
        sample = torch.randperm(size, generator=draw)[: _TRAIN_ROWS_PER_CELL * cells]
        index.train(take(rows, sample.sort().values.to(rows.device)).numpy())
        tiles = [
            slice(start, min(start + _TILE_ROWS, size)) for start in range(0, size, _TILE_ROWS)
        ]
        cell = np.concatenate([quantizer.assign(take(rows, tile).numpy(), 1) for tile in tiles])
        # Lists that grow by themselves take up to twice the memory.
        for number, count in enumerate(np.bincount(cell.ravel(), minlength=cells).tolist()):
            index.invlists.resize(number, count)
            index.invlists.resize(number, 0)
        for tile in tiles:
            x, own = take(rows, tile).numpy(), np.ascontiguousarray(cell[tile])
            index.add_core(len(x), faiss.swig_ptr(x), None, faiss.swig_ptr(own))
        index.set_direct_map_type(faiss.DirectMap.Array)
        return index

    def _due(self, size: int) -> bool:
        grown = self.settings.cells is None and size >= _GROWTH * self._built_size
        return grown or self._overwritten > self.settings.retrain_every * size

    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> None:
        self._index.update_vectors(slots, x)

    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        self._index.add(x)

    def _find(self, queries: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        bits = np.packbits(live, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        settings = faiss.SearchParametersIVF(
            nprobe=min(self.settings.probes, self._index.nlist), sel=selector
        )
        return self._index.search(queries, k, params=settings)[1]


class HNSWSearch(ApproximateSearch):
    """A small-world graph of 8-bit rows; overwritten ones stay as waypoints until a rebuild.

    Args:
        settings: See `HNSWSettings`.
    """

    def __init__(self, settings: HNSWSettings) -> None:
        self.settings = settings
        super().__init__()

    def _fewest(self, capacity: int) -> int:
        return _MIN_ROWS

    def _build(self, rows: Searched, size: int) -> Any:
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

    def _due(self, size: int) -> bool:
        return self._overwritten > self.settings.rebuild * (size + self._overwritten)

    def _overwrite(self, slots: np.ndarray, x: np.ndarray) -> None:
        self._slot[self._node[slots]] = -1
        self._node[slots] = len(self._slot) + np.arange(len(slots))
        self._slot = np.concatenate([self._slot, slots])
        with self._building():
            self._index.add(x)

    def _append(self, slots: np.ndarray, x: np.ndarray) -> None:
        self._node = np.concatenate([self._node, len(self._slot) + np.arange(len(slots))])
        self._slot = np.concatenate([self._slot, slots])
        with self._building():
            self._index.add(x)

    def _find(self, queries: np.ndarray, k: int, live: np.ndarray) -> np.ndarray:
        alive = np.zeros(len(self._slot), dtype=bool)
        alive[self._node] = live
        bits = np.packbits(alive, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        settings = faiss.SearchParametersHNSW(efSearch=max(self.settings.ef, k), sel=selector)
        nodes = self._index.search(queries, k, params=settings)[1]
        return np.where(nodes < 0, -1, self._slot[nodes.clip(min=0)])
