"""`gloss-graph report`: the page of a run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from gloss_graph.analysis import write_report


def run_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder and say where it is."""
    with Console(stderr=True).status("Drawing pictures"):
        written = write_report(run, out)
    Console().print(f"Report: {written}", highlight=False, markup=False, soft_wrap=True)
    return written
