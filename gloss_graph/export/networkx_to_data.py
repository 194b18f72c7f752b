"""A NetworkX graph, or columns of nodes and edges, back as a PyG graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.limits import load_json
from gloss_graph.export.attributes import check_simple
from gloss_graph.export.data_to_networkx import GraphColumns
from gloss_graph.export.graph_arrays import EDGE_KINDS, Edges

__all__ = ["data_from_columns", "from_networkx", "networkx_columns"]

# Columns of one type: name and type in `Data`, and how a value is converted.
_COLUMNS: dict[str, tuple[str, torch.dtype, Callable[[Any], Any]]] = {
    "doc_id": ("doc_id", torch.long, operator.index),
    "age": ("age", torch.long, operator.index),
    "in_batch": ("in_batch", torch.bool, bool),
    "seed": ("seed_mask", torch.bool, bool),
}
_RESERVED = {"edge_index", "edge_weight", "num_nodes", "x", "pos", "y", "seed_mask", "edge_kind"}
_RESERVED |= {"batch", "ptr", "label_names"}


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
        >>> graph.nodes["a"]["label"] = "tea"
        >>> data = from_networkx(graph)
        >>> data.edge_index.tolist(), data.y.tolist(), data.label_names, data.node
        ([[0, 1], [1, 0]], [0, -1], ['tea'], ['a', 'b'])

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

    return GraphColumns(
        names,
        columns([row for _, row in graph.nodes(data=True)]),
        np.fromiter((place[i] for i, _, _ in triples), np.int64, len(triples)),
        np.fromiter((place[j] for _, j, _ in triples), np.int64, len(triples)),
        columns([row for _, _, row in triples]),
        graph.is_directed(),
        graph.graph,
    )


def data_from_columns(graph: GraphColumns) -> Data:
    """The `Data` of columns, as `from_networkx` returns it."""
    size = len(graph.names)
    order = np.arange(size)
    names: list[Any] | None = list(graph.names)
    if all(type(name) is int for name in graph.names) and sorted(graph.names) == list(range(size)):
        # Node i becomes row i, in whatever order the nodes were added.
        order, names = np.asarray(graph.names, dtype=np.int64), None
    position = np.empty(size, dtype=np.int64)
    position[order] = np.arange(size)
    entries = {"entry": np.arange(graph.source.size)}
    edges = Edges(order[graph.source], order[graph.target], entries)
    edges = edges if graph.directed else edges.both_ways()
    ranked = np.lexsort((edges.target, edges.source))
    entry = torch.from_numpy(edges.columns["entry"][ranked])
    edge_index = torch.from_numpy(np.stack([edges.source[ranked], edges.target[ranked]]))
    data = Data(edge_index=edge_index, num_nodes=size)

    def put(key: str, value: Any, domain: str) -> None:
        if key in data:
            raise ValueError(
                f"The attribute {key!r} of {domain} must have a name that no other attribute of "
                "nodes, edges (theirs begin with 'edge_') or graph has. Rename it."
            )
        data[key] = value

    for name, values in graph.edges.items():
        column = _edge_column(name, values)
        put(f"edge_{_fitting(name, 'edge')}", column[entry], "edge")
    if not edge_index.numel():
        data.edge_weight = torch.zeros(0, dtype=torch.float32)
    known = _label_names(graph)
    for name, values in graph.nodes.items():
        put(*_node_column(name, [values[i] for i in position.tolist()], known), "node")
    if names is not None:
        put("node", _typed("node", names, "node"), "node")
    if known is not None:
        data.label_names = known
    for name, value in graph.attributes.items():
        if name not in ("label_names", "node_default", "edge_default"):
            put(_fitting(name, "graph"), _single(name, value), "graph")
    return data


def _fitting(name: Any, domain: str) -> str:
    free = name not in ("index", "attr") if domain == "edge" else name not in _RESERVED
    if not isinstance(name, str) or not name or not free:
        raise ValueError(
            f"The attribute {name!r} of {domain} must have a name that PyG does not keep for "
            "itself. Rename it."
        )
    return name


def _node_column(name: str, values: list[Any], known: list[str] | None) -> tuple[str, Any]:
    """Name and values of a column in `Data`."""
    if name in ("label", "predicted"):
        return "y" if name == "label" else name, _classes(name, values, known)
    if name in ("text", "split"):
        values = ["" if value is None else value for value in values]
        bad = next((value for value in values if not isinstance(value, str)), None)
        if bad is not None:
            raise ValueError(
                f"The attribute {name!r} of nodes must hold strings (got {type(bad).__name__})."
            )
        return name, values
    if name in _COLUMNS:
        key, dtype, convert = _COLUMNS[name]
        return key, _converted(name, _complete(name, values, "node"), convert, dtype)
    return _fitting(name, "node"), _typed(name, values, "node")


def _label_names(graph: GraphColumns) -> list[str] | None:
    """Class names: those that the graph declares, then any others in use, sorted."""
    declared = graph.attributes.get("label_names")
    if isinstance(declared, str):
        with suppress(ValueError):  # a word, not a list
            declared = load_json(declared)
    if declared is not None and not isinstance(declared, (list, tuple)):
        raise ValueError("The graph attribute 'label_names' must be a JSON list of names.")
    known = [str(name) for name in declared] if declared is not None else []
    used = {
        value
        for key in ("label", "predicted")
        for value in graph.nodes.get(key, ())
        if isinstance(value, str) and value
    }
    known += sorted(used.difference(known))
    return known if known or declared is not None else None


def _classes(name: str, values: list[Any], known: list[str] | None) -> Tensor:
    numbers: dict[str | None, int] = {"": -1, None: -1}
    numbers |= {label: number for number, label in enumerate(known or ())}
    if all(value is None or isinstance(value, str) for value in values):
        return torch.tensor([numbers[value] for value in values], dtype=torch.long)
    return _converted(name, [-1 if v is None else v for v in values], operator.index, torch.long)


def _converted(
    name: str, values: list[Any], convert: Callable[[Any], Any], dtype: torch.dtype
) -> Tensor:
    try:
        return torch.tensor([convert(value) for value in values]).to(dtype)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"The attribute {name!r} of nodes must be of one type ({error})."
        ) from error


def _complete(name: str, values: Sequence[Any], domain: str) -> list[Any]:
    """The values as Python scalars, none of them missing."""
    if any(value is None for value in values):
        raise ValueError(
            f"The attribute {name!r} must be on every {domain} (it is missing on one). Fill it in "
            "or remove it."
        )
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
    raise ValueError(
        f"The attribute {name!r} of {domain}s must be numbers, booleans or strings, all alike "
        f"(got {found})."
    )


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
            raise ValueError(f"The attribute 'kind' of edges must be one of {list(EDGE_KINDS)}.")
        return torch.tensor([numbers[value] for value in values], dtype=torch.long)
    column = _typed(name, values, "edge")
    if not isinstance(column, Tensor):
        raise ValueError(f"The attribute {name!r} of edges must hold numbers (got str).")
    return column.float() if name == "weight" and column.dtype == torch.long else column


def _single(name: str, value: Any) -> Any:
    if name == "bandwidth":
        try:
            sigma = float("nan") if value == "local" else float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"The attribute 'bandwidth' of graph must be a number or 'local' (got {value!r})."
            ) from None
        return torch.tensor(sigma, dtype=torch.float32)
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (str, bool, int, float)):
        raise ValueError(
            f"The attribute {name!r} of graph must be a string, integer, float or boolean "
            f"(got {type(value).__name__})."
        )
    return value
