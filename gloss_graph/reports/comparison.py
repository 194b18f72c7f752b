"""Picture of finished runs side by side."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gloss_graph.reports.evaluation_text import metric_title, scale_of
from gloss_graph.visualization.style import (
    GREY,
    INK,
    PALETTE,
    faint_grid,
    new_figure,
    save_figure,
    shortened,
    text_width,
    tidy_axes,
)

if TYPE_CHECKING:
    from gloss_graph.runs import Evaluation

__all__ = ["plot_evaluation"]

_COLUMNS = 3
_LONGEST = 34
_TYPE, _NAME = 10.5, 3.6  # of the names of arms: points, and inches at most


def plot_evaluation(evaluation: Evaluation, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw every run as a dot, by metric and arm, with mean and confidence interval of the arm.

    Thin lines join the runs of one seed. A diamond is the mean over seeds, the bar through it its
    95 % confidence interval (Student's t), cut off with an arrow where it would squeeze the dots.

    Args:
        evaluation: What `compare_runs` gave back.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.

    Returns:
        The figure: a panel a metric, for every block of data.

    Raises:
        ValueError: if the suffix is none of the three.

    Example:
        See the README.

    See also: ``evaluation_markdown``, for the numbers.
    """
    blocks = list(evaluation.baselines)
    panels = {data: _filled(evaluation, data) for data in blocks}
    rows = {data: math.ceil(len(panels[data]) / _COLUMNS) for data in blocks}
    heights = []
    for data in blocks:
        lines = [_short(arm).count("\n") + 1 for arm in evaluation.arms(data)]
        # Neighbouring names need half of the lines of both.
        most = max((one + other for one, other in pairwise(lines)), default=2) / 2
        slot = max(0.36, 0.06 + 0.19 * most)
        heights.append(0.7 + rows[data] * (1.1 + slot * max(2, len(lines))))
    columns = min(_COLUMNS, max(map(len, panels.values())))
    words = [line for data in blocks for arm in evaluation.arms(data) for line in _lines(arm)]
    side = max(2.6, 0.4 + max(text_width(word, _TYPE) for word in words))
    figure = new_figure(side + 3.5 * columns, 0.6 + sum(heights))
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights).flat
    for part, data in zip(parts, blocks, strict=True):
        arms = evaluation.arms(data)
        grid = part.subplots(rows[data], columns, squeeze=False, sharey=True)
        for axes, metric in zip(grid.flat, panels[data], strict=False):
            _draw(axes, evaluation, data, metric)
        for axes in grid.flat[len(panels[data]) :]:
            axes.set_visible(False)
        names = list(map(_short, arms))
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(arms)), names, fontsize=_TYPE, parse_math=False)
        grid[0, 0].set_ylim(len(arms) - 0.5, -0.6)
        part.suptitle(
            data, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False
        )
    entries = [
        Line2D([], [], color=GREY, marker="o", linewidth=0.9, label="a run; line: same seed"),
        Line2D(
            [],
            [],
            color=INK,
            marker="D",
            linewidth=2.4,
            markersize=6,
            label="mean, 95 % confidence interval",
        ),
    ]
    figure.legend(handles=entries, loc="outside lower left", ncols=2, frameon=False, fontsize=10)
    return save_figure(figure, path)


def _filled(evaluation: Evaluation, data: str) -> list[str]:
    """Metrics that a run of the block has."""
    runs = evaluation.runs[evaluation.runs["data"] == data]
    return [metric for metric in evaluation.metrics if runs[metric].notna().any()]


def _draw(axes: Axes, evaluation: Evaluation, data: str, metric: str) -> None:
    scale = scale_of(metric)
    runs = evaluation.runs[evaluation.runs["data"] == data]
    table = scale * runs.pivot(index="arm", columns="seed", values=metric)
    arms = evaluation.arms(data)
    table = table.reindex(arms)
    tidy_axes(axes, title=metric_title(metric), x="", y="")
    places = np.arange(len(arms))
    for seed in table.columns:
        known = table[seed].notna().to_numpy()
        axes.plot(table[seed].to_numpy()[known], places[known], color=GREY, linewidth=0.8, zorder=1)
    values = table.to_numpy()
    summary = evaluation.summary
    means = summary[(summary["data"] == data) & (summary["metric"] == metric)].set_index("arm")
    low, high = _limits(values, scale * means[["low", "high"]].to_numpy())
    for place, arm in enumerate(arms):
        # Yellow, the last of the palette, is too weak for a dot.
        color = PALETTE[place % (len(PALETTE) - 1)]
        found = values[place][~np.isnan(values[place])]
        axes.scatter(found, np.full(found.size, place), s=26, color=color, alpha=0.75, zorder=2)
        if not math.isnan(means.loc[arm, "mean"]):
            row = {key: scale * means.loc[arm, key] for key in ("mean", "low", "high")}
            _draw_mean(axes, place - 0.27, row, (low, high), color)
    axes.set_xlim(low, high)
    whole = bool((values[~np.isnan(values)] % 1 == 0).all())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, prune="both", integer=whole))
    faint_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_mean(
    axes: Axes, place: float, row: dict[str, float], limits: tuple[float, float], color: str
) -> None:
    """The mean above the dots of its arm, with its interval as far as the panel reaches."""
    look: dict[str, Any] = {"color": color, "linestyle": "none", "zorder": 3, "clip_on": False}
    if not math.isnan(row["low"]):
        ends = np.clip([row["low"], row["high"]], *limits)
        axes.plot(ends, [place, place], color=color, linewidth=2.2, zorder=3, solid_capstyle="butt")
        for end, marker in ((row["low"], "<"), (row["high"], ">")):
            if not limits[0] <= end <= limits[1]:
                axes.plot([np.clip(end, *limits)], [place], marker=marker, markersize=6, **look)
    axes.plot([row["mean"]], [place], marker="D", markersize=6, markeredgecolor="white", **look)


def _limits(values: np.ndarray, intervals: np.ndarray) -> tuple[float, float]:
    """All dots, and of the intervals what leaves the dots a third of the width."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    width = high - low
    if not width:
        width = max(0.05 * abs(high), 1.5 if high == round(high) else 1e-3)
        return low - width, high + width
    ends = np.append(intervals[~np.isnan(intervals)], [low, high])
    wanted = max(low - ends.min(), ends.max() - high)
    margin = float(np.clip(1.1 * wanted, 0.15 * width, 0.9 * width))
    return low - margin, high + margin


def _short(name: str) -> str:
    """A name in lines of bearable length."""
    return "\n".join(_lines(name))


def _lines(name: str) -> list[str]:
    lines = [""]
    for part in name.split(", "):
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) > _LONGEST and lines[-1]:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = joined
    return [shortened(line, _TYPE, _NAME) for line in lines]
