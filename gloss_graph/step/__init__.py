"""One training step: visible labels, the graph over the bank, its terms, staleness."""

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
    from gloss_graph.step.graph_loss import ObjectiveOutput
    from gloss_graph.step.settings import Consistency, GraphContrast, Staleness

__all__ = ["Consistency", "GraphContrast", "ObjectiveOutput", "Staleness"]

# Loaded on first use: settings are read without torch.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.step.graph_loss": ["ObjectiveOutput"],
        "gloss_graph.step.settings": ["Consistency", "GraphContrast", "Staleness"],
    },
)
