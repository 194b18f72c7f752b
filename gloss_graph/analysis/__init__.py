"""Look at the document graph and at a training: export, pictures and report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gloss_graph.analysis.export import EDGE_KINDS, to_networkx, write_graphml

if TYPE_CHECKING:
    from gloss_graph.analysis.embedding import plot_embeddings
    from gloss_graph.analysis.graph_change import edge_homophily, plot_graph_change
    from gloss_graph.analysis.plots import plot_graph, plot_stage_times, plot_training
    from gloss_graph.analysis.report import write_report
    from gloss_graph.analysis.similarity import plot_similarities

__all__ = [
    "EDGE_KINDS",
    "edge_homophily",
    "plot_embeddings",
    "plot_graph",
    "plot_graph_change",
    "plot_similarities",
    "plot_stage_times",
    "plot_training",
    "to_networkx",
    "write_graphml",
    "write_report",
]

# Pictures are loaded on first use: who only trains does not wait for matplotlib.
_LATER = {
    "edge_homophily": "graph_change",
    "plot_embeddings": "embedding",
    "plot_graph": "plots",
    "plot_graph_change": "graph_change",
    "plot_similarities": "similarity",
    "plot_stage_times": "plots",
    "plot_training": "plots",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"gloss_graph.analysis.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
