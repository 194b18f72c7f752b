"""Node columns of a PyG graph as lists of plain Python values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

__all__ = [
    "check_max_text",
    "class_column",
    "class_names",
    "clean_text",
    "count_nodes",
    "prediction_column",
    "text_column",
]

# Everything outside the characters of XML 1.0, where surrogates are no characters either, and
# the other control characters, which XML 1.0 allows but discourages.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str, limit: int | None = None) -> str:
    r"""Replace what XML cannot carry by U+FFFD, unify line ends and shorten.

    Surrogate pairs, as broken JSON leaves them, become the character they stand for; lone
    surrogates and control characters become the replacement character.

    Args:
        text: any string.
        limit: longest result in characters, the closing ellipsis included; None keeps all.

    Returns:
        A string that every text format can hold.

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
        ValueError: names it.
    """
    whole = isinstance(max_text, int) and not isinstance(max_text, bool)
    if max_text is not None and not (whole and max_text >= 1):
        raise ValueError(
            f"'max_text' must be at least 1 (got {max_text!r}). Pass a whole number of "
            "characters, or None for no limit."
        )


def count_nodes(data: Data) -> int:
    """Return the number of nodes, without PyG's warning when it has to be guessed.

    Raises:
        ValueError: if it is no PyG graph, or has no ``edge_index``.

    Example:
        >>> count_nodes(Data(edge_index=torch.tensor([[0], [2]]), y=torch.zeros(4).long()))
        4
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"'data' must be a PyG Data (got {type(data).__name__}). "
            "Build one with build_document_graph."
        )
    if data.get("edge_index") is None:
        raise ValueError("'data' must have an 'edge_index' (got None). Build the graph first.")
    if data.get("num_nodes") is not None:
        return int(data.num_nodes)
    for key in ("doc_id", "y", "in_batch", "seed_mask", "age", "x", "pos"):
        if isinstance(column := data.get(key), Tensor) and column.dim() > 0:
            return column.size(0)
    return int(data.edge_index.max()) + 1 if data.edge_index.numel() else 0


def class_column(data: Data, key: str, num_nodes: int, dtype: torch.dtype) -> list[Any] | None:
    """Return ``data[key]`` (N,) or (N, 1) as a list, None if there is no such column.

    Raises:
        ValueError: if it is not one integer or boolean per node.

    Example:
        >>> data = Data(edge_index=torch.tensor([[0], [1]]), seed_mask=torch.tensor([1, 0]))
        >>> class_column(data, "seed_mask", 2, torch.bool)
        [True, False]
    """
    column = data.get(key)
    if column is None:
        return None
    return _flat(column, f"data.{key}", num_nodes).to(dtype).tolist()


def prediction_column(predicted: Any, num_nodes: int) -> list[Any]:
    """Return predictions, integers or names, as a list with one entry per node.

    Raises:
        ValueError: if the number of entries is wrong or they are neither classes nor names.

    Example:
        >>> prediction_column(torch.tensor([1, -1]), 2), prediction_column(["tea", ""], 2)
        ([1, -1], ['tea', ''])
    """
    if isinstance(predicted, np.ndarray) and predicted.dtype.kind in "UO":
        predicted = predicted.tolist()
    if not isinstance(predicted, (Tensor, np.ndarray)):
        if not isinstance(predicted, Iterable):
            raise ValueError(
                f"'predicted' must have {num_nodes} entries, one per node "
                f"(got {type(predicted).__name__})."
            )
        predicted = list(predicted)
        if any(isinstance(value, str) for value in predicted):
            return text_column(predicted, "predicted", num_nodes, None)
    return _flat(predicted, "predicted", num_nodes).long().tolist()


def text_column(values: Sequence[Any], name: str, num_nodes: int, limit: int | None) -> list[str]:
    """Return strings, cleaned and shortened, with one entry per node.

    Raises:
        ValueError: if the number of entries is wrong or one of them is no string.

    Example:
        >>> text_column(["green tea", "water"], "texts", 2, 6)
        ['green…', 'water']
    """
    if isinstance(values, str) or not isinstance(values, Sized) or len(values) != num_nodes:
        count = len(values) if isinstance(values, Sized) else type(values).__name__
        got = "a single string" if isinstance(values, str) else count
        raise ValueError(
            f"'{name}' must have {num_nodes} entries, one per node (got {got}). "
            "Set 'data.num_nodes' if the last nodes have no edges."
        )
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f"'{name}' must hold strings (got {type(value).__name__} at {i}). "
                'Replace missing values by "".'
            )
    return [clean_text(str(value), limit) for value in values]


def class_names(names: Any) -> list[str]:
    """Return the names of classes as strings.

    Raises:
        ValueError: if they are not several values in order.

    Example:
        >>> class_names(("tea", 7))
        ['tea', '7']
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(
            f"'label_names' must be a list of names, one for each class (got {names!r})."
        )
    return [str(name) for name in names]


def _flat(values: Any, name: str, num_nodes: int) -> Tensor:
    try:
        column = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"'{name}' must hold integers (got {type(values).__name__}: {error}). "
            "Use -1 for a missing class."
        ) from error
    if column.dim() == 2 and column.size(1) == 1:
        column = column.squeeze(1)
    if column.shape != (num_nodes,):
        raise ValueError(
            f"'{name}' must have {num_nodes} entries, one per node "
            f"(got the shape {tuple(column.shape)}). Reduce each node to one value first."
        )
    if column.numel() and (column.is_floating_point() or column.is_complex()):
        raise ValueError(
            f"'{name}' must hold integers or booleans (got {column.dtype}). "
            "Take the argmax of scores; vectors have no place in a text format."
        )
    return column
