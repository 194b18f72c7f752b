"""Room 3, propagate: labels over a graph, differentiable in the edge weights."""

from gloss_graph.propagation.layer import GRADIENTS, LabelPropagation, Propagation
from gloss_graph.propagation.normalize import NORMALIZATIONS
from gloss_graph.propagation.rules import RULES, class_mass_normalize
from gloss_graph.propagation.solve import SOLVERS, SolverReport

__all__ = [
    "GRADIENTS",
    "NORMALIZATIONS",
    "RULES",
    "SOLVERS",
    "LabelPropagation",
    "Propagation",
    "SolverReport",
    "class_mass_normalize",
]
