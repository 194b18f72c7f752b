"""Attributes of nodes, edges and graphs as plain values that every file format can hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.unicode import whole_text

#: Colors of classes in pictures and exported graphs: Okabe & Ito (2008) with a dark violet for
#: their black; yellow last, it is weak on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#4B2E83", "#F0E442")
GREY = "#9AA0A6"
# Everything outside the characters of XML 1.0, which exclude surrogates, and
# the other control characters, which XML 1.0 allows but discourages.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")
#: Where readers of XML keep the values of attributes that nodes and edges lack.
XML_DEFAULTS = {"node": "node_default", "edge": "edge_default"}


def clean_text(text: str, limit: int | None = None) -> str:
    """Replace characters that XML cannot hold by U+FFFD, unify line ends and shorten.

    Surrogate pairs, as broken JSON leaves them, become the character they stand for. `limit` counts
    characters, the closing ellipsis included.
    """
    if limit is not None:
        # Bounds the work on long documents; no rule below shortens a text by more than half.
        text = text[: 2 * limit + 2]
    text = whole_text(text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _ILLEGAL.sub("\ufffd", text)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    return text


def class_values(values: Any, name: str, size: int) -> Tensor:
    """Convert integers or booleans (N,) or (N, 1) to a tensor (N,) on the CPU."""
    try:
        column = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(values).__name__}: {error}"
        raise misfit(name, "hold integers", got, "Use -1 for a missing class.") from error
    if column.dim() == 2 and column.size(1) == 1:
        column = column.squeeze(1)
    if column.shape != (size,):
        rule, got = f"have {size} entries, one per node", f"the shape {tuple(column.shape)}"
        raise misfit(name, rule, got, "Reduce each node to one value first.")
    if column.numel() and (column.is_floating_point() or column.is_complex()):
        raise misfit(name, "hold integers or booleans", column.dtype, "Take the argmax of scores.")
    return column


def check_entries(values: Any, name: str, size: int, rule: str = "") -> None:
    """Raise unless the values are a collection of one per node; `rule` says it in other words."""
    if isinstance(values, str) or not isinstance(values, Sized) or len(values) != size:
        got: Any = len(values) if isinstance(values, Sized) else type(values).__name__
        got = "a single string" if isinstance(values, str) else got
        advice = "Set 'num_nodes' of the graph if the last nodes have no edges."
        raise misfit(name, rule or f"have {size} entries, one per node", got, advice)


def text_column(values: Sequence[Any], name: str, size: int, limit: int | None) -> list[str]:
    """Clean and shorten N strings, one per node."""
    check_entries(values, name, size)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            got = f"{type(value).__name__} at {i}"
            raise misfit(name, "hold strings", got, 'Replace missing values by "".')
    return [clean_text(str(value), limit) for value in values]


def class_names(names: Any) -> list[str]:
    """Convert names of classes to strings."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise misfit("label_names", "be a list of names, one for each class", repr(names))
    return [whole_text(str(name)) for name in names]


def check_simple(graph: nx.Graph) -> None:
    """Raise for a multigraph."""
    if graph.is_multigraph():
        advice = "Merge parallel edges first: nx.Graph(graph) keeps one of each."
        raise misfit("graph", "not be a multigraph", type(graph).__name__, advice)


def plain_value(value: Any) -> str | int | float | bool | None:
    """A Python scalar, its text cleaned; None for any other value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    return next((kind(value) for kind in (bool, int, float) if isinstance(value, kind)), None)


def plain_row(
    row: Mapping[Any, Any], domain: str, where: Any, form: str, taken: Collection[str] = ()
) -> dict[str, Any]:
    """One row of attributes as scalars that `form` can hold, of names that are not `taken`."""
    plain = {}
    for name, value in row.items():
        found, why = plain_value(value), ""
        if not isinstance(name, str):
            why = "its name is not a string"
        elif name in taken:
            why = "the name is taken"
        elif found is None:
            why = f"it must be a string, integer, float or boolean, got {type(value).__name__}"
        if why:
            raise attribute_error(name, domain, where, form, why)
        plain[clean_text(name)] = found
    return plain


def plain_graph(graph: nx.Graph, form: str, taken: Mapping[str, Collection[str]]) -> nx.Graph:
    """Copy a graph with all attributes as `plain_row` returns them; `taken` is by domain."""

    def plain(row: Mapping[Any, Any], domain: str, where: Any = None) -> dict[str, Any]:
        return plain_row(row, domain, where, form, taken.get(domain, ()))

    copied = nx.DiGraph() if graph.is_directed() else nx.Graph()
    known = XML_DEFAULTS.values()
    attributes = {key: value for key, value in graph.graph.items() if key not in known}
    copied.graph.update(plain(attributes, "graph"))
    copied.add_nodes_from((node, plain(row, "node", node)) for node, row in graph.nodes.items())
    copied.add_edges_from((*ends, plain(row, "edge", ends)) for ends, row in graph.edges.items())
    return copied


def attributes_of(graph: nx.Graph) -> Iterator[tuple[str, Any, str, Any]]:
    """Domain, node or ends, name and value of every attribute of a graph."""
    rows = [("graph", None, graph.graph)]
    rows += [("node", node, row) for node, row in graph.nodes.items()]
    rows += [("edge", ends, row) for ends, row in graph.edges.items()]
    return ((domain, where, *entry) for domain, where, row in rows for entry in row.items())


def attribute_error(name: Any, domain: str, where: Any, form: str, why: str) -> ValueError:
    """The error for an attribute that a format cannot hold."""
    place = "" if where is None else f" {where!r}"
    return ValueError(
        f"{form} cannot carry the attribute {name!r} of {domain}{place} ({why}). Rename, convert "
        "or remove it."
    )
