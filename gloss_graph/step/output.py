"""Everything one step of the objective computed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.graph.build import Connection
from gloss_graph.propagation import SolverReport


class Compared(NamedTuple):
    """L_G of a step and its making: graph, propagated labels (B, C), seeds (N,), hidden (B,)."""

    loss: Tensor
    connection: Connection
    propagated: Tensor
    seeds: Tensor
    hidden: Tensor
    report: SolverReport


class ObjectiveOutput(NamedTuple):
    """Everything a step computed.

    `loss`, `graph_loss`, `cross_entropy`, `consistency`: scalars with gradient; a term without
    rows is a zero. `consistency` is L_C with its ramp, before `consistency_weight`.
    `propagated` (B, C): propagated labels of the batch rows. `hidden` (B,) bool: rows that were
    hidden. `graph`: the `Data` of this step, batch rows first. `solver`: report;
    `solver.unreachable` counts the hidden rows left out because no seed reaches them.
    """

    loss: Tensor
    graph_loss: Tensor
    cross_entropy: Tensor
    consistency: Tensor
    propagated: Tensor
    hidden: Tensor
    graph: Data
    solver: SolverReport
