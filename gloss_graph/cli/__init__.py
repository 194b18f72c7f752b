"""The `gloss-graph` command: thin layers over public functions."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from gloss_graph._internal.extras import require
from gloss_graph._internal.moved import moved_names
from gloss_graph.cli.signals import HELPER, follow_parent, stoppable

__all__ = ["main"]

# Former homes of commands.
for _name in ("ablate", "graph", "tune"):
    _home = ModuleType(f"{__name__}.{_name}_run")
    _home.__getattr__ = moved_names(_home.__name__, {f"{__name__}.{_name}": [_name]})  # type: ignore[method-assign]
    sys.modules[_home.__name__] = _home


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, see `gloss_graph.cli.app.main`."""
    if os.environ.get(HELPER):
        follow_parent()
    try:
        require("typer", "yaml", "psutil", extra="cli")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"gloss-graph: {error}\n")
        return 1
    with stoppable():
        from gloss_graph.cli import app

        return app.main(arguments)
