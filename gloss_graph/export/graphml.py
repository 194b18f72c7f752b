"""GraphML, written edge by edge."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import networkx as nx
import numpy as np

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import check_xml
from gloss_graph.export.attributes import check_simple, clean_text, written_names

__all__ = ["parse_graphml", "write_graphml"]

_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:schemaLocation="http://graphml.graphdrawing.org/xmlns \
http://graphml.graphdrawing.org/xmlns/1.0/graphml.xsd">
"""


def write_graphml(
    graph: nx.Graph, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    r"""Write a graph as GraphML, for Gephi, Cytoscape, igraph or `networkx.read_graphml`.

    The file appears under its name only when it is complete. Characters that XML cannot hold are
    written as U+FFFD; the graph itself is not changed. A path that ends in `.gz` is compressed.

    Args:
        graph: An `nx.Graph` or `nx.DiGraph` whose attributes are strings, integers, floats or
            booleans, of Python or NumPy.
        path: The file; its folder must exist.
        overwrite: Replace an existing file.

    Returns:
        The path of the file.

    Raises:
        ValueError: A multigraph, an attribute of another type (a list, None), or two nodes whose
            names are written alike.
        FileExistsError: The file exists and `overwrite` is false.
        OSError: The folder is missing or cannot be written.

    Cost: O(N + E) time, and memory for the names of the nodes only: edges are streamed, where
    `networkx.write_graphml` builds the whole document first.

    Example:
        >>> import tempfile
        >>> graph = nx.Graph([(0, 1, {"weight": 0.5})])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_graphml(graph, Path(folder) / "graph.graphml")
        ...     nx.read_graphml(path, node_type=int).edges[0, 1]
        {'weight': 0.5}

    See also: `to_networkx`, to make the graph; `write_graph`, for other formats.
    """
    check_simple(graph)
    lines = _Document.of(graph).lines(graph)  # everything is checked before a file is touched
    target = Path(path)
    with atomic_write(target, overwrite=overwrite) as handle:
        if target.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=handle, mtime=0) as packed:
                _write(packed, lines)
        else:
            _write(handle, lines)
    return target


def _write(handle: Any, lines: Iterable[str]) -> None:
    stream = TextIOWrapper(handle, encoding="utf-8", newline="\n", write_through=False)
    stream.writelines(lines)
    stream.detach()  # flushes; the owner of the handle closes it


class _Field(NamedTuple):
    """How the values of one attribute and type are written."""

    opening: str
    write: Callable[[Any], str]


class _Document(NamedTuple):
    """The parts of the file that must be known before its first line."""

    keys: list[str]
    fields: dict[tuple[str, Any, type], _Field]
    names: dict[Any, str]
    attributes: dict[Any, Any]

    @classmethod
    def of(cls, graph: nx.Graph) -> _Document:
        defaults = {f"{k}_default": graph.graph.get(f"{k}_default") for k in ("node", "edge")}
        defaults = {key: value for key, value in defaults.items() if isinstance(value, Mapping)}
        attributes = {k: v for k, v in graph.graph.items() if k not in defaults}
        seen = {
            "graph": _types([attributes]),
            "node": _types(data for _, data in graph.nodes(data=True)),
            "edge": _types(data for _, _, data in graph.edges(data=True)),
        }
        keys: list[str] = []
        fields: dict[tuple[str, Any, type], _Field] = {}
        for domain, found in seen.items():
            default = defaults.get(f"{domain}_default", {})
            for name, kind in found | _types([default]):
                if (form := _form(kind)) is None:
                    raise _refused(graph, domain, name, kind)
                key = f"d{len(fields)}"
                fields[domain, name, kind] = _Field(f'<data key="{key}">', form[1])
                preset = ""
                if name in default and type(default[name]) is kind:
                    preset = f"<default>{form[1](default[name])}</default>"
                keys.append(
                    f'<key id="{key}" for="{domain}" attr.name={quoteattr(clean_text(str(name)))} '
                    f'attr.type="{form[0]}">{preset}</key>\n'
                )
        names = {node: quoteattr(name) for node, name in written_names(graph).items()}
        return cls(keys, fields, names, attributes)

    def lines(self, graph: nx.Graph) -> Iterator[str]:
        yield _HEAD
        yield from self.keys
        yield f'<graph edgedefault="{"directed" if graph.is_directed() else "undirected"}">\n'
        if self.attributes:
            yield self.data("graph", self.attributes) + "\n"
        names = self.names
        for node, data in graph.nodes(data=True):
            yield f"<node id={names[node]}>{self.data('node', data)}</node>\n"
        for source, target, data in graph.edges(data=True):
            ends = f"source={names[source]} target={names[target]}"
            yield f"<edge {ends}>{self.data('edge', data)}</edge>\n"
        yield "</graph>\n</graphml>\n"

    def data(self, domain: str, values: Mapping[Any, Any]) -> str:
        fields = self.fields
        text = ""
        for name, value in values.items():
            opening, write = fields[domain, name, type(value)]
            text += f"{opening}{write(value)}</data>"
        return text


def _types(rows: Iterable[Mapping[Any, Any]]) -> dict[tuple[Any, type], None]:
    """Pairs (attribute, type) that occur, in order of appearance."""
    return dict.fromkeys((name, type(value)) for row in rows for name, value in row.items())


def _form(kind: type) -> tuple[str, Callable[[Any], str]] | None:
    """XML type and writer for values of a Python type, None if there is none."""
    if issubclass(kind, (bool, np.bool_)):
        return "boolean", lambda value: "true" if value else "false"
    if issubclass(kind, (int, np.integer)):
        return "long", lambda value: str(int(value))
    if issubclass(kind, (float, np.floating)):
        return "double", _number
    if issubclass(kind, str):
        return "string", lambda value: escape(clean_text(str.__str__(value)))
    return None


def _number(value: Any) -> str:
    number = float(value)
    if math.isfinite(number):
        return repr(number)
    return "NaN" if math.isnan(number) else "INF" if number > 0 else "-INF"


def _refused(graph: nx.Graph, domain: str, name: Any, kind: type) -> ValueError:
    items: Iterable[tuple[Any, Mapping[Any, Any]]] = ()
    if domain == "node":
        items = graph.nodes(data=True)
    elif domain == "edge":
        items = (((source, target), data) for source, target, data in graph.edges(data=True))
    where = next((f" {item!r}" for item, data in items if type(data.get(name)) is kind), "")
    return ValueError(
        f"The attribute {name!r} of {domain}{where} must be a string, integer, float or boolean "
        f"(got {kind.__name__}). Keep vectors in a separate table and leave out None."
    )


def parse_graphml(content: bytes, path: Any) -> nx.Graph:
    """Read GraphML, without the defaults that NetworkX's reader adds.

    Raises:
        ValueError: Not GraphML, or a multigraph.
    """
    try:
        check_xml(content)
        graph = nx.parse_graphml(content)
    except Exception as error:  # its errors have no common base
        raise ValueError(f"'path' must be GraphML ({path}: {error}).") from error
    if graph.is_multigraph():
        raise ValueError(f"'path' must hold no parallel edges ({path} does).")
    for key in ("node_default", "edge_default"):
        if graph.graph.get(key) == {}:
            del graph.graph[key]
    return graph
