"""Consistency of a classifier with the labels the graph propagates to unlabeled rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.processes import any_process, own_rows, share_of_mean
from gloss_graph._internal.search_space import Range
from gloss_graph._internal.settings import setting
from gloss_graph.graph.batch import Batch
from gloss_graph.graph.build import Connection
from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.losses.graph import soft_binary_cross_entropy
from gloss_graph.losses.schedule import is_seen, ramped, unseen_mean, updated_mean
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.drift import age_decay
from gloss_graph.propagation.alignment import (
    align_classes,
    arrival_confidence,
    arrival_shares,
    class_factors,
    class_shares,
    entropy_confidence,
    row_shares,
    score_probabilities,
    score_spread,
    target_means,
)
from gloss_graph.step.hidden_labels import propagate_connection


@dataclass(frozen=True, kw_only=True)
class Consistency:
    r"""The term of unlabeled rows: their logits follow what the graph propagates to them.

    \(L_C\) is the mean over unlabeled batch rows of \(c_i\) times the cross-entropy of their
    logits with the target \(q_i\), where \(c_i = 1 - H(q_i) / \log C\).

    Attributes:
        weight: Weight of \(L_C\) in the loss; needs `logits`.
        start: Training steps before the first target is used.
        ramp: Steps in which the weight then rises to its full value.
        refresh_every: With `ids`, targets come from one solve over the whole bank every so many
            steps. 0, or without bank or ids: from each step's own graph, all labels shown (with
            several processes, that of all their batches).
        align: Power in [0, 1] of the class-mass alignment of targets and predictions.

    Raises:
        ValueError: A setting out of range.

    Example:
        >>> Consistency(start=20)
        Consistency(weight=1.0, start=20, ramp=40, refresh_every=40, align=0.5)
    """

    weight: float = setting(
        1.0, "Weight of the unlabeled documents' term.", search=Range(0.1, 10.0, log=True)
    )
    start: int = setting(40, "Steps before the first target is used.")
    ramp: int = setting(40, "Steps in which the weight of the term then rises.")
    refresh_every: int = setting(
        40, "Steps between solves over the bank; 0 = targets of each step's own graph."
    )
    align: float = setting(0.5, "Power of the class-mass alignment.")

    def __post_init__(self) -> None:
        check_range("consistency_weight", self.weight, 0.0, float("inf"), open_high=True)
        check_positive_int("consistency_start", self.start, minimum=0)
        check_positive_int("consistency_ramp", self.ramp, minimum=0)
        check_positive_int("refresh_every", self.refresh_every, minimum=0)
        check_range("align", self.align, 0.0, 1.0)


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    r"""\(-\frac{1}{n} \sum_i w_i \sum_c q_{ic} \log p_{ic}\); 0 without rows.

    Args:
        logits: (n, C).
        target: q (n, C), constants.
        weight: w (n,), constants.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = -(target.to(logits) * logits.log_softmax(dim=1)).sum(dim=1)
    return (weight.to(logits) * losses).sum() / max(1, losses.numel())


class GraphTargets(nn.Module):
    """What the graph says of unlabeled documents: soft targets, how far to trust them, and when.

    Targets come from one solve over the whole bank every `refresh_every` steps and are looked up
    by document id in between, or from the graph of each step (`refresh_every=0`). Everything that
    training depends on is in persistent buffers.

    With several processes all of them solve in the same step, over equal banks or over the graph
    of all their batches, as soon as any of them holds an unlabeled row: every buffer is bit-equal
    on all processes after every training step.

    Args:
        capacity: Rows of the bank, 0 without one.
        classifier: How the corpus is connected and propagated over.
        consistency: When targets are made, and from what.
        half_life: Steps in which the trust in a row of the bank halves; None: all count alike.
    """

    steps: Tensor
    solved_at: Tensor
    table: Tensor
    table_ids: Tensor
    confidence: Tensor
    mass: Tensor

    def __init__(
        self,
        capacity: int,
        classifier: GraphClassifier,
        consistency: Consistency,
        half_life: float | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.consistency, self.half_life = classifier, consistency, half_life
        num_classes = classifier.num_classes
        rows = capacity if consistency.refresh_every else 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("solved_at", torch.full((), -1))
        self.register_buffer("table", torch.zeros(rows, num_classes, dtype=torch.float32))
        self.register_buffer("table_ids", torch.full((rows,), -1))
        self.register_buffer("confidence", torch.zeros(rows, dtype=torch.float32))
        self.register_buffer("mass", unseen_mean(num_classes))
        self._warned = False

    @property
    def strength(self) -> float:
        """Weight of the term now, in [0, 1]."""
        return ramped(int(self.steps), self.consistency.start, self.consistency.ramp)

    def wanted(self) -> bool:
        """Whether the targets are older than `refresh_every` steps, or there are none."""
        last = int(self.solved_at)
        return last < 0 or int(self.steps) - last >= self.consistency.refresh_every

    @torch.no_grad()
    def refresh(self, memory: MemoryBank) -> None:
        """Solve over the whole bank and keep a target for every row.

        Raises:
            TypeError: Not a bank.
            ValueError: A bank of another capacity than the targets were made for.
        """
        if not isinstance(memory, MemoryBank):
            raise TypeError(f"'memory' must be a MemoryBank (got {type(memory).__name__}).")
        if memory.capacity != self.table_ids.numel():
            raise ValueError(
                f"'memory' must have a capacity of {self.table_ids.numel()}, as the targets have "
                f"(got {memory.capacity}; refresh_every=0 keeps none)."
            )
        count = len(memory)
        if count == 0:
            return
        if not bool(memory.labeled.any()):
            self._warn_no_label()
            return
        trust = None if self.half_life is None else age_decay(memory.age, self.half_life)
        head = PropagationHead(memory.embeddings, memory.labels, self.classifier, trust)
        target = head.probabilities(head.hits).to(self.table.dtype)
        confidence = head.confidence(head.hits, target).to(self.confidence.dtype)
        # New tensors, so that a step that raises later can go back to the old ones.
        self.table = torch.cat([target, self.table[count:]])
        self.confidence = torch.cat([confidence, self.confidence[count:]])
        self.table_ids = torch.cat([memory.ids, self.table_ids[count:]])
        self.solved_at = self.steps.clone()

    def lookup(self, memory: MemoryBank, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets (B, C), confidence (B,) and whether there is one (B,) for document ids (B,)."""
        slots = memory.slots_of(ids)
        known = slots >= 0
        slots = slots.clamp(min=0)
        known = known & (self.table_ids[slots] == ids)
        return self.table[slots], self.confidence[slots], known

    @torch.no_grad()
    def from_hits(
        self, hits: Tensor, labels: Tensor, unlabeled: Tensor, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Targets (n, C) and confidence (n,) from hit mass (n, C) of the unlabeled batch rows.

        While training the running mean takes the rows in.

        Args:
            hits: (B, C) of the batch, with several processes that of all.
            labels: (N,) of all nodes of the step's graph, for the class shares.
            unlabeled: (B,) bool.
            scores: (n, C), with `rule="poisson"` those of all unlabeled nodes, by default of the
                batch: their spread says how large a score is.
        """
        shares = row_shares(hits[unlabeled]).to(self.mass.dtype)
        mass = self.mass
        if shares.size(0):
            if self.training:
                mass = self.mass = updated_mean(mass, shares.mean(dim=0))
            elif not is_seen(mass):
                mass = shares.mean(dim=0)
        prior = class_shares(labels, self.classifier.num_classes).to(shares)
        if self.classifier.propagation.rule == "poisson":
            factors = class_factors(prior, mass, self.classifier.align).to(hits)
            spread = score_spread((hits[unlabeled] if scores is None else scores) * factors)
            target = score_probabilities(hits[unlabeled] * factors, spread).to(shares)
        else:
            target = align_classes(shares, prior, mass, self.classifier.align)
        return target, entropy_confidence(target)

    def _warn_no_label(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "The memory bank holds no label, so unlabeled documents get no target. Prefill "
                "it, or let labeled documents pass first.",
                UserWarning,
                stacklevel=5,
            )


def consistency_loss(
    targets: GraphTargets,
    memory: MemoryBank | None,
    batch: Batch,
    logits: Tensor,
    connection: Connection | None,
    connect: Callable[[], Connection],
    training: bool,
) -> Tensor:
    r"""\(L_C\), ramped: the logits of unlabeled rows against their targets.

    A mean over the rows that have a target; with several processes that train, over those of all:
    the mean of the losses, so of the gradients, is that of one process with the joined batch.

    Args:
        targets: Where targets come from.
        memory: The bank or None.
        batch: The rows of the step.
        logits: (B, C).
        connection: The graph of the step, if its targets may come from it.
        connect: Makes the graph of the step's target embeddings otherwise; while training that of
            the batches of all processes.
        training: Whether a solve over the bank may be due; every process must call then.

    Returns:
        Scalar; 0 before the start and without unlabeled rows.
    """
    labels, ids = batch.labels, batch.ids
    unlabeled = labels < 0
    zero = logits.sum().float() * 0.0
    strength = targets.strength
    if strength == 0.0:
        return zero
    some = bool(unlabeled.any())
    if not (any_process(some, labels.device) if training else some):
        return zero
    if (
        targets.consistency.refresh_every
        and memory is not None
        and memory.capacity
        and ids is not None
    ):
        if training and targets.wanted():
            targets.refresh(memory)
        target, confidence, known = targets.lookup(memory, ids)
        where = (unlabeled & known).nonzero().squeeze(1)
        target, confidence = target[where], confidence[where]
    else:
        where = unlabeled.nonzero().squeeze(1)
        with torch.no_grad():
            connection = connection or connect()
            seeds = connection.y >= 0
            layer = targets.classifier.layer()
            values = propagate_connection(layer, connection, seeds).values
            hits, free = values[: connection.size], ~seeds[: connection.size]
            if connection.targets is None:
                target, confidence = targets.from_hits(hits, connection.y, free, values[~seeds])
            else:
                mean = target_means(connection.targets, seeds)
                target = arrival_shares(hits[free], mean).clamp(0.0, 1.0)
                confidence = arrival_confidence(hits[free], target)
            if training:
                own = own_rows(labels.numel(), labels.device)[free]
                target, confidence = target[own], confidence[own]
    soft = soft_binary_cross_entropy if targets.classifier.multilabel else soft_cross_entropy
    loss = strength * soft(logits[where], target, confidence)
    return loss * share_of_mean(where.numel(), labels.device) if training else loss
