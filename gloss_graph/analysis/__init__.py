"""Look at the document graph, at a training and at runs: export, pictures, report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gloss_graph.analysis.evaluation import evaluation_markdown
from gloss_graph.analysis.export import EDGE_KINDS, to_networkx, write_graphml

if TYPE_CHECKING:
    from gloss_graph.analysis.adjacency_picture import plot_adjacency
    from gloss_graph.analysis.comparison import plot_evaluation
    from gloss_graph.analysis.degrees import plot_degrees
    from gloss_graph.analysis.embedding import plot_embeddings
    from gloss_graph.analysis.graph_change import edge_homophily, plot_graph_change
    from gloss_graph.analysis.map_picture import plot_communities
    from gloss_graph.analysis.page import write_html
    from gloss_graph.analysis.plots import plot_graph, plot_stage_times, plot_training
    from gloss_graph.analysis.reach import plot_reach, reach_curves
    from gloss_graph.analysis.report import write_report
    from gloss_graph.analysis.similarity import plot_similarities
    from gloss_graph.analysis.tuning import plot_importance, plot_slices, plot_tuning

__all__ = [
    "EDGE_KINDS",
    "edge_homophily",
    "evaluation_markdown",
    "plot_adjacency",
    "plot_communities",
    "plot_degrees",
    "plot_embeddings",
    "plot_evaluation",
    "plot_graph",
    "plot_graph_change",
    "plot_importance",
    "plot_reach",
    "plot_similarities",
    "plot_slices",
    "plot_stage_times",
    "plot_training",
    "plot_tuning",
    "reach_curves",
    "to_networkx",
    "write_graphml",
    "write_html",
    "write_report",
]

# Pictures are loaded on first use: who only trains does not wait for matplotlib.
_LATER = {
    "edge_homophily": "graph_change",
    "plot_adjacency": "adjacency_picture",
    "plot_communities": "map_picture",
    "plot_degrees": "degrees",
    "plot_embeddings": "embedding",
    "plot_evaluation": "comparison",
    "plot_graph": "plots",
    "plot_graph_change": "graph_change",
    "plot_importance": "tuning",
    "plot_reach": "reach",
    "plot_similarities": "similarity",
    "plot_slices": "tuning",
    "plot_stage_times": "plots",
    "plot_training": "plots",
    "plot_tuning": "tuning",
    "reach_curves": "reach",
    "write_html": "page",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"gloss_graph.analysis.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
