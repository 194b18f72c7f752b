"""Nearest neighbors within one set of rows: of a corpus, or as the edges of a graph."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector, check_matrix, check_positive_int
from gloss_graph._internal.precision import unit_rows
from gloss_graph.neighbors.exact import ExactSearch, RowSearch, nearest_mates
from gloss_graph.neighbors.inverted_lists import Cells, IVFSearch, IVFSettings
from gloss_graph.neighbors.search import measure_recall

# Queries per call; the same as where a graph of a batch is built, so that both find the same.
_CHUNK = 1024
_RECALL_SAMPLE = 256
# Rows per cell that FAISS asks for.
_ROWS_PER_CELL = 39


class CorpusNeighbors(NamedTuple):
    """Squared distances (N, k'), ascending, `inf` where there is none, and rows (N, k') long.

    `search` is `"exact"` or `"ivf"`; `recall`, the share of true neighbors found, is measured on a
    sample against exact search (1 for exact).
    """

    squared_distances: Tensor
    indices: Tensor
    search: str
    recall: float


@torch.no_grad()
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

    Cost O(N² D) exact, about O(N^1.5 D + N² D / 16) beyond.
    """
    size = x.size(0)
    k = max(0, min(k, size - 1))
    exact = size <= exact_up_to or k == 0
    searcher: RowSearch = ExactSearch()
    if not exact:
        cells = max(1, min(4 * math.isqrt(size), size // _ROWS_PER_CELL))
        probes = math.ceil(cells / 16) if probes is None else probes
        settings = IVFSettings(cells=cells, probes=probes, seed=seed)
        searcher = IVFSearch(settings, Cells(size, x.size(1), cells))
    parts = track(
        torch.arange(size).split(_CHUNK),
        "Neighbors",
        console=Console(stderr=True),
        transient=True,
        disable=not progress,
    )
    found = [searcher.others(x[rows], x, size, rows, k) for rows in parts]
    squared, indices = (torch.cat(column) for column in zip(*found, strict=True))
    if exact:
        return CorpusNeighbors(squared, indices, "exact", 1.0)
    recall = measure_recall(searcher, x, size, k, _RECALL_SAMPLE, seed)
    return CorpusNeighbors(squared, indices, "ivf", recall)


@torch.no_grad()
def knn_graph(
    x: Tensor, k: int, batch: Tensor | None = None, loop: bool = False, cosine: bool = False
) -> Tensor:
    """Edges from the k nearest neighbors of every row to that row.

    As `torch_geometric.nn.knn_graph`, without pyg-lib or torch-cluster.

    Args:
        x: (N, D) floating.
        k: Neighbors per row, the row itself included with `loop`; fewer where a graph of the batch
            has fewer rows.
        batch: (N,) integer, the graph that each row belongs to; neighbors are of the same graph.
            In contrast to PyG it need not be sorted. By default one graph.
        loop: Whether every row is its own first neighbor.
        cosine: Compare by cosine instead of Euclidean distance. Rows of zeros count as orthogonal
            to all others.

    Returns:
        `edge_index` (2, E) long: neighbor above, center below. Sorted by center, its neighbors by
        ascending distance.

    Raises:
        TypeError: `x` or `batch` is not a tensor.
        ValueError: Shape, dtype, non-finite rows, k < 1.

    Cost O(N² D) for one graph, the sum of it over the graphs of a batch.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> knn_graph(x, k=1).tolist()
        [[1, 0, 1], [0, 1, 2]]

    See also: `build_document_graph` for weighted undirected edges with gradient.
    """
    check_matrix("x", x)
    check_positive_int("k", k)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if cosine:
        x = unit_rows(x)
    members: tuple[Tensor, ...] = ()
    if batch is not None:
        check_index_vector("batch", batch, x.size(0))
        _, graph, counts = batch.unique(return_inverse=True, return_counts=True)
        members = graph.argsort(stable=True).split(counts.tolist())
    edges = []
    for rows in members or (torch.arange(x.size(0), device=x.device),):
        center = torch.arange(rows.numel(), device=x.device)
        found = nearest_mates(x[rows], k - loop).indices
        if loop:
            found = torch.cat([center.unsqueeze(1), found], dim=1)
        center = center.repeat_interleave(found.size(1))
        edges.append(torch.stack([rows[found.flatten()], rows[center]]))
    edge_index = torch.cat(edges, dim=1)
    return edge_index if batch is None else edge_index[:, edge_index[1].argsort(stable=True)]
