"""Attributes of nodes, edges and graphs as plain values that every text format can hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

__all__ = [
    "attribute_error",
    "check_max_text",
    "check_simple",
    "class_names",
    "class_values",
    "clean_text",
    "graph_row",
    "integer_names",
    "plain_row",
    "plain_value",
    "prediction_column",
    "text_column",
    "written_names",
]

# Everything outside the characters of XML 1.0, which exclude surrogates, and
# the other control characters, which XML 1.0 allows but discourages.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str, limit: int | None = None) -> str:
    r"""Replace what XML cannot hold by U+FFFD, unify line ends and shorten.

    Surrogate pairs, as broken JSON leaves them, become the character they stand for; lone
    surrogates and control characters become the replacement character.

    Args:
        text: Any string.
        limit: Longest result in characters, the closing ellipsis included; None keeps all.

    Example:
        >>> ascii(clean_text("a\x00b\r\nc")), clean_text("\ud83d\ude00"), clean_text("abcdef", 4)
        ("'a\\ufffdb\\nc'", '😀', 'abc…')
    """
    if limit is not None and len(text) > 2 * limit + 2:
        # Bounds the work on long documents; no rule below shortens a text by more than half.
        text = text[: 2 * limit + 2]
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _ILLEGAL.sub("\ufffd", text)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    return text


def check_max_text(max_text: Any) -> None:
    """Raise unless `max_text` is a whole number of at least 1, or None.

    Raises:
        ValueError: Names it.
    """
    whole = isinstance(max_text, int) and not isinstance(max_text, bool)
    if max_text is not None and not (whole and max_text >= 1):
        raise ValueError(
            f"'max_text' must be at least 1 (got {max_text!r}). Pass a whole number of "
            "characters, or None for no limit."
        )


def class_values(values: Any, name: str, size: int) -> Tensor:
    """Integers or booleans (N,) or (N, 1) as a tensor (N,) on the CPU.

    Raises:
        ValueError: Another shape or type.
    """
    try:
        column = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"'{name}' must hold integers (got {type(values).__name__}: {error}). "
            "Use -1 for a missing class."
        ) from error
    if column.dim() == 2 and column.size(1) == 1:
        column = column.squeeze(1)
    if column.shape != (size,):
        raise ValueError(
            f"'{name}' must have {size} entries, one per node "
            f"(got the shape {tuple(column.shape)}). Reduce each node to one value first."
        )
    if column.numel() and (column.is_floating_point() or column.is_complex()):
        raise ValueError(
            f"'{name}' must hold integers or booleans (got {column.dtype}). "
            "Take the argmax of scores; vectors have no place in a text format."
        )
    return column


def prediction_column(predicted: Any, size: int) -> list[Any]:
    """Predictions, integers or names, as a list with one entry per node.

    Raises:
        ValueError: Another number of entries, or neither classes nor names.

    Example:
        >>> prediction_column(torch.tensor([1, -1]), 2), prediction_column(["tea", ""], 2)
        ([1, -1], ['tea', ''])
    """
    if isinstance(predicted, np.ndarray) and predicted.dtype.kind in "UO":
        predicted = predicted.tolist()
    if not isinstance(predicted, (Tensor, np.ndarray)):
        if not isinstance(predicted, Iterable):
            raise ValueError(
                f"'predicted' must have {size} entries, one per node "
                f"(got {type(predicted).__name__})."
            )
        predicted = list(predicted)
        if any(isinstance(value, str) for value in predicted):
            return text_column(predicted, "predicted", size, None)
    return class_values(predicted, "predicted", size).long().tolist()


def text_column(values: Sequence[Any], name: str, size: int, limit: int | None) -> list[str]:
    """Strings, cleaned and shortened, with one entry per node.

    Raises:
        ValueError: Another number of entries, or an entry that is not a string.

    Example:
        >>> text_column(["green tea", "water"], "texts", 2, 6)
        ['green…', 'water']
    """
    if isinstance(values, str) or not isinstance(values, Sized) or len(values) != size:
        count = len(values) if isinstance(values, Sized) else type(values).__name__
        got = "a single string" if isinstance(values, str) else count
        raise ValueError(
            f"'{name}' must have {size} entries, one per node (got {got}). "
            "Set 'num_nodes' of the graph if the last nodes have no edges."
        )
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"'{name}' must hold strings (got {type(value).__name__} at {i}). "
                'Replace missing values by "".'
            )
    return [clean_text(str(value), limit) for value in values]


def class_names(names: Any) -> list[str]:
    """Names of classes as strings.

    Raises:
        ValueError: Not several values in order.

    Example:
        >>> class_names(("tea", 7))
        ['tea', '7']
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(
            f"'label_names' must be a list of names, one for each class (got {names!r})."
        )
    return [str(name) for name in names]


def check_simple(graph: nx.Graph) -> None:
    """Raise for a multigraph.

    Raises:
        ValueError: Says how to merge its edges.
    """
    if graph.is_multigraph():
        raise ValueError(
            f"'graph' must not be a multigraph (got {type(graph).__name__}). "
            "Merge parallel edges first: nx.Graph(graph) keeps one of each."
        )


def written_names(graph: nx.Graph) -> dict[Any, str]:
    """Names of the nodes as XML holds them.

    Raises:
        ValueError: Two names are written alike, or one has control characters.
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


def integer_names(names: Iterable[str]) -> dict[str, int] | None:
    """Numbers for node names if all names are whole numbers in plain writing."""
    found: dict[str, int] = {}
    for name in names:
        digits = name.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or str(int(name)) != name:
            return None
        found[name] = int(name)
    return found


def plain_value(value: Any) -> str | int | float | bool | None:
    """A Python scalar, its text cleaned; None for any other value."""
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

    Args:
        row: The attributes.
        domain: `"node"`, `"edge"` or `"graph"`.
        where: Which one, for errors.
        form: Name of the file format, for errors.
        taken: Names that the format keeps for itself.

    Raises:
        ValueError: Names the attribute whose value or name the format cannot hold.
    """
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if not isinstance(name, str) or name in taken:
            why = "its name is not a string" if not isinstance(name, str) else "the name is taken"
            raise attribute_error(name, domain, where, form, why)
        found = plain_value(value)
        if found is None:
            why = f"it must be a string, integer, float or boolean, got {type(value).__name__}"
            raise attribute_error(name, domain, where, form, why)
        plain[name] = found
    return plain


def graph_row(graph: nx.Graph, form: str) -> dict[str, Any]:
    """Attributes of the graph as plain scalars, without the defaults that XML readers add.

    Raises:
        ValueError: As `plain_row`.
    """
    kept = {k: v for k, v in graph.graph.items() if k not in ("node_default", "edge_default")}
    return plain_row(kept, "graph", None, form)


def attribute_error(name: Any, domain: str, where: Any, form: str, why: str) -> ValueError:
    """The error for an attribute that a format cannot hold."""
    place = "" if where is None else f" {where!r}"
    return ValueError(
        f"{form} cannot carry the attribute {name!r} of {domain}{place} ({why}). Rename, convert "
        "or remove it."
    )
