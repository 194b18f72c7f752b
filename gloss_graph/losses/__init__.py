"""Losses as functions of tensors: forms of the graph loss, contrast, baselines."""

from gloss_graph._internal.moved import moved_names
from gloss_graph.losses.baselines import METRIC_LOSSES, MetricLoss
from gloss_graph.losses.graph import (
    FORMS,
    check_class_weight,
    graph_nll,
    labeled_cross_entropy,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
)
from gloss_graph.losses.multilabel import (
    binary_nll,
    check_multilabel,
    labeled_binary_cross_entropy,
    soft_binary_cross_entropy,
)
from gloss_graph.losses.pairs import pair_cosine_loss
from gloss_graph.losses.pseudo import PseudoLabelLoss

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
]

__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.step": [
            "Compared",
            "GraphTargets",
            "ObjectiveOutput",
            "WarmStart",
            "classification_loss",
            "consistency_loss",
            "hidden_label_loss",
            "propagate_connection",
            "soft_cross_entropy",
        ]
    },
)
