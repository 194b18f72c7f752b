"""Label propagation over a graph, differentiable in the edge weights."""

from gloss_graph.propagation.layer import LabelPropagation, node_factors
from gloss_graph.propagation.normalize import NORMALIZATIONS
from gloss_graph.propagation.rules import RULES, class_mass_normalize
from gloss_graph.propagation.settings import GRADIENTS, PropagationSettings
from gloss_graph.propagation.solve import SOLVERS, Propagation, SolverReport

__all__ = [
    "GRADIENTS",
    "NORMALIZATIONS",
    "RULES",
    "SOLVERS",
    "LabelPropagation",
    "Propagation",
    "PropagationSettings",
    "SolverReport",
    "class_mass_normalize",
    "node_factors",
]
