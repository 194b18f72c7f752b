"""Document graphs as the sparse matrices that scikit-learn, cleanlab and UMAP take."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.export.graph_arrays import Edges, count_nodes, read_edges, read_embeddings

__all__ = ["to_scipy"]

VALUES = ("distances", "weights")
_CHUNK = 65_536  # edges whose rows are compared at once
_ROUNDING = 1e-6


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
    | scikit-learn, `DBSCAN(metric="precomputed")`  | `to_scipy(data, loop=True)`       |
    | a form like that of `KNeighborsTransformer`   | `to_scipy(data, k=10, loop=True)` |
    | UMAP, `metric="precomputed"`                  | `to_scipy(data, loop=True)`       |
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
        >>> to_scipy(data, "weights").toarray()[1].round(3).tolist()
        [0.5, 0.0, 0.9]
        >>> to_scipy(data, k=1).indices.tolist()
        [1, 2, 1]

    See also: `to_networkx`, for a graph with labels and texts; `write_csr`, for a file.
    """
    check_choice("values", values, VALUES)
    if k is not None:
        check_positive_int("k", k)
    size = count_nodes(data, "data")
    edges = read_edges(data, name="data", only=("edge_weight",)).both_ways()
    source, target = edges.source, edges.target
    if values == "weights":
        entry = edges.columns.get("weight", np.ones(source.size)).astype(np.float64)
    elif embeddings is not None and (rows := read_embeddings(data, embeddings, size)) is not None:
        entry = _between_rows(edges, rows)
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
            raise ValueError(
                f"'k' must be at most the fewest edges of a document (got {k - loop} for "
                f"{degree.min() - loop}). Build the graph with a larger k, by symmetrize='union'."
            )
        starts = np.repeat(np.cumsum(degree) - degree, degree)
        order = order[np.arange(order.size) - starts < k]
        degree = np.minimum(degree, k)
    indptr = np.append(0, np.cumsum(degree))
    return sparse.csr_matrix((entry[order], target[order], indptr), shape=(size, size))


def _between_rows(edges: Edges, rows: Tensor) -> np.ndarray:
    """Euclidean distance between the rows of both ends (E,)."""
    x = rows.double().numpy()
    parts = np.array_split(np.arange(edges.source.size), edges.source.size // _CHUNK + 1)
    return np.concatenate(
        [np.linalg.norm(x[edges.source[p]] - x[edges.target[p]], axis=1) for p in parts]
    )


def _from_weights(edges: Edges, bandwidth: Tensor | float | None) -> np.ndarray:
    """Distance (E,) of every edge by the inverse of the Gaussian kernel, `inf` at weight 0."""
    weight = edges.columns.get("weight")
    if weight is None:
        raise ValueError(
            "'data.edge_weight' must be there for distances (got None). Pass embeddings, or use "
            "values='weights', which counts every edge as 1."
        )
    if weight.size and not 0 <= weight.min() <= weight.max() <= 1 + _ROUNDING:
        raise ValueError(
            f"'data.edge_weight' must be in [0, 1] for distances (got {weight.min():g} to "
            f"{weight.max():g}). Pass embeddings, or use values='weights'."
        )
    sigma = torch.as_tensor(1.0 if bandwidth is None else bandwidth)
    scale = float(sigma) if sigma.numel() == 1 and not bool(sigma.isnan().any()) else 1.0
    with np.errstate(divide="ignore"):
        return scale * np.sqrt(-2.0 * np.log(np.minimum(weight.astype(np.float64), 1.0)) + 0.0)
