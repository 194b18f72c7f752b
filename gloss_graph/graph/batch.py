"""One checked batch: the rows, labels and identities of a call, and where the bank has them."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_mask,
    check_matrix,
    check_tensor,
)
from gloss_graph._internal.precision import finite_gradient, unit_rows
from gloss_graph.graph.views import joint_view
from gloss_graph.graph.visibility import one_per_document
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.incoming import Batch, check_ids, check_same_targets, read_labels


def check_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    ids: Tensor | None,
    *,
    memory: MemoryBank | None,
    normalize: bool,
    num_classes: int | None = None,
    frozen: Tensor | None = None,
    frozen_weight: float = 0.0,
) -> Batch:
    """Check a batch against itself and a bank, and normalize its rows.

    Args:
        embeddings: (B, D) floating.
        labels: (B,) integer or label sets (B, C), see `read_labels`; None = all unlabeled.
        ids: (B,) integer >= 0 or None.
        memory: The bank or None.
        normalize: Whether rows are L2-normalized.
        num_classes: C of label sets, None for class numbers.
        frozen: (B, D') features of the untrained encoder: rows are then joint views.
        frozen_weight: Weight of the frozen similarity in these.

    Raises:
        TypeError: A value that is not a tensor.
        ValueError: Shapes, dtypes or devices that disagree, non-finite rows, labels of the other
            kind, a negative id.
    """
    check_tensor("embeddings", embeddings)
    if memory is not None and memory.num_classes != num_classes:
        raise ValueError(
            f"'labels' must be of the kind the bank holds (got num_classes={num_classes} for label "
            f"sets, the bank has {memory.num_classes}; None = class numbers)."
        )
    device = embeddings.device
    if memory is not None:
        check_device("'embeddings'", embeddings, "'memory'", memory.rows.device)
    columns = None if memory is None or frozen is not None else memory.dim
    check_matrix("embeddings", embeddings, columns, normalized=normalize)
    if frozen is not None:
        _check_frozen(embeddings, frozen, memory, normalize)
    size = embeddings.size(0)
    known, targets = read_labels(labels, size, num_classes, device)
    slots = None
    if ids is not None:
        check_ids(ids, size)
        ids = ids.to(device).long()
        slots = None if memory is None else memory.slots_of(ids)
    if targets is not None:
        check_same_targets(ids, known, targets)
    x = normalized_rows(embeddings, frozen, frozen_weight, normalize)
    targets = None if targets is None else targets.to(x.dtype)
    return Batch(x, known, targets, ids, slots)


def normalized_rows(
    embeddings: Tensor, frozen: Tensor | None, frozen_weight: float, normalize: bool
) -> Tensor:
    """Checked rows as they are compared and stored: (B, D) in float32 at least, or joint views."""
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if frozen is not None:
        return joint_view(x, frozen, frozen_weight)
    return unit_rows(x) if normalize else finite_gradient(x)


def _check_frozen(
    embeddings: Tensor, frozen: Tensor, memory: MemoryBank | None, normalize: bool
) -> None:
    check_matrix("frozen", frozen, normalized=True)
    if not normalize:
        raise ValueError("'frozen' needs rows of length 1. Set normalize_embeddings=True.")
    if memory is None:
        return
    wanted = memory.dim - embeddings.size(1)
    if frozen.size(1) != wanted:
        raise ValueError(
            f"'frozen' must have {wanted} columns, so that with the embeddings' "
            f"{embeddings.size(1)} they fill the bank's dim={memory.dim} "
            f"(got {tuple(frozen.shape)})."
        )


def check_target_embeddings(target_embeddings: Tensor, embeddings: Tensor, normalize: bool) -> None:
    """Raise unless these fit the embeddings in shape and device.

    Raises:
        ValueError: Names both shapes.
    """
    check_matrix("target_embeddings", target_embeddings, normalized=normalize)
    if target_embeddings.shape != embeddings.shape or target_embeddings.device != embeddings.device:
        raise ValueError(
            f"'target_embeddings' must have the shape and device of 'embeddings' "
            f"{tuple(embeddings.shape)} (got {tuple(target_embeddings.shape)})."
        )


def check_memory(memory: MemoryBank | None, normalize_embeddings: bool) -> None:
    """Raise unless `memory` is None or a bank that normalizes as asked."""
    if memory is None:
        return
    if not isinstance(memory, MemoryBank):
        raise TypeError(f"'memory' must be a MemoryBank (got {type(memory).__name__}).")
    if memory.normalize != normalize_embeddings:
        raise ValueError(
            f"'normalize_embeddings' is {normalize_embeddings} but the bank was made with "
            f"normalize={memory.normalize}. Make them agree."
        )


def check_label_range(labels: Tensor, num_classes: int) -> None:
    """Raise unless `labels` (B,) lie in -1..C-1 and there is one."""
    if labels.numel() == 0:
        raise ValueError("'embeddings' must hold at least one row (got 0).")
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"'labels' must lie in 0..{num_classes - 1}, or be -1 for unlabeled "
            f"(got {low}..{high})."
        )


def check_logits(logits: Tensor, size: int, num_classes: int) -> None:
    """Raise unless `logits` is a finite (B, C) matrix."""
    check_tensor("logits", logits)
    if logits.shape != (size, num_classes):
        raise ValueError(
            f"'logits' must have shape ({size}, {num_classes}) (got {tuple(logits.shape)})."
        )
    check_matrix("logits", logits)


def check_visible(
    visible: Tensor | None, labels: Tensor, ids: Tensor | None = None
) -> Tensor | None:
    """`visible` (B,) on the labels' device; raise unless it fits the labels and documents.

    Rows with one id are one document: a twin that shows the label would tell it to the others.

    Raises:
        ValueError: Shape or dtype; an unlabeled row is marked; rows with one id differ in label or
            in visibility.
    """
    # Documents that come once cannot disagree with themselves.
    if ids is not None and ids.unique().numel() == ids.numel():
        ids = None
    if ids is not None:
        one_per_document("labels", labels, ids)
    if visible is None:
        return None
    check_mask("visible", visible, labels.numel())
    visible = visible.to(labels.device)
    if bool((visible & (labels < 0)).any()):
        raise ValueError("'visible' marks rows whose label is -1 (unlabeled).")
    if ids is not None:
        one_per_document("visible", visible.long(), ids)
    return visible
