"""One training step: visible labels, the graph over the bank, its terms, staleness."""

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
    from gloss_graph.step.settings import Consistency, GraphContrast, Staleness
    from gloss_graph.step.terms import ObjectiveOutput

__all__ = ["Consistency", "GraphContrast", "ObjectiveOutput", "Staleness"]

# Loaded on first use: settings are read without torch.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.step.terms": ["ObjectiveOutput"],
        "gloss_graph.step.settings": ["Consistency", "GraphContrast", "Staleness"],
    },
)
