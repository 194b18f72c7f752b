"""The documents of a call: checked once, with rows as they are compared and stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_mask,
    check_matrix,
    check_range,
    check_tensor,
)
from gloss_graph._internal.precision import finite_gradient, unit_rows
from gloss_graph._internal.processes import gather_rows


class Store(Protocol):
    """The parts of a `MemoryBank` that a batch must fit."""

    dim: int
    num_classes: int | None
    rows: Tensor

    def slots_of(self, ids: Tensor) -> Tensor:
        """Slot (B,) long of every document id (B,), -1 where it is not stored."""
        ...


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


class Documents(NamedTuple):
    """Values (n, ...) of the n documents of a batch, and which of them every row is (B,)."""

    values: Tensor
    of_row: Tensor


class StepBatch(NamedTuple):
    """The checked arguments of one training step.

    Attributes:
        batch: The rows with gradient.
        constants: The same documents as the bank stores them and targets are made from them; their
            rows are those of the batch unless target embeddings were passed.
        has_targets: Whether they were.
        learned: Columns of the rows that are learned; frozen features follow.
        documents: Their labels by document where rows have ids, or None.
        visible: (B,) bool, the rows whose label stays visible; None for a random split.
        logits: (B, C) or None.
    """

    batch: Batch
    constants: Batch
    has_targets: bool
    learned: int
    documents: Documents | None
    visible: Tensor | None
    logits: Tensor | None


def check_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    ids: Tensor | None,
    *,
    memory: Store | None,
    normalize: bool,
    num_classes: int | None = None,
    frozen: Tensor | None = None,
    frozen_weight: float = 0.0,
    compared: bool = True,
) -> Batch:
    """Check a batch against itself and a bank, and normalize its rows.

    `num_classes` is C of label sets, None for class numbers. With `frozen` (B, D') features of the
    untrained encoder the rows are joint views. Without `compared`, rows may have any length.
    """
    check_tensor("embeddings", embeddings)
    columns = None
    if memory is not None:
        if memory.num_classes != num_classes:
            raise ValueError(
                f"'labels' must be of the kind the bank holds (got num_classes={num_classes} for "
                f"label sets, the bank has {memory.num_classes}; None = class numbers)."
            )
        check_device("'embeddings'", embeddings, "'memory'", memory.rows.device)
        columns = memory.dim if frozen is None else None
    check_matrix("embeddings", embeddings, columns, normalized=normalize, compared=compared)
    if frozen is not None and not normalize:
        raise ValueError("'frozen' needs rows of length 1. Set normalize_embeddings=True.")
    size = embeddings.size(0)
    known, targets = read_labels(labels, size, num_classes, embeddings.device)
    if ids is not None:
        check_ids(ids, size)
        ids = ids.to(embeddings.device).long()
        if targets is not None:
            one_per_document("labels", torch.cat([known.unsqueeze(1), targets], dim=1), ids)
    x = _compared_rows(embeddings, frozen, frozen_weight, normalize)
    if memory is not None and x.size(1) != memory.dim:
        learned = embeddings.size(1)
        raise ValueError(
            f"'frozen' must have {memory.dim - learned} columns, so that with the embeddings' "
            f"{learned} they fill the bank's dim={memory.dim} (got {x.size(1) - learned})."
        )
    slots = None if ids is None or memory is None else memory.slots_of(ids)
    return Batch(x, known, None if targets is None else targets.to(x.dtype), ids, slots)


def check_step(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    *,
    logits: Tensor | None,
    visible: Tensor | None,
    target_embeddings: Tensor | None,
    frozen: Tensor | None,
    memory: Store | None,
    num_classes: int,
    multilabel: bool,
    normalize: bool,
    frozen_weight: float,
) -> StepBatch:
    """Check the arguments of `GraphGuidedObjective.forward`, which describes them."""
    batch = check_batch(
        embeddings,
        labels,
        ids,
        memory=memory,
        normalize=normalize,
        num_classes=num_classes if multilabel else None,
        frozen=frozen,
        frozen_weight=frozen_weight,
    )
    known, size = batch.labels, batch.labels.numel()
    if size == 0:
        raise ValueError("'embeddings' must hold at least one row (got 0).")
    if int(known.max()) >= num_classes:
        raise ValueError(
            f"'labels' must lie in 0..{num_classes - 1}, or be -1 for unlabeled "
            f"(got {int(known.min())}..{int(known.max())})."
        )
    documents = None if batch.ids is None else one_per_document("labels", known, batch.ids)
    if visible is not None:
        check_mask("visible", visible, size)
        visible = visible.to(known.device)
        if bool((visible & (known < 0)).any()):
            raise ValueError("'visible' marks rows whose label is -1 (unlabeled).")
        if batch.ids is not None:
            # A row that shows the label of a document would tell it to the others.
            one_per_document("visible", visible.long(), batch.ids)
    if logits is not None:
        check_tensor("logits", logits)
        if logits.shape != (size, num_classes):
            raise ValueError(
                f"'logits' must have shape ({size}, {num_classes}) (got {tuple(logits.shape)})."
            )
        check_matrix("logits", logits)
    x = batch.x.detach()
    if target_embeddings is not None:
        check_matrix("target_embeddings", target_embeddings, normalized=normalize)
        same_device = target_embeddings.device == embeddings.device
        if target_embeddings.shape != embeddings.shape or not same_device:
            raise ValueError(
                f"'target_embeddings' must have the shape and device of 'embeddings' "
                f"{tuple(embeddings.shape)} (got {tuple(target_embeddings.shape)})."
            )
        constants = target_embeddings.detach()
        x = _compared_rows(constants, frozen, frozen_weight, normalize).to(x.dtype)
    return StepBatch(
        batch=batch,
        constants=batch._replace(x=x),
        has_targets=target_embeddings is not None,
        learned=embeddings.size(1),
        documents=documents,
        visible=visible,
        logits=logits,
    )


def check_ids(ids: Tensor, size: int) -> None:
    """Raise ValueError unless `ids` are (size,) integers >= 0."""
    check_index_vector("ids", ids, size)
    if size and int(ids.min()) < 0:
        raise ValueError(f"'ids' must be >= 0 (got {int(ids.min())}).")


def read_labels(
    labels: Tensor | None, size: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Checked labels of `size` rows as class numbers (B,) long and None.

    With `num_classes` 0 (labeled) or -1, and targets (B, C), zeros in unlabeled rows.
    """
    if labels is None:
        sets = None
        if num_classes is not None:
            sets = torch.zeros(size, num_classes, dtype=torch.float32, device=device)
        return torch.full((size,), -1, device=device), sets
    check_tensor("labels", labels)
    if num_classes is not None:
        return _read_sets(labels.detach().to(device), (size, num_classes))
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


def _read_sets(labels: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if labels.shape != shape or not labels.is_floating_point():
        raise ValueError(
            f"'labels' must be floating of shape {shape}, one column per class, a row of NaN = "
            f"unlabeled (got {labels.dtype} {tuple(labels.shape)}). Multi-hot integers: call "
            ".float()."
        )
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


def one_per_document(name: str, values: Tensor, ids: Tensor) -> Documents:
    """The documents of a batch, which the `ids` (B,) of its rows tell.

    Rows with one id and different values (B, ...) raise a ValueError that calls them `name`.
    """
    unique, of_row = ids.unique(return_inverse=True)
    rows = torch.arange(ids.numel(), device=ids.device)
    first = torch.zeros_like(unique).scatter_reduce_(0, of_row, rows, "amin", include_self=False)
    documents = values[first]
    found = documents[of_row]
    if not torch.equal(found, values):
        row = int((found != values).reshape(ids.numel(), -1).any(dim=1).nonzero()[0])
        number, earlier = int(ids[row]), int(first[of_row[row]])
        if values.dim() > 1:
            raise ValueError(
                f"'{name}' must agree for rows with the same id (id {number} has other {name} in "
                f"rows {earlier} and {row})."
            )
        one, other = sorted([int(found[row]), int(values[row])])
        raise ValueError(
            f"'{name}' must agree for rows with the same id, which are one document (id "
            f"{number} has {name} {one} and {other})."
        )
    return Documents(documents, of_row)


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


def _compared_rows(
    embeddings: Tensor, frozen: Tensor | None, frozen_weight: float, normalize: bool
) -> Tensor:
    """Checked rows as they are compared and stored: (B, D) in float32 at least, or joint views."""
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if frozen is not None:
        return joint_view(x, frozen, frozen_weight)
    return unit_rows(x) if normalize else finite_gradient(x)


def joint_view(x: Tensor, frozen: Tensor | None, frozen_weight: float) -> Tensor:
    r"""Rows whose inner product is \((1 - a) \cos_{learned} + a \cos_{frozen}\).

    Args:
        x: (B, D) learned embeddings; gradients pass through.
        frozen: (B, D') features of the untrained encoder, constants; None returns x itself.
        frozen_weight: a in [0, 1].

    Returns:
        (B, D + D') rows of norm 1 (0 where both parts are zero).

    Raises:
        ValueError: Another number of rows, another device, non-finite features.
    """
    if frozen is None:
        return x
    check_matrix("frozen", frozen, normalized=True)
    if frozen.size(0) != x.size(0) or frozen.device != x.device:
        raise ValueError(
            f"'frozen' must hold one row per embedding on the same device (got "
            f"{tuple(frozen.shape)} on {frozen.device} for {tuple(x.shape)} on {x.device})."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    learned = math.sqrt(1.0 - frozen_weight) * unit_rows(x)
    features = unit_rows(frozen.detach().to(x.dtype))
    return torch.cat([learned, math.sqrt(frozen_weight) * features], dim=1)


def reweighted(rows: Tensor, learned: int, old: float, new: float) -> Tensor:
    """Stored joint rows (M, D + D') with another weight of the frozen columns after `learned`.

    Raises:
        ValueError: A view is asked for that was stored with weight 0.
    """
    check_range("frozen_weight", new, 0.0, 1.0)
    if new == old:
        return rows
    if (old == 0.0 < new) or (old == 1.0 > new):
        raise ValueError(
            f"'frozen_weight' cannot be changed from {old} to {new}: the rows were stored without "
            f"the view that it weights. Use frozen_weight={old}, or fill the bank again."
        )
    first = rows[:, :learned] * math.sqrt((1.0 - new) / (1.0 - old) if new < 1.0 else 0.0)
    second = rows[:, learned:] * math.sqrt(new / old if new > 0.0 else 0.0)
    return torch.cat([first, second], dim=1)
