"""Consistency of a classifier with the labels the graph propagates to unlabeled rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gloss_graph._internal.processes import any_process, own_rows, share_of_mean, world_size
from gloss_graph.graph.bandwidth import reads_labels
from gloss_graph.graph.batch import StepBatch
from gloss_graph.graph.build import Connection
from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.losses.graph import (
    is_seen,
    ramped,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    unseen_mean,
    updated_mean,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.drift import age_decay
from gloss_graph.memory.incoming import Batch, gathered
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
from gloss_graph.step.graph_loss import StepGraph, propagate_connection
from gloss_graph.step.settings import Consistency
from gloss_graph.step.state import holds_label


class GraphTargets(nn.Module):
    """Soft targets of unlabeled documents from the graph, and how far to trust them.

    Targets come from one solve over the whole bank every `refresh_every` steps and are looked up
    by document id in between, or from the graph of each step (`refresh_every=0`). Trust in a row of
    the bank halves every `half_life` steps. With several processes all of them solve in the same
    step, and every buffer is bit-equal on all of them after every training step.
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

    def due(self, labels: Tensor) -> bool:
        """Whether a step with `labels` (B,) has the term: after the start, if any is unlabeled."""
        if int(self.steps) < self.consistency.start:
            return False
        some = bool((labels < 0).any())
        return any_process(some, labels.device) if self.training else some

    def keeps(self, batch: Batch) -> bool:
        """Whether targets are looked up in the table, instead of taken from the step's graph."""
        return self.table_ids.numel() > 0 and batch.ids is not None

    @torch.no_grad()
    def refresh(self, memory: MemoryBank) -> None:
        """Solve over the whole bank and keep a target for every row."""
        count = len(memory)
        if count == 0:
            return
        if not holds_label(memory, "unlabeled documents get no target", warn=not self._warned):
            self._warned = True
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

    def looked_up(self, memory: MemoryBank | None, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Unlabeled batch rows (n,) that have a target, with target (n, C) and confidence (n,).

        While training, targets older than `refresh_every` steps are made again first.
        """
        if memory is None or batch.slots is None:
            return batch.labels[:0], self.table[:0], self.confidence[:0]
        last = int(self.solved_at)
        if self.training and (last < 0 or int(self.steps) - last >= self.consistency.refresh_every):
            self.refresh(memory)
        slots = batch.slots.clamp(min=0)
        known = (batch.slots >= 0) & (self.table_ids[slots] == batch.ids)
        where = (known & (batch.labels < 0)).nonzero().squeeze(1)
        return where, self.table[slots[where]], self.confidence[slots[where]]

    @torch.no_grad()
    def propagated(self, connection: Connection) -> tuple[Tensor, Tensor]:
        """Target (n, C) and confidence (n,) of the unlabeled batch rows, all labels shown."""
        seeds = connection.y >= 0
        values = propagate_connection(self.classifier.layer(), connection, seeds).values
        hits, free = values[: connection.size], ~seeds[: connection.size]
        if connection.targets is None:
            return self.from_hits(hits, connection.y, free, values[~seeds])
        mean = target_means(connection.targets, seeds)
        target = arrival_shares(hits[free], mean).clamp(0.0, 1.0)
        return target, arrival_confidence(hits[free], target)

    @torch.no_grad()
    def from_hits(
        self, hits: Tensor, labels: Tensor, unlabeled: Tensor, scores: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Targets (n, C) and confidence (n,) from hit mass (B, C), for the `unlabeled` (B,) rows.

        While training the running mean takes the rows in. Class shares are those of all `labels`;
        `scores` (m, C) of all unlabeled nodes say how large a score of `rule="poisson"` is.
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


def consistency_loss(
    targets: GraphTargets,
    graph: StepGraph,
    step: StepBatch,
    logits: Tensor,
    connection: Connection | None,
) -> Tensor:
    r"""\(L_C\), ramped: the logits of unlabeled rows against their targets.

    A mean over the rows that have a target; with several processes that train, over those of all:
    the mean of the losses, so of the gradients, is that of one process with the joined batch.

    Targets are looked up, or propagated over the graph of the target embeddings (while training,
    of the batches of all processes). `connection` serves as such a graph unless it is None or its
    bandwidth depends on the shown labels.
    """
    batch, memory = step.constants, graph.memory
    if targets.keeps(batch):
        where, target, confidence = targets.looked_up(memory, batch)
    else:
        joined, local = batch, None
        if targets.training and world_size() > 1:
            joined = gathered(batch, None if memory is None else memory.slots_of)
            local = own_rows(batch.labels.numel(), batch.labels.device)[joined.labels < 0]
        if connection is None or local is not None or reads_labels(graph.graph.bandwidth):
            with torch.no_grad():
                connection = graph.connect(joined, step.learned, targets.steps)
        where = (batch.labels < 0).nonzero().squeeze(1)
        target, confidence = targets.propagated(connection)
        if local is not None:
            target, confidence = target[local], confidence[local]
    consistency = targets.consistency
    strength = ramped(int(targets.steps), consistency.start, consistency.ramp)
    soft = soft_binary_cross_entropy if targets.classifier.multilabel else soft_cross_entropy
    loss = strength * soft(logits[where], target, confidence)
    return loss * share_of_mean(where.numel(), logits.device) if targets.training else loss
