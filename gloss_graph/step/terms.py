"""The terms of a step that propagation makes: L_G on hidden rows, L_C on unlabeled ones."""

# Annotations are evaluated, since documentation reads the types of the fields.
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gloss_graph._internal.processes import any_process, own_rows, share_of_mean, world_size
from gloss_graph._internal.timing import StageClock
from gloss_graph.graph.bandwidth import reads_labels
from gloss_graph.graph.build import Connection, connect
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import LabelSplit
from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.losses.graph import (
    FORMS,
    binary_nll,
    is_seen,
    ramped,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    unseen_mean,
    updated_mean,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import Batch, StepBatch, gathered
from gloss_graph.memory.drift import age_decay
from gloss_graph.propagation import LabelPropagation, Propagation, SolverReport
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
    with_mass,
)
from gloss_graph.step.settings import Consistency, Staleness


@dataclass(frozen=True)
class StepGraph:
    """Connects the batch of a step to the bank, whose rows take part by their staleness."""

    graph: KNNGraph
    staleness: Staleness
    memory: MemoryBank | None
    seconds: StageClock
    listed: bool

    def connect(
        self,
        batch: Batch,
        learned: int,
        step: Tensor,
        *,
        listed: bool = False,
        split: LabelSplit | None = None,
    ) -> Connection:
        """Search and connect; only the first `learned` columns of a row drift."""
        strength, moved = self.staleness.strength(step), self.staleness.restandardize
        memory, neighbors = self.memory if strength > 0.0 else None, None
        if memory is not None:
            with self.seconds.timed("search"):
                if moved:
                    memory = memory.restandardized(batch.x, learned)
                neighbors = memory.neighbors_of(batch, self.graph.k)
        with self.seconds.timed("graph"):
            return connect(
                batch,
                self.graph,
                memory=memory,
                neighbors=neighbors,
                listed=listed or self.listed or moved,
                split=split,
                half_life=self.staleness.half_life,
                strength=strength,
            )


class WarmStart(nn.Module):
    """Propagated values (capacity, columns) of every slot, as the last training step left them.

    They are a first guess: a new document of a slot starts from the values of the old one. With
    several processes nothing is kept and every solve starts from 0.
    """

    values: Tensor

    def __init__(self, memory: MemoryBank | None, columns: int, rule: str) -> None:
        super().__init__()
        if rule != "harmonic":
            # Spreading was measured to gain nothing.
            raise ValueError(f"'warm_start' must be False but for rule='harmonic' (got {rule!r}).")
        if memory is None:
            raise ValueError("'warm_start' must be False without 'memory': nothing persists.")
        start = torch.full((memory.capacity, columns), 1.0 / columns, dtype=torch.float32)
        self.register_buffer("values", start)

    def guess(self, connection: Connection) -> Tensor | None:
        """Values (N, columns) of the nodes of a step; batch rows get the mean of neighbors."""
        bank = connection.bank
        if bank is None or world_size() > 1:
            return None
        size, known = connection.size, self.values[_slots(connection)]
        row, slot = bank.nodes[bank.border.rows.row], bank.nodes[bank.border.rows.target] - size
        outward = (row < size) & (slot >= 0)
        row, slot = row[outward], slot[outward]
        weight = bank.weight.detach()[outward].to(known.dtype).unsqueeze(1)
        total = known.new_zeros(size, 1).index_add_(0, row, weight)
        fresh = known.new_zeros(size, known.size(1)).index_add_(0, row, weight * known[slot])
        mean = torch.where(total > 0, fresh / total, 1.0 / known.size(1))
        return torch.cat([mean, known])

    def keep(self, connection: Connection, values: Tensor) -> None:
        """Remember the values (N, columns) of a training step."""
        bank = connection.bank
        if bank is None or not self.training or world_size() > 1:
            return
        kept = values.detach()[connection.size :].to(self.values.dtype)
        # Slots that took no part keep their values.
        absent = bank.absent - connection.size
        # A new tensor, so that a step that raises later can go back to the old one.
        values = self.values.clone()
        values[_slots(connection)] = kept.index_copy(0, absent, self.values[absent])
        self.values = values


def _slots(connection: Connection) -> Tensor | slice:
    """The slots of the remembered nodes of a connection."""
    rows = connection.y.numel() - connection.size
    return connection.slots if rows == connection.slots.numel() else slice(rows)


class Compared(NamedTuple):
    """L_G of a step with its graph, propagated labels (B, C), seeds (N,) and hidden rows (B,)."""

    loss: Tensor
    connection: Connection
    propagated: Tensor
    seeds: Tensor
    hidden: Tensor
    report: SolverReport


class ObjectiveOutput(NamedTuple):
    """Everything that a step computed.

    Attributes:
        loss: Scalar with gradient.
        graph_loss: L_G; like the other terms a zero without rows.
        cross_entropy: Of the labeled rows.
        consistency: L_C with its ramp, before `Consistency.weight`.
        propagated: (B, C), propagated labels of the batch rows.
        hidden: (B,) bool, rows whose label was hidden.
        graph: The `Data` of this step, batch rows first.
        solver: Its `unreachable` counts the hidden rows left out because no seed reaches them.
        contrast: Over the classes the graph finds, before `GraphContrast.weight`.
    """

    loss: Tensor
    graph_loss: Tensor
    cross_entropy: Tensor
    consistency: Tensor
    propagated: Tensor
    hidden: Tensor
    graph: Data
    solver: SolverReport
    contrast: Tensor


def propagate_connection(
    propagation: LabelPropagation,
    connection: Connection,
    seeds: Tensor,
    start: Tensor | None = None,
) -> Propagation:
    """Propagate the labels of `seeds` (N,) bool over a connection, from a first guess if any.

    With label sets the values have one more column, the mass that arrives, and what leaks goes to
    the mean of the seeds. Only edges that touch the batch get a gradient.
    """
    y, prior = connection.y, None
    if connection.targets is not None:
        mean = target_means(connection.targets, seeds)
        y, prior = with_mass(connection.targets, seeds), torch.cat([mean, mean.new_ones(1)])
    if connection.full is not None:
        return propagation.propagate_full(y, connection.full, seeds, prior=prior)
    if connection.bank is not None:
        return propagation.propagate_operator(y, connection.bank, seeds, prior=prior, start=start)
    trainable = None
    if connection.slots.numel():
        in_batch = connection.edge_index < connection.size
        trainable = in_batch.any(dim=0).nonzero().squeeze(1)
    return propagation.propagate_labels(
        y,
        connection.edge_index,
        connection.edge_weight,
        seeds,
        trainable_edges=trainable,
        trusted=True,
        prior=prior,
    )


def compare_hidden(
    propagation: LabelPropagation,
    connection: Connection,
    labels: Tensor,
    form: str,
    class_weight: Tensor | None,
    warm: WarmStart | None = None,
) -> Compared:
    """Propagate the shown labels and score the hidden `labels` (B,) that one of them reaches.

    The loss is a differentiable 0 without rows to score; `unreachable` of the report counts the
    hidden rows left out.
    """
    size, targets = connection.size, connection.targets
    seeds = connection.shown
    hidden = (labels >= 0) & ~seeds[:size]
    start = None if warm is None else warm.guess(connection)
    result = propagate_connection(propagation, connection, seeds, start)
    values, report, scored = result.values, result.report, hidden
    if targets is not None:
        values = arrival_shares(values[:size], target_means(targets, seeds))
    if report.unreachable:
        reached = result.reached[:size]
        scored = hidden & reached
        report = report._replace(unreachable=int((hidden & ~reached).sum()))
    where = scored.nonzero().squeeze(1)
    rows = values.index_select(0, where)
    if where.numel() == 0:
        # The weights too, since values that are all clamped do not depend on them.
        weights = [connection.edge_weight, connection.full]
        if connection.bank is not None:
            weights.append(connection.bank.weight)
        loss = 0.0 * (values.sum() + sum(w.sum() for w in weights if w is not None))
    elif targets is not None:
        loss = binary_nll(rows, targets.index_select(0, where), class_weight)
    else:
        loss = FORMS[form](rows, connection.y.index_select(0, where), class_weight)
    if warm is not None:
        warm.keep(connection, result.values)
    return Compared(loss, connection, values[:size], seeds, hidden, report)


class BankTable(nn.Module):
    """What solves over the whole bank found for its documents, to be looked up in between."""

    #: What a step lacks as long as the bank holds no label.
    without: str

    def __init__(self, classifier: GraphClassifier, half_life: float | None) -> None:
        super().__init__()
        self.classifier, self.half_life = classifier, half_life
        self._warned = False

    def trust_in(self, memory: MemoryBank) -> Tensor | None:
        """Factor (M,) of the edges of every row, which halves every `half_life` steps."""
        return None if self.half_life is None else age_decay(memory.age, self.half_life)

    def can_solve(self, memory: MemoryBank) -> bool:
        """Whether the bank holds a label; warns once if it is filled without any."""
        if bool(memory.labeled.any()):
            return True
        if len(memory) and not self._warned:
            self._warned = True
            warnings.warn(
                f"The memory bank holds no label, so {self.without}. Prefill it, or let labeled "
                "documents pass first.",
                UserWarning,
                stacklevel=7,
            )
        return False


class GraphTargets(BankTable):
    """Soft targets of unlabeled documents from the graph, and how far to trust them.

    They come from one solve over the whole bank every `refresh_every` steps and are looked up by
    document in between, or from the graph of each step (`refresh_every=0`). With several processes
    all of them solve in the same step, and every buffer is bit-equal after every training step.
    """

    steps: Tensor
    solved_at: Tensor
    table: Tensor
    table_ids: Tensor
    confidence: Tensor
    mass: Tensor
    without = "unlabeled documents get no target"

    def __init__(
        self,
        capacity: int,
        classifier: GraphClassifier,
        consistency: Consistency,
        half_life: float | None = None,
    ) -> None:
        super().__init__(classifier, half_life)
        self.consistency, num_classes = consistency, classifier.num_classes
        rows = capacity if consistency.refresh_every else 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("solved_at", torch.full((), -1))
        self.register_buffer("table", torch.zeros(rows, num_classes, dtype=torch.float32))
        self.register_buffer("table_ids", torch.full((rows,), -1))
        self.register_buffer("confidence", torch.zeros(rows, dtype=torch.float32))
        self.register_buffer("mass", unseen_mean(num_classes))

    def due(self, labels: Tensor) -> bool:
        """Whether a step with `labels` (B,) has the term: after the start, if any is unlabeled."""
        if int(self.steps) < self.consistency.start:
            return False
        some = bool((labels < 0).any())
        return any_process(some, labels.device) if self.training else some

    @torch.no_grad()
    def refresh(self, memory: MemoryBank) -> None:
        """Solve over the whole bank and keep a target for every row."""
        if not self.can_solve(memory):
            return
        count, trust = len(memory), self.trust_in(memory)
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
    if not targets.due(batch.labels):
        return batch.x.new_zeros(())
    if targets.table_ids.numel() > 0 and batch.ids is not None:
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


def check_propagation(propagation: object, num_classes: int, multilabel: bool) -> None:
    """Raise unless `propagation` is a layer all of whose settings an objective can follow."""
    if not isinstance(propagation, LabelPropagation):
        raise TypeError(
            "'propagation' must be a LabelPropagation or the name of a rule (got "
            f"{type(propagation).__name__})."
        )
    if propagation.class_mass is not None:
        raise ValueError(
            "'propagation' must not rescale classes (class_mass), which is for predictions. Leave "
            "it out; the objective aligns targets by consistency=Consistency(align=...)."
        )
    if propagation.num_classes not in (None, num_classes):
        raise ValueError(
            f"'propagation' must have num_classes={num_classes} or none, as the objective "
            f"(got {propagation.num_classes})."
        )
    if multilabel and propagation.prior is not None:
        raise ValueError(
            "'propagation' must not have a 'prior' with multilabel=True: what leaks goes to the "
            "mean of the shown label sets. Leave it out, or use prior='none'."
        )
