"""Ablations and hyperparameter searches: a table, paired tests and pictures."""

from __future__ import annotations

from gloss_graph._internal.extras import require

require("pandas", "psutil", extra="cli")

from gloss_graph._internal.moved import moved_names
from gloss_graph._internal.settings import Choice, Range
from gloss_graph.studies.results import Results, read_results
from gloss_graph.studies.study import Plan, Study
from gloss_graph.studies.trials import DESIGNS

# Loaded on first use: a study of any other function needs neither YAML nor matplotlib.
_LATER = {
    "gloss_graph.studies.report": [
        *("plot_importance", "plot_slices", "plot_tuning", "write_report"),
    ],
    "gloss_graph.studies.text_classifiers": ["TextRun", "read_study"],
    "gloss_graph.studies.tuning": [
        *("SEARCH_SPACE", "TuneResult", "default_parameters", "parse_choice", "parse_range"),
        *("search_space", "tune_text"),
    ],
}

__all__ = [
    "DESIGNS",
    "SEARCH_SPACE",
    "Choice",
    "Plan",
    "Range",
    "Results",
    "Study",
    "TextRun",
    "TuneResult",
    "default_parameters",
    "parse_choice",
    "parse_range",
    "plot_importance",
    "plot_slices",
    "plot_tuning",
    "read_results",
    "read_study",
    "search_space",
    "tune_text",
    "write_report",
]

__getattr__ = moved_names(__name__, _LATER)
