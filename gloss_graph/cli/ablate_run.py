"""Former home of `gloss_graph.cli.ablate`."""

from gloss_graph.cli.ablate import ablate

__all__ = ["ablate"]
