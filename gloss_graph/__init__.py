"""Graph-guided training of encoders: memory bank, document graph, differentiable propagation."""

from gloss_graph.analysis import to_networkx
from gloss_graph.graph import build_document_graph
from gloss_graph.inference import Explanation, GraphSkill, graph_skill
from gloss_graph.memory import MemoryBank
from gloss_graph.objective import GraphGuidedObjective, ObjectiveOutput
from gloss_graph.propagation import LabelPropagation

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "GraphGuidedObjective",
    "GraphSkill",
    "LabelPropagation",
    "MemoryBank",
    "ObjectiveOutput",
    "__version__",
    "build_document_graph",
    "graph_skill",
    "to_networkx",
]
