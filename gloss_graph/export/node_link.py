"""Node-link JSON, as D3 and ``networkx.node_link_graph`` read it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from gloss_graph._internal.limits import load_json
from gloss_graph.export.plain import graph_row, plain_row, refused

__all__ = ["json_lines", "parse_json"]

_FORM = "Node-link JSON"


def json_lines(graph: nx.Graph) -> Iterator[str]:
    """The file in parts; edges under ``"edges"``, the default of ``networkx.node_link_graph``.

    Raises:
        ValueError: an attribute JSON cannot carry: no scalar, NaN or infinite, named ``id`` on a
            node, ``source`` or ``target`` on an edge; a node whose name is no string or integer.
    """
    yield f'{{"directed": {json.dumps(graph.is_directed())}, "multigraph": false, "graph": '
    yield _object({}, graph_row(graph, _FORM), "graph", None, ())
    yield ', "nodes": ['
    for node in graph:
        if isinstance(node, bool) or not isinstance(node, (int, str)):
            raise ValueError(
                f"Names of nodes must be strings or integers (got {node!r}). Rename them with "
                "nx.convert_node_labels_to_integers."
            )
    rows: Iterable[str] = (
        _object({"id": node}, data, "node", node, ("id",)) for node, data in graph.nodes(data=True)
    )
    yield from _separated(rows)
    yield '],\n"edges": ['
    taken = ("source", "target", "key")
    rows = (
        _object({"source": i, "target": j}, data, "edge", (i, j), taken)
        for i, j, data in graph.edges(data=True)
    )
    yield from _separated(rows)
    yield "]}\n"


def _separated(rows: Iterable[str]) -> Iterator[str]:
    separator = "\n"
    for row in rows:
        yield separator + row
        separator = ",\n"


def _object(
    ends: Mapping[str, Any], row: Mapping[Any, Any], domain: str, where: Any, taken: tuple[str, ...]
) -> str:
    plain = plain_row(row, domain, where, _FORM, taken)
    for name, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise refused(name, domain, where, _FORM, f"JSON has no {value}")
    # ASCII escapes: safe in every encoding, and inside HTML pages' scripts once < is escaped.
    return json.dumps({**ends, **plain})


def parse_json(content: bytes, path: Path) -> nx.Graph:
    """Read node-link JSON whose edges are under ``"edges"`` or ``"links"``.

    Raises:
        ValueError: something else, or a multigraph.
    """
    try:
        stored = load_json(content)
        if stored.get("multigraph"):
            raise ValueError("it is a multigraph")
        graph = nx.DiGraph() if stored.get("directed") else nx.Graph()
        graph.graph.update(stored.get("graph") or {})
        for row in stored["nodes"]:
            graph.add_node(row.pop("id"), **row)
        for row in stored["edges"] if "edges" in stored else stored["links"]:
            source, target = row.pop("source"), row.pop("target")
            if source not in graph or target not in graph:
                raise ValueError(f"an edge names {source!r} or {target!r}, which is no node")
            graph.add_edge(source, target, **row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'path' must be node-link JSON ({path}: {error}).") from error
    return graph
