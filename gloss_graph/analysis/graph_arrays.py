"""What the measures, explanations and the audit read of a document graph, checked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import (
    INTEGER_DTYPES,
    check_class_numbers,
    check_matrix,
    check_tensor,
)
from gloss_graph.export.columns import class_column, class_names, count_nodes

__all__ = ["Documents", "read_documents", "read_embeddings"]


@dataclass(frozen=True)
class Documents:
    """A document graph as arrays; `y` is -1 where a label is missing.

    Attributes:
        size: Number of documents, N.
        adjacency: (N, N) float64 CSR, symmetric weights without self-loops.
        edge_index: (2, E) long, as given.
        edge_weight: (E,) float64, ones where the graph has none.
        y: (N,) int64.
        seeds: (N,) bool, documents whose label may be propagated.
        ids: (N,) int64, positions where the graph has none.
        names: Class names, C of them.
        text: N texts, or None.
    """

    size: int
    adjacency: sparse.csr_array
    edge_index: Tensor
    edge_weight: Tensor
    y: np.ndarray
    seeds: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    text: tuple[str, ...] | None

    def name(self, label: int) -> str:
        """Name of a class, "" for -1."""
        return self.names[label] if label >= 0 else ""

    def named(self, labels: np.ndarray) -> list[str]:
        """Names of classes, "" for -1."""
        return [self.name(int(label)) for label in labels]

    def text_of(self, node: int) -> str:
        """Text of a document, "" where there is none."""
        return "" if self.text is None else self.text[node]


def read_documents(graph: Any) -> Documents:
    """Read a document graph.

    Raises:
        TypeError: Not a PyG `Data`.
        ValueError: Columns of another length than the nodes, label sets, a directed graph,
            weights that are negative or not finite, fewer names than classes.
    """
    if not isinstance(graph, Data):
        raise TypeError(
            f"'graph' must be a torch_geometric.data.Data (got {type(graph).__name__}). "
            "Build it with build_document_graph."
        )
    size = count_nodes(graph)
    edge_index, weight, adjacency = _edges(graph, size)
    y = _column(graph, "y", size, torch.long, -1)
    y = np.where(y < 0, -1, y)
    check_class_numbers("graph.y", int(y.max(initial=-1)))
    seeds = _column(graph, "seed_mask", size, torch.bool, True) & (y >= 0)
    names = _names(graph, int(y.max(initial=-1)) + 1)
    text = graph.get("text")
    if text is not None and (
        isinstance(text, str) or not isinstance(text, Collection) or len(text) != size
    ):
        count = len(text) if isinstance(text, Collection) else type(text).__name__
        raise ValueError(
            f"'graph.text' must hold one text a node, {size} of them "
            f"(got {'a string' if isinstance(text, str) else count})."
        )
    return Documents(
        size=size,
        adjacency=adjacency,
        edge_index=edge_index,
        edge_weight=weight,
        y=y,
        seeds=seeds,
        ids=_column(graph, "doc_id", size, torch.long, None),
        names=names,
        text=None if text is None else tuple(str(entry) for entry in text),
    )


def read_embeddings(graph: Data, embeddings: Tensor | None, size: int) -> Tensor | None:
    """The embeddings given, else `graph.x`, as (N, D) on the CPU; None where there are none.

    Raises:
        TypeError: Not a tensor.
        ValueError: Not a finite matrix with one row a document.
    """
    name = "graph.x" if embeddings is None else "embeddings"
    rows = graph.get("x") if embeddings is None else embeddings
    if rows is None:
        return None
    check_matrix(name, rows)
    if rows.size(0) != size:
        raise ValueError(f"'{name}' must have {size} rows, one a document (got {rows.size(0)}).")
    return rows.detach().cpu()


def _column(graph: Data, key: str, size: int, dtype: torch.dtype, missing: Any) -> np.ndarray:
    column = graph.get(key)
    if key == "y" and isinstance(column, Tensor) and column.dim() == 2 and column.size(1) > 1:
        raise ValueError(
            "'graph.y' must hold one class number a document (got label sets of shape "
            f"{tuple(column.shape)}). Look at one class at a time: y = (sets[:, c] > 0.5).long()."
        )
    values = class_column(graph, key, size, dtype)
    kind = bool if dtype == torch.bool else np.int64
    if values is None:
        return np.arange(size) if missing is None else np.full(size, missing, dtype=kind)
    return np.array(values, dtype=kind)


def _edges(graph: Data, size: int) -> tuple[Tensor, Tensor, sparse.csr_array]:
    edge_index = graph.edge_index
    check_tensor("graph.edge_index", edge_index)
    edge_index = edge_index.detach().cpu()
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype not in INTEGER_DTYPES:
        raise ValueError(
            "'graph.edge_index' must be an integer tensor of shape (2, E) "
            f"(got {edge_index.dtype} {tuple(edge_index.shape)})."
        )
    edge_index = edge_index.long()
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= size):
        raise ValueError(
            f"'graph.edge_index' must point at nodes 0..{size - 1} "
            f"(got {int(edge_index.min())}..{int(edge_index.max())}). Check 'graph.num_nodes'."
        )
    weight = graph.get("edge_weight")
    if weight is None:
        weight = torch.ones(edge_index.size(1), dtype=torch.float32)
    check_tensor("graph.edge_weight", weight)
    weight = weight.detach().cpu().double().flatten()
    if weight.numel() != edge_index.size(1):
        raise ValueError(
            f"'graph.edge_weight' must have {edge_index.size(1)} entries, one an edge "
            f"(got {weight.numel()})."
        )
    if not bool((weight >= 0).all()) or bool(torch.isinf(weight).any()):
        raise ValueError("'graph.edge_weight' must be finite and >= 0 (got NaN, inf or negative).")
    apart = edge_index[0] != edge_index[1]
    edge_index, weight = edge_index[:, apart], weight[apart]
    matrix = sparse.csr_array(
        (weight.numpy(), (edge_index[0].numpy(), edge_index[1].numpy())), shape=(size, size)
    )
    if abs(matrix - matrix.T).max() > 1e-5 * max(matrix.max(), 1e-300) if matrix.nnz else False:
        raise ValueError(
            "'graph' must be undirected: both directions of a pair with the same weight. "
            "Use torch_geometric.utils.to_undirected(edge_index, edge_weight, reduce='mean')."
        )
    return edge_index, weight, matrix


def _names(graph: Data, classes: int) -> tuple[str, ...]:
    names = graph.get("label_names")
    if names is None:
        return tuple(str(label) for label in range(classes))
    names = tuple(class_names(names))
    if len(names) < classes:
        raise ValueError(
            f"'graph.label_names' must name every class (got {len(names)} names for class "
            f"{classes - 1}). Add the missing names."
        )
    return names
