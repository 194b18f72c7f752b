"""Node-link JSON, as D3 and `networkx.node_link_graph` read it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import networkx as nx

from gloss_graph._internal.limits import load_json
from gloss_graph.export.attributes import attribute_error, graph_row, plain_row

__all__ = ["json_bytes", "parse_json"]

_FORM = "Node-link JSON"


def json_bytes(graph: nx.Graph) -> bytes:
    """A graph as node-link JSON; edges are under `"edges"`, NetworkX's default.

    Raises:
        ValueError: An attribute JSON cannot hold: not a scalar, NaN or infinite, named `id` on a
            node, `source` or `target` on an edge; a node name that is not a string or integer.
    """
    plain = nx.DiGraph() if graph.is_directed() else nx.Graph()
    plain.graph.update(_checked(graph_row(graph, _FORM), "graph", None))
    for node, row in graph.nodes(data=True):
        if isinstance(node, bool) or not isinstance(node, (int, str)):
            raise ValueError(
                f"Names of nodes must be strings or integers (got {node!r}). Rename them with "
                "nx.convert_node_labels_to_integers."
            )
        row = _checked(plain_row(row, "node", node, _FORM, ("id",)), "node", node)
        plain.add_node(node)
        plain.nodes[node].update(row)
    for i, j, row in graph.edges(data=True):
        row = plain_row(row, "edge", (i, j), _FORM, ("source", "target", "key"))
        plain.add_edges_from([(i, j, _checked(row, "edge", (i, j)))])
    # ASCII escapes are safe in every encoding, and inside a page's script once < is escaped.
    return json.dumps(nx.node_link_data(plain, edges="edges"), allow_nan=False).encode()


def _checked(row: dict[str, Any], domain: str, where: Any) -> dict[str, Any]:
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise attribute_error(name, domain, where, _FORM, f"JSON has no {value}")
    return row


def parse_json(content: bytes, path: Path) -> nx.Graph:
    """Read node-link JSON whose edges are under `"edges"` or `"links"`.

    Raises:
        ValueError: Other content, a multigraph, or an edge of a node that is not listed.
    """
    try:
        stored = load_json(content)
        if stored.get("multigraph"):
            raise ValueError("it is a multigraph")
        listed = {row["id"] for row in stored["nodes"]}
        graph = nx.node_link_graph(
            {"directed": False, "graph": {}, **stored, "multigraph": False},
            edges="edges" if "edges" in stored else "links",
        )
        if unknown := set(graph) - listed:
            raise ValueError(f"an edge names {unknown.pop()!r}, which is not a node")
    except (ValueError, KeyError, TypeError, AttributeError, nx.NetworkXException) as error:
        raise ValueError(f"'path' must be node-link JSON ({path}: {error}).") from error
    return graph
