"""`gloss-graph report`: the page of a run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from gloss_graph._internal.folders import hold
from gloss_graph.reports import write_run_report


def run_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder and say where it is."""
    with ExitStack() as stack:
        # What is no run folder is refused below, by name.
        if out is None and run.is_dir():
            stack.enter_context(hold(run, "report"))
        written = draw_report(run, out)
    Console().print(f"Report: {written}", highlight=False, markup=False, soft_wrap=True)
    return written


def draw_report(run: Path, out: Path | None = None, *, place: Path | None = None) -> Path:
    """Write the page of a run folder, which may be on its way to another `place`."""
    with Console(stderr=True).status("Drawing pictures"):
        return write_run_report(run, out, place=place)
