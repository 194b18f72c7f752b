"""Room 4, compare: the propagated labels with the truth."""

from gloss_graph.losses.graph import (
    FORMS,
    graph_nll,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
)

__all__ = ["FORMS", "graph_nll", "published_nll", "released_cross_entropy", "score_cross_entropy"]
