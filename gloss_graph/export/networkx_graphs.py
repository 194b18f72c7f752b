"""The document graph as columns, as a NetworkX graph of plain Python values, and back."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int, misfit
from gloss_graph._internal.limits import load_json
from gloss_graph.export.attributes import (
    XML_DEFAULTS,
    check_entries,
    check_simple,
    class_names,
    class_values,
    clean_text,
    text_column,
)
from gloss_graph.export.graph_arrays import EDGE_KINDS, Edges, count_nodes, node_column, read_edges

# Columns of nodes in the order of the table of `to_networkx`: their name in `Data` and their type.
_COLUMNS: dict[str, tuple[str, Any]] = {
    "doc_id": ("doc_id", torch.long),
    "text": ("text", str),
    "label": ("y", torch.long),
    "predicted": ("predicted", torch.long),
    "split": ("split", str),
    "age": ("age", torch.long),
    "in_batch": ("in_batch", torch.bool),
    "seed": ("seed_mask", torch.bool),
}
# Vectors, and columns that become something else.
_LEFT_OUT = {"x", "pos", "edge_index", "num_nodes", "label_names", "batch", "ptr"}
_KNOWN = _LEFT_OUT | {key for key, _ in _COLUMNS.values()}
# Names that attributes of nodes and graphs must not have.
_RESERVED = _LEFT_OUT | {"edge_weight", "edge_kind", "y", "seed_mask"}


class GraphColumns(NamedTuple):
    """A graph as columns: what every format is made from, and what tables and matrices hold.

    None is a missing value of a node; `source` and `target` (P,) int64 are positions in `names`.
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
    """Convert a document graph to an undirected `nx.Graph` that every NetworkX writer accepts.

    Both stored directions of a pair become one edge. All attributes are exactly `str`, `int`,
    `float` or `bool`, and every node has the same ones, so GraphML, GEXF, GML and node-link JSON
    can be written without preparation, and NetworkX's backends (nx-parallel, nx-cugraph) take it.
    No gradient reaches it: weights are detached.

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
        data: An undirected, coalesced graph; only `edge_index` is needed.
        texts: The documents.
        label_names: Names of the classes; they replace the integers of `label` and `predicted`.
        predicted: Predicted class per node, integers (-1 = none) or names.
        split: Name of the split ("train", "test", ...) per node.
        max_text: Longest `text` in characters, the closing ellipsis included; None keeps all.
        tolerance: Relative difference allowed between the weights of the two directions.
        directed: Return an `nx.DiGraph` with one edge per column of `edge_index`; directions may
            then differ.

    Raises:
        ValueError: A directed graph, weights or kinds that differ by direction, edges that repeat
            or leave the graph, or a column without one entry per node.

    Cost: O(N + E log E), most of it NetworkX's dictionaries (`examples/benchmarks/export.py`).

    Example:
        >>> data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([0, 1]))
        >>> graph = to_networkx(data, ["tea", "coffee"], label_names=["calm", "awake"])
        >>> graph.nodes[1]
        {'text': 'coffee', 'label': 'awake'}

    See also: `from_networkx`, the way back; `write_graph`, to save the graph;
    `torch_geometric.utils.to_networkx`, for heterogeneous graphs and vector attributes.
    """
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise misfit("tolerance", "be at least 0", tolerance, "0 asks for equality.")
    count_nodes(data, "data")
    given = {"text": texts, "label_names": label_names, "predicted": predicted, "split": split}
    columns = data_columns(with_given(data, given), max_text, tolerance, directed=directed)
    return networkx_of(columns)


def with_given(data: Data, given: Mapping[str, Any]) -> Data:
    """A shallow copy of a graph with the `given` attributes that are not None."""
    data = copy(data)
    for key, value in given.items():
        if value is not None:
            data[key] = value
    return data


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
    if not columns:
        return ({} for _ in range(size))
    lists = [v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values()]
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True))
    if not any(None in values for values in lists):
        return rows
    return ({name: value for name, value in row.items() if value is not None} for row in rows)


def as_networkx(graph: Data | nx.Graph, *, max_text: int | None, directed: bool) -> nx.Graph:
    """A graph of either kind as a NetworkX graph, its `text` shortened."""
    if isinstance(graph, Data):
        return to_networkx(graph, max_text=max_text, directed=directed)
    if not isinstance(graph, nx.Graph):
        raise misfit("graph", "be a PyG Data or a NetworkX graph", type(graph).__name__)
    check_simple(graph)
    if max_text is not None:
        check_positive_int("max_text", max_text)
        graph = graph.copy()
        for row in graph.nodes.values():
            if isinstance(row.get("text"), str):
                row["text"] = clean_text(row["text"], max_text)
    return graph


def data_columns(
    data: Data, max_text: int | None, tolerance: float = 1e-5, *, directed: bool = False
) -> GraphColumns:
    """Columns of a document graph, those of nodes in the order of the table of `to_networkx`."""
    if max_text is not None:
        check_positive_int("max_text", max_text)
    size = count_nodes(data, "data")
    edges = read_edges(data, directed=directed, tolerance=tolerance, name="data")
    values: dict[str, Any] = dict(edges.columns)
    if "kind" in values:
        values["kind"] = np.array(EDGE_KINDS, dtype=object)[values["kind"].astype(int)]
    names = data.get("label_names")
    if names is not None:
        names = [clean_text(name) for name in class_names(names)]
    nodes: dict[str, Any] = {}
    for name, (key, kind) in _COLUMNS.items():
        found = data.get(key)
        if found is None:
            continue
        if name == "text":
            nodes[name] = text_column(found, "texts", size, max_text)
        elif name == "split":
            nodes[name] = text_column(found, name, size, None)
        elif name == "predicted":
            nodes[name] = _named(_predictions(found, size), names, name)
        elif (column := node_column(data, key, size, kind, "data")) is not None:
            nodes[name] = column.tolist()
    if "label" in nodes:
        nodes["label"] = _named(nodes["label"], names, "data.y")
    attributes: dict[str, Any] = {}
    for key, value in data:
        if key in _KNOWN:
            continue
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()
        if isinstance(value, str):
            attributes[key] = clean_text(value)
        elif isinstance(value, (bool, int, float)):
            # The bandwidth of a graph with a width per document is NaN.
            local = key == "bandwidth" and math.isnan(value)
            attributes[key] = "local" if local else value
        elif key.startswith("edge_"):
            continue
        elif isinstance(value, Tensor) and value.shape == (size,) and not value.is_complex():
            nodes[key] = value.detach().cpu().tolist()
        elif isinstance(value, list) and len(value) == size and size:
            nodes[key] = text_column(value, key, size, None)
    if names is not None:
        attributes["label_names"] = json.dumps(names, ensure_ascii=False)
    every = list(range(size))
    return GraphColumns(every, nodes, edges.source, edges.target, values, directed, attributes)


def _predictions(predicted: Any, size: int) -> list[Any]:
    """Predictions, integers or names, as a list with one entry per node."""
    if isinstance(predicted, np.ndarray) and predicted.dtype.kind in "UO":
        predicted = predicted.tolist()
    if not isinstance(predicted, (Tensor, np.ndarray)):
        check_entries(predicted, "predicted", size)
        predicted = list(predicted)
        if any(isinstance(value, str) for value in predicted):
            return text_column(predicted, "predicted", size, None)
    return class_values(predicted, "predicted", size).long().tolist()


def _named(classes: list[Any], names: list[str] | None, source: str) -> list[Any]:
    """Replace class numbers by names; -1 by the empty name. Names stay as they are."""
    if names is None or not classes or isinstance(classes[0], str):
        return classes
    if max(classes) >= len(names):
        got = f"{len(names)} names for class {max(classes)}"
        raise misfit("label_names", f"name every class in '{source}'", got, "Add the others.")
    return [names[i] if i >= 0 else "" for i in classes]


def from_networkx(graph: nx.Graph) -> Data:
    """Convert a NetworkX graph to a document graph: the inverse of `to_networkx`.

    `from_networkx(to_networkx(data, max_text=None))` has the `edge_index` of `data` in the same
    order, equal weights in float32 (float64 where float32 cannot hold them), labels, ids, texts
    without control characters, and all other columns that were exported.

    Nodes 0..N-1 keep their numbers. Other nodes, as of a subgraph, are numbered in their order and
    their names kept as `data.node`. String labels become class numbers by the graph's
    `label_names` (a JSON list), or, without it, by their sorted names; `""` and a missing label
    become -1.

    Attributes are strings, integers, floats or booleans; edges have numbers only, and those of an
    `nx.DiGraph` stay directed.

    Returns:
        `Data` with `edge_index` (2, E) long, sorted; `edge_weight` (E,) if edges have weights; the
        columns in the table of `to_networkx`; other attributes under their names, those of edges
        with the prefix `edge_`.

    Raises:
        ValueError: A multigraph; an attribute of mixed or other types, missing on some nodes or
            edges, of a name that PyG keeps for itself, or of one name on nodes, edges and graph.

    Example:
        >>> graph = nx.Graph([("a", "b", {"weight": 0.5})])
        >>> data = from_networkx(graph)
        >>> data.edge_index.tolist(), data.edge_weight.tolist(), data.node
        ([[0, 1], [1, 0]], [0.5, 0.5], ['a', 'b'])

    See also: `read_graph`, for files; `torch_geometric.utils.from_networkx`, for vectors.
    """
    check_simple(graph)
    return data_from_columns(networkx_columns(graph))


def networkx_columns(graph: nx.Graph) -> GraphColumns:
    """Columns of a graph, None for an attribute that a node or edge lacks."""
    names = list(graph)
    place = {name: position for position, name in enumerate(names)}
    triples = list(graph.edges(data=True))

    def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        keys = dict.fromkeys(key for row in rows for key in row)
        return {key: [row.get(key) for row in rows] for key in keys}

    source, target = (np.array([place[e[end]] for e in triples], np.int64) for end in (0, 1))
    nodes, edges = columns(list(graph.nodes.values())), columns([row for _, _, row in triples])
    return GraphColumns(names, nodes, source, target, edges, graph.is_directed(), graph.graph)


def data_from_columns(graph: GraphColumns) -> Data:
    """The `Data` of columns, as `from_networkx` returns it."""
    size = len(graph.names)
    numbered = all(type(name) is int for name in graph.names)
    numbered = numbered and sorted(graph.names) == list(range(size))
    # Node i becomes row i, in whatever order the nodes were added.
    order = np.asarray(graph.names, dtype=np.int64) if numbered else np.arange(size)
    position = np.argsort(order)
    entries = {"entry": np.arange(graph.source.size)}
    edges = Edges(order[graph.source], order[graph.target], entries)
    edges = edges if graph.directed else edges.both_ways()
    ranked = np.lexsort((edges.target, edges.source))
    entry = torch.from_numpy(edges.columns["entry"][ranked])
    edge_index = torch.from_numpy(np.stack([edges.source[ranked], edges.target[ranked]]))
    data = Data(edge_index=edge_index, num_nodes=size)

    def put(key: str, value: Any, domain: str) -> None:
        if key in data:
            rule = "have a name that no other attribute of nodes, edges (edge_...) or graph has"
            raise _misfit(key, domain, rule)
        data[key] = value

    for name, values in graph.edges.items():
        put(f"edge_{_fitting(name, 'edge')}", _edge_column(name, values)[entry], "edge")
    if not edge_index.numel():
        data.edge_weight = torch.zeros(0, dtype=torch.float32)
    known = _label_names(graph)
    for name, values in graph.nodes.items():
        key = _COLUMNS[name][0] if name in _COLUMNS else _fitting(name, "node")
        put(key, _node_column(name, [values[i] for i in position.tolist()], known), "node")
    if not numbered:
        put("node", _typed("node", graph.names, "node"), "node")
    if known is not None:
        data.label_names = known
    for name, value in graph.attributes.items():
        if name not in ("label_names", *XML_DEFAULTS.values()):
            put(_fitting(name, "graph"), _single(name, value), "graph")
    return data


def _misfit(name: Any, domain: str, rule: str, got: str = "") -> ValueError:
    """The error of an attribute that breaks a rule."""
    given = f" (got {got})" if got else ""
    start = f"The attribute {name!r} of {domain} must {rule}{given}."
    return ValueError(f"{start} Rename, convert or remove it.")


def _fitting(name: Any, domain: str) -> str:
    free = name not in ("index", "attr") if domain == "edge" else name not in _RESERVED
    if not isinstance(name, str) or not name or not free:
        raise _misfit(name, domain, "have a name that PyG does not keep for itself")
    return name


def _node_column(name: str, values: list[Any], known: list[str] | None) -> Tensor | list[str]:
    """The values of a column in `Data`."""
    if name not in _COLUMNS:
        return _typed(name, values, "node")
    kind = _COLUMNS[name][1]
    if kind is str:
        values = ["" if value is None else value for value in values]
        bad = next((value for value in values if not isinstance(value, str)), None)
        if bad is not None:
            raise _misfit(name, "nodes", "hold strings", type(bad).__name__)
        return values
    if name in ("label", "predicted"):
        if all(value is None or isinstance(value, str) for value in values):
            numbers: dict[str | None, int] = {"": -1, None: -1}
            numbers |= {label: number for number, label in enumerate(known or ())}
            return torch.tensor([numbers[value] for value in values], dtype=kind)
        values = [-1 if value is None else value for value in values]
    convert = bool if kind == torch.bool else operator.index
    try:
        return torch.tensor([convert(value) for value in _complete(name, values, "node")]).to(kind)
    except (TypeError, RuntimeError) as error:
        raise _misfit(name, "nodes", f"be of one type: {error}") from error


def _label_names(graph: GraphColumns) -> list[str] | None:
    """Class names: those that the graph declares, then any others in use, sorted."""
    declared = graph.attributes.get("label_names")
    if isinstance(declared, str):
        with suppress(ValueError):  # a word, not a list
            declared = load_json(declared)
    if declared is not None and not isinstance(declared, (list, tuple)):
        raise misfit("label_names", "be a JSON list of names", repr(declared), "Rename it.")
    known = [str(name) for name in declared or ()]
    values = [*graph.nodes.get("label", ()), *graph.nodes.get("predicted", ())]
    used = {value for value in values if isinstance(value, str) and value}
    known += sorted(used.difference(known))
    return known if known or declared is not None else None


def _complete(name: str, values: Sequence[Any], domain: str) -> list[Any]:
    """The values as Python scalars, none of them missing."""
    if any(value is None for value in values):
        raise ValueError(f"The attribute {name!r} must be on every {domain}. Fill it in.")
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _typed(name: str, values: Sequence[Any], domain: str) -> Tensor | list[str]:
    """A tensor of booleans, integers or floats, or a list of strings."""
    plain = _complete(name, values, domain)
    kinds = {type(value) for value in plain}
    if kinds == {str}:
        return plain
    if kinds in ({bool}, {int}):
        return torch.tensor(plain)
    if kinds <= {int, float}:
        return _floats(np.asarray(plain, dtype=np.float64))
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise _misfit(name, f"{domain}s", "be numbers, booleans or strings, all alike", found)


def _floats(values: np.ndarray) -> Tensor:
    """Float32 where that holds every value, else float64."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    same = np.array_equal(narrow, values, equal_nan=True)
    return torch.from_numpy(narrow if same else values.astype(np.float64))


def _edge_column(name: str, values: Any) -> Tensor:
    if isinstance(values, np.ndarray) and values.dtype != object:
        if values.dtype.kind == "f":
            return _floats(values)
        return torch.from_numpy(np.ascontiguousarray(values))
    if name == "kind":
        numbers = {kind: number for number, kind in enumerate(EDGE_KINDS)}
        if not all(isinstance(value, str) and value in numbers for value in values):
            raise _misfit(name, "edges", f"be one of {list(EDGE_KINDS)}")
        return torch.tensor([numbers[value] for value in values], dtype=torch.long)
    column = _typed(name, values, "edge")
    if not isinstance(column, Tensor):
        raise _misfit(name, "edges", "hold numbers", "str")
    return column.float() if name == "weight" and column.dtype == torch.long else column


def _single(name: str, value: Any) -> Any:
    if name == "bandwidth":
        try:
            sigma = float("nan") if value == "local" else float(value)
        except (TypeError, ValueError, OverflowError):
            raise _misfit(name, "graph", "be a number or 'local'", repr(value)) from None
        return torch.tensor(sigma, dtype=torch.float32)
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (str, bool, int, float)):
        rule = "be a string, integer, float or boolean"
        raise _misfit(name, "graph", rule, type(value).__name__)
    return value
