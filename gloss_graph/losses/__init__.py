"""Room 4, compare: the propagated labels with the truth."""

from gloss_graph.losses.graph import (
    FORMS,
    graph_nll,
    labeled_cross_entropy,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
)
from gloss_graph.losses.hidden import hidden_label_loss
from gloss_graph.losses.output import ObjectiveOutput

__all__ = [
    "FORMS",
    "ObjectiveOutput",
    "graph_nll",
    "hidden_label_loss",
    "labeled_cross_entropy",
    "published_nll",
    "released_cross_entropy",
    "score_cross_entropy",
]
