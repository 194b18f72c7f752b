"""Ablations and hyperparameter searches: a table, paired tests and pictures."""

from __future__ import annotations

from gloss_graph._internal.extras import require

require("pandas", "psutil", extra="cli")

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names
from gloss_graph._internal.search_space import Choice, Range
from gloss_graph.studies.designs import DESIGNS
from gloss_graph.studies.results import Results, read_results
from gloss_graph.studies.study import Plan, Study

if TYPE_CHECKING:
    from gloss_graph.studies.space import (
        SEARCH_SPACE,
        parse_choice,
        parse_range,
        parse_setting,
        search_space,
    )
    from gloss_graph.studies.study_report import write_report
    from gloss_graph.studies.text_classifiers import TextRun
    from gloss_graph.studies.tuning import TuneResult, tune_text
    from gloss_graph.studies.tuning_plots import plot_importance, plot_slices, plot_tuning
    from gloss_graph.studies.yaml_study import read_study

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
    "parse_choice",
    "parse_range",
    "parse_setting",
    "plot_importance",
    "plot_slices",
    "plot_tuning",
    "read_results",
    "read_study",
    "search_space",
    "tune_text",
    "write_report",
]

# Loaded on first use: who ablates a function of their own needs neither YAML nor matplotlib.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.studies.yaml_study": ["read_study"],
        "gloss_graph.studies.study_report": ["write_report"],
        "gloss_graph.studies.space": [
            "SEARCH_SPACE",
            "parse_choice",
            "parse_range",
            "parse_setting",
            "search_space",
        ],
        "gloss_graph.studies.text_classifiers": ["TextRun"],
        "gloss_graph.studies.tuning": ["TuneResult", "tune_text"],
        "gloss_graph.studies.tuning_plots": ["plot_importance", "plot_slices", "plot_tuning"],
    },
)
