"""Finished runs: what their folders hold, how they are compared and tested."""

from gloss_graph._internal.extras import require

require("pandas", extra="analysis")

from gloss_graph.runs.comparison import METRICS, Evaluation, compare_runs
from gloss_graph.runs.finished import FinishedRun, find_runs, read_run
from gloss_graph.runs.paired_tests import PairedTest, holm, paired_test

__all__ = [
    "METRICS",
    "Evaluation",
    "FinishedRun",
    "PairedTest",
    "compare_runs",
    "find_runs",
    "holm",
    "paired_test",
    "read_run",
]
