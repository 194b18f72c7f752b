"""One training step: visible labels, the graph over the bank, consistency, staleness."""

from gloss_graph.step.consistency import (
    Consistency,
    GraphTargets,
    consistency_loss,
)
from gloss_graph.step.hidden_labels import (
    Compared,
    ObjectiveOutput,
    classification_loss,
    hidden_label_loss,
    propagate_connection,
)
from gloss_graph.step.staleness import Staleness
from gloss_graph.step.warm_start import WarmStart

__all__ = [
    "Compared",
    "Consistency",
    "GraphTargets",
    "ObjectiveOutput",
    "Staleness",
    "WarmStart",
    "classification_loss",
    "consistency_loss",
    "hidden_label_loss",
    "propagate_connection",
]
