"""Former home of `gloss_graph.cli.tune`."""

from gloss_graph.cli.tune import tune

__all__ = ["tune"]
