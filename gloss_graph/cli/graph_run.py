"""Former home of `gloss_graph.cli.graph`."""

from gloss_graph.cli.graph import graph

__all__ = ["graph"]
