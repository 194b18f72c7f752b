"""`gloss-graph evaluate`: finished runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.folders import check_folder, claim
from gloss_graph.reports import evaluation_markdown, plot_evaluation
from gloss_graph.reports.evaluation import metric_title, shown_mean, shown_p, shown_value
from gloss_graph.runs import Evaluation, compare_runs
from gloss_graph.text.tables import csv_bytes

# With it the folder is whole.
_REPORT = "evaluation.md"


def run_evaluate(
    runs: Sequence[Path],
    out: Path | None,
    *,
    metrics: Sequence[str] | None,
    by: Sequence[str] | None,
    baseline: str | None,
) -> Evaluation:
    """Compare runs, print a table a block of data and write the folder `out`."""
    console = Console()
    if out is not None:
        # Refused before anything is read.
        check_folder(out, "evaluate", marker=_REPORT)
    evaluation = compare_runs(runs, metrics=metrics, by=by, baseline=baseline)
    if out is not None:
        with console.status("Drawing"), claim(out, "evaluate", marker=_REPORT) as claimed:
            write_evaluation(evaluation, claimed.draft)
    for data in evaluation.baselines:
        console.print(evaluation_table(evaluation, data))
    if len(evaluation.tests):
        console.print("p: paired t-test; Holm: corrected for the comparisons of a metric.")
    for folder in evaluation.skipped:
        console.print(
            f"Not finished, left out: {folder}", highlight=False, markup=False, soft_wrap=True
        )
    if out is not None:
        console.print(f"Report: {out}", highlight=False, markup=False, soft_wrap=True)
    return evaluation


def evaluation_table(evaluation: Evaluation, data: str) -> Table:
    """Arms of a block by metric: mean ± standard deviation, difference to the baseline, p."""
    baseline = evaluation.baselines[data]
    words = f"{data}, by seed against {baseline}" if baseline else data
    # Text, so that no name is read as markup.
    table = Table(
        title=Text(words),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", overflow="fold")
    for heading in ("n", "mean ± std", "diff.", "p", "Holm"):
        table.add_column(heading, justify="right", no_wrap=True)
    summary = evaluation.summary[evaluation.summary["data"] == data]
    tests = evaluation.tests[evaluation.tests["data"] == data].set_index(["metric", "arm"])
    for metric in evaluation.metrics:
        rows = summary[(summary["metric"] == metric) & (summary["n"] > 0)]
        if not len(rows):
            continue
        table.add_section()
        table.add_row(Text(metric_title(metric), style="bold"))
        for row in rows.itertuples():
            cells = ["", "", ""]
            if (metric, row.arm) in tests.index:
                test = tests.loc[(metric, row.arm)]
                cells[0] = shown_value(metric, test["difference"], sign=True, like=row.mean)
                cells[1:] = shown_p(test["p_t"]), shown_p(test["p_t_holm"])
            mean = shown_mean(metric, row.mean, row.std)
            table.add_row(Padding(Text(row.arm), (0, 0, 0, 2)), str(row.n), mean, *cells)
    return table


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write `runs.csv`, `summary.csv`, `tests.csv`, `evaluation.png` and `evaluation.md`."""
    tables: dict[str, pd.DataFrame] = {
        "runs.csv": evaluation.runs,
        "summary.csv": evaluation.summary,
        "tests.csv": evaluation.tests,
    }
    for name, table in tables.items():
        with atomic_write(out / name) as draft:
            draft.write(csv_bytes(table))
    plot_evaluation(evaluation, out / "evaluation.png")
    report = evaluation_markdown(evaluation, picture="evaluation.png")
    with atomic_write(out / _REPORT) as draft:
        draft.write(report.encode("utf-8", "backslashreplace"))
