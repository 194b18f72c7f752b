"""Graph-guided training of encoders: memory bank, document graph, differentiable propagation."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # that of typing, which takes long to import
if TYPE_CHECKING:
    from gloss_graph.export import to_networkx
    from gloss_graph.graph import KNNGraph, build_document_graph
    from gloss_graph.inference import (
        Explanation,
        GraphSkill,
        PropagationClassifier,
        graph_skill,
    )
    from gloss_graph.memory import MemoryBank
    from gloss_graph.neighbors import knn_graph
    from gloss_graph.objective import GraphGuidedObjective, ObjectiveOutput
    from gloss_graph.propagation import LabelPropagation
    from gloss_graph.step import Consistency, Staleness
    from gloss_graph.training import GraphGuidedClassifier

__version__ = "0.2.0"

__all__ = [
    "Consistency",
    "Explanation",
    "GraphGuidedClassifier",
    "GraphGuidedObjective",
    "GraphSkill",
    "KNNGraph",
    "LabelPropagation",
    "MemoryBank",
    "ObjectiveOutput",
    "PropagationClassifier",
    "Staleness",
    "__version__",
    "build_document_graph",
    "graph_skill",
    "knn_graph",
    "to_networkx",
]

# Loaded on first use: the command line must be able to answer (and to be interrupted) before
# torch and the rest, which take seconds, are imported.
_HOMES = {
    "Consistency": "step",
    "Explanation": "inference",
    "GraphGuidedClassifier": "training",
    "GraphGuidedObjective": "objective",
    "GraphSkill": "inference",
    "KNNGraph": "graph",
    "LabelPropagation": "propagation",
    "MemoryBank": "memory",
    "ObjectiveOutput": "objective",
    "PropagationClassifier": "inference",
    "Staleness": "step",
    "build_document_graph": "graph",
    "graph_skill": "inference",
    "knn_graph": "neighbors",
    "to_networkx": "export",
}
_ROOMS = (
    "analysis",
    "export",
    "graph",
    "inference",
    "losses",
    "memory",
    "neighbors",
    "objective",
    "propagation",
)


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
