"""One training step: visible labels, the graph over the bank, consistency, staleness."""

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
    from gloss_graph.step.consistency import (
        GraphTargets,
        consistency_loss,
        soft_cross_entropy,
    )
    from gloss_graph.step.hidden_labels import (
        classification_loss,
        hidden_label_loss,
        propagate_connection,
    )
    from gloss_graph.step.output import Compared, ObjectiveOutput
    from gloss_graph.step.settings import Consistency, Staleness
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
    "soft_cross_entropy",
]

# Loaded on first use: settings are read without torch.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.step.consistency": ["GraphTargets", "consistency_loss", "soft_cross_entropy"],
        "gloss_graph.step.hidden_labels": [
            "classification_loss",
            "hidden_label_loss",
            "propagate_connection",
        ],
        "gloss_graph.step.output": ["Compared", "ObjectiveOutput"],
        "gloss_graph.step.settings": ["Consistency", "Staleness"],
        "gloss_graph.step.warm_start": ["WarmStart"],
    },
)
