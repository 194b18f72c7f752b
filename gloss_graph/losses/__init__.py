"""Losses as functions of tensors: forms of the graph loss, cross-entropies, baselines."""

from gloss_graph.losses.baselines import (
    METRIC_LOSSES,
    MetricLoss,
    PseudoLabelLoss,
    pair_cosine_loss,
)
from gloss_graph.losses.graph import (
    FORMS,
    binary_nll,
    check_class_weight,
    check_multilabel,
    graph_nll,
    labeled_binary_cross_entropy,
    labeled_cross_entropy,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)

__all__ = [
    "FORMS",
    "METRIC_LOSSES",
    "MetricLoss",
    "PseudoLabelLoss",
    "binary_nll",
    "check_class_weight",
    "check_multilabel",
    "graph_nll",
    "labeled_binary_cross_entropy",
    "labeled_cross_entropy",
    "pair_cosine_loss",
    "published_nll",
    "released_cross_entropy",
    "score_cross_entropy",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]
