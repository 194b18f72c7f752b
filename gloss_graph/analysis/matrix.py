"""A document graph as a SciPy matrix with class numbers beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import INTEGER_DTYPES, check_class_numbers, check_tensor
from gloss_graph.export.columns import class_column, class_names, count_nodes

__all__ = ["GraphTable", "graph_table"]


class GraphTable(NamedTuple):
    """N documents as arrays, for pictures and the page."""

    adjacency: sparse.csr_array  # (N, N) float64, symmetric, zero diagonal, weights > 0
    labels: np.ndarray  # (N,) int64, -1 = unlabeled
    seeds: np.ndarray  # (N,) bool, labels that propagation may see
    ids: np.ndarray  # (N,) int64
    names: list[str] | None  # of the classes


def graph_table(graph: Data, label_names: Sequence[str] | None = None) -> GraphTable:
    """Read and check a document graph.

    Args:
        graph: `edge_index` (2, E) and any of `edge_weight` (E,), `y` (N,), `seed_mask` (N,),
            `doc_id` (N,) and `label_names`, as `build_document_graph` makes it.
        label_names: names of the classes, in place of the graph's own.

    Returns:
        The arrays. Without `y` all documents are unlabeled; without `seed_mask` all labels are
        seeds. Directed pairs count in both directions with the mean of their weights.

    Raises:
        TypeError: an `edge_index` that is no tensor.
        ValueError: an `edge_index` of another shape or dtype, an edge that leaves the graph, a
            weight that is negative or not finite, columns of the wrong length, or a class without
            name.

    Example:
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> graph_table(Data(edge_index=edges, y=torch.tensor([0, -1]))).labels.tolist()
        [0, -1]
    """
    if not isinstance(graph, Data):
        raise ValueError(
            f"'graph' must be a PyG Data (got {type(graph).__name__}). "
            "Build one with build_document_graph."
        )
    size = count_nodes(graph)
    adjacency = _adjacency(graph, size)
    labels = _column(graph, "y", size, torch.long, -1)
    labels = np.maximum(labels, -1)
    check_class_numbers("y", int(labels.max(initial=-1)))
    seeds = _column(graph, "seed_mask", size, torch.bool, None)
    seeds = labels >= 0 if seeds is None else seeds & (labels >= 0)
    ids = _column(graph, "doc_id", size, torch.long, None)
    given = graph.get("label_names") if label_names is None else label_names
    names = None if given is None else class_names(given)
    if names is not None and int(labels.max(initial=-1)) >= len(names):
        raise ValueError(
            f"'label_names' must name every class (got {len(names)} names for class "
            f"{int(labels.max())}). Pass them in the order of the class numbers."
        )
    return GraphTable(adjacency, labels, seeds, np.arange(size) if ids is None else ids, names)


def _adjacency(graph: Data, size: int) -> sparse.csr_array:
    ends = graph.edge_index
    check_tensor("edge_index", ends)
    if ends.dim() != 2 or ends.size(0) != 2 or ends.dtype not in INTEGER_DTYPES:
        raise ValueError(
            "'edge_index' must be an integer tensor of the shape (2, E) "
            f"(got {ends.dtype} of the shape {tuple(ends.shape)})."
        )
    edges = ends.detach().cpu().numpy().astype(np.int64)
    if edges.size and (edges.min() < 0 or edges.max() >= size):
        raise ValueError(
            f"'edge_index' must name nodes 0..{size - 1} (got {int(edges.min())} to "
            f"{int(edges.max())}). Set 'num_nodes' to the number of documents."
        )
    weight = graph.get("edge_weight")
    if weight is None:
        values = np.ones(edges.shape[1])
    else:
        check_tensor("edge_weight", weight)
        values = weight.detach().cpu().double().numpy().reshape(-1)
    if values.size != edges.shape[1] or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"'edge_weight' must hold {edges.shape[1]} finite values of at least 0, one an edge. "
            "Rebuild the graph or drop the edges concerned."
        )
    keep = edges[0] != edges[1]
    forth = sparse.csr_array((values[keep], (edges[0][keep], edges[1][keep])), shape=(size, size))
    both = sparse.csr_array((forth + forth.T) / 2)
    both.eliminate_zeros()
    both.sort_indices()
    return both


def _column(graph: Data, key: str, size: int, dtype: torch.dtype, missing: Any) -> Any:
    values = class_column(graph, key, size, dtype)
    if values is None:
        return missing if missing is None else np.full(size, missing, dtype=np.int64)
    return np.array(values, dtype=bool if dtype == torch.bool else np.int64)
