"""The one reader of a document graph: its edges and columns as arrays, and as sparse matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import (
    check_choice,
    check_class_numbers,
    check_matrix,
    check_positive_int,
    check_tensor,
    is_integer,
    misfit,
)
from gloss_graph._internal.unicode import whole_text
from gloss_graph.export.attributes import check_entries, class_names, class_values

#: Names of the values 0, 1, 2 of `edge_kind`.
EDGE_KINDS = ("batch-batch", "batch-memory", "memory-memory")
_CHUNK = 65_536  # edges whose rows are compared at once
_ROUNDING = 1e-6
_REBUILD = "Rebuild the graph or drop these edges."


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

    def weights(self) -> np.ndarray:
        """The weights (P,) float64, ones if the graph has none."""
        return self.columns.get("weight", np.ones(self.source.size)).astype(np.float64)


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
        raise misfit("graph", "hold at least one document", "none")
    edges = read_edges(graph, only=("edge_weight",)).both_ways()
    weight = edges.weights()
    if weight.size and weight.min() < 0:
        raise misfit("graph.edge_weight", "be finite and >= 0", f"{weight.min():g}", _REBUILD)
    order = np.lexsort((edges.target, edges.source))
    order = order[(edges.source != edges.target)[order]]
    ends = np.stack([edges.source[order], edges.target[order]])

    def column(key: str, dtype: torch.dtype, missing: Any) -> np.ndarray:
        found = node_column(graph, key, size, dtype)
        return np.broadcast_to(missing, size).copy() if found is None else found.numpy()

    y = np.maximum(column("y", torch.long, -1), -1)
    classes = int(y.max(initial=-1)) + 1
    check_class_numbers("graph.y", classes - 1)
    text = graph.get("text")
    if text is not None:
        check_entries(text, "graph.text", size, f"hold one text per node, {size} of them")
        text = tuple(whole_text(str(entry)) for entry in text)
    return GraphArrays(
        size=size,
        edge_index=torch.from_numpy(ends),
        edge_weight=torch.from_numpy(weight[order]),
        y=y,
        seeds=column("seed_mask", torch.bool, True) & (y >= 0),
        ids=column("doc_id", torch.long, np.arange(size)),
        names=_names(graph, label_names, classes),
        text=text,
    )


def read_edges(
    graph: Data,
    *,
    directed: bool = False,
    tolerance: float = 1e-5,
    name: str = "graph",
    only: Iterable[str] | None = None,
) -> Edges:
    """Read the edges, sorted by source, then target, and their attributes without `edge_`.

    Unless `directed`, both directions of a pair become one entry (i, j), i <= j, and their values
    may differ by `tolerance` relative to the larger one. Errors call the graph `name`.
    """
    size = count_nodes(graph, name)
    check_tensor(f"{name}.edge_index", graph.edge_index)
    edge_index = graph.edge_index.detach().cpu()
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or not is_integer(edge_index):
        got: Any = f"{tuple(edge_index.shape)} of {edge_index.dtype}"
        raise misfit(f"{name}.edge_index", "be an integer tensor of the shape (2, E)", got)
    source, target = edge_index.long().numpy()
    if source.size and (edge_index.min() < 0 or edge_index.max() >= size):
        got = f"{int(edge_index.min())}..{int(edge_index.max())}"
        rule, advice = f"point at nodes 0..{size - 1}", f"Check '{name}.num_nodes'."
        raise misfit(f"{name}.edge_index", rule, got, advice)
    key, reverse = source * size + target, target * size + source
    forth = back = np.argsort(key, kind="stable")
    ranked = key[forth]
    if (repeated := np.flatnonzero(ranked[1:] == ranked[:-1])).size:
        i, j = divmod(int(ranked[repeated[0]]), size)
        advice = f"Call {name}.coalesce() and decide how weights add up."
        raise misfit(f"{name}.edge_index", "hold each edge once", f"({i}, {j}) repeatedly", advice)
    if not directed:
        back = np.argsort(reverse, kind="stable")
        if not np.array_equal(ranked, reverse[back]):
            i, j = divmod(int(np.setxor1d(key, reverse)[0]), size)
            advice = "Use torch_geometric.utils.to_undirected; exports also take directed=True."
            got = f"only one direction between {i} and {j}"
            raise misfit(name, "be undirected", got, advice)
        once = source[forth] <= target[forth]
        forth, back = forth[once], back[once]
    if only is None:
        # The attributes that every document graph has come first.
        found = {key: value for key, value in graph if key.startswith("edge_")}
        shapes = {key: value.shape for key, value in found.items() if isinstance(value, Tensor)}
        others = [key for key, shape in shapes.items() if shape == source.shape]
        only = dict.fromkeys(["edge_weight", "edge_kind", *others])
    columns: dict[str, np.ndarray] = {}
    for attribute in only:
        if graph.get(attribute) is None:
            continue
        values = _edge_values(graph, attribute, source.shape, name)
        one, other = values[forth].astype(np.float64), values[back].astype(np.float64)
        apart = 0.0 if attribute == "edge_kind" else tolerance
        allowed = apart * np.maximum(np.abs(one), np.abs(other))
        if (differs := np.flatnonzero(np.abs(one - other) > allowed)).size:
            i, j = forth[differs[0]], back[differs[0]]
            rule = f"be undirected: '{name}.{attribute}' must agree in both directions"
            got = f"{values[i]} for ({source[i]}, {target[i]}) and {values[j]} for its reverse"
            advice = "Use to_undirected(edge_index, edge_weight, reduce='mean') of PyG."
            raise misfit(name, rule, got, advice)
        if attribute == "edge_kind" and values.size and not np.isin(values, range(3)).all():
            got, advice = f"{values.min():g}..{values.max():g}", f"They stand for {EDGE_KINDS}."
            raise misfit(f"{name}.edge_kind", "be 0, 1 or 2", got, advice)
        columns[attribute.removeprefix("edge_")] = values[forth]
    return Edges(source[forth], target[forth], columns)


def edge_homophily(data: Data) -> float:
    """Share of the edges of `data` whose two documents have the same class.

    Returns:
        In [0, 1], over the edges with two labeled ends; NaN without such an edge.

    Raises:
        ValueError: A directed graph, an edge that leaves the graph, no `y`, or label sets.
    """
    size = count_nodes(data, "data")
    labels = node_column(data, "y", size, torch.long, "data")
    if labels is None:
        raise misfit("data.y", "hold a class number for every node", "none")
    edges = read_edges(data, name="data", only=()).both_ways()
    ends = labels.numpy()[np.stack([edges.source, edges.target])]
    known = (ends >= 0).all(axis=0)
    return float((ends[0] == ends[1])[known].mean()) if known.any() else float("nan")


def to_scipy(
    data: Data,
    values: str = "distances",
    *,
    k: int | None = None,
    loop: bool = False,
    embeddings: Tensor | None = None,
) -> sparse.csr_matrix:
    r"""Convert a document graph to a CSR matrix of distances or weights, the nearest entry first.

    | for                                           | call                              |
    | --------------------------------------------- | --------------------------------- |
    | cleanlab, `Datalab.find_issues(knn_graph=)`   | `to_scipy(data, k=10)`            |
    | a form like that of `KNeighborsTransformer`   | `to_scipy(data, k=10, loop=True)` |
    | `DBSCAN` and UMAP, `metric="precomputed"`     | `to_scipy(data, loop=True)`       |
    | scikit-learn, `SpectralClustering(affinity=)` | `to_scipy(data, "weights")`       |

    The distance of an edge is the one that the Gaussian kernel turns into its weight,
    \(\sigma \sqrt{-2 \ln w}\), with the `bandwidth` of the graph; 1 if it has none or one per
    document. For a graph of another kernel, pass the embeddings.

    Args:
        data: An undirected graph. Edges of weight 0 have no distance and are left out.
        values: `"distances"` or `"weights"`.
        k: Keep the k nearest entries per row, so that the matrix is no longer symmetric.
        loop: Store every document as its own first entry, of distance 0 or weight 1, on top of k.
        embeddings: (N, D); distances are then the Euclidean ones of these rows.

    Returns:
        (N, N) float64, each row sorted by ascending distance or descending weight.

    Raises:
        ValueError: A directed graph, weights that are no similarities in [0, 1], or a document
            with fewer than k edges.

    Cost: O(E log E), and O(E D) with embeddings.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> data = Data(edge_index=edges, edge_weight=torch.tensor([0.5, 0.5, 0.9, 0.9]))
        >>> to_scipy(data, k=1).indices.tolist()
        [1, 2, 1]

    See also: `to_networkx`, for a graph with labels and texts; `write_csr`, for a file.
    """
    check_choice("values", values, ("distances", "weights"))
    if k is not None:
        check_positive_int("k", k)
    size = count_nodes(data, "data")
    edges = read_edges(data, name="data", only=("edge_weight",)).both_ways()
    source, target = edges.source, edges.target
    if values == "weights":
        entry = edges.weights()
    elif embeddings is not None and (rows := read_embeddings(data, embeddings, size)) is not None:
        x = rows.double().numpy()
        parts = np.array_split(np.arange(source.size), source.size // _CHUNK + 1)
        entry = np.concatenate(
            [np.linalg.norm(x[source[part]] - x[target[part]], axis=1) for part in parts]
        )
    else:
        entry = _from_weights(edges, data.get("bandwidth"))
    kept = (source != target) & np.isfinite(entry)
    source, target, entry = source[kept], target[kept], entry[kept]
    if loop:
        every = np.arange(size)
        source, target = np.append(every, source), np.append(every, target)
        entry = np.append(np.full(size, float(values == "weights")), entry)
    far = -entry if values == "weights" else entry
    order = np.lexsort((target, source != target, far, source))
    degree = np.bincount(source, minlength=size)
    if k is not None:
        k += loop
        if size and degree.min() < k:
            got = f"{k - loop} for {degree.min() - loop}"
            advice = "Build the graph with a larger k, by symmetrize='union'."
            raise misfit("k", "be at most the fewest edges of a document", got, advice)
        starts = np.repeat(np.cumsum(degree) - degree, degree)
        order = order[np.arange(order.size) - starts < k]
        degree = np.minimum(degree, k)
    indptr = np.append(0, np.cumsum(degree))
    return sparse.csr_matrix((entry[order], target[order], indptr), shape=(size, size))


def read_embeddings(graph: Data, embeddings: Tensor | None, size: int) -> Tensor | None:
    """The given embeddings, else `graph.x`, as (N, D) on the CPU; None if there are none."""
    name = "graph.x" if embeddings is None else "embeddings"
    rows = graph.get("x") if embeddings is None else embeddings
    if rows is None:
        return None
    check_matrix(name, rows)
    if rows.size(0) != size:
        raise misfit(name, f"have {size} rows, one per document", rows.size(0))
    return rows.detach().cpu()


def count_nodes(graph: Data, name: str = "graph") -> int:
    """Number of nodes, without PyG's warning when it has to be guessed."""
    if not isinstance(graph, Data):
        raise TypeError(
            f"'{name}' must be a torch_geometric.data.Data (got {type(graph).__name__}). "
            "Build it with build_document_graph."
        )
    if graph.get("edge_index") is None:
        raise misfit(name, "have an 'edge_index'", None, "Build the graph first.")
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
        rule = f"have {size} entries, one class number per node"
        got = f"label sets of shape {tuple(column.shape)}"
        advice = "Look at one class at a time: y = (sets[:, c] > 0.5).long()."
        raise misfit(f"{name}.y", rule, got, advice)
    return class_values(column, f"{name}.{key}", size).to(dtype)


def _names(graph: Data, label_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    found = graph.get("label_names") if label_names is None else label_names
    if found is None:
        return tuple(str(label) for label in range(classes))
    names = tuple(class_names(found))
    if len(names) < classes:
        name = "graph.label_names" if label_names is None else "label_names"
        got = f"{len(names)} names for class {classes - 1}"
        raise misfit(name, "name every class", got, "Pass them in the order of the numbers.")
    return names


def _edge_values(graph: Data, key: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A finite attribute (E,)."""
    check_tensor(f"{name}.{key}", graph[key])
    values = graph[key].detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.dim() == 2 and values.size(1) == 1:
        values = values.squeeze(1)
    if values.shape != shape:
        rule = f"have {shape[0]} entries, one per column of 'edge_index'"
        raise misfit(f"{name}.{key}", rule, f"the shape {tuple(graph[key].shape)}")
    if not bool(torch.isfinite(values).all()):
        raise misfit(f"{name}.{key}", "be finite", "NaN or infinity", _REBUILD)
    return values.numpy()


def _from_weights(edges: Edges, bandwidth: Tensor | float | None) -> np.ndarray:
    """Distance (E,) of every edge by the inverse of the Gaussian kernel, `inf` at weight 0."""
    weight = edges.columns.get("weight")
    advice = "Pass embeddings, or use values='weights', which counts an edge without one as 1."
    if weight is None:
        raise misfit("data.edge_weight", "be there for distances", None, advice)
    if weight.size and not 0 <= weight.min() <= weight.max() <= 1 + _ROUNDING:
        got = f"{weight.min():g} to {weight.max():g}"
        raise misfit("data.edge_weight", "be in [0, 1] for distances", got, advice)
    sigma = torch.as_tensor(1.0 if bandwidth is None else bandwidth)
    scale = float(sigma) if sigma.numel() == 1 and not bool(sigma.isnan().any()) else 1.0
    with np.errstate(divide="ignore"):
        return scale * np.sqrt(-2.0 * np.log(np.minimum(weight.astype(np.float64), 1.0)) + 0.0)
