"""Room 4, compare: the propagated labels with the truth."""

from gloss_graph.losses.baselines import METRIC_LOSSES, MetricLoss
from gloss_graph.losses.consistency import GraphTargets, consistency_loss, soft_cross_entropy
from gloss_graph.losses.graph import (
    FORMS,
    check_class_weight,
    graph_nll,
    labeled_cross_entropy,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
)
from gloss_graph.losses.hidden import (
    classification_loss,
    hidden_label_loss,
    propagate_connection,
)
from gloss_graph.losses.multilabel import (
    binary_nll,
    check_multilabel,
    labeled_binary_cross_entropy,
    soft_binary_cross_entropy,
)
from gloss_graph.losses.output import Compared, ObjectiveOutput
from gloss_graph.losses.pairs import pair_cosine_loss
from gloss_graph.losses.pseudo import PseudoLabelLoss
from gloss_graph.losses.remembered import MemoryUse
from gloss_graph.losses.settings import check_settings
from gloss_graph.losses.warm import WarmStart

__all__ = [
    "FORMS",
    "METRIC_LOSSES",
    "Compared",
    "GraphTargets",
    "MemoryUse",
    "MetricLoss",
    "ObjectiveOutput",
    "PseudoLabelLoss",
    "WarmStart",
    "binary_nll",
    "check_class_weight",
    "check_multilabel",
    "check_settings",
    "classification_loss",
    "consistency_loss",
    "graph_nll",
    "hidden_label_loss",
    "labeled_binary_cross_entropy",
    "labeled_cross_entropy",
    "pair_cosine_loss",
    "propagate_connection",
    "published_nll",
    "released_cross_entropy",
    "score_cross_entropy",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]
