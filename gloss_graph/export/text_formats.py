"""GraphML, GEXF and node-link JSON as bytes and back, by NetworkX's readers and writers."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import SubElement, fromstring

import networkx as nx
from networkx.readwrite.gexf import GEXFWriter
from networkx.readwrite.graphml import GraphMLWriter

from gloss_graph._internal.limits import check_xml, load_json
from gloss_graph.export.attributes import (
    GREY,
    PALETTE,
    attribute_error,
    clean_text,
    plain_graph,
    plain_row,
    plain_value,
)

_DEFAULTS = {"node": "node_default", "edge": "edge_default"}
# Values as XML Schema writes them; NetworkX writes Python's words.
_WORDS = {"True": "true", "False": "false", "inf": "INF", "-inf": "-INF", "nan": "NaN"}
_GEXF_TAKEN = {
    "node": ("id", "class", "pid", "start", "end", "viz", "parents", "spells", "slices", "key"),
    "edge": ("id", "label", "type", "start", "end", "viz", "spells", "slices", "key"),
}
_JSON_TAKEN = {"node": ("id",), "edge": ("source", "target", "key")}
_CAPTION = 60  # characters
_NAMESPACE = "{http://www.gexf.net/1.2draft}"


def graphml_bytes(graph: nx.Graph) -> bytes:
    """A graph as GraphML, one line per node and edge, with the defaults that a reader found."""
    plain = plain_graph(graph, "GraphML", {"graph": ("id",)})
    _written_names(graph)
    writer = GraphMLWriter(prettyprint=False)
    for domain, key in _DEFAULTS.items():
        for name, value in plain_row(graph.graph.get(key) or {}, domain, None, "GraphML").items():
            writer.get_key(name, writer.get_xml_type(type(value)), domain, value)
    writer.add_graph_element(plain)
    texts = {key.get("id") for key in writer.xml if key.get("attr.type") == "string"}
    for element in writer.xml.iter():
        if element.tag != "data":
            element.tail = "\n"
        elif element.get("key") not in texts:
            element.text = _WORDS.get(element.text, element.text)
    target = io.BytesIO()
    writer.dump(target)
    return target.getvalue()


def parse_graphml(content: bytes, path: Any) -> nx.Graph:
    """Read GraphML, without the empty defaults that NetworkX's reader adds."""
    try:
        check_xml(content)
        graph = nx.parse_graphml(content)
    except Exception as error:  # its errors have no common base
        raise ValueError(f"'path' must be GraphML ({path}: {error}).") from error
    if graph.is_multigraph():
        raise ValueError(f"'path' must hold no parallel edges ({path} does).")
    for key in _DEFAULTS.values():
        if graph.graph.get(key) == {}:
            del graph.graph[key]
    return _numbered(graph)


def gexf_bytes(graph: nx.Graph) -> bytes:
    """A graph as GEXF; a node's caption is its text, its class is the column `class`."""
    plain = plain_graph(graph, "GEXF", _GEXF_TAKEN)
    names = _written_names(graph)
    colors = _colors(plain)
    described = dict(plain.graph)
    plain.graph.clear()  # The writer would take some of these for settings.
    types: dict[tuple[str, str], type] = {}
    for node, row in plain.nodes(data=True):
        _check_types(types, "node", node, row)
        if "label" in row:
            row["class"] = row.pop("label")
            row["viz"] = {"color": colors.get(row["class"], colors[""])}
        caption = row["text"] if isinstance(row.get("text"), str) else ""
        row["label"] = clean_text(" ".join(caption.split()), _CAPTION) or names[node]
    for i, j, row in plain.edges(data=True):
        weight = row.get("weight", 1.0)
        if not isinstance(weight, (int, float)):
            raise attribute_error("weight", "edge", (i, j), "GEXF", "a weight must be a number")
        rest = {name: value for name, value in row.items() if name != "weight"}
        _check_types(types, "edge", (i, j), rest)
    writer = GEXFWriter(prettyprint=False)
    writer.add_graph(plain)
    meta = writer.xml.find("meta")
    # The date would make equal graphs differ from day to day.
    meta.attrib.pop("lastmodifieddate", None)
    if described:
        SubElement(meta, "description").text = json.dumps(described)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _check_types(
    types: dict[tuple[str, str], type], domain: str, where: Any, row: Mapping[str, Any]
) -> None:
    """Raise for an attribute of a type that it does not have elsewhere."""
    for name, value in row.items():
        known = types.setdefault((domain, name), type(value))
        if known is not type(value):
            why = f"it is {known.__name__} elsewhere, {type(value).__name__} here"
            raise attribute_error(name, domain, where, "GEXF", why)


def _colors(graph: nx.Graph) -> dict[Any, dict[str, Any]]:
    """Colors of the classes in the order of `label_names`; grey for no class."""
    try:
        declared = load_json(graph.graph.get("label_names", ""))
    except (TypeError, ValueError):
        declared = None  # another program's, in words
    ordered: list[Any] = declared if isinstance(declared, list) else []
    ordered = [plain_value(name) for name in ordered]
    used = {label for _, label in graph.nodes(data="label")} - {None, "", -1}
    ordered += sorted(used.difference(ordered), key=lambda label: (str(type(label)), label))
    colors = {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(ordered)}
    return {
        label: {"r": int(c[1:3], 16), "g": int(c[3:5], 16), "b": int(c[5:7], 16), "a": 1.0}
        for label, c in (colors | {"": GREY, -1: GREY}).items()
    }


def parse_gexf(content: bytes, path: Any) -> nx.Graph:
    """Read GEXF; a graph of `gexf_bytes` comes back without colors and captions."""
    try:
        check_xml(content)
        graph = nx.read_gexf(io.BytesIO(content))
        description = fromstring(content).findtext(f"{_NAMESPACE}meta/{_NAMESPACE}description")
    except Exception as error:  # its errors have no common base
        raise ValueError(f"'path' must be GEXF ({path}: {error}).") from error
    try:
        attributes = load_json(description or "")
    except ValueError:
        attributes = None  # another program's, in words
    graph.graph.clear()
    graph.graph.update(attributes if isinstance(attributes, dict) else {})
    for row in graph.nodes.values():
        row.pop("viz", None)
        row.pop("label", None)
        if "class" in row:
            row["label"] = row.pop("class")
    for _, _, row in graph.edges(data=True):
        row.pop("id", None)
    return _numbered(graph)


def json_bytes(graph: nx.Graph) -> bytes:
    """A graph as node-link JSON; edges are under `"edges"`, NetworkX's default."""
    plain = plain_graph(graph, "Node-link JSON", _JSON_TAKEN)
    for node in plain:
        if isinstance(node, bool) or not isinstance(node, (int, str)):
            raise ValueError(
                f"Names of nodes must be strings or integers (got {node!r}). Rename them with "
                "nx.convert_node_labels_to_integers."
            )
    rows: list[tuple[str, Any, Mapping[str, Any]]] = [("graph", None, plain.graph)]
    rows += [("node", node, row) for node, row in plain.nodes(data=True)]
    rows += [("edge", (i, j), row) for i, j, row in plain.edges(data=True)]
    for domain, where, row in rows:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                why = f"JSON has no {value}"
                raise attribute_error(name, domain, where, "Node-link JSON", why)
    # ASCII escapes are safe in every encoding, and inside a page's script once < is escaped.
    return json.dumps(nx.node_link_data(plain, edges="edges"), allow_nan=False).encode()


def parse_json(content: bytes, path: Any) -> nx.Graph:
    """Read node-link JSON whose edges are under `"edges"` or `"links"`."""
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


def _written_names(graph: nx.Graph) -> dict[Any, str]:
    """Names of the nodes as XML holds them."""
    names = {node: str(node) for node in graph}
    for node, name in names.items():
        if clean_text(name) != name:
            raise ValueError(
                f"Names of nodes must be free of control characters (got {node!r}). "
                "Rename them with nx.relabel_nodes."
            )
    if len(set(names.values())) < len(names):
        raise ValueError(
            "Names of nodes must differ in writing (got two that do not, such as 1 and '1'). "
            "Rename them with nx.convert_node_labels_to_integers."
        )
    return names


def _numbered(graph: nx.Graph) -> nx.Graph:
    """The graph with integers for names if all names are whole numbers in plain writing."""
    numbers = {}
    for name in graph:
        digits = name.removeprefix("-")
        # Python refuses to read thousands of digits.
        if not (digits.isascii() and digits.isdigit() and len(digits) < 4000):
            return graph
        numbers[name] = int(name)
        if str(numbers[name]) != name:
            return graph
    return nx.relabel_nodes(graph, numbers) if numbers else graph
