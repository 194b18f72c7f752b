"""Finished runs side by side, in words: numbers as people read them, and a Markdown report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gloss_graph.runs import Evaluation

__all__ = ["evaluation_markdown", "metric_title", "shown_mean", "shown_p", "shown_value"]

_SCORES = {
    "accuracy": "accuracy",
    "subset_accuracy": "exact sets",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "macro_silhouette": "macro silhouette",
    "micro_silhouette": "micro silhouette",
}
_COUNTS = {
    "steps": "steps",
    "best_step": "best step",
    "epochs_to_stop": "epochs to stop",
    "seconds.train": "seconds to stop",
    "seconds.per_step": "seconds a step",
    "seconds.total": "seconds in all",
}
_PERCENT = ("accuracy", "subset_accuracy", "micro_f1", "macro_f1")
_WHOLE = ("steps", "best_step")


def metric_title(metric: str) -> str:
    """What people call a metric of `metrics.json`; unknown ones keep their name.

    Example:
        >>> metric_title("test_propagation.macro_f1"), metric_title("head.C")
        ('test macro-F1 by propagation, %', 'head.C')
    """
    if metric in _COUNTS:
        return _COUNTS[metric]
    split, _, score = metric.rpartition(".")
    if score not in _SCORES or not split:
        return metric
    split, _, head = split.partition("_")
    unit = ", %" if score in _PERCENT else ""
    return f"{split} {_SCORES[score]}{f' by {head}' if head else ''}{unit}"


def scale_of(metric: str) -> float:
    """Factor between a stored value and the shown one: 100 for shares."""
    return 100.0 if metric.rpartition(".")[2] in _PERCENT else 1.0


def shown_value(metric: str, value: float, *, sign: bool = False, like: float | None = None) -> str:
    """A value as it stands in a table; nothing for NaN.

    Args:
        metric: What it is a value of.
        value: As stored.
        sign: Write the sign of positive values too.
        like: A value with whose digits it shall be shown.

    Example:
        >>> shown_value("test.macro_f1", 0.9237), shown_value("steps", float("nan"))
        ('92.4', '')
        >>> shown_value("test.macro_f1", 0.021, sign=True)
        '+2.1'
    """
    if math.isnan(value):
        return ""
    plus = "+" if sign and value else ""
    score = metric.rpartition(".")[2]
    if score in _PERCENT:
        return f"{100 * value:{plus}.1f}"
    if score in _SCORES:
        return f"{value:{plus}.3f}"
    size = abs(value if like is None else like)
    if metric in _WHOLE:
        return f"{value:{plus},.{0 if value == round(value) else 1}f}"
    return f"{value:{plus},.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def shown_mean(metric: str, mean: float, std: float) -> str:
    """Mean and standard deviation; the mean alone where one run has no spread.

    Example:
        >>> shown_mean("test.accuracy", 0.971, 0.004), shown_mean("steps", 60.0, float("nan"))
        ('97.1 ± 0.4', '60')
    """
    spread = shown_value(metric, std, like=mean)
    return f"{shown_value(metric, mean)} ± {spread}" if spread else shown_value(metric, mean)


def shown_p(p: float) -> str:
    """A p value to three digits; nothing for NaN.

    Example:
        >>> shown_p(0.0417), shown_p(0.00001), shown_p(float("nan"))
        ('0.042', '<0.001', '')
    """
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def evaluation_markdown(evaluation: Evaluation, *, picture: str | None = None) -> str:
    """The tables of a comparison as Markdown.

    Args:
        evaluation: What `compare_runs` gave back.
        picture: Address of a picture to show, relative to where the report will lie.

    Example:
        See the README.
    """
    lines = ["# Runs side by side", ""]
    lines += [
        "Mean ± standard deviation over seeds. Differences are paired by seed: arm minus baseline, "
        "with the 95 % confidence interval, a paired t-test and Wilcoxon's signed-rank test, both "
        "two-sided; *Holm* corrects over all comparisons of a metric. d is the mean difference in "
        "standard deviations of the differences. A cell is empty where there is nothing to say.",
        "",
    ]
    if picture:
        lines += [f"![Every run by metric and arm]({picture})", ""]
    for data, baseline in evaluation.baselines.items():
        lines += [f"## {_cell(data)}", ""]
        lines += [*_summary(evaluation, data), ""]
        tests = evaluation.tests[evaluation.tests["data"] == data]
        tests = tests.merge(evaluation.summary[["data", "metric", "arm", "mean"]])
        if len(tests):
            lines += [f"### Differences to {_cell(baseline)}", "", *_tests(tests), ""]
    lines += ["## Runs", "", *_runs(evaluation), ""]
    if evaluation.skipped:
        lines += ["Not finished and left out: " + ", ".join(map(_code, evaluation.skipped)), ""]
    return "\n".join(lines)


def _summary(evaluation: Evaluation, data: str) -> list[str]:
    seeds = evaluation.runs[evaluation.runs["data"] == data].groupby("arm")["seed"].count()
    summary = evaluation.summary[evaluation.summary["data"] == data]
    cells = {
        (row.arm, row.metric): shown_mean(row.metric, row.mean, row.std)
        + (f" (n={row.n})" if 0 < row.n < seeds[row.arm] else "")
        for row in summary.itertuples()
    }
    # Columns nobody has anything in are left out.
    metrics = [m for m in evaluation.metrics if any(cells[arm, m] for arm in seeds.index)]
    rows = [
        [arm, seeds[arm], *(cells[arm, metric] for metric in metrics)]
        for arm in evaluation.arms(data)
    ]
    return markdown_table(["arm", "seeds", *map(metric_title, metrics)], rows, left=1)


def _tests(tests: Any) -> list[str]:
    headings = ["metric", "arm", "pairs", "difference", "95 % interval", "p (t)", "Holm"]
    headings += ["p (Wilcoxon)", "Holm", "d"]
    rows = []
    for row in tests[tests["pairs"] > 0].itertuples():
        gap, *ends = [
            shown_value(row.metric, value, sign=True, like=row.mean)
            for value in (row.difference, row.low, row.high)
        ]
        rows.append(
            [
                metric_title(row.metric),
                row.arm,
                row.pairs,
                gap,
                f"{ends[0]} to {ends[1]}" if all(ends) else "",
                *map(shown_p, (row.p_t, row.p_t_holm, row.p_wilcoxon, row.p_wilcoxon_holm)),
                "" if math.isnan(row.effect) else f"{row.effect:+.2f}",
            ]
        )
    return markdown_table(headings, rows, left=2)


def _runs(evaluation: Evaluation) -> list[str]:
    rows = [
        [
            row["data"],
            row["arm"],
            row["seed"],
            *(shown_value(metric, row[metric]) for metric in evaluation.metrics),
            row["run"],
        ]
        for row in evaluation.runs.to_dict("records")
    ]
    headings = ["data", "arm", "seed", *map(metric_title, evaluation.metrics), "folder"]
    return markdown_table(headings, rows, left=2)


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int
) -> list[str]:
    """A table of GitHub's Markdown, numbers to the right of the first `left` columns."""
    sides = [":--" if place < left else "--:" for place in range(len(headings))]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (headings, sides, *rows)]


def _cell(value: Any) -> str:
    """Text as it is: nothing in it may end the cell or turn into markup."""
    text = " ".join(str(value).split())
    for sign in ("\\", "|", "<", "*", "_", "`", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _code(value: Any) -> str:
    return f"`{str(value).replace('`', ' ')}`"
