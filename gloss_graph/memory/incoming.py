"""Documents on their way into a bank: what is checked, encoded and normalized before a write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_matrix,
    check_tensor,
)
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.precision import unit_rows

_HALF_RANGE = torch.finfo(torch.float16).max
ANONYMOUS = (
    "MemoryBank.enqueue was called without 'ids'. When the same documents come again (a second "
    "epoch), each one finds its own stored copy with its own label: label leakage. Pass stable "
    "document 'ids', or call reset() before every epoch."
)


class Batch(NamedTuple):
    """The checked documents of one call, as graph and bank take them.

    Shapes: B rows, D dimension, C classes.

    Attributes:
        x: (B, D) in float32 at least, L2-normalized if graph and bank normalize; carries the
            gradient.
        labels: (B,) long, -1 = unlabeled; of label sets 0 = labeled.
        targets: (B, C) label sets in the dtype of `x`, zeros in unlabeled rows; None for class
            numbers.
        ids: (B,) long document identities, or None.
        slots: (B,) long, where the bank stores each document, -1 = nowhere; None without ids or
            bank.
    """

    x: Tensor
    labels: Tensor
    targets: Tensor | None
    ids: Tensor | None
    slots: Tensor | None


def prepared_rows(
    name: str, x: Tensor, dim: int, device: torch.device, *, normalize: bool
) -> Tensor:
    """Rows (B, D) checked, detached, in float32 at least and, if the bank does, normalized.

    Args:
        name: The argument that errors name.
        x: (B, D) floating.
        dim: D.
        device: Device of the bank.
        normalize: Whether rows are L2-normalized.

    Raises:
        TypeError: Not a tensor.
        ValueError: Shape, dtype, device or non-finite rows.
    """
    check_matrix(name, x, dim, normalized=normalize, compared=normalize)
    check_device(f"'{name}'", x, "the bank", device)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    return unit_rows(x) if normalize else x


def check_ids(ids: Tensor, size: int) -> None:
    """Raise ValueError unless `ids` are (size,) integers >= 0."""
    check_index_vector("ids", ids, size)
    if size and int(ids.min()) < 0:
        raise ValueError(f"'ids' must be >= 0 (got {int(ids.min())}).")


def check_callable(name: str, value: object) -> None:
    """Raise TypeError unless `value` can be called."""
    if not callable(value):
        raise TypeError(f"'{name}' must be callable (got {type(value).__name__}).")


def check_storable(x: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless rows (B, D) fit the dtype they are stored in."""
    if dtype != torch.float16:
        return
    beyond = (x.abs() > _HALF_RANGE).any(dim=1).nonzero()
    if beyond.numel():
        raise ValueError(
            f"'embeddings' exceed float16 in {beyond.size(0)} of {x.size(0)} rows, the first "
            f"is row {int(beyond[0])}. Use a bank with dtype=torch.float32."
        )


def eval_mode(encode: object) -> AbstractContextManager[object]:
    """A module in eval mode, and afterward in the mode it was in; nothing for other callables."""
    return evaluating(encode) if isinstance(encode, nn.Module) else nullcontext()


def encoded(
    encode: Callable[[Tensor], Tensor], ids: Tensor, prepare: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """The rows (n, D) that `encode` returns for documents (n,), a module in eval mode.

    Args:
        encode: Maps ids to rows.
        ids: (n,) long.
        prepare: Checks and normalizes rows, see `prepared_rows`.

    Raises:
        TypeError: Not a tensor.
        ValueError: Another number of rows, or as `prepared_rows`.
    """
    with eval_mode(encode):
        x = encode(ids.clone())
    if isinstance(x, Tensor):
        x = x.to(ids.device)
    x = prepare("encode", x)
    if x.size(0) != ids.numel():
        raise ValueError(
            f"'encode' must return a row for each of the {ids.numel()} ids (got {x.size(0)})."
        )
    return x


def encoded_batches(
    loader: Iterable[Mapping[str, Any] | Sequence[Any]],
    encoder: Callable[..., Tensor],
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Rows (B, D), labels and ids of every batch; see `MemoryBank.prefill`.

    Raises:
        TypeError: The encoder returns no tensor.
        ValueError: A batch that is neither a mapping nor a tuple of one to three.
    """
    for batch in track(loader, "Filling the memory bank", disable=not progress):
        if isinstance(batch, Mapping):
            inputs: Any = dict(batch)
            labels, ids = inputs.pop("labels", None), inputs.pop("ids", None)
        elif isinstance(batch, Sequence) and 1 <= len(batch) <= 3:
            inputs, labels, ids = (*batch, None, None)[:3]
        else:
            raise ValueError(
                "'loader' must yield mappings or tuples (inputs[, labels[, ids]]) "
                f"(got {type(batch).__name__})."
            )
        rows = encoder(**inputs) if isinstance(inputs, Mapping) else encoder(inputs)
        check_tensor("encoder", rows)
        yield rows, labels, ids
