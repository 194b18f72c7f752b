"""The `gloss-graph` command: thin layers over public functions."""

from __future__ import annotations

import os
import signal
import sys
import threading

from gloss_graph._internal.extras import require

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, see `gloss_graph.cli.app.main`."""
    try:
        require("typer", "yaml", "psutil", extra="cli")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"gloss-graph: {error}\n")
        return 1
    before = signal.getsignal(signal.SIGINT)
    # Other threads get no signals.
    main_thread = threading.current_thread() is threading.main_thread()
    guarded = main_thread and before is not signal.SIG_IGN
    if guarded:
        # From the first moment on: an exception in an import may be swallowed.
        signal.signal(signal.SIGINT, _end)
    from gloss_graph.cli import app

    if guarded:
        signal.signal(signal.SIGINT, before)
    return app.main(arguments)


def _end(number: int, frame: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(130)
