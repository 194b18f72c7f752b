"""L_G of a step: connect the batch to the bank, propagate shown labels, compare on hidden rows."""

# Annotations are evaluated, since documentation reads the types of the fields.
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gloss_graph._internal.processes import world_size
from gloss_graph._internal.timing import StageClock
from gloss_graph.graph.build import Connection, connect
from gloss_graph.graph.kernels import discounted
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import LabelSplit
from gloss_graph.losses.graph import FORMS, binary_nll
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.drift import age_decay
from gloss_graph.memory.incoming import Batch
from gloss_graph.propagation import LabelPropagation, Propagation, SolverReport
from gloss_graph.propagation.alignment import arrival_shares, target_means, with_mass
from gloss_graph.step.bank_operator import bank_operator
from gloss_graph.step.settings import Staleness


class StepGraph:
    """Connects the batch of a step to the bank, whose rows take part by their staleness."""

    def __init__(
        self,
        graph: KNNGraph,
        staleness: Staleness,
        memory: MemoryBank | None,
        seconds: StageClock,
        *,
        listed: bool,
    ) -> None:
        self.graph, self.staleness, self.memory = graph, staleness, memory
        self.seconds, self.listed = seconds, listed

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
        memory, neighbors = self.memory, None
        strength = self.staleness.strength(step)
        if memory is not None and strength > 0.0:
            with self.seconds.timed("search"):
                if self.staleness.restandardize:
                    memory = memory.restandardized(batch.x, learned)
                neighbors = memory.neighbors_of(batch, self.graph.k)
        else:
            memory = None
        # Weights by age need every edge: a list.
        listed = listed or self.listed or self.staleness.weighs(strength)
        with self.seconds.timed("graph"):
            found = connect(
                batch, self.graph, memory=memory, neighbors=neighbors, listed=listed, split=split
            )
            return self._aged(found, memory, strength)

    def _aged(
        self, connection: Connection, memory: MemoryBank | None, strength: float
    ) -> Connection:
        r"""The connection with weights \(s_{ij} f_i f_j w_{ij}\).

        \(f = 2^{-\mathrm{age}/h}\) for a remembered row, 1 in the batch; s is the strength where an
        edge touches a remembered row, else 1. W stays symmetric.
        """
        weight, slots, size = connection.edge_weight, connection.slots, connection.size
        half_life = self.staleness.half_life
        plain = half_life is None and strength == 1.0
        if plain or memory is None or weight is None or slots.numel() == 0:
            return connection
        source, target = connection.edge_index
        factor = weight.detach().new_ones(weight.numel())
        if half_life is not None:
            decay = age_decay(memory.age[slots], half_life).to(factor)
            trust = torch.cat([factor.new_ones(size), decay])
            factor = trust[source] * trust[target]
        if strength < 1.0:
            factor = torch.where((source >= size) | (target >= size), strength * factor, factor)
        return connection._replace(edge_weight=discounted(weight, factor))


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
        edges = connection.bank
        if edges is None or world_size() > 1:
            return None
        size, known = connection.size, self.values[_slots(connection)]
        ends = edges.nodes[edges.edge_index]
        outward = (ends[0] < size) & (ends[1] >= size)
        row, slot = ends[0][outward], ends[1][outward] - size
        weight = edges.edge_weight.detach()[outward].to(known.dtype).unsqueeze(1)
        total = known.new_zeros(size, 1).index_add_(0, row, weight)
        fresh = known.new_zeros(size, known.size(1)).index_add_(0, row, weight * known[slot])
        mean = torch.where(total > 0, fresh / total, 1.0 / known.size(1))
        return torch.cat([mean, known])

    def keep(self, connection: Connection, values: Tensor) -> None:
        """Remember the values (N, columns) of a training step."""
        edges = connection.bank
        if edges is None or not self.training or world_size() > 1:
            return
        kept = values.detach()[connection.size :].to(self.values.dtype)
        # Slots that took no part keep their values.
        absent = edges.absent - connection.size
        # A new tensor, so that a step that raises later can go back to the old one.
        values = self.values.clone()
        values[_slots(connection)] = kept.index_copy(0, absent, self.values[absent])
        self.values = values


def _slots(connection: Connection) -> Tensor | slice:
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
    """

    loss: Tensor
    graph_loss: Tensor
    cross_entropy: Tensor
    consistency: Tensor
    propagated: Tensor
    hidden: Tensor
    graph: Data
    solver: SolverReport


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
        operator = bank_operator(connection.bank)
        return propagation.propagate_operator(y, operator, seeds, prior=prior, start=start)
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
    if where.numel() == 0:
        # The weights too, since values that are all clamped do not depend on them.
        weights = [connection.edge_weight, connection.full]
        if connection.bank is not None:
            weights.append(connection.bank.edge_weight)
        loss = 0.0 * (values.sum() + sum(w.sum() for w in weights if w is not None))
    elif targets is not None:
        rows = values.index_select(0, where)
        loss = binary_nll(rows, targets.index_select(0, where), class_weight)
    else:
        rows = values.index_select(0, where)
        loss = FORMS[form](rows, connection.y.index_select(0, where), class_weight)
    if warm is not None:
        warm.keep(connection, result.values)
    return Compared(loss, connection, values[:size], seeds, hidden, report)


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
