"""The document graph as columns and as a NetworkX graph of plain Python values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.export.attributes import (
    check_simple,
    class_names,
    class_values,
    clean_text,
    text_column,
)
from gloss_graph.export.graph_arrays import EDGE_KINDS, count_nodes, node_column, read_edges

__all__ = ["GraphColumns", "as_networkx", "data_columns", "networkx_of", "to_networkx"]

# Columns that the table of `to_networkx` names.
_KNOWN = {"y", "doc_id", "text", "predicted", "split", "age", "in_batch", "seed_mask"}
# Vectors, and columns that become something else.
_LEFT_OUT = {"x", "pos", "edge_index", "num_nodes", "label_names", "batch", "ptr"}


class GraphColumns(NamedTuple):
    """A graph as columns: what every format is made from, and what tables and matrices hold.

    `names` of the N nodes; `nodes`, columns of N values, None for a missing value; `source` and
    `target` (P,) int64, positions of nodes; `edges`, columns of P values; `directed`, whether an
    entry is one direction only; `attributes` of the graph.
    """

    names: Sequence[Any]
    nodes: Mapping[str, Any]
    source: np.ndarray
    target: np.ndarray
    edges: Mapping[str, Any]
    directed: bool
    attributes: Mapping[str, Any]


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
    r"""Convert a document graph to an undirected `nx.Graph` that every NetworkX writer accepts.

    Both stored directions of a pair become one edge. All attributes are exactly `str`, `int`,
    `float` or `bool`, and every node has the same ones, so GraphML, GEXF, GML and node-link JSON
    can be written without preparation, and NetworkX's backends (nx-parallel, nx-cugraph) take it.

    | attribute   | of                              | from                                    |
    | ----------- | ------------------------------- | --------------------------------------- |
    | `doc_id`    | node, int                       | `data.doc_id`                           |
    | `text`      | node, str, cleaned, shortened   | `texts` or `data.text`                  |
    | `label`     | node, str (int without names)   | `data.y`                                |
    | `predicted` | node, str (int without names)   | `predicted` or `data.predicted`         |
    | `split`     | node, str                       | `split` or `data.split`                 |
    | `age`       | node, int                       | `data.age`                              |
    | `in_batch`  | node, bool                      | `data.in_batch`                         |
    | `seed`      | node, bool                      | `data.seed_mask`                        |
    | `weight`    | edge, float                     | `data.edge_weight`, entry (i, j), i ≤ j |
    | `kind`      | edge, str, see `EDGE_KINDS`     | `data.edge_kind`                        |

    Any other tensor (N,) or list of N strings becomes a node attribute of that name, any other
    `edge_name` (E,) the edge attribute `name`, and single values (`data.bandwidth`) attributes of
    the graph, as does `label_names` in JSON. Embeddings `x` and other tables are left out.

    The label of an unlabeled document is `""`, or `-1` without `label_names`. A self-loop becomes
    one edge. NetworkX's writer of GML replaces `label` by the node's number.

    Args:
        data: An undirected, coalesced graph, as `build_document_graph` and `document_graph` return
            it; only `edge_index` is needed.
        texts: The documents.
        label_names: Names of the classes, by default `data.label_names`; they replace the integers
            of `label` and `predicted`.
        predicted: Predicted class per node, integers (-1 = none) or names.
        split: Name of the split ("train", "test", ...) per node.
        max_text: Longest `text` in characters, the closing ellipsis included; None keeps all.
        tolerance: Relative difference allowed between the weights of the two directions.
        directed: Return an `nx.DiGraph` with one edge per column of `edge_index`; directions may
            then differ.

    Returns:
        The graph. No gradient reaches it: weights are detached.

    Raises:
        ValueError: A directed graph, weights or kinds that differ by direction, edges that repeat
            or leave the graph, or a column without one entry per node.

    Cost: O(N + E log E), most of it NetworkX's dictionaries (`examples/benchmarks/export.py`).

    Example:
        >>> data = Data(
        ...     edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]),
        ...     edge_weight=torch.tensor([0.5, 0.5, 1.0, 1.0]),
        ...     y=torch.tensor([0, 1, -1]),
        ... )
        >>> graph = to_networkx(data, ["tea", "coffee", "?"], label_names=["calm", "awake"])
        >>> graph.nodes[1], graph.edges[0, 1]
        ({'text': 'coffee', 'label': 'awake'}, {'weight': 0.5})

    See also: `from_networkx`, the way back; `write_graph`, to save the graph;
    `torch_geometric.utils.to_networkx`, for heterogeneous graphs and vector attributes.
    """
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"'tolerance' must be at least 0 (got {tolerance}). 0 asks for equality.")
    columns = data_columns(
        data,
        texts,
        label_names=label_names,
        predicted=predicted,
        split=split,
        max_text=max_text,
        tolerance=tolerance,
        directed=directed,
    )
    return networkx_of(columns)


def networkx_of(columns: GraphColumns) -> nx.Graph:
    """The graph of columns."""
    graph = nx.DiGraph() if columns.directed else nx.Graph()
    graph.graph.update(columns.attributes)
    # Edges name their ends by the objects that key the nodes, which takes less memory.
    names = list(columns.names)
    graph.add_nodes_from(zip(names, _rows(columns.nodes, len(names)), strict=True))
    keys = np.empty(len(names), dtype=object)
    keys[:] = names
    source, target = keys[columns.source].tolist(), keys[columns.target].tolist()
    graph.add_edges_from(zip(source, target, _rows(columns.edges, len(source)), strict=True))
    return graph


def _rows(columns: Mapping[str, Any], size: int) -> Iterable[dict[str, Any]]:
    """One dictionary per node or edge, without missing values."""
    lists = {
        name: values.tolist() if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
    if not lists:
        return ({} for _ in range(size))
    rows = (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
    if not any(None in values for values in lists.values()):
        return rows
    return ({name: value for name, value in row.items() if value is not None} for row in rows)


def as_networkx(graph: Data | nx.Graph, *, max_text: int | None, directed: bool) -> nx.Graph:
    """A graph of either kind as a NetworkX graph, its `text` shortened."""
    if isinstance(graph, Data):
        return to_networkx(graph, max_text=max_text, directed=directed)
    if not isinstance(graph, nx.Graph):
        raise ValueError(
            f"'graph' must be a PyG Data or a NetworkX graph (got {type(graph).__name__})."
        )
    check_simple(graph)
    if max_text is not None:
        check_positive_int("max_text", max_text)
        graph = graph.copy()
        for row in graph.nodes.values():
            if isinstance(row.get("text"), str):
                row["text"] = clean_text(row["text"], max_text)
    return graph


def data_columns(
    data: Data,
    texts: Sequence[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    predicted: Any = None,
    split: Sequence[str] | None = None,
    max_text: int | None = None,
    tolerance: float = 1e-5,
    directed: bool = False,
) -> GraphColumns:
    """Columns of a document graph, those of nodes in the order of the table of `to_networkx`."""
    if max_text is not None:
        check_positive_int("max_text", max_text)
    size = count_nodes(data, "data")
    edges = read_edges(data, directed=directed, tolerance=tolerance, name="data")
    values: dict[str, Any] = dict(edges.columns)
    if "kind" in values:
        values["kind"] = np.array(EDGE_KINDS, dtype=object)[values["kind"].astype(int)]
    classes = data.get("label_names") if label_names is None else label_names
    cleaned = None if classes is None else [clean_text(name) for name in class_names(classes)]
    known = {
        "texts": data.get("text") if texts is None else texts,
        "split": data.get("split") if split is None else split,
        "predicted": data.get("predicted") if predicted is None else predicted,
    }
    attributes = _single_values(data)
    if cleaned is not None:
        attributes["label_names"] = json.dumps(cleaned, ensure_ascii=False)

    def column(key: str, dtype: torch.dtype = torch.long) -> list[Any] | None:
        found = node_column(data, key, size, dtype, "data")
        return None if found is None else found.tolist()

    def words(key: str, limit: int | None = None) -> list[str] | None:
        return None if known[key] is None else text_column(known[key], key, size, limit)

    guesses = known["predicted"]
    if guesses is not None:
        guesses = _named(_predictions(guesses, size), cleaned, "predicted")
    columns = {
        "doc_id": column("doc_id"),
        "text": words("texts", max_text),
        "label": _named(column("y"), cleaned, "data.y"),
        "predicted": guesses,
        "split": words("split"),
        "age": column("age"),
        "in_batch": column("in_batch", torch.bool),
        "seed": column("seed_mask", torch.bool),
    }
    nodes = {key: found for key, found in columns.items() if found is not None}
    for key, value in data:
        if key in _KNOWN | _LEFT_OUT or key.startswith("edge_"):
            continue
        if isinstance(value, Tensor) and value.shape == (size,) and not value.is_complex():
            nodes[key] = value.detach().cpu().tolist()
        elif isinstance(value, list) and len(value) == size and size:
            nodes[key] = text_column(value, key, size, None)
    names = list(range(size))
    return GraphColumns(names, nodes, edges.source, edges.target, values, directed, attributes)


def _single_values(data: Data) -> dict[str, Any]:
    """Single values of a graph; NaN, the bandwidth of a width per document, becomes `"local"`."""
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
    return found


def _predictions(predicted: Any, size: int) -> list[Any]:
    """Predictions, integers or names, as a list with one entry per node."""
    if isinstance(predicted, np.ndarray) and predicted.dtype.kind in "UO":
        predicted = predicted.tolist()
    if not isinstance(predicted, (Tensor, np.ndarray)):
        if not isinstance(predicted, Iterable):
            raise ValueError(
                f"'predicted' must have {size} entries, one per node "
                f"(got {type(predicted).__name__})."
            )
        predicted = list(predicted)
        if any(isinstance(value, str) for value in predicted):
            return text_column(predicted, "predicted", size, None)
    return class_values(predicted, "predicted", size).long().tolist()


def _named(classes: list[Any] | None, names: list[str] | None, source: str) -> list[Any] | None:
    """Replace class numbers by names; -1 by the empty name. Names stay as they are."""
    if names is None or not classes or isinstance(classes[0], str):
        return classes
    if max(classes) >= len(names):
        raise ValueError(
            f"'label_names' must name every class in '{source}' (got {len(names)} names for "
            f"class {max(classes)}). Add the missing names."
        )
    return [names[i] if i >= 0 else "" for i in classes]
