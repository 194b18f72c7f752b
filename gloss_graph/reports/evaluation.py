"""Finished runs side by side: formatted numbers, Markdown tables, a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from textwrap import TextWrapper
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gloss_graph.runs import Evaluation
from gloss_graph.visualization import style

#: Headings of `difference_cells`.
TEST_HEADINGS = (
    *("pairs", "difference", "95 % interval", "p (t)", "Holm", "p (Wilcoxon)", "Holm", "d"),
)
_PANELS = 3  # panels per row
_LONGEST = 34  # characters per line of an arm's name
_TYPE, _NAME = 10.5, 3.6  # points and inches of a line of an arm's name

#: Score -> its name in tables and pictures.
SCORES = {
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
    "seconds.per_step": "seconds per step",
    "seconds.total": "seconds in all",
}
#: Scores that are shown in per cent.
PERCENT = ("accuracy", "subset_accuracy", "micro_f1", "macro_f1")
_WHOLE = ("steps", "best_step")


def metric_title(metric: str) -> str:
    """Return the title of a metric of `metrics.json`; unknown metrics keep their name."""
    if metric in _COUNTS:
        return _COUNTS[metric]
    split, _, score = metric.rpartition(".")
    if score not in SCORES or not split:
        return metric
    split, _, head = split.partition("_")
    unit = ", %" if score in PERCENT else ""
    return f"{split} {SCORES[score]}{f' by {head}' if head else ''}{unit}"


def shown_value(metric: str, value: float, *, sign: bool = False, like: float | None = None) -> str:
    """Format a stored value for a table, "" for NaN; `like` decides the number of digits."""
    if math.isnan(value):
        return ""
    plus = "+" if sign and value else ""
    score = metric.rpartition(".")[2]
    if score in PERCENT:
        return f"{100 * value:{plus}.1f}"
    if score in SCORES:
        return f"{value:{plus}.3f}"
    size = abs(value if like is None else like)
    if metric in _WHOLE:
        return f"{value:{plus},.{0 if value == round(value) else 1}f}"
    return f"{value:{plus},.{1 if size >= 10 else 2 if size >= 1 else 3}f}"


def shown_mean(metric: str, mean: float, std: float) -> str:
    """Format a mean and its standard deviation; only the mean for a single run."""
    spread = shown_value(metric, std, like=mean)
    return f"{shown_value(metric, mean)} ± {spread}" if spread else shown_value(metric, mean)


def shown_p(p: float) -> str:
    """Format a p value with three digits, "" for NaN."""
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference_cells(test: Any, show: Callable[[float], str]) -> list[str]:
    """Format a row of a table of paired tests under `TEST_HEADINGS`; `show` is for differences."""
    low, high = show(test.low), show(test.high)
    return [
        str(test.pairs),
        show(test.difference),
        f"{low} to {high}" if low and high else "",
        *map(shown_p, (test.p_t, test.p_t_holm, test.p_wilcoxon, test.p_wilcoxon_holm)),
        "" if math.isnan(test.effect) else f"{test.effect:+.2f}",
    ]


def evaluation_markdown(evaluation: Evaluation, *, picture: str | None = None) -> str:
    """Format the tables of `compare_runs` as Markdown, below a picture at a relative address."""
    lines = [
        "# Runs side by side",
        "",
        "Mean ± standard deviation over seeds. Differences are paired by seed: arm minus baseline, "
        "with the 95 % confidence interval, a paired t-test and Wilcoxon's signed-rank test, both "
        "two-sided; *Holm* corrects over all comparisons of a metric. d is the mean difference in "
        "standard deviations of the differences. A cell is empty if its value is not defined.",
        "",
    ]
    if picture:
        lines += [f"![Every run by metric and arm]({picture})", ""]
    runs, metrics = evaluation.runs, evaluation.metrics
    for data, baseline in evaluation.baselines.items():
        seeds = runs[runs["data"] == data].groupby("arm")["seed"].count()
        summary = evaluation.summary[evaluation.summary["data"] == data]
        cells = {
            (row.arm, row.metric): shown_mean(row.metric, row.mean, row.std)
            + (f" (n={row.n})" if 0 < row.n < seeds[row.arm] else "")
            for row in summary.itertuples()
        }
        found = [metric for metric in metrics if any(cells[arm, metric] for arm in seeds.index)]
        rows: list[list[Any]] = [
            [arm, seeds[arm], *(cells[arm, metric] for metric in found)]
            for arm in evaluation.arms(data)
        ]
        table = markdown_table(["arm", "seeds", *map(metric_title, found)], rows, left=1)
        lines += [f"## {_cell(data)}", "", *table, ""]
        tests = evaluation.tests[evaluation.tests["data"] == data]
        rows = []
        for row in tests.merge(summary[["metric", "arm", "mean"]]).itertuples():
            show = partial(shown_value, str(row.metric), sign=True, like=row.mean)
            if row.pairs:
                rows.append([metric_title(str(row.metric)), row.arm, *difference_cells(row, show)])
        if len(tests):
            table = markdown_table(["metric", "arm", *TEST_HEADINGS], rows, left=2)
            lines += [f"### Differences to {_cell(baseline)}", "", *table, ""]
    rows = [
        [*row[:3], *map(shown_value, metrics, row[3:-1]), row[-1]]
        for row in runs[["data", "arm", "seed", *metrics, "run"]].itertuples(index=False)
    ]
    heads = ["data", "arm", "seed", *map(metric_title, metrics), "folder"]
    lines += ["## Runs", "", *markdown_table(heads, rows, left=2), ""]
    if evaluation.skipped:
        folders = [f"`{str(folder).replace('`', ' ')}`" for folder in evaluation.skipped]
        lines += ["Not finished and left out: " + ", ".join(folders), ""]
    return "\n".join(lines)


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int
) -> list[str]:
    """Make a Markdown table; columns after the first `left` ones are aligned to the right."""
    sides = [":--" if place < left else "--:" for place in range(len(headings))]
    return ["| " + " | ".join(map(_cell, row)) + " |" for row in (headings, sides, *rows)]


def _cell(value: Any) -> str:
    """Escape the characters that would end the cell or turn into markup."""
    text = " ".join(str(value).split())
    for sign in ("\\", "|", "<", "*", "_", "`", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text


def plot_evaluation(evaluation: Evaluation, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw every run as a dot by metric and arm, with mean and confidence interval of the arm.

    The evaluation is the result of `compare_runs`; the figure, which is saved as PNG, PDF or SVG if
    `path` is given, has a panel per metric for every block of data. Thin lines join the runs of one
    seed. A diamond is the mean over seeds, the bar through it the 95 % confidence interval
    (Student's t), cut off with an arrow if it would squeeze the dots.

    Raises:
        ValueError: Another suffix of `path`.
    """
    blocks = list(evaluation.baselines)
    known = evaluation.runs.groupby("data")[list(evaluation.metrics)].count()
    panels = {data: [m for m in evaluation.metrics if known.loc[data, m]] for data in blocks}
    rows = {data: math.ceil(len(panels[data]) / _PANELS) for data in blocks}
    cut = TextWrapper(_LONGEST, break_long_words=False, break_on_hyphens=False)
    names = {
        data: [
            [style.shortened(line, _TYPE, _NAME) for line in cut.wrap(arm)]
            for arm in evaluation.arms(data)
        ]
        for data in blocks
    }
    heights = [
        0.7 + rows[data] * (1.1 + max(2, len(arms)) * max(0.36, 0.06 + 0.19 * max(map(len, arms))))
        for data, arms in names.items()
    ]
    columns = min(_PANELS, max(map(len, panels.values())))
    words = [line for arms in names.values() for lines in arms for line in lines]
    side = max(2.6, 0.4 + max(style.text_width(word, _TYPE) for word in words))
    figure = style.new_figure(side + 3.5 * columns, 0.6 + sum(heights))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights).flat
    bold: dict[str, Any] = {"fontsize": 13, "fontweight": "bold", "color": style.INK}
    for part, data in zip(parts, blocks, strict=True):
        grid = part.subplots(rows[data], columns, squeeze=False, sharey=True)
        for axes, metric in zip(grid.flat, panels[data], strict=False):
            _draw(axes, evaluation, data, metric)
        for axes in grid.flat[len(panels[data]) :]:
            axes.set_visible(False)
        arms = ["\n".join(lines) for lines in names[data]]
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(arms)), arms, fontsize=_TYPE, parse_math=False)
        grid[0, 0].set_ylim(len(arms) - 0.5, -0.6)
        part.suptitle(data, x=0.01, ha="left", parse_math=False, **bold)
    mean: dict[str, Any] = {"color": style.INK, "marker": "D", "linewidth": 2.4, "markersize": 6}
    entries = [
        Line2D([], [], color=style.GREY, marker="o", linewidth=0.9, label="a run; line: same seed"),
        Line2D([], [], label="mean, 95 % confidence interval", **mean),
    ]
    figure.legend(handles=entries, loc="outside lower left", ncols=2, frameon=False, fontsize=10)
    return style.save_figure(figure, path)


def _draw(axes: Axes, evaluation: Evaluation, data: str, metric: str) -> None:
    """Draw the panel of a metric."""
    scale = 100.0 if metric.rpartition(".")[2] in PERCENT else 1.0
    runs, arms = evaluation.runs[evaluation.runs["data"] == data], evaluation.arms(data)
    table = scale * runs.pivot(index="arm", columns="seed", values=metric).reindex(arms)
    style.tidy_axes(axes, title=metric_title(metric))
    places, values = np.arange(len(arms)), table.to_numpy()
    for column in values.T:
        known = ~np.isnan(column)
        axes.plot(column[known], places[known], color=style.GREY, linewidth=0.8, zorder=1)
    summary = evaluation.summary
    means = summary[(summary["data"] == data) & (summary["metric"] == metric)].set_index("arm")
    intervals = scale * means.loc[arms, ["mean", "low", "high"]].to_numpy()
    low, high = _limits(values[~np.isnan(values)], intervals[:, 1:])
    for place, (row, (mean, *ends)) in enumerate(zip(values, intervals, strict=True)):
        # Yellow, the last of the palette, is too weak for a dot.
        color = style.PALETTE[place % (len(style.PALETTE) - 1)]
        found = row[~np.isnan(row)]
        axes.scatter(found, [place] * found.size, s=26, color=color, alpha=0.75, zorder=2)
        look: dict[str, Any] = {"color": color, "zorder": 3, "clip_on": False, "markersize": 6}
        shown = np.clip(ends, low, high)
        axes.plot(shown, [place - 0.27] * 2, color=color, lw=2.2, zorder=3, solid_capstyle="butt")
        for end, cut, marker in zip(ends, shown, "<>", strict=True):
            if cut != end and not math.isnan(end):
                axes.plot([cut], [place - 0.27], marker, **look)
        axes.plot([mean], [place - 0.27], "D", markeredgecolor="white", **look)
    axes.set_xlim(low, high)
    whole = bool((values[~np.isnan(values)] % 1 == 0).all())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, prune="both", integer=whole))
    style.faint_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _limits(values: np.ndarray, intervals: np.ndarray) -> tuple[float, float]:
    """Limits that hold all dots, and intervals as long as the dots keep a third of the width."""
    low, high = float(values.min()), float(values.max())
    width = high - low
    if not width:
        width = max(0.05 * abs(high), 1.5 if high == round(high) else 1e-3)
        return low - width, high + width
    ends = np.append(intervals[~np.isnan(intervals)], [low, high])
    wanted = max(low - ends.min(), ends.max() - high)
    margin = float(np.clip(1.1 * wanted, 0.15 * width, 0.9 * width))
    return low - margin, high + margin
