"""Questions about a document graph: measures, label audit, explanations, words of groups."""

from gloss_graph._internal.extras import require

require("pandas", extra="analysis")

from gloss_graph import export
from gloss_graph._internal.moved import moved_names
from gloss_graph.analysis.audit import Audit, audit
from gloss_graph.analysis.document_graph import document_graph
from gloss_graph.analysis.explanation import NodeExplanation, explain
from gloss_graph.analysis.measures import (
    classification_scores,
    group_words,
    louvain_communities,
    macro_silhouette,
    measures,
    micro_silhouette,
    silhouette_scores,
)

__all__ = [
    "Audit",
    "NodeExplanation",
    "audit",
    "classification_scores",
    "document_graph",
    "explain",
    "group_words",
    "louvain_communities",
    "macro_silhouette",
    "measures",
    "micro_silhouette",
    "silhouette_scores",
]

__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.export": export.__all__,
        "gloss_graph.reports": [
            "RunChange",
            "compare_measures",
            "edge_churn",
            "evaluation_markdown",
            "measures_summary",
            "plot_evaluation",
            "run_change",
            "write_report",
        ],
        "gloss_graph.visualization": [
            "plot_adjacency",
            "plot_communities",
            "plot_degrees",
            "plot_embeddings",
            "plot_explanation",
            "plot_graph",
            "plot_graph_change",
            "plot_reach",
            "plot_similarities",
            "plot_stage_times",
            "plot_training",
            "reach_curves",
            "write_html",
        ],
        "gloss_graph.studies": ["plot_importance", "plot_slices", "plot_tuning"],
    },
    renamed={"Explanation": ("gloss_graph.analysis", "NodeExplanation")},
)
