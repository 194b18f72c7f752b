"""Look at the document graph, at a training and at runs: export, pictures, report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gloss_graph.analysis.evaluation import evaluation_markdown
from gloss_graph.analysis.export import EDGE_KINDS, to_networkx
from gloss_graph.analysis.graphml import write_graphml

if TYPE_CHECKING:
    from gloss_graph.analysis.adjacency_picture import plot_adjacency
    from gloss_graph.analysis.auditing import Audit, audit
    from gloss_graph.analysis.comparison import plot_evaluation
    from gloss_graph.analysis.corpus_graph import document_graph
    from gloss_graph.analysis.degrees import plot_degrees
    from gloss_graph.analysis.edges import edge_homophily
    from gloss_graph.analysis.embedding import plot_embeddings
    from gloss_graph.analysis.explanation import Explanation, explain
    from gloss_graph.analysis.explanation_plot import plot_explanation
    from gloss_graph.analysis.formats import (
        FORMATS,
        read_graph,
        read_networkx,
        write_csr,
        write_graph,
    )
    from gloss_graph.analysis.graph_change import plot_graph_change
    from gloss_graph.analysis.map_picture import plot_communities
    from gloss_graph.analysis.measure_tables import (
        compare_measures,
        edge_churn,
        measures_summary,
    )
    from gloss_graph.analysis.measuring import measures
    from gloss_graph.analysis.page import write_html
    from gloss_graph.analysis.plots import plot_graph, plot_stage_times, plot_training
    from gloss_graph.analysis.reach import plot_reach, reach_curves
    from gloss_graph.analysis.report import write_report
    from gloss_graph.analysis.restore import from_networkx
    from gloss_graph.analysis.similarity import plot_similarities
    from gloss_graph.analysis.space_change import RunChange, run_change
    from gloss_graph.analysis.tables import write_tables
    from gloss_graph.analysis.tuning import plot_importance, plot_slices, plot_tuning

__all__ = [
    "EDGE_KINDS",
    "FORMATS",
    "Audit",
    "Explanation",
    "RunChange",
    "audit",
    "compare_measures",
    "document_graph",
    "edge_churn",
    "edge_homophily",
    "evaluation_markdown",
    "explain",
    "from_networkx",
    "measures",
    "measures_summary",
    "plot_adjacency",
    "plot_communities",
    "plot_degrees",
    "plot_embeddings",
    "plot_evaluation",
    "plot_explanation",
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
    "read_graph",
    "read_networkx",
    "run_change",
    "to_networkx",
    "write_csr",
    "write_graph",
    "write_graphml",
    "write_html",
    "write_report",
    "write_tables",
]

# Loaded on first use: who only trains does not wait for matplotlib.
_LATER = {
    "FORMATS": "formats",
    "Audit": "auditing",
    "Explanation": "explanation",
    "RunChange": "space_change",
    "audit": "auditing",
    "compare_measures": "measure_tables",
    "document_graph": "corpus_graph",
    "edge_churn": "measure_tables",
    "edge_homophily": "edges",
    "explain": "explanation",
    "from_networkx": "restore",
    "measures": "measuring",
    "measures_summary": "measure_tables",
    "plot_adjacency": "adjacency_picture",
    "plot_communities": "map_picture",
    "plot_degrees": "degrees",
    "plot_embeddings": "embedding",
    "plot_evaluation": "comparison",
    "plot_explanation": "explanation_plot",
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
    "read_graph": "formats",
    "read_networkx": "formats",
    "run_change": "space_change",
    "write_csr": "formats",
    "write_graph": "formats",
    "write_html": "page",
    "write_report": "report",
    "write_tables": "tables",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"gloss_graph.analysis.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
