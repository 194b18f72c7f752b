"""NetworkX graphs of plain values, as every text format takes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import networkx as nx
import numpy as np
from torch_geometric.data import Data

from gloss_graph.export.columns import check_max_text, clean_text
from gloss_graph.export.to_networkx import to_networkx

__all__ = [
    "as_networkx",
    "graph_row",
    "integer_names",
    "plain_row",
    "plain_value",
    "refuse_parallel_edges",
    "refused",
    "written_names",
]


def as_networkx(graph: Data | nx.Graph, *, max_text: int | None, directed: bool) -> nx.Graph:
    """The graph as NetworkX has it, its ``text`` shortened.

    Raises:
        ValueError: a multigraph, or something that is no graph.
    """
    if isinstance(graph, Data):
        return to_networkx(graph, max_text=max_text, directed=directed)
    if not isinstance(graph, nx.Graph):
        raise ValueError(
            f"'graph' must be a PyG Data or a NetworkX graph (got {type(graph).__name__})."
        )
    refuse_parallel_edges(graph)
    if max_text is not None:
        check_max_text(max_text)
        graph = graph.copy()
        for row in graph.nodes.values():
            if isinstance(row.get("text"), str):
                row["text"] = clean_text(row["text"], max_text)
    return graph


def refuse_parallel_edges(graph: nx.Graph) -> None:
    """Refuse a multigraph.

    Raises:
        ValueError: says how to merge its edges.
    """
    if graph.is_multigraph():
        raise ValueError(
            f"'graph' must not be a multigraph (got {type(graph).__name__}). "
            "Merge parallel edges first: nx.Graph(graph) keeps one of each."
        )


def written_names(graph: nx.Graph) -> dict[Any, str]:
    """Names of the nodes as XML has them.

    Raises:
        ValueError: two are the same in writing, or one has control characters.
    """
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


def plain_value(value: Any) -> str | int | float | bool | None:
    """A Python scalar, its text cleaned; None if the value is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None


def plain_row(
    row: Mapping[Any, Any], domain: str, where: Any, form: str, taken: Collection[str] = ()
) -> dict[str, Any]:
    """Attributes of one node, edge or graph as plain scalars.

    Raises:
        ValueError: names the attribute whose value or name the format cannot carry.
    """
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(name, str) or name in taken:
            why = "its name is not a string" if not isinstance(name, str) else "the name is taken"
            raise refused(name, domain, where, form, why)
        found = plain_value(value)
        if found is None:
            raise refused(
                name,
                domain,
                where,
                form,
                f"it must be a string, integer, float or boolean, got {type(value).__name__}",
            )
        plain[name] = found
    return plain


def graph_row(graph: nx.Graph, form: str) -> dict[str, Any]:
    """Attributes of the graph as plain scalars, without what readers of XML add and fill from.

    Raises:
        ValueError: as `plain_row`.
    """
    own = {k: v for k, v in graph.graph.items() if k not in ("node_default", "edge_default")}
    return plain_row(own, "graph", None, form)


def refused(name: Any, domain: str, where: Any, form: str, why: str) -> ValueError:
    """The error of an attribute a format cannot carry."""
    place = "" if where is None else f" {where!r}"
    return ValueError(
        f"{form} cannot carry the attribute {name!r} of {domain}{place} ({why}). Rename, convert "
        "or remove it."
    )


def integer_names(names: Iterable[str]) -> dict[str, int] | None:
    """Numbers in place of node names, if all names are whole numbers in plain writing."""
    found: dict[str, int] = {}
    for name in names:
        digits = name.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or str(int(name)) != name:
            return None
        found[name] = int(name)
    return found
