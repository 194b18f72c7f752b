"""L_G on a connection: propagate the shown labels, compare on the hidden rows."""

from __future__ import annotations

from torch import Tensor

from gloss_graph.graph.build import MEMORY_MEMORY, Connection, edge_kind
from gloss_graph.losses.graph import FORMS
from gloss_graph.propagation import LabelPropagation, SolverReport
from gloss_graph.propagation.layer import Propagation


def propagate_connection(
    propagation: LabelPropagation, connection: Connection, seeds: Tensor
) -> Propagation:
    """Propagate the labels of `seeds` (N,) bool over a connection.

    Only edges that touch the batch get a gradient; remembered rows are constants.
    """
    if connection.full is not None:
        return propagation.propagate_full(connection.y, connection.full, seeds)
    trainable = None
    if connection.slots.numel():
        trainable = (edge_kind(connection) < MEMORY_MEMORY).nonzero().squeeze(1)
    return propagation.propagate_labels(
        connection.y,
        connection.edge_index,
        connection.edge_weight,
        seeds,
        trainable_edges=trainable,
        trusted=True,
    )


def hidden_label_loss(
    propagation: LabelPropagation,
    connection: Connection,
    seeds: Tensor,
    hidden: Tensor,
    form: str,
    class_weight: Tensor | None,
) -> tuple[Tensor, Tensor, SolverReport]:
    """Loss of the hidden batch rows that a seed reaches.

    Args:
        propagation: The layer.
        connection: Graph of B batch rows and M' remembered rows.
        seeds: (B + M',) bool, nodes whose label is shown.
        hidden: (B,) bool, labeled rows that are scored.
        form: A key of `FORMS`.
        class_weight: (C,) or None.

    Returns:
        Scalar, a differentiable 0 without rows to score; propagated labels (B, C); the report,
        whose `unreachable` counts the hidden rows left out.
    """
    size = connection.size
    result = propagate_connection(propagation, connection, seeds)
    values, report, scored = result.values[:size], result.report, hidden
    if report.unreachable:
        reached = result.reached[:size]
        scored = hidden & reached
        report = report._replace(unreachable=int((hidden & ~reached).sum()))
    where = scored.nonzero().squeeze(1)
    if where.numel() == 0:
        # Both, since values that are all clamped do not depend on the weights.
        tied = [w.sum() for w in (connection.edge_weight, connection.full) if w is not None]
        return 0.0 * (values.sum() + sum(tied)), values, report
    target = connection.y.index_select(0, where)
    return FORMS[form](values.index_select(0, where), target, class_weight), values, report
