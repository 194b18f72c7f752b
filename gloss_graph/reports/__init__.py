"""Tables and pages about runs: one run, two runs compared, many evaluated."""

from gloss_graph._internal.extras import require
from gloss_graph._internal.moved import moved_names

require("jinja2", "pandas", "matplotlib", extra="analysis")

from gloss_graph.reports.evaluation import evaluation_markdown, plot_evaluation
from gloss_graph.reports.graph_change import (
    RunChange,
    compare_measures,
    edge_churn,
    measures_summary,
    run_change,
)
from gloss_graph.reports.run_page import write_run_report

__all__ = [
    "RunChange",
    "compare_measures",
    "edge_churn",
    "evaluation_markdown",
    "measures_summary",
    "plot_evaluation",
    "run_change",
    "write_run_report",
]

__getattr__ = moved_names(
    __name__, {}, renamed={"write_report": ("gloss_graph.reports", "write_run_report")}
)
