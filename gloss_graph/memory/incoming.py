"""The documents that a bank is given: their checks and their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_matrix,
    check_tensor,
)
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.precision import unit_rows
from gloss_graph._internal.processes import gather_rows

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
        x: (B, D) in float32 at least, L2-normalized if graph and bank normalize, with gradient.
        labels: (B,) long, -1 = unlabeled; of label sets 0 = labeled.
        targets: (B, C) label sets, zeros in unlabeled rows; None for class numbers.
        ids: (B,) long document identities, or None.
        slots: (B,) long, where the bank stores each document, -1 = nowhere; None without ids or
            bank.
    """

    x: Tensor
    labels: Tensor
    targets: Tensor | None
    ids: Tensor | None
    slots: Tensor | None


def gathered(batch: Batch, slots_of: Callable[[Tensor], Tensor] | None) -> Batch:
    """The batches of all processes in rank order, without gradient."""
    ids = None if batch.ids is None else gather_rows(batch.ids)
    return Batch(
        x=gather_rows(batch.x),
        labels=gather_rows(batch.labels),
        targets=None if batch.targets is None else gather_rows(batch.targets),
        ids=ids,
        slots=None if ids is None or slots_of is None else slots_of(ids),
    )


def prepared_rows(
    name: str, x: Tensor, dim: int, device: torch.device, *, normalize: bool
) -> Tensor:
    """Rows (B, D) checked, detached, in float32 at least and, if the bank does, normalized."""
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


def check_writable(buffer: Tensor) -> None:
    """Raise RuntimeError if torch would refuse a write to an inference tensor."""
    if buffer.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "This bank was copied or loaded under torch.inference_mode() and can only be "
            "written there. Copy it again outside, or use torch.no_grad()."
        )


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


def encoded(
    encode: Callable[[Tensor], Tensor], ids: Tensor, prepare: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """The rows (n, D) that `encode` returns for documents (n,), a module in eval mode."""
    check_callable("encode", encode)
    with evaluating(encode):
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
    """Rows (B, D), labels and ids of every batch; see `MemoryBank.prefill`."""
    check_callable("encoder", encoder)
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


def read_labels(
    labels: Tensor | None, size: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Checked labels of `size` rows as class numbers (B,) long and None.

    With `num_classes` 0 (labeled) or -1, and targets (B, C), zeros in unlabeled rows.
    """
    if num_classes is not None:
        return _read_targets(labels, size, num_classes, device)
    if labels is None:
        return torch.full((size,), -1, device=device), None
    check_tensor("labels", labels)
    if labels.is_floating_point() and labels.dim() == 2:
        raise ValueError(
            f"'labels' must be class numbers of shape ({size},) (got {labels.dtype} "
            f"{tuple(labels.shape)}). Use labels.argmax(dim=1) for one class per row, or "
            "multilabel=True and MemoryBank(num_classes=...) for label sets and shares."
        )
    check_index_vector("labels", labels, size)
    if size and int(labels.min()) < -1:
        raise ValueError(f"'labels' must be >= -1, -1 = unlabeled (got {int(labels.min())}).")
    return labels.to(device).long(), None


def _read_targets(
    labels: Tensor | None, size: int, num_classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    if labels is None:
        none = torch.full((size,), -1, device=device)
        return none, torch.zeros(size, num_classes, dtype=torch.float32, device=device)
    check_tensor("labels", labels)
    if labels.shape != (size, num_classes) or not labels.is_floating_point():
        raise ValueError(
            f"'labels' must be floating of shape ({size}, {num_classes}), one column per class, "
            f"a row of NaN = unlabeled (got {labels.dtype} {tuple(labels.shape)}). Multi-hot "
            "integers: call .float()."
        )
    labels = labels.detach().to(device)
    missing = labels.isnan()
    unlabeled = missing.all(dim=1)
    partly = (missing.any(dim=1) & ~unlabeled).nonzero()
    if partly.numel():
        raise ValueError(
            f"'labels' must be NaN in a whole row (unlabeled) or nowhere in it (got both in row "
            f"{int(partly[0])})."
        )
    targets = torch.where(unlabeled.unsqueeze(1), 0.0, labels)
    outside = ((targets < 0) | (targets > 1)).any(dim=1).nonzero()
    if outside.numel():
        row = int(outside[0])
        raise ValueError(
            f"'labels' must lie in [0, 1] (got {float(targets[row].min()):g}.."
            f"{float(targets[row].max()):g} in row {row})."
        )
    return -unlabeled.long(), targets


def join_targets(known: Tensor, targets: Tensor) -> Tensor:
    """Targets (B, C) with rows of NaN where `known` (B,) is negative."""
    return torch.where((known >= 0).unsqueeze(1), targets, torch.nan)


def is_labeled(labels: Tensor) -> Tensor:
    """Which rows (B,) bool of class numbers (B,) or targets (B, C) carry a label."""
    return labels >= 0 if labels.dim() == 1 else ~labels[:, 0].isnan()


def check_same_targets(ids: Tensor | None, known: Tensor, targets: Tensor) -> None:
    """Raise unless rows with one id (B,) carry the same label set."""
    if ids is None:
        return
    unique, document = ids.unique(return_inverse=True)
    first = torch.full_like(unique, ids.numel())
    first = first.scatter_reduce(0, document, torch.arange(ids.numel(), device=ids.device), "amin")
    one = first[document]
    clash = ((targets != targets[one]).any(dim=1) | (known != known[one])).nonzero()
    if clash.numel():
        row = int(clash[0])
        raise ValueError(
            f"'labels' must agree for rows with the same id (id {int(ids[row])} has other labels "
            f"in rows {int(one[row])} and {row})."
        )
