"""Nearest neighbours within a corpus: exact, or by an inverted file for large ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import faiss
import torch
from torch import Tensor

from gloss_graph._internal.sampling import seeded_sample
from gloss_graph.neighbors.exact import nearest_others, squared_distances

__all__ = ["CorpusNeighbors", "corpus_neighbors"]

# Queries a call; the same as where a graph of a batch is built, so that both find the same.
_CHUNK = 1024
_RECALL_SAMPLE = 256
# Training points a cell, as many as k-means gains from here.
_POINTS_PER_CELL = 64


class CorpusNeighbors(NamedTuple):
    """Squared distances (N, k'), ascending, `inf` where there is none, and rows (N, k') long.

    `search` is `"exact"` or `"ivf"`; `recall`, the share of true neighbours found, measured on a
    sample against exact search (1 for exact).
    """

    squared_distances: Tensor
    indices: Tensor
    search: str
    recall: float


def corpus_neighbors(
    x: Tensor,
    k: int,
    *,
    exact_up_to: int = 50_000,
    probes: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CorpusNeighbors:
    """The k nearest other rows of every row of x (N, D) float32; k is at most N - 1.

    Args:
        x: The rows.
        k: Neighbours a row.
        exact_up_to: Rows up to which every pair is compared. Beyond, FAISS groups the rows into
            about 4 √N cells and compares a row with those of the nearest cells; distances are
            exact there too.
        probes: Cells a row is compared with, by default 1 in 16.
        seed: Of the cells, and of the sample that recall is measured on.
        progress: Show a progress bar.

    Cost O(N² D) exact, about O(N^1.5 D + N² D / 16) beyond.
    """
    size = x.size(0)
    k = max(0, min(k, size - 1))
    if k == 0:
        none = torch.empty(size, 0, dtype=torch.long)
        return CorpusNeighbors(x.new_empty(size, 0), none, "exact", 1.0)
    exact = size <= exact_up_to
    parts: list[tuple[Tensor, Tensor]] = []
    index = None if exact else _inverted_file(x, probes, seed)
    for rows in _shown(size, progress):
        if index is None:
            found = nearest_others(x[rows], x, rows, k)
            parts.append((found.squared_distances, found.indices))
        else:
            parts.append(_approximate(index, x, rows, k))
    squared, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    recall = 1.0 if exact else _recall(x, squared, k, seed)
    return CorpusNeighbors(squared, indices, "exact" if exact else "ivf", recall)


def _shown(size: int, progress: bool) -> Iterator[Tensor]:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, disable=not progress)
    with bar if progress else nullcontext():
        task = bar.add_task("Neighbours", total=size)
        for rows in torch.arange(size).split(_CHUNK):
            yield rows
            bar.advance(task, rows.numel())


def _inverted_file(x: Tensor, probes: int | None, seed: int) -> faiss.IndexIVFFlat:
    rows = x.contiguous().numpy()
    cells = max(1, min(4 * math.isqrt(len(rows)), len(rows) // 39))
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], cells)
    index.cp.seed = seed
    index.cp.max_points_per_centroid = _POINTS_PER_CELL
    index.train(rows)
    index.add(rows)
    index.nprobe = min(cells, math.ceil(cells / 16) if probes is None else probes)
    return index


def _approximate(
    index: faiss.IndexIVFFlat, x: Tensor, rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    queries = x[rows]
    _, found = index.search(queries.contiguous().numpy(), k + 1)
    places = torch.from_numpy(found)
    squared = squared_distances(queries, x, places.clamp(min=0))
    own = (places == rows.unsqueeze(1)) | (places < 0)
    squared, order = squared.masked_fill(own, torch.inf).sort(dim=1, stable=True)
    return squared[:, :k], places.gather(1, order)[:, :k]


def _recall(x: Tensor, squared: Tensor, k: int, seed: int) -> float:
    """Share of the found that are no farther than the true k-th neighbour."""
    sample = torch.from_numpy(seeded_sample(x.size(0), _RECALL_SAMPLE, seed))
    last = nearest_others(x[sample], x, sample, k).squared_distances[:, -1:]
    return float((squared[sample] <= last * (1 + 1e-6)).float().mean())
