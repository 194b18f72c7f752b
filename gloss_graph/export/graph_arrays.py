"""The one reader of a document graph: its edges and columns as checked arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_class_numbers, check_matrix, check_tensor, is_integer
from gloss_graph._internal.unicode import whole_text
from gloss_graph.export.attributes import class_names, class_values

#: Names of the values 0, 1, 2 of `edge_kind`.
EDGE_KINDS = ("batch-batch", "batch-memory", "memory-memory")


class Edges(NamedTuple):
    """One entry per edge: its ends (P,) int64 and its attributes (P,) by name."""

    source: np.ndarray
    target: np.ndarray
    columns: Mapping[str, np.ndarray]

    def both_ways(self) -> Edges:
        """Both directions of every edge, a self-loop once."""
        back = np.flatnonzero(self.source != self.target)
        return Edges(
            np.append(self.source, self.target[back]),
            np.append(self.target, self.source[back]),
            {name: np.append(values, values[back]) for name, values in self.columns.items()},
        )


@dataclass(frozen=True)
class GraphArrays:
    """An undirected document graph as arrays.

    Attributes:
        size: Number of documents, N.
        edge_index: (2, E) long, both directions of every edge, no self-loops.
        edge_weight: (E,) float64 >= 0, ones if the graph has no weights.
        y: (N,) int64 class numbers, -1 for unlabeled documents.
        seeds: (N,) bool, the documents whose label may be propagated.
        ids: (N,) int64, positions if the graph has no `doc_id`.
        names: Names of the C classes, their numbers if the graph has none.
        text: N texts, or None.
    """

    size: int
    edge_index: Tensor
    edge_weight: Tensor
    y: np.ndarray
    seeds: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    text: tuple[str, ...] | None

    @cached_property
    def adjacency(self) -> sparse.csr_array:
        """(N, N) float64 weights; an edge of weight 0 is a stored entry."""
        source, target = self.edge_index.numpy()
        shape = (self.size, self.size)
        return sparse.csr_array((self.edge_weight.numpy(), (source, target)), shape=shape)

    @cached_property
    def links(self) -> sparse.csr_array:
        """`adjacency` without the edges of weight 0, as pictures show it."""
        positive = self.adjacency.copy()
        positive.eliminate_zeros()
        positive.sort_indices()
        return positive

    def name(self, label: int) -> str:
        """Name of a class, "" for -1."""
        return self.names[label] if label >= 0 else ""

    def named(self, labels: np.ndarray) -> list[str]:
        """Names of classes, "" for -1."""
        return [self.name(int(label)) for label in labels]

    def texts_of(self, nodes: np.ndarray) -> list[str]:
        """Texts of documents, "" if the graph has no texts."""
        return [self.text_of(node) for node in nodes.tolist()]

    def text_of(self, node: int) -> str:
        """Text of a document, "" if the graph has no texts."""
        return "" if self.text is None else self.text[node]


def read_arrays(
    graph: Data, label_names: Sequence[str] | None = None, *, allow_empty: bool = True
) -> GraphArrays:
    """Read and check an undirected document graph; `label_names` replace the graph's."""
    size = count_nodes(graph)
    if not size and not allow_empty:
        raise ValueError("'graph' must hold at least one document (got none).")
    edges = read_edges(graph, only=("edge_weight",)).both_ways()
    weight = edges.columns.get("weight", np.ones(edges.source.size)).astype(np.float64)
    if weight.size and weight.min() < 0:
        raise ValueError(
            f"'graph.edge_weight' must be finite and >= 0 (got {weight.min():g}). "
            "Rebuild the graph or drop these edges."
        )
    order = np.lexsort((edges.target, edges.source))
    order = order[(edges.source != edges.target)[order]]
    ends = np.stack([edges.source[order], edges.target[order]])
    y = np.maximum(_filled(graph, "y", size, torch.long, -1), -1)
    check_class_numbers("graph.y", int(y.max(initial=-1)))
    ids = node_column(graph, "doc_id", size, torch.long)
    return GraphArrays(
        size=size,
        edge_index=torch.from_numpy(ends),
        edge_weight=torch.from_numpy(weight[order]),
        y=y,
        seeds=_filled(graph, "seed_mask", size, torch.bool, True) & (y >= 0),
        ids=np.arange(size) if ids is None else ids.numpy(),
        names=_names(graph, label_names, int(y.max(initial=-1)) + 1),
        text=_texts(graph, size),
    )


def read_edges(
    graph: Data,
    *,
    directed: bool = False,
    tolerance: float = 1e-5,
    name: str = "graph",
    only: Collection[str] | None = None,
) -> Edges:
    """Read the edges, sorted by source, then target, and their attributes without `edge_`.

    Unless `directed`, both directions of a pair become one entry (i, j), i <= j, and their values
    may differ by `tolerance` relative to the larger one. Errors call the graph `name`.
    """
    size = count_nodes(graph, name)
    source, target = _ends(graph, size, name)
    if directed:
        forth = back = _sorted(source, target, np.arange(source.size), size, name)
    else:
        forth = _sorted(source, target, np.flatnonzero(source <= target), size, name)
        back = _sorted(target, source, np.flatnonzero(source >= target), size, name)
        one, other = source[forth] * size + target[forth], target[back] * size + source[back]
        if not np.array_equal(one, other):
            i, j = divmod(int(np.setxor1d(one, other)[0]), size)
            raise ValueError(
                f"'{name}' must be undirected (got only one direction between {i} and {j}). Use "
                "torch_geometric.utils.to_undirected; exports also take directed=True."
            )
    columns: dict[str, np.ndarray] = {}
    for key in _attributes(graph, source.shape) if only is None else only:
        if graph.get(key) is None:
            continue
        values = _edge_values(graph, key, source.shape, name)
        one, other = values[forth].astype(np.float64), values[back].astype(np.float64)
        apart = 0.0 if key == "edge_kind" else tolerance
        allowed = apart * np.maximum(np.abs(one), np.abs(other))
        if (differs := np.flatnonzero(np.abs(one - other) > allowed)).size:
            i, j = forth[differs[0]], back[differs[0]]
            raise ValueError(
                f"'{name}' must be undirected: '{name}.{key}' must agree in both directions (got "
                f"{values[i]} for ({source[i]}, {target[i]}) and {values[j]} for its reverse). Use "
                "torch_geometric.utils.to_undirected(edge_index, edge_weight, reduce='mean')."
            )
        if key == "edge_kind" and values.size and not np.isin(values, range(3)).all():
            raise ValueError(
                f"'{name}.edge_kind' must be 0, 1 or 2 (got {values.min():g}..{values.max():g}). "
                f"They stand for {', '.join(EDGE_KINDS)}."
            )
        columns[key.removeprefix("edge_")] = values[forth]
    return Edges(source[forth], target[forth], columns)


def _attributes(graph: Data, shape: tuple[int, ...]) -> list[str]:
    """Names of the attributes of edges, those that every document graph has first."""
    known = ["edge_weight", "edge_kind"]
    return known + [
        key
        for key, value in graph
        if key.startswith("edge_")
        and key not in ("edge_index", *known)
        and isinstance(value, Tensor)
        and value.shape == shape
    ]


def edge_homophily(data: Data) -> float:
    """Share of the edges whose two documents have the same class.

    Args:
        data: An undirected graph with `edge_index` (2, E) and `y` (N,), -1 = unlabeled.

    Returns:
        In [0, 1], over the edges with two labeled ends; NaN without such an edge.

    Raises:
        ValueError: A directed graph, an edge that leaves the graph, no `y`, or label sets.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> edge_homophily(Data(edge_index=edges, y=torch.tensor([0, 0, 1])))
        0.5
    """
    size = count_nodes(data, "data")
    labels = node_column(data, "y", size, torch.long, "data")
    if labels is None:
        raise ValueError("'data.y' must hold a class number for every node (got none).")
    edges = read_edges(data, name="data", only=()).both_ways()
    ends = labels.numpy()[np.stack([edges.source, edges.target])]
    known = (ends >= 0).all(axis=0)
    return float((ends[0] == ends[1])[known].mean()) if known.any() else float("nan")


def read_embeddings(graph: Data, embeddings: Tensor | None, size: int) -> Tensor | None:
    """The given embeddings, else `graph.x`, as (N, D) on the CPU; None if there are none."""
    name = "graph.x" if embeddings is None else "embeddings"
    rows = graph.get("x") if embeddings is None else embeddings
    if rows is None:
        return None
    check_matrix(name, rows)
    if rows.size(0) != size:
        raise ValueError(f"'{name}' must have {size} rows, one per document (got {rows.size(0)}).")
    return rows.detach().cpu()


def count_nodes(graph: Data, name: str = "graph") -> int:
    """Number of nodes, without PyG's warning when it has to be guessed."""
    if not isinstance(graph, Data):
        raise TypeError(
            f"'{name}' must be a torch_geometric.data.Data (got {type(graph).__name__}). "
            "Build it with build_document_graph."
        )
    if graph.get("edge_index") is None:
        raise ValueError(f"'{name}' must have an 'edge_index' (got None). Build the graph first.")
    if graph.get("num_nodes") is not None:
        return int(graph.num_nodes)
    for key in ("doc_id", "y", "in_batch", "seed_mask", "age", "x", "pos"):
        if isinstance(column := graph.get(key), Tensor) and column.dim() > 0:
            return column.size(0)
    return int(graph.edge_index.max()) + 1 if graph.edge_index.numel() else 0


def node_column(
    graph: Data, key: str, size: int, dtype: torch.dtype, name: str = "graph"
) -> Tensor | None:
    """Column `graph[key]` (N,) or (N, 1) as (N,) on the CPU, None if there is none."""
    column = graph.get(key)
    if column is None:
        return None
    if key == "y" and isinstance(column, Tensor) and column.dim() == 2 and column.size(1) > 1:
        raise ValueError(
            f"'{name}.y' must have {size} entries, one class number per node (got label sets of "
            f"shape {tuple(column.shape)}). Look at one class at a time: "
            "y = (sets[:, c] > 0.5).long()."
        )
    return class_values(column, f"{name}.{key}", size).to(dtype)


def _filled(graph: Data, key: str, size: int, dtype: torch.dtype, missing: Any) -> np.ndarray:
    column = node_column(graph, key, size, dtype)
    return (torch.full((size,), missing, dtype=dtype) if column is None else column).numpy()


def _names(graph: Data, label_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    found = graph.get("label_names") if label_names is None else label_names
    if found is None:
        return tuple(str(label) for label in range(classes))
    names = tuple(class_names(found))
    if len(names) < classes:
        name = "graph.label_names" if label_names is None else "label_names"
        raise ValueError(
            f"'{name}' must name every class (got {len(names)} names for class {classes - 1}). "
            "Pass them in the order of the class numbers."
        )
    return names


def _texts(graph: Data, size: int) -> tuple[str, ...] | None:
    text = graph.get("text")
    if text is None:
        return None
    several = isinstance(text, Collection) and not isinstance(text, str)
    if not several or len(text) != size:
        got = len(text) if several else type(text).__name__
        raise ValueError(f"'graph.text' must hold one text per node, {size} of them (got {got}).")
    return tuple(whole_text(str(entry)) for entry in text)


def _ends(graph: Data, size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ends (E,) of the edges as stored."""
    check_tensor(f"{name}.edge_index", graph.edge_index)
    edge_index = graph.edge_index.detach().cpu()
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or not is_integer(edge_index):
        raise ValueError(
            f"'{name}.edge_index' must be an integer tensor of the shape (2, E) "
            f"(got {tuple(edge_index.shape)} of {edge_index.dtype})."
        )
    source, target = edge_index.long().numpy()
    if source.size and (edge_index.min() < 0 or edge_index.max() >= size):
        raise ValueError(
            f"'{name}.edge_index' must point at nodes 0..{size - 1} (got "
            f"{int(edge_index.min())}..{int(edge_index.max())}). Check '{name}.num_nodes'."
        )
    return source, target


def _edge_values(graph: Data, key: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A finite attribute (E,)."""
    check_tensor(f"{name}.{key}", graph[key])
    values = graph[key].detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.dim() == 2 and values.size(1) == 1:
        values = values.squeeze(1)
    if values.shape != shape:
        raise ValueError(
            f"'{name}.{key}' must have {shape[0]} entries, one per column of 'edge_index' (got the "
            f"shape {tuple(graph[key].shape)})."
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"'{name}.{key}' must be finite (got NaN or infinity). Rebuild the graph or drop these "
            "edges."
        )
    return values.numpy()


def _sorted(
    low: np.ndarray, high: np.ndarray, chosen: np.ndarray, size: int, name: str
) -> np.ndarray:
    """Positions `chosen`, sorted by (low, high), which must differ."""
    key = low[chosen] * size + high[chosen]
    if key.size and not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        chosen, key = chosen[order], key[order]
        if (repeated := np.flatnonzero(key[1:] == key[:-1])).size:
            i, j = divmod(int(key[repeated[0]]), size)
            raise ValueError(
                f"'{name}.edge_index' must hold each edge once (got ({i}, {j}) repeatedly). "
                f"Call {name}.coalesce() and decide how weights add up."
            )
    return chosen
