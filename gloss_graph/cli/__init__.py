"""The `gloss-graph` command: thin layers over public functions."""

from __future__ import annotations

from gloss_graph.cli.signals import stoppable

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, see `gloss_graph.cli.app.main`."""
    with stoppable():
        from gloss_graph.cli import app

        return app.main(arguments)
