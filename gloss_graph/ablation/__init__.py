"""Ablations: ask a question about settings, get a table, tests and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gloss_graph._space import Choice, Range
from gloss_graph.ablation.designs import DESIGNS
from gloss_graph.ablation.results import Results, read_results
from gloss_graph.ablation.study import Plan, Study

if TYPE_CHECKING:
    from gloss_graph.ablation.files import read_study
    from gloss_graph.ablation.report import write_report
    from gloss_graph.ablation.text import TextRun

__all__ = [
    "DESIGNS",
    "Choice",
    "Plan",
    "Range",
    "Results",
    "Study",
    "TextRun",
    "read_results",
    "read_study",
    "write_report",
]

# Loaded on first use: who ablates a function of their own needs neither YAML nor matplotlib.
_LATER = {"TextRun": "text", "read_study": "files", "write_report": "report"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"gloss_graph.ablation.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
