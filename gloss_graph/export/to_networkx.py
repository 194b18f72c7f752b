"""The document graph as a NetworkX graph of plain Python values."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.export.columns import (
    check_max_text,
    class_column,
    class_names,
    clean_text,
    count_nodes,
    prediction_column,
    text_column,
)
from gloss_graph.export.edges import EDGE_KINDS, edge_columns

__all__ = ["EDGE_KINDS", "graph_attributes", "node_columns", "to_networkx"]

# Columns of a document graph that have a place of their own in the table of `to_networkx`.
_KNOWN = {"y", "doc_id", "text", "predicted", "split", "age", "in_batch", "seed_mask"}
# Vectors, and what is said by the graph itself.
_LEFT_OUT = {"x", "pos", "edge_index", "num_nodes", "label_names", "batch", "ptr"}


def to_networkx(
    data: Data,
    texts: Sequence[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    predicted: Sequence[int] | Sequence[str] | Tensor | np.ndarray | None = None,
    split: Sequence[str] | None = None,
    max_text: int | None = 200,
    tolerance: float = 1e-5,
    directed: bool = False,
) -> nx.Graph:
    r"""Convert a document graph to an undirected ``nx.Graph`` that every NetworkX writer accepts.

    Both stored directions of a pair become one edge. All attributes are exactly ``str``, ``int``,
    ``float`` or ``bool``, and an attribute that is present is present on every node, so GraphML,
    GEXF, GML and node-link JSON can be written without preparation. It is a plain graph, so
    NetworkX's backends take it as it is where they are installed: ``backend="parallel"`` of
    nx-parallel, or ``NX_CUGRAPH_AUTOCONFIG=True`` in the environment for nx-cugraph.

    ========== ====================================== ==================================
    attribute  of                                     from
    ========== ====================================== ==================================
    doc_id     node, int                              ``data.doc_id``
    text       node, str, cleaned and shortened       ``texts`` or ``data.text``
    label      node, str (int without names)          ``data.y``
    predicted  node, str (int without names)          ``predicted`` or ``data.predicted``
    split      node, str                              ``split`` or ``data.split``
    age        node, int                              ``data.age``
    in_batch   node, bool                             ``data.in_batch``
    seed       node, bool                             ``data.seed_mask``
    weight     edge, float                            ``data.edge_weight``, entry (i, j), i ≤ j
    kind       edge, str, see ``EDGE_KINDS``          ``data.edge_kind``
    ========== ====================================== ==================================

    Any other tensor (N,) or list of N strings becomes a node attribute of its own name, any other
    ``edge_name`` (E,) the edge attribute ``name``, and single values (``data.bandwidth``)
    attributes of the graph, as ``label_names`` does in JSON; embeddings ``x`` and other tables are
    left out. ``from_networkx`` is the way back.

    What ``data`` lacks is left out. The label of an unlabeled document is ``""``, or ``-1``
    without ``label_names``. Self-loops, which a document graph never has, stay as one edge each.
    Two writers treat ``label`` as their own: GEXF keeps it as text, GML puts the node's number in
    its place.

    Shapes:
        ``data.edge_index`` (2, E), ``data.edge_weight`` and ``data.edge_kind`` (E,), node
        columns (N,). The result has the nodes ``0..N-1`` and E / 2 edges.

    Args:
        data: the graph, undirected and coalesced, as ``build_document_graph`` and
            ``document_graph`` return it. Any PyG graph of that form will do; only ``edge_index``
            is needed.
        texts: the documents, one per node.
        label_names: names of the classes, else ``data.label_names``; they replace the integers of
            ``label`` and ``predicted``.
        predicted: predicted class per node, integers (-1 = none) or names.
        split: name of the split ("train", "test", ...) per node.
        max_text: longest ``text`` in characters, the closing ellipsis included; None keeps all.
        tolerance: relative difference allowed between the weights of the two directions.
        directed: return an ``nx.DiGraph`` with one edge per column of ``edge_index``, of a graph
            whose directions may differ.

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

    See also: ``write_graph`` to save the result; ``torch_geometric.utils.to_networkx`` for
    directed and heterogeneous graphs and for vector attributes, which no text format takes.
    """
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"'tolerance' must be at least 0 (got {tolerance}). 0 asks for equality.")
    num_nodes = count_nodes(data)
    edges = edge_columns(data, num_nodes, directed=directed, tolerance=tolerance)
    columns = node_columns(data, texts, label_names, predicted, split, max_text)

    graph = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(graph_attributes(data, label_names))
    keys = tuple(columns)
    rows: Iterable[tuple[Any, ...]] = (
        zip(*columns.values(), strict=True) if keys else repeat((), num_nodes)
    )
    graph.add_nodes_from((i, dict(zip(keys, row, strict=True))) for i, row in enumerate(rows))
    # Edges name their ends by the very integers that key the nodes: less memory, and dictionary
    # look-ups that end at identity.
    nodes = np.empty(num_nodes, dtype=object)
    nodes[:] = list(graph)
    ends = nodes[edges.source].tolist(), nodes[edges.target].tolist()
    values = {name: column.tolist() for name, column in edges.columns.items()}
    if "kind" in values:
        values["kind"] = [EDGE_KINDS[int(kind)] for kind in values["kind"]]
    _add_edges(graph, *ends, values)
    return graph


def _add_edges(
    graph: nx.Graph, source: list[Any], target: list[Any], values: dict[str, list[Any]]
) -> None:
    """Add edges between nodes that are there, none twice.

    NetworkX's own methods make a hash table of each edge's attributes; most of a graph is these.
    """
    template = _shared_keys(tuple(values))
    there, back = (graph._succ, graph._pred) if graph.is_directed() else (graph._adj, graph._adj)
    if list(values) == ["weight"]:
        for i, j, weight in zip(source, target, values["weight"], strict=True):
            row = template.copy()
            row["weight"] = weight
            there[i][j] = back[j][i] = row
        return
    if list(values) == ["weight", "kind"]:
        columns = (source, target, values["weight"], values["kind"])
        for i, j, weight, kind in zip(*columns, strict=True):
            row = template.copy()
            row["weight"], row["kind"] = weight, kind
            there[i][j] = back[j][i] = row
        return
    names = tuple(values)
    rows: Iterable[tuple[Any, ...]] = zip(*values.values(), strict=True) if names else repeat(())
    for i, j, entries in zip(source, target, rows, strict=bool(names)):
        row = template.copy()
        row.update(zip(names, entries, strict=True))
        there[i][j] = back[j][i] = row


def _shared_keys(names: tuple[str, ...]) -> dict[str, Any]:
    """An ordinary dictionary whose copies share one table of keys (PEP 412), at half the size.

    Such is the `__dict__` of an instance. Python gives the first ones of a class room for names to
    come, so a later one is taken, if it is smaller at all.
    """
    plain = dict.fromkeys(names)

    class Keys:
        pass

    for _ in range(64):
        keys = Keys()
        for name in names:
            setattr(keys, name, None)
    shared = vars(keys)
    return shared if sys.getsizeof(shared.copy()) < sys.getsizeof(plain) else plain


def node_columns(
    data: Data,
    texts: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    predicted: Any = None,
    split: Sequence[str] | None = None,
    max_text: int | None = None,
) -> dict[str, list[Any]]:
    """Return the node attributes, in the order of the table of ``to_networkx``.

    Raises:
        ValueError: see ``to_networkx``.
    """
    check_max_text(max_text)
    num_nodes = count_nodes(data)
    texts = data.get("text") if texts is None else texts
    split = data.get("split") if split is None else split
    predicted = data.get("predicted") if predicted is None else predicted
    label_names = data.get("label_names") if label_names is None else label_names
    names = None if label_names is None else [clean_text(name) for name in class_names(label_names)]
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
    found = {key: column for key, column in columns.items() if column is not None}
    for key, value in data:
        if key in _KNOWN | _LEFT_OUT or key.startswith("edge_"):
            continue
        if isinstance(value, Tensor) and value.shape == (num_nodes,) and not value.is_complex():
            found[key] = value.detach().cpu().tolist()
        elif isinstance(value, list) and len(value) == num_nodes and num_nodes:
            found[key] = text_column(value, key, num_nodes, None)
    return found


def graph_attributes(data: Data, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the single values of a graph; ``label_names`` as a JSON list.

    A bandwidth of NaN, of a kernel with a width per document, is written ``"local"``.
    """
    found: dict[str, Any] = {}
    for key, value in data:
        if key in _KNOWN | _LEFT_OUT:
            continue
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()
        if isinstance(value, str):
            found[key] = clean_text(value)
        elif isinstance(value, (bool, int, float)):
            found[key] = "local" if key == "bandwidth" and math.isnan(value) else value
    names = data.get("label_names") if label_names is None else label_names
    if names is not None:
        found["label_names"] = json.dumps(
            [clean_text(name) for name in class_names(names)], ensure_ascii=False
        )
    return found


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
