"""One training step: visible labels, the graph over the bank, consistency, staleness."""

from gloss_graph.step.consistency import Consistency
from gloss_graph.step.hidden_labels import ObjectiveOutput
from gloss_graph.step.staleness import Staleness

__all__ = ["Consistency", "ObjectiveOutput", "Staleness"]
