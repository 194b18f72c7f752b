"""Label propagation over a graph, differentiable in the edge weights."""

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
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

# Loaded on first use: settings are read without torch.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.propagation.layer": ["LabelPropagation", "node_factors"],
        "gloss_graph.propagation.normalize": ["NORMALIZATIONS"],
        "gloss_graph.propagation.rules": ["RULES", "class_mass_normalize"],
        "gloss_graph.propagation.settings": ["GRADIENTS", "PropagationSettings"],
        "gloss_graph.propagation.solve": ["SOLVERS", "Propagation", "SolverReport"],
    },
)
