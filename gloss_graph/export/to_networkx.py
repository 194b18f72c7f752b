"""The document graph as a NetworkX graph of plain Python values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.export.attributes import (
    check_max_text,
    check_simple,
    class_names,
    clean_text,
    prediction_column,
    text_column,
)
from gloss_graph.export.graph_arrays import EDGE_KINDS, count_nodes, node_column, read_edges

__all__ = ["as_networkx", "graph_attributes", "node_columns", "to_networkx"]

# Columns that the table of `to_networkx` names.
_KNOWN = {"y", "doc_id", "text", "predicted", "split", "age", "in_batch", "seed_mask"}
# Vectors, and columns that become something else.
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
    r"""Convert a document graph to an undirected `nx.Graph` that every NetworkX writer accepts.

    Both stored directions of a pair become one edge. All attributes are exactly `str`, `int`,
    `float` or `bool`, and every node has the same ones, so GraphML, GEXF, GML and node-link JSON
    can be written without preparation. NetworkX's backends take the graph where they are
    installed: `backend="parallel"` of nx-parallel, or `NX_CUGRAPH_AUTOCONFIG=True` in the
    environment for nx-cugraph.

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
    one edge. Two writers use `label` themselves: GEXF keeps it as text, GML replaces it by the
    node's number.

    Shapes:
        `data.edge_index` (2, E), `data.edge_weight` and `data.edge_kind` (E,), node columns (N,).
        The result has the nodes 0..N-1 and E / 2 edges.

    Args:
        data: An undirected, coalesced graph, as `build_document_graph` and `document_graph` return
            it; only `edge_index` is needed.
        texts: The documents, one per node.
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
        TypeError: Not a PyG `Data`.
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
    size = count_nodes(data, "data")
    edges = read_edges(data, directed=directed, tolerance=tolerance, name="data")
    columns = node_columns(data, texts, label_names, predicted, split, max_text)

    graph = nx.DiGraph() if directed else nx.Graph()
    graph.graph.update(graph_attributes(data, label_names))
    graph.add_nodes_from(zip(range(size), _rows(columns, size), strict=True))
    values: dict[str, list[Any]] = {name: column.tolist() for name, column in edges.columns.items()}
    if "kind" in values:
        values["kind"] = [EDGE_KINDS[int(kind)] for kind in values["kind"]]
    # Edges name their ends by the integers that key the nodes, which takes less memory.
    nodes = np.empty(size, dtype=object)
    nodes[:] = list(graph)
    ends = nodes[edges.source].tolist(), nodes[edges.target].tolist()
    graph.add_edges_from(zip(*ends, _rows(values, edges.source.size), strict=True))
    return graph


def as_networkx(graph: Data | nx.Graph, *, max_text: int | None, directed: bool) -> nx.Graph:
    """A graph of either kind as a NetworkX graph, its `text` shortened.

    Raises:
        ValueError: A multigraph, or neither kind of graph.
    """
    if isinstance(graph, Data):
        return to_networkx(graph, max_text=max_text, directed=directed)
    if not isinstance(graph, nx.Graph):
        raise ValueError(
            f"'graph' must be a PyG Data or a NetworkX graph (got {type(graph).__name__})."
        )
    check_simple(graph)
    if max_text is not None:
        check_max_text(max_text)
        graph = graph.copy()
        for row in graph.nodes.values():
            if isinstance(row.get("text"), str):
                row["text"] = clean_text(row["text"], max_text)
    return graph


def _rows(columns: Mapping[str, list[Any]], size: int) -> Iterator[dict[str, Any]]:
    """One dictionary per node or edge."""
    names = tuple(columns)
    if not names:
        return ({} for _ in range(size))
    return (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))


def node_columns(
    data: Data,
    texts: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    predicted: Any = None,
    split: Sequence[str] | None = None,
    max_text: int | None = None,
) -> dict[str, list[Any]]:
    """Node attributes, in the order of the table of `to_networkx`.

    Raises:
        ValueError: As `to_networkx`.
    """
    check_max_text(max_text)
    size = count_nodes(data, "data")
    texts = data.get("text") if texts is None else texts
    split = data.get("split") if split is None else split
    predicted = data.get("predicted") if predicted is None else predicted
    label_names = data.get("label_names") if label_names is None else label_names
    names = None if label_names is None else [clean_text(name) for name in class_names(label_names)]

    def column(key: str, dtype: torch.dtype = torch.long) -> list[Any] | None:
        values = node_column(data, key, size, dtype, "data")
        return None if values is None else values.tolist()

    labels = column("y")
    columns = {
        "doc_id": column("doc_id"),
        "text": None if texts is None else text_column(texts, "texts", size, max_text),
        "label": None if labels is None else _named(labels, names, "data.y"),
        "predicted": None
        if predicted is None
        else _named(prediction_column(predicted, size), names, "predicted"),
        "split": None if split is None else text_column(split, "split", size, None),
        "age": column("age"),
        "in_batch": column("in_batch", torch.bool),
        "seed": column("seed_mask", torch.bool),
    }
    found = {key: values for key, values in columns.items() if values is not None}
    for key, value in data:
        if key in _KNOWN | _LEFT_OUT or key.startswith("edge_"):
            continue
        if isinstance(value, Tensor) and value.shape == (size,) and not value.is_complex():
            found[key] = value.detach().cpu().tolist()
        elif isinstance(value, list) and len(value) == size and size:
            found[key] = text_column(value, key, size, None)
    return found


def graph_attributes(data: Data, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Single values of a graph; `label_names` as a JSON list.

    A bandwidth of NaN, of a kernel with a width per document, becomes `"local"`.
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
