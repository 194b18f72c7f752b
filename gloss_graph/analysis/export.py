"""The document graph as a NetworkX graph of plain Python values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.analysis.columns import (
    class_column,
    clean_text,
    count_nodes,
    prediction_column,
    text_column,
)
from gloss_graph.analysis.graphml import write_graphml

__all__ = ["EDGE_KINDS", "to_networkx", "write_graphml"]

#: Names of the values 0, 1, 2 of ``data.edge_kind``.
EDGE_KINDS = ("batch-batch", "batch-memory", "memory-memory")


def to_networkx(
    data: Data,
    texts: Sequence[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    predicted: Sequence[int] | Sequence[str] | Tensor | np.ndarray | None = None,
    split: Sequence[str] | None = None,
    max_text: int | None = 200,
    tolerance: float = 1e-5,
) -> nx.Graph:
    r"""Convert a document graph to an undirected ``nx.Graph`` that every NetworkX writer accepts.

    Both stored directions of a pair become one edge. All attributes are exactly ``str``, ``int``,
    ``float`` or ``bool``, and an attribute that is present is present on every node, so GraphML,
    GEXF, GML and node-link JSON can be written without preparation.

    ========== ====================================== ==================================
    attribute  of                                     from
    ========== ====================================== ==================================
    doc_id     node, int                              ``data.doc_id``
    text       node, str, cleaned and shortened       ``texts``
    label      node, str (int without names)          ``data.y``
    predicted  node, str (int without names)          ``predicted`` or ``data.predicted``
    split      node, str                              ``split``
    age        node, int                              ``data.age``
    in_batch   node, bool                             ``data.in_batch``
    seed       node, bool                             ``data.seed_mask``
    weight     edge, float                            ``data.edge_weight``, entry (i, j), i ≤ j
    kind       edge, str, see ``EDGE_KINDS``          ``data.edge_kind``
    ========== ====================================== ==================================

    What ``data`` lacks is left out. The label of an unlabeled document is ``""``, or ``-1``
    without ``label_names``. Self-loops, which a document graph never has, stay as one edge each.
    Two writers treat ``label`` as their own: GEXF keeps it as text, GML puts the node's number in
    its place.

    Shapes:
        ``data.edge_index`` (2, E), ``data.edge_weight`` and ``data.edge_kind`` (E,), node
        columns (N,). The result has the nodes ``0..N-1`` and E / 2 edges.

    Args:
        data: the graph, undirected and coalesced, as ``build_document_graph`` returns it. Any
            PyG graph of that form will do; only ``edge_index`` is needed.
        texts: the documents, one per node.
        label_names: names of the classes; they replace the integers of ``label`` and
            ``predicted``.
        predicted: predicted class per node, integers (-1 = none) or names.
        split: name of the split ("train", "test", ...) per node.
        max_text: longest ``text`` in characters, the closing ellipsis included; None keeps all.
        tolerance: relative difference allowed between the weights of the two directions.

    Returns:
        The graph. No gradient reaches it: weights are detached.

    Raises:
        ValueError: if the graph is directed, weights or kinds differ by direction, edges repeat
            or leave the graph, or a column does not have one entry per node.

    Cost: O(N + E log E), most of it NetworkX's dictionaries: 5 to 8 times faster than PyG's own
    conversion (``examples/benchmarks/export.py``).

    Example:
        >>> data = Data(
        ...     edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]),
        ...     edge_weight=torch.tensor([0.5, 0.5, 1.0, 1.0]),
        ...     y=torch.tensor([0, 1, -1]),
        ... )
        >>> graph = to_networkx(data, ["tea", "coffee", "?"], label_names=["calm", "awake"])
        >>> graph.nodes[1], graph.edges[0, 1]
        ({'text': 'coffee', 'label': 'awake'}, {'weight': 0.5})

    See also: ``write_graphml`` to save the result; ``torch_geometric.utils.to_networkx`` for
    directed and heterogeneous graphs and for vector attributes, which no text format takes.
    """
    if max_text is not None and max_text < 1:
        raise ValueError(f"'max_text' must be at least 1 (got {max_text}). Pass None for no limit.")
    if not tolerance >= 0:
        raise ValueError(f"'tolerance' must be at least 0 (got {tolerance}). 0 asks for equality.")
    num_nodes = count_nodes(data)
    pairs = _pairs(data, num_nodes, tolerance)
    columns = _columns(data, num_nodes, texts, label_names, predicted, split, max_text)

    graph = nx.Graph()
    keys = tuple(columns)
    rows: Iterable[tuple[Any, ...]] = (
        zip(*columns.values(), strict=True) if keys else repeat((), num_nodes)
    )
    graph.add_nodes_from((i, dict(zip(keys, row, strict=True))) for i, row in enumerate(rows))
    # Edges name their ends by the very integers that key the nodes: less memory, and dictionary
    # look-ups that end at identity.
    nodes = np.empty(num_nodes, dtype=object)
    nodes[:] = list(graph)
    source, target = nodes[pairs.source].tolist(), nodes[pairs.target].tolist()
    weight, kind = pairs.weight, pairs.kind
    if weight is not None and kind is not None:
        entries = zip(source, target, weight, kind, strict=True)
        graph.add_edges_from((i, j, {"weight": w, "kind": k}) for i, j, w, k in entries)
    elif weight is not None:
        graph.add_weighted_edges_from(zip(source, target, weight, strict=True))
    elif kind is not None:
        labeled = zip(source, target, kind, strict=True)
        graph.add_edges_from((i, j, {"kind": k}) for i, j, k in labeled)
    else:
        graph.add_edges_from(zip(source, target, strict=True))
    return graph


def _columns(
    data: Data,
    num_nodes: int,
    texts: Sequence[str] | None,
    label_names: Sequence[str] | None,
    predicted: Any,
    split: Sequence[str] | None,
    max_text: int | None,
) -> dict[str, list[Any]]:
    """Collect the node attributes, in the order of the table of ``to_networkx``."""
    names = None if label_names is None else [clean_text(str(name)) for name in label_names]
    if predicted is None:
        predicted = data.get("predicted")
    labels = class_column(data, "y", num_nodes, torch.long)
    columns = {
        "doc_id": class_column(data, "doc_id", num_nodes, torch.long),
        "text": None if texts is None else text_column(texts, "texts", num_nodes, max_text),
        "label": None if labels is None else _named(labels, names, "data.y"),
        "predicted": None
        if predicted is None
        else _named(prediction_column(predicted, num_nodes), names, "predicted"),
        "split": None if split is None else text_column(split, "split", num_nodes, None),
        "age": class_column(data, "age", num_nodes, torch.long),
        "in_batch": class_column(data, "in_batch", num_nodes, torch.bool),
        "seed": class_column(data, "seed_mask", num_nodes, torch.bool),
    }
    return {key: column for key, column in columns.items() if column is not None}


def _named(classes: list[Any], names: list[str] | None, source: str) -> list[Any]:
    """Replace class numbers by names; -1 by the empty name. Names stay as they are."""
    if names is None or not classes or isinstance(classes[0], str):
        return classes
    if max(classes) >= len(names):
        raise ValueError(
            f"'label_names' must name every class in '{source}' (got {len(names)} names for "
            f"class {max(classes)}). Add the missing names."
        )
    return [names[i] if i >= 0 else "" for i in classes]


class _Pairs(NamedTuple):
    """One entry per undirected edge: its ends i <= j (P,) and its attributes (P,)."""

    source: np.ndarray
    target: np.ndarray
    weight: list[float] | None
    kind: list[str] | None


def _pairs(data: Data, num_nodes: int, tolerance: float) -> _Pairs:
    """Match the two directions of every edge."""
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
    # Positions of i -> j and of j -> i, both sorted by (i, j) with i <= j; a loop is in both.
    there, back = np.flatnonzero(source <= target), np.flatnonzero(source >= target)
    there_key = source[there] * num_nodes + target[there]
    back_key = target[back] * num_nodes + source[back]
    there_order, back_order = np.argsort(there_key), np.argsort(back_key)
    there, there_key = there[there_order], there_key[there_order]
    back, back_key = back[back_order], back_key[back_order]
    for key in (there_key, back_key):
        if (repeated := np.flatnonzero(key[1:] == key[:-1])).size:
            i, j = divmod(int(key[repeated[0]]), num_nodes)
            raise ValueError(
                f"'data.edge_index' must hold each edge once (got ({i}, {j}) repeatedly). "
                "Call data.coalesce() and decide how weights add up."
            )
    if not np.array_equal(there_key, back_key):
        i, j = divmod(int(np.setxor1d(there_key, back_key)[0]), num_nodes)
        raise ValueError(
            f"'data' must be undirected (got only one direction between {i} and {j}). "
            "Use torch_geometric.utils.to_undirected, or its to_networkx for a directed graph."
        )

    def symmetric(key: str, rtol: float) -> np.ndarray | None:
        values = _edge_values(data, key, source.size)
        if values is None:
            return None
        ours, theirs = values[there], values[back]
        allowed = rtol * np.maximum(np.abs(ours), np.abs(theirs))
        differs = np.flatnonzero(np.abs(ours - theirs) > allowed)
        if differs.size:
            one, other = there[differs[0]], back[differs[0]]
            raise ValueError(
                f"'data.{key}' must agree in both directions (got {values[one]} for "
                f"({source[one]}, {target[one]}) and {values[other]} for its reverse). "
                "Symmetrize it, for example by the mean of the two."
            )
        return ours

    weight, kind = symmetric("edge_weight", tolerance), symmetric("edge_kind", 0.0)
    if kind is not None and kind.size and not np.isin(kind, range(len(EDGE_KINDS))).all():
        raise ValueError(
            f"'data.edge_kind' must be 0, 1 or 2 (got {kind.min():g}..{kind.max():g}). "
            f"They stand for {', '.join(EDGE_KINDS)}."
        )
    return _Pairs(
        source[there],
        target[there],
        None if weight is None else weight.tolist(),
        None if kind is None else [EDGE_KINDS[i] for i in kind.astype(int).tolist()],
    )


def _edge_values(data: Data, key: str, num_edges: int) -> np.ndarray | None:
    values = data.get(key)
    if values is None:
        return None
    values = values.detach().cpu().double()
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
