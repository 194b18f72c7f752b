"""Run folders: their files, how finished runs are compared, and paired tests."""

from gloss_graph._internal.extras import require

require("pandas", "jinja2", extra="analysis")

from gloss_graph.runs.comparison import (
    METRICS,
    Evaluation,
    PairedTest,
    compare_runs,
    holm,
    paired_test,
)
from gloss_graph.runs.folder import FinishedRun, LabelsUsed, RunFolder, find_runs, read_run

__all__ = [
    "METRICS",
    "Evaluation",
    "FinishedRun",
    "LabelsUsed",
    "PairedTest",
    "RunFolder",
    "compare_runs",
    "find_runs",
    "holm",
    "paired_test",
    "read_run",
]
