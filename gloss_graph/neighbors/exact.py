"""Exact nearest-neighbor search over the rows of a memory bank or a corpus.

Two back ends: FAISS straight over the buffer (no index to keep in step with it) and a tiled matrix
product with top-k (any device, any dtype). Both return squared Euclidean distances recomputed in
torch on the rows they found, so ties aside they agree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import faiss as _faiss
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice

# Its type stubs do not know all functions.
faiss: Any = _faiss

BACKENDS = ("auto", "exact", "faiss", "matmul")

# Below this many rows the call overhead of FAISS outweighs its faster inner loop.
_FAISS_MIN_ROWS = 1024
# Rows that a tile of the matrix product covers, and entries of its (B, tile) scores.
_TILE_ROWS = 65_536
_SCORES = 16_777_216
# Rows that look for each other at a time.
_BLOCK = 1024
# Entries held at a time: of the differences of pairs, of hits that are fetched to be dropped.
_ENTRIES = 4_000_000


class Nearest(NamedTuple):
    """Squared Euclidean distances (B, k), ascending, and row indices (B, k) long."""

    squared_distances: Tensor
    indices: Tensor


class SearchResult(NamedTuple):
    """Euclidean distances (B, k), ascending, and slots (B, k) long; `inf` and -1 where none."""

    distances: Tensor
    slots: Tensor


@contextmanager
def faiss_blas_path() -> Iterator[None]:
    """Force FAISS's BLAS path for one call and restore the user's setting.

    By default B = 128 takes a path measured 6-7x slower at 65,536 rows.
    """
    saved = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = saved


def _candidates(queries: Tensor, tile: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    """Top-k rows of one tile by squared distance (up to a constant per query)."""
    if backend == "faiss":
        with faiss_blas_path():
            distances, found = faiss.knn(
                queries.float().contiguous().numpy(), tile.float().contiguous().numpy(), k
            )
        return torch.from_numpy(distances), torch.from_numpy(found)
    dtype = torch.promote_types(queries.dtype, torch.float32)
    tile = tile.to(dtype)
    # |q|² is the same for all rows of a query and drops out of the order.
    scores = torch.addmm((tile * tile).sum(dim=1), queries.to(dtype), tile.T, alpha=-2.0)
    best, index = scores.topk(k, dim=1, largest=False)
    return best, index


@torch.no_grad()
def nearest(queries: Tensor, rows: Tensor, k: int, *, backend: str = "auto") -> Nearest:
    """Find the `k` rows nearest to every query, exactly.

    Args:
        queries: (B, D) float32 or float64.
        rows: (M, D) float16, float32 or float64.
        k: Neighbors per query, at most M (clamped).
        backend: `"faiss"` (CPU), `"matmul"` (any device) or `"auto"`, also called `"exact"`: FAISS
            on a CPU from 1,024 rows on, else the matrix product.

    Returns:
        Squared distances (B, k'), ascending, and indices (B, k'), with k' = min(k, M).

    Raises:
        ValueError: Unknown back end, or FAISS requested on another device.

    Cost O(B M D) time, O(B min(M, 65,536)) extra memory.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), k=1)
        Nearest(squared_distances=tensor([[1.]]), indices=tensor([[1]]))
    """
    check_choice("search", backend, BACKENDS)
    on_cpu = queries.device.type == "cpu"
    if backend == "faiss" and not on_cpu:
        raise ValueError(
            f"search='faiss' needs CPU tensors (got {queries.device}). Use search='matmul'."
        )
    if backend in ("auto", "exact"):
        backend = "faiss" if on_cpu and rows.size(0) >= _FAISS_MIN_ROWS else "matmul"
    k = max(0, min(k, rows.size(0)))
    if k == 0 or queries.size(0) == 0:
        return none_found(queries, k)
    # FAISS tiles by itself, but rows in half precision are converted tile by tile.
    tile_rows = min(_TILE_ROWS, max(k, _SCORES // queries.size(0)))
    if backend == "faiss" and rows.dtype == torch.float32:
        tile_rows = rows.size(0)
    found, scores = [], []
    for start in range(0, rows.size(0), tile_rows):
        tile = rows[start : start + tile_rows]
        score, near = _candidates(queries, tile, min(k, tile.size(0)), backend)
        scores.append(score)
        found.append(near + start)
    index = torch.cat(found, dim=1)
    if len(found) > 1:
        index = index.gather(1, torch.cat(scores, dim=1).topk(k, dim=1, largest=False).indices)
    # The expanded form |q|²+|r|²-2qr loses digits for near duplicates: recompute and re-sort.
    squared = squared_distances(queries, rows, index)
    order = squared.argsort(dim=1)
    return Nearest(squared.gather(1, order), index.gather(1, order))


def nearest_others(
    queries: Tensor, rows: Tensor, position: Tensor, k: int, *, backend: str = "auto"
) -> Nearest:
    """As `nearest`, for queries that are rows themselves: query i never finds `position[i]`.

    `position` (B,) long are the rows that the queries are; k is at most M - 1 (clamped).
    """
    k = min(k, rows.size(0) - 1)
    return without_itself(nearest(queries, rows, k + 1, backend=backend), position)


def nearest_mates(x: Tensor, k: int) -> Nearest:
    """The k nearest other rows of every row of x (N, D), block by block: O(N k) memory."""
    blocks = torch.arange(x.size(0), device=x.device).split(_BLOCK)
    found = [nearest_others(x[block], x, block, k) for block in blocks]
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def without_itself(found: Nearest, position: Tensor) -> Nearest:
    """Drop row `position[i]` of each query i, or the farthest hit if that was not found."""
    itself = found.indices == position.unsqueeze(1)
    squared = found.squared_distances.masked_fill(itself, torch.inf)
    squared, order = squared.sort(dim=1, stable=True)
    index = found.indices.masked_fill(itself, -1).gather(1, order)
    return Nearest(squared[:, :-1], index[:, :-1])


def none_found(queries: Tensor, k: int) -> Nearest:
    """No neighbors of queries (B, D): `inf` and -1 (B, k)."""
    shape = (queries.size(0), k)
    index = torch.full(shape, -1, dtype=torch.long, device=queries.device)
    return Nearest(queries.new_full(shape, torch.inf), index)


def nearest_allowed(
    queries: Tensor, rows: Tensor, k: int, banned: Tensor, *, backend: str = "auto"
) -> Nearest:
    """As `nearest`, without the rows `banned` (n,), padded to (B, k) with `inf` and -1."""
    size = rows.size(0)
    squared, index = none_found(queries, k)
    wanted = min(k, size - banned.numel())
    if wanted <= 0 or queries.size(0) == 0:
        return Nearest(squared, index)
    is_banned = torch.zeros(size, dtype=torch.bool, device=rows.device)
    is_banned[banned] = True

    def ask(x: Tensor, fetched: int) -> tuple[Tensor, Tensor]:
        found = nearest(x, rows, fetched, backend=backend)
        distance = found.squared_distances.masked_fill(is_banned[found.indices], torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        return distance[:, :wanted], found.indices.gather(1, order)[:, :wanted]

    # Banned rows are fetched and dropped. A little slack suffices nearly always; queries for
    # which it did not are repeated with more, so the result is exact.
    slack = min(banned.numel(), max(4, k // 2))
    squared[:, :wanted], index[:, :wanted] = ask(queries, wanted + slack)
    short = squared[:, wanted - 1].isinf().nonzero().squeeze(1)
    while short.numel() and slack < banned.numel():
        # Not all at once: where many rows are banned a few more hits suffice for nearly all.
        slack = min(banned.numel(), 8 * slack)
        for part in short.split(max(1, _ENTRIES // (wanted + slack))):
            squared[part, :wanted], index[part, :wanted] = ask(queries[part], wanted + slack)
        short = short[squared[short, wanted - 1].isinf()]
    return Nearest(squared, index)


def squared_distances(queries: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Squared distances between query i and the rows `index[i]`, without gradient."""
    query = torch.arange(index.size(0), device=index.device).unsqueeze(1).expand_as(index)
    return pair_distances(queries, query.reshape(-1), rows, index.reshape(-1)).view_as(index)


@torch.no_grad()
def pair_distances(x: Tensor, left: Tensor, rows: Tensor, right: Tensor) -> Tensor:
    """Squared distances (n,) between `x[left]` and `rows[right]`, float32 or the dtype of `x`."""
    plain = [
        part.device.type == "cpu" and part.dtype == torch.float32 and part.is_contiguous()
        for part in (x, rows)
    ]
    if not all(plain):
        dtype = torch.promote_types(x.dtype, torch.float32)
        # The (n, D) differences of a large call would not fit.
        tile = max(1, _ENTRIES // x.size(1))
        parts = zip(left.split(tile), right.split(tile), strict=True)
        return torch.cat(
            [(rows[second].to(dtype) - x[first]).square_().sum(dim=-1) for first, second in parts]
        )
    out = x.new_empty(left.numel())
    # Reads the rows where they lie: the differences, a hundred times the result, are never stored.
    arrays = [part.detach().contiguous().numpy() for part in (x, left, rows, right, out)]
    faiss.pairwise_indexed_L2sqr(x.size(1), left.numel(), *map(faiss.swig_ptr, arrays))
    return out


def version_of(x: Tensor) -> int:
    """A count that grows with every write into `x`; 0 for inference tensors, which keep none."""
    return 0 if x.is_inference() else x._version


class RowSearch(ABC):
    """Nearest rows among the first `size` of the buffer `rows` (capacity, D) of a bank.

    What a search holds is derived from the bank's state and may be dropped at any time.
    """

    @abstractmethod
    def allowed(self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor) -> Nearest:
        """The k nearest rows except `banned` (n,), padded to (B, k) with `inf` and -1."""

    def around(
        self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor, places: Tensor
    ) -> Nearest:
        """As `allowed`, for documents stored at `places` (B,) long, -1 if not stored."""
        return self.allowed(queries, rows, size, k, banned)

    def others(self, queries: Tensor, rows: Tensor, size: int, position: Tensor, k: int) -> Nearest:
        """The k nearest other rows of queries that are the rows `position` (B,) themselves."""
        k = min(k, size - 1)
        found = self.around(queries, rows, size, k + 1, position[:0], position)
        return without_itself(found, position)

    def wrote(self, rows: Tensor, size: int, slots: Tensor, version: int) -> None:  # noqa: B027
        """Take note that the rows `slots` were written; `version` was the buffer's before."""

    def without_links(self) -> RowSearch:
        """The search that needs no links, to make them with."""
        return self

    def take_settings(self, other: RowSearch) -> bool:
        """Adopt the settings of `other` and keep the index; False if that cannot be done."""
        return False


class ExactSearch(RowSearch):
    """Exact search, nothing to keep in step."""

    def __init__(self, backend: str = "auto") -> None:
        self.backend = backend

    def allowed(self, queries: Tensor, rows: Tensor, size: int, k: int, banned: Tensor) -> Nearest:
        """See `nearest_allowed`."""
        return nearest_allowed(queries, rows[:size], k, banned, backend=self.backend)
