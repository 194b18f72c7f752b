"""The `gloss-graph` command: thin layers over public functions."""

from __future__ import annotations

import os
import signal
import sys

from gloss_graph._internal.extras import require

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, see `gloss_graph.cli.app.main`."""
    try:
        require("typer", "yaml", "psutil", extra="cli")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"gloss-graph: {error}\n")
        return 1
    try:
        # From the first moment on: an exception in an import may be swallowed.
        before = signal.signal(signal.SIGINT, _end)
    except ValueError:  # not the main thread, which gets no signals
        from gloss_graph.cli import app

        return app.main(arguments)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)
    from gloss_graph.cli import app

    signal.signal(signal.SIGINT, before)
    return app.main(arguments)


def _end(number: int, frame: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(130)
