"""L_G on a connection: propagate the shown labels, compare on the hidden rows."""

# Annotations are evaluated, since documentation reads the types of the fields.
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.graph.build import MEMORY_MEMORY, Connection, edge_kind
from gloss_graph.losses.graph import (
    FORMS,
    binary_nll,
    labeled_binary_cross_entropy,
    labeled_cross_entropy,
)
from gloss_graph.propagation import LabelPropagation, Propagation, SolverReport
from gloss_graph.propagation.alignment import arrival_shares, target_means, with_mass
from gloss_graph.step.bank_operator import bank_operator
from gloss_graph.step.state import WarmStart


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
    warm: WarmStart | None = None,
) -> Propagation:
    """Propagate the labels of `seeds` (N,) bool over a connection.

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
        start = None if warm is None else warm.guess(connection)
        operator = bank_operator(connection.bank)
        found = propagation.propagate_operator(y, operator, seeds, prior=prior, start=start)
        if warm is not None:
            warm.keep(connection, found.values)
        return found
    trainable = None
    if connection.slots.numel():
        trainable = (edge_kind(connection) < MEMORY_MEMORY).nonzero().squeeze(1)
    return propagation.propagate_labels(
        y,
        connection.edge_index,
        connection.edge_weight,
        seeds,
        trainable_edges=trainable,
        trusted=True,
        prior=prior,
    )


def hidden_label_loss(
    propagation: LabelPropagation,
    connection: Connection,
    seeds: Tensor,
    hidden: Tensor,
    form: str,
    class_weight: Tensor | None,
    warm: WarmStart | None = None,
) -> tuple[Tensor, Tensor, SolverReport]:
    """Loss of the `hidden` (B,) batch rows that one of the `seeds` (N,) reaches.

    Returns:
        Scalar, a differentiable 0 without rows to score; propagated labels (B, C); the report,
        whose `unreachable` counts the hidden rows left out.
    """
    size = connection.size
    result = propagate_connection(propagation, connection, seeds, warm)
    values, report, scored = result.values[:size], result.report, hidden
    if connection.targets is not None:
        values = arrival_shares(values, target_means(connection.targets, seeds))
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
        tied = [w.sum() for w in weights if w is not None]
        return 0.0 * (values.sum() + sum(tied)), values, report
    if connection.targets is not None:
        target = connection.targets.index_select(0, where)
        return binary_nll(values.index_select(0, where), target, class_weight), values, report
    target = connection.y.index_select(0, where)
    return FORMS[form](values.index_select(0, where), target, class_weight), values, report


def classification_loss(
    logits: Tensor, labels: Tensor, targets: Tensor | None, class_weight: Tensor | None
) -> Tensor:
    """Cross-entropy of the labeled rows: of class numbers (B,), of label sets (B, C) binary."""
    if targets is None:
        return labeled_cross_entropy(logits, labels, class_weight)
    return labeled_binary_cross_entropy(logits, labels, targets, class_weight)
