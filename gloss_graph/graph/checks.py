"""What a batch may look like, beside a bank."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_mask,
    check_matrix,
    check_tensor,
)
from gloss_graph.graph.visibility import one_per_document
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.labels import check_same_targets, read_labels


def check_batch(
    embeddings: Tensor,
    labels: Tensor | None,
    ids: Tensor | None,
    memory: MemoryBank | None,
    normalize_embeddings: bool,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Validate a batch against itself and a bank; labels and ids come back as long tensors.

    With `num_classes` the labels are targets (B, C): the first result then says which rows have
    any (0 or -1) and the second holds them, see `read_labels`. The third are the ids.
    """
    check_tensor("embeddings", embeddings)
    check_memory(memory, normalize_embeddings)
    if memory is not None and memory.num_classes != num_classes:
        raise ValueError(
            f"'labels' must be of the kind the bank holds (got num_classes={num_classes} for label "
            f"sets, the bank has {memory.num_classes}; None = class numbers)."
        )
    device = embeddings.device
    if memory is not None:
        check_device("'embeddings'", embeddings, "'memory'", memory.rows.device)
    columns = None if memory is None else memory.dim
    check_matrix("embeddings", embeddings, columns, normalized=normalize_embeddings)
    size = embeddings.size(0)
    known, targets = read_labels(labels, size, num_classes, device)
    if ids is not None:
        check_index_vector("ids", ids, size)
        if size and int(ids.min()) < 0:
            raise ValueError(f"'ids' must be >= 0 (got {int(ids.min())}).")
        ids = ids.to(device).long()
    if targets is not None:
        check_same_targets(ids, known, targets)
    return known, targets, ids


def check_memory(memory: MemoryBank | None, normalize_embeddings: bool) -> None:
    """Raise unless `memory` is None or a bank that normalises as asked."""
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


def check_views(
    embeddings: Tensor,
    reference: Tensor | None,
    frozen: Tensor | None,
    memory: MemoryBank | None,
    normalize_embeddings: bool,
) -> None:
    """Raise unless the other views of a batch fit the embeddings and the bank."""
    check_tensor("embeddings", embeddings)
    if reference is not None:
        check_matrix("reference", reference, normalized=normalize_embeddings)
        if reference.shape != embeddings.shape or reference.device != embeddings.device:
            raise ValueError(
                f"'reference' must have the shape and device of 'embeddings' "
                f"{tuple(embeddings.shape)} (got {tuple(reference.shape)})."
            )
    if frozen is None:
        return
    check_matrix("frozen", frozen, normalized=True)
    if not normalize_embeddings:
        raise ValueError("'frozen' needs normalize_embeddings=True.")
    # Before they become part of a joint row, which hides their length.
    check_matrix("embeddings", embeddings, normalized=True)
    if memory is not None and embeddings.dim() == 2:
        wanted = memory.dim - embeddings.size(1)
        if frozen.size(1) != wanted:
            raise ValueError(
                f"'frozen' must have {wanted} columns, so that with the embeddings' "
                f"{embeddings.size(1)} they fill the bank's dim={memory.dim} "
                f"(got {tuple(frozen.shape)})."
            )
