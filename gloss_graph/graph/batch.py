"""The checked batch of a call: rows, labels and identities, and where the bank has them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_matrix,
    check_tensor,
)
from gloss_graph.graph.rows import normalized_rows
from gloss_graph.graph.visibility import Documents, check_visible, one_per_document
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

    `num_classes` is C of label sets, None for class numbers. With `frozen` (B, D') features of the
    untrained encoder the rows are joint views.
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
        check_matrix("frozen", frozen, normalized=True)
        if not normalize:
            raise ValueError("'frozen' needs rows of length 1. Set normalize_embeddings=True.")
        columns = embeddings.size(1) + frozen.size(1)
        if memory is not None and columns != memory.dim:
            raise ValueError(
                f"'frozen' must have {memory.dim - embeddings.size(1)} columns, so that with the "
                f"embeddings' {embeddings.size(1)} they fill the bank's dim={memory.dim} "
                f"(got {tuple(frozen.shape)})."
            )
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


def check_step(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    *,
    logits: Tensor | None,
    visible: Tensor | None,
    target_embeddings: Tensor | None,
    frozen: Tensor | None,
    memory: MemoryBank | None,
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
    visible = check_visible(visible, known, batch.ids)
    if logits is not None:
        check_tensor("logits", logits)
        if logits.shape != (size, num_classes):
            raise ValueError(
                f"'logits' must have shape ({size}, {num_classes}) (got {tuple(logits.shape)})."
            )
        check_matrix("logits", logits)
    constants = batch._replace(x=batch.x.detach())
    if target_embeddings is not None:
        check_matrix("target_embeddings", target_embeddings, normalized=normalize)
        same_device = target_embeddings.device == embeddings.device
        if target_embeddings.shape != embeddings.shape or not same_device:
            raise ValueError(
                f"'target_embeddings' must have the shape and device of 'embeddings' "
                f"{tuple(embeddings.shape)} (got {tuple(target_embeddings.shape)})."
            )
        x = normalized_rows(target_embeddings.detach(), frozen, frozen_weight, normalize)
        constants = batch._replace(x=x.to(batch.x.dtype))
    return StepBatch(
        batch=batch,
        constants=constants,
        has_targets=target_embeddings is not None,
        learned=embeddings.size(1),
        documents=documents,
        visible=visible,
        logits=logits,
    )
