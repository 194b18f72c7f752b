"""Pictures of a document graph and of a training, and the interactive page."""

from gloss_graph._internal.extras import require

require("matplotlib", extra="analysis")

from gloss_graph.visualization.adjacency_picture import plot_adjacency
from gloss_graph.visualization.degrees import plot_degrees
from gloss_graph.visualization.embedding import plot_embeddings
from gloss_graph.visualization.explanation_plot import plot_explanation
from gloss_graph.visualization.graph_change import plot_graph_change
from gloss_graph.visualization.map_picture import plot_communities
from gloss_graph.visualization.page import write_html
from gloss_graph.visualization.picture import plot_graph
from gloss_graph.visualization.reach import plot_reach, reach_curves
from gloss_graph.visualization.similarity import plot_similarities
from gloss_graph.visualization.training_curves import plot_stage_times, plot_training

__all__ = [
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
]
