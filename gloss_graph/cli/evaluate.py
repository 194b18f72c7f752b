"""`gloss-graph evaluate` and `report`: finished runs side by side, and the page of one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gloss_graph.cli.options import busy, option, path, path_option, say

if TYPE_CHECKING:
    from gloss_graph.runs import Evaluation

# Written last: with it the folder is whole.
_REPORT = "evaluation.md"


def evaluate(
    runs: Annotated[list[Path], typer.Argument(parser=path, help="Run folders, or their parents.")],
    out: Annotated[Path | None, path_option("New or empty folder for the report.")] = None,
    metric: Annotated[list[str] | None, option("Metric, as test.macro_f1; repeatable.")] = None,
    by: Annotated[list[str] | None, option("Setting that makes the arms; repeatable.")] = None,
    baseline: Annotated[str | None, option("Arm to compare with; else cross-entropy.")] = None,
) -> None:
    """Compare finished runs: mean and spread over seeds, tests paired by seed."""
    from gloss_graph._internal.folders import check_folder, claim
    from gloss_graph.runs import compare_runs

    if out is not None:
        # Refused before anything is read.
        check_folder(out, "evaluate", marker=_REPORT)
    found = compare_runs(runs, metrics=metric or None, by=by or None, baseline=baseline)
    if out is not None:
        with busy("Drawing"), claim(out, "evaluate", marker=_REPORT) as claimed:
            _write(found, claimed.draft)
    for data in found.baselines:
        say(_table(found, data))
    if len(found.tests):
        say("p: paired t-test; Holm: corrected for the comparisons of a metric.")
    for folder in found.skipped:
        say(f"Not finished, left out: {folder}")
    if out is not None:
        say(f"Report: {out}")


def report(
    run: Annotated[Path, typer.Argument(parser=path, help="Run folder of gloss-graph train.")],
    out: Annotated[Path | None, path_option("File; else report.html in the folder.")] = None,
) -> None:
    """Write the page of a finished run again: scores, curves and pictures in one HTML file."""
    from gloss_graph._internal.folders import hold
    from gloss_graph.reports import write_run_report

    # `write_run_report` refuses by name what is no run folder.
    owned = hold(run, "report") if out is None and run.is_dir() else nullcontext()
    with owned, busy("Drawing pictures"):
        written = write_run_report(run, out)
    say(f"Report: {written}")


def _table(evaluation: Evaluation, data: str) -> Table:
    """Arms of a block by metric: mean ± standard deviation, difference to the baseline, p."""
    from gloss_graph.reports.evaluation import metric_title, shown_mean, shown_p, shown_value

    baseline = evaluation.baselines[data]
    words = f"{data}, by seed against {baseline}" if baseline else data
    # Text, so that no name is read as markup.
    table = Table(title=Text(words), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
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


def _write(evaluation: Evaluation, out: Path) -> None:
    """Write `runs.csv`, `summary.csv`, `tests.csv`, `evaluation.png` and `evaluation.md`."""
    from gloss_graph.reports import evaluation_markdown, plot_evaluation
    from gloss_graph.text.tables import csv_bytes

    plot_evaluation(evaluation, out / "evaluation.png")
    for name in ("runs", "summary", "tests"):
        (out / f"{name}.csv").write_bytes(csv_bytes(getattr(evaluation, name)))
    markdown = evaluation_markdown(evaluation, picture="evaluation.png")
    (out / _REPORT).write_bytes(markdown.encode("utf-8", "backslashreplace"))
