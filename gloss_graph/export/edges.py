"""Edges of a PyG graph as columns: one entry per undirected edge, or one per direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_tensor
from gloss_graph.export.columns import class_column, count_nodes

__all__ = ["EDGE_KINDS", "EdgeColumns", "edge_columns", "edge_homophily"]

#: Names of the values 0, 1, 2 of ``data.edge_kind``.
EDGE_KINDS = ("batch-batch", "batch-memory", "memory-memory")
_PREFIX = "edge_"


class EdgeColumns(NamedTuple):
    """One entry per edge: its ends (P,) long and its attributes (P,) by name."""

    source: np.ndarray
    target: np.ndarray
    columns: dict[str, np.ndarray]


def edge_columns(
    data: Data, num_nodes: int, *, directed: bool = False, tolerance: float = 1e-5
) -> EdgeColumns:
    """Return the edges sorted by source, then target.

    Args:
        data: any PyG graph without repeated edges. Attributes are ``edge_weight``, ``edge_kind``
            and every other one-dimensional tensor (E,) whose name starts with ``edge_``; they lose
            that prefix.
        num_nodes: N.
        directed: one entry per column of ``edge_index``. Otherwise both directions of a pair
            become one entry (i, j), i <= j, and the graph must be undirected.
        tolerance: relative difference allowed between the weights of the two directions.

    Raises:
        ValueError: if edges repeat, leave the graph or, unless ``directed``, lack their reverse or
            differ from it; if an attribute has a wrong length or is not finite.

    Example:
        >>> data = Data(edge_index=torch.tensor([[1, 0], [0, 1]]), edge_weight=torch.ones(2))
        >>> edge_columns(data, 2)
        EdgeColumns(source=array([0]), target=array([1]), columns={'weight': array([1.],
        dtype=float32)})
    """
    source, target = _ends(data, num_nodes)
    if directed:
        there = back = _sorted(source, target, np.arange(source.size), num_nodes)
    else:
        # Positions of i -> j and of j -> i, both sorted by (i, j) with i <= j; a loop is in both.
        there = _sorted(source, target, np.flatnonzero(source <= target), num_nodes)
        back = _sorted(target, source, np.flatnonzero(source >= target), num_nodes)
        _check_undirected(source, target, there, back, num_nodes)
    columns: dict[str, np.ndarray] = {}
    for key in _attributes(data, source.size):
        values = _values(data, key, source.size)
        if not directed:
            rtol = 0.0 if key == "edge_kind" else tolerance
            _check_symmetric(key, values, source, target, there, back, rtol)
        if key == "edge_kind" and values.size and not np.isin(values, range(3)).all():
            raise ValueError(
                f"'data.edge_kind' must be 0, 1 or 2 (got {values.min():g}..{values.max():g}). "
                f"They stand for {', '.join(EDGE_KINDS)}."
            )
        columns[key.removeprefix(_PREFIX)] = values[there]
    return EdgeColumns(source[there], target[there], columns)


def edge_homophily(data: Data) -> float:
    """Share of the edges that join two documents of a class, NaN without an edge of known ends.

    Args:
        data: A graph with `edge_index` (2, E) and `y` (N,), -1 = unlabeled.

    Returns:
        In [0, 1], over the edges with two labeled ends.

    Raises:
        TypeError: An `edge_index` that is no tensor.
        ValueError: An edge that leaves the graph; no `y`, or label sets.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> edge_homophily(Data(edge_index=edges, y=torch.tensor([0, 0, 1])))
        0.5
    """
    num_nodes = count_nodes(data)
    labels = class_column(data, "y", num_nodes, torch.long)
    if labels is None:
        raise ValueError("'data.y' must hold a class number for every node (got none).")
    ends = np.array(labels, dtype=np.int64)[np.stack(_ends(data, num_nodes))]
    known = (ends >= 0).all(axis=0)
    return float((ends[0] == ends[1])[known].mean()) if known.any() else float("nan")


def _attributes(data: Data, num_edges: int) -> list[str]:
    known = [key for key in ("edge_weight", "edge_kind") if data.get(key) is not None]
    others = [
        key
        for key, value in data
        if key.startswith(_PREFIX)
        and key not in ("edge_index", *known)
        and isinstance(value, Tensor)
        and value.shape == (num_edges,)
    ]
    return known + others


def _ends(data: Data, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    check_tensor("data.edge_index", data.edge_index)
    edge_index = data.edge_index.detach().cpu()
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.is_floating_point():
        raise ValueError(
            "'data.edge_index' must be an integer tensor of the shape (2, E) "
            f"(got {tuple(edge_index.shape)} of {edge_index.dtype})."
        )
    source, target = edge_index.long().numpy()
    if source.size and (edge_index.min() < 0 or edge_index.max() >= num_nodes):
        raise ValueError(
            f"'data.edge_index' must point at nodes 0..{num_nodes - 1} (got "
            f"{int(edge_index.min())}..{int(edge_index.max())}). Check 'data.num_nodes'."
        )
    return source, target


def _sorted(low: np.ndarray, high: np.ndarray, chosen: np.ndarray, num_nodes: int) -> np.ndarray:
    """Positions `chosen`, sorted by (low, high); raise where a pair repeats."""
    key = low[chosen] * num_nodes + high[chosen]
    if key.size and not (key[1:] > key[:-1]).all():
        order = np.argsort(key, kind="stable")
        chosen, key = chosen[order], key[order]
        if (repeated := np.flatnonzero(key[1:] == key[:-1])).size:
            i, j = divmod(int(key[repeated[0]]), num_nodes)
            raise ValueError(
                f"'data.edge_index' must hold each edge once (got ({i}, {j}) repeatedly). "
                "Call data.coalesce() and decide how weights add up."
            )
    return chosen


def _check_undirected(
    source: np.ndarray, target: np.ndarray, there: np.ndarray, back: np.ndarray, num_nodes: int
) -> None:
    ours = source[there] * num_nodes + target[there]
    theirs = target[back] * num_nodes + source[back]
    if not np.array_equal(ours, theirs):
        i, j = divmod(int(np.setxor1d(ours, theirs)[0]), num_nodes)
        raise ValueError(
            f"'data' must be undirected (got only one direction between {i} and {j}). "
            "Use torch_geometric.utils.to_undirected, or directed=True."
        )


def _check_symmetric(
    key: str,
    values: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    there: np.ndarray,
    back: np.ndarray,
    rtol: float,
) -> None:
    ours, theirs = values[there], values[back]
    if np.array_equal(ours, theirs):
        return
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    allowed = rtol * np.maximum(np.abs(ours), np.abs(theirs))
    differs = np.flatnonzero(np.abs(ours - theirs) > allowed)
    if differs.size:
        one, other = there[differs[0]], back[differs[0]]
        raise ValueError(
            f"'data.{key}' must agree in both directions (got {values[one]} for "
            f"({source[one]}, {target[one]}) and {values[other]} for its reverse). "
            "Symmetrize it, for example by the mean of the two."
        )


def _values(data: Data, key: str, num_edges: int) -> np.ndarray:
    check_tensor(f"data.{key}", data[key])
    values = data[key].detach().cpu()
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if values.dim() == 2 and values.size(1) == 1:
        values = values.squeeze(1)
    if values.shape != (num_edges,):
        raise ValueError(
            f"'data.{key}' must have {num_edges} entries, one per column of 'edge_index' "
            f"(got the shape {tuple(data[key].shape)})."
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"'data.{key}' must be finite (got NaN or infinity). No JSON or GML file holds it."
        )
    return values.numpy()
