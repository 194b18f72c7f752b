"""The `gloss-graph` command: thin layers over public functions."""

from gloss_graph.cli.app import main

__all__ = ["main"]
