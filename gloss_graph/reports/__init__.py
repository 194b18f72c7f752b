"""Tables and pages about runs: one run, two runs compared, many evaluated."""

from gloss_graph._internal.extras import require

require("jinja2", "pandas", "matplotlib", extra="analysis")

from gloss_graph.reports.comparison import plot_evaluation
from gloss_graph.reports.evaluation_text import evaluation_markdown
from gloss_graph.reports.measure_tables import compare_measures, edge_churn, measures_summary
from gloss_graph.reports.run_page import write_report
from gloss_graph.reports.space_change import RunChange, run_change

__all__ = [
    "RunChange",
    "compare_measures",
    "edge_churn",
    "evaluation_markdown",
    "measures_summary",
    "plot_evaluation",
    "run_change",
    "write_report",
]
