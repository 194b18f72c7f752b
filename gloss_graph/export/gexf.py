"""GEXF for Gephi: labels, weights and the colors of the classes."""

from __future__ import annotations

import io
import json
from typing import Any
from xml.etree.ElementTree import SubElement, fromstring

import networkx as nx
from networkx.readwrite.gexf import GEXFWriter

from gloss_graph._internal.colors import GREY, PALETTE
from gloss_graph._internal.limits import check_xml, load_json
from gloss_graph.export.attributes import (
    attribute_error,
    clean_text,
    graph_row,
    plain_row,
    plain_value,
    written_names,
)

__all__ = ["gexf_bytes", "parse_gexf"]

_FORM = "GEXF"
_NODE_TAKEN = ("id", "class", "pid", "start", "end", "viz", "parents", "spells", "slices", "key")
_EDGE_TAKEN = ("id", "label", "type", "start", "end", "viz", "spells", "slices", "key")
_CAPTION = 60
_NAMESPACE = "{http://www.gexf.net/1.2draft}"


def gexf_bytes(graph: nx.Graph) -> bytes:
    """A graph as GEXF; a node's caption is its text, its class is the column `class`.

    Raises:
        ValueError: An attribute GEXF cannot hold: not a scalar, of another type on another node,
            or of a name that GEXF keeps for itself.
    """
    kind = nx.DiGraph if graph.is_directed() else nx.Graph
    copy = kind()
    names = written_names(graph)
    colors = _colors(graph)
    grey = colors[""]
    types: dict[tuple[str, str], type] = {}
    for node, data in graph.nodes(data=True):
        row = plain_row(data, "node", node, _FORM, _NODE_TAKEN)
        if "label" in row:
            row["class"] = row.pop("label")
        _one_type(types, "node", node, row)
        viz = {} if "class" not in row else {"viz": {"color": colors.get(row["class"], grey)}}
        caption = row["text"] if isinstance(row.get("text"), str) else ""
        caption = clean_text(" ".join(caption.split()), _CAPTION) or names[node]
        copy.add_node(names[node], **row, label=caption, **viz)
    for i, j, data in graph.edges(data=True):
        row = plain_row(data, "edge", (i, j), _FORM, _EDGE_TAKEN)
        if not isinstance(row.get("weight", 1.0), (int, float)):
            raise attribute_error("weight", "edge", (i, j), _FORM, "a weight must be a number")
        _one_type(types, "edge", (i, j), row)
        copy.add_edge(names[i], names[j], **row)
    writer = GEXFWriter(prettyprint=False)
    writer.add_graph(copy)
    meta = writer.xml.find("meta")
    # The date would make equal graphs differ from day to day.
    meta.attrib.pop("lastmodifieddate", None)
    if plain := graph_row(graph, _FORM):
        SubElement(meta, "description").text = json.dumps(plain)
    target = io.BytesIO()
    writer.write(target)
    return target.getvalue()


def _one_type(
    types: dict[tuple[str, str], type], domain: str, where: Any, row: dict[str, Any]
) -> None:
    for name, value in row.items():
        known = types.setdefault((domain, name), type(value))
        if known is not type(value) and not (domain == "edge" and name == "weight"):
            why = f"it is {known.__name__} elsewhere, {type(value).__name__} here"
            raise attribute_error("label" if name == "class" else name, domain, where, _FORM, why)


def _colors(graph: nx.Graph) -> dict[Any, dict[str, Any]]:
    """Colors of the classes in the order of `label_names`; grey for no class."""
    declared = graph.graph.get("label_names")
    try:
        named = json.loads(declared) if isinstance(declared, str) else []
    except ValueError:
        named = []  # another program's, in words
    # As they are written, so that every node finds its color.
    ordered: list[Any] = [plain_value(name) for name in named if isinstance(named, list)]
    used = {plain_value(label) for _, label in graph.nodes(data="label")} - {None, "", -1}
    ordered += sorted(used.difference(ordered), key=lambda label: (str(type(label)), label))
    colors = {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(ordered)} | {
        "": GREY,
        -1: GREY,
    }
    return {
        label: {"r": int(c[1:3], 16), "g": int(c[3:5], 16), "b": int(c[5:7], 16), "a": 1.0}
        for label, c in colors.items()
    }


def parse_gexf(content: bytes, path: Any) -> nx.Graph:
    """Read GEXF; a graph of `gexf_bytes` comes back without colors and captions.

    Raises:
        ValueError: Not GEXF.
    """
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
    return graph
