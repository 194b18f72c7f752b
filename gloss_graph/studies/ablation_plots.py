"""Pictures of a study: main effects, two factors at once, a tornado."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gloss_graph.studies.results import Results
from gloss_graph.studies.trials import canonical, shown
from gloss_graph.visualization.style import (
    CONTRAST,
    GREY,
    INK,
    PALETTE,
    faint_grid,
    name_ticks,
    new_figure,
    shortened,
    tidy_axes,
)

__all__ = ["plot_effect", "plot_heatmap", "plot_tornado"]

_NAME = 2.2  # inches of the name of a level


def plot_effect(results: Results, factor: str) -> Figure:
    """Main effect of a factor: means with 95 % confidence intervals, a panel a metric.

    Grey lines are single seeds; the red ring is the baseline's value, the dashed line its mean.

    Args:
        results: Of the study.
        factor: Its name.

    Returns:
        The figure.
    """
    metrics = results.shown
    effects = {metric: results.effect(factor, metric) for metric in metrics}
    count = max((len(effect) for effect in effects.values()), default=1)
    width = max(3.6, 1.5 + 0.62 * count)
    figure = new_figure(width * max(1, len(metrics)), 3.7)
    grid = figure.subplots(1, max(1, len(metrics)), squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=False):
        _draw_effect(axes, results, effects[metric], factor, metric)
    return figure


def _draw_effect(
    axes: Axes, results: Results, effect: pd.DataFrame, factor: str, metric: str
) -> None:
    better = "lower" if results.lower_is_better(metric) else "higher"
    title = results.title(metric)
    tidy_axes(axes, title=title, x=factor, y="")
    axes.title.set_fontsize(11)
    if not len(effect):
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=GREY)
        return
    scale, places = results.scale(metric), np.arange(len(effect))
    seeds = scale * pd.DataFrame(dict(enumerate(effect["seeds"])))
    for _, line in seeds.iterrows():
        axes.plot(places, line.to_numpy(), color=GREY, linewidth=0.7, alpha=0.55, zorder=1)
    means = scale * effect["mean"].to_numpy()
    spans = scale * effect[["low", "high"]].to_numpy()
    base = np.flatnonzero(effect["baseline"].to_numpy())
    if base.size:
        axes.axhline(means[base[0]], color=CONTRAST, linewidth=0.9, linestyle="--", zorder=0)
    axes.plot(places, means, color=PALETTE[0], linewidth=1.4, zorder=2)
    for place, (low, high) in zip(places, spans, strict=True):
        if math.isfinite(low):
            axes.plot([place, place], [low, high], color=PALETTE[0], linewidth=2.4, zorder=2)
    axes.scatter(places, means, s=44, color=PALETTE[0], edgecolor="white", zorder=3)
    if base.size:
        ring: dict[str, Any] = {"facecolor": "none", "edgecolor": CONTRAST, "linewidth": 1.6}
        axes.scatter(places[base], means[base], s=130, zorder=4, **ring)
    name_ticks(axes, list(effect["level"]))
    axes.set_xlim(-0.5, len(effect) - 0.5)
    axes.set_ylabel(f"{better} is better" if metric in _judged(results) else "", fontsize=9.5)
    axes.yaxis.label.set_color(GREY)
    faint_grid(axes, "y")
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def _judged(results: Results) -> list[str]:
    """Metrics of which it is known what is better."""
    known = {*results.titles, *results.metrics[:1]}
    return [name for name in known if name != "steps"]


def plot_heatmap(results: Results, one: str, other: str, metric: str) -> Figure | None:
    """Mean of a metric by two factors; None where the design did not cross them.

    Args:
        results: Of the study.
        one: Factor of the rows.
        other: Factor of the columns.
        metric: Its name.
    """
    crossed = results.crossed(one, other, metric)
    if crossed is None:
        return None
    cells = results.scale(metric) * crossed.to_numpy()
    rows, columns = cells.shape
    figure = new_figure(2.6 + 0.95 * columns, 1.6 + 0.55 * rows)
    axes = figure.subplots()
    look = "Blues_r" if results.lower_is_better(metric) else "Blues"
    image = axes.imshow(cells, cmap=look, aspect="auto")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    base = results.study["baseline"]
    for row in range(rows):
        for column in range(columns):
            value = cells[row, column]
            if not math.isfinite(value):
                continue
            dark = value < middle if results.lower_is_better(metric) else value > middle
            text = results.show(metric, value / results.scale(metric))
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
            own = canonical([crossed.index[row], crossed.columns[column]])
            if own == canonical([base[one], base[other]]):
                edge: dict[str, Any] = {"fill": False, "edgecolor": CONTRAST, "linewidth": 2.2}
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **edge))
    name_ticks(axes, [shown(value) for value in crossed.columns])
    levels = [shortened(shown(value), 10, _NAME) for value in crossed.index]
    axes.set_yticks(range(rows), levels, parse_math=False)
    axes.set_xlabel(other, fontsize=11, color=INK, parse_math=False)
    axes.set_ylabel(one, fontsize=11, color=INK, parse_math=False)
    axes.tick_params(length=0, labelsize=10, colors=INK)
    axes.spines[:].set_visible(False)
    bold: dict[str, Any] = {"fontsize": 11, "fontweight": "bold", "color": INK}
    axes.set_title(results.title(metric), loc="left", parse_math=False, **bold)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=INK, length=2)
    return figure


def plot_tornado(results: Results, metric: str) -> Figure | None:
    """How far each factor moves a metric from the baseline, the strongest on top.

    Bars reach from the worst to the best value of a factor, labelled with these; thin lines are
    95 % confidence intervals of the differences, paired by seed.

    Returns:
        The figure, None where nothing can be compared.
    """
    scale, spans = results.scale(metric), []
    for factor in results.factors:
        effect = results.effect(factor, metric)
        if not len(effect):
            continue
        effect = effect[effect["difference"].notna()]
        if len(effect) > 1:
            low = effect.loc[effect["difference"].idxmin()]
            high = effect.loc[effect["difference"].idxmax()]
            spans.append((high["difference"] - low["difference"], factor, low, high))
    if not spans:
        return None
    spans.sort(key=lambda span: span[0])
    figure = new_figure(8.2, 1.5 + 0.55 * len(spans))
    axes = figure.subplots()
    good, bad = PALETTE[0], PALETTE[1]
    if results.lower_is_better(metric):
        good, bad = bad, good
    reach = [0.0, 0.0]
    for place, (_, _, low, high) in enumerate(spans):
        tips = [0.0, 0.0]
        # The two intervals of a factor often overlap: one above the middle, one below.
        for end, color, lift in ((low, bad, 0.12), (high, good, -0.12)):
            length = scale * end["difference"]
            axes.barh(place, length, height=0.58, color=color, zorder=2)
            ends = [length]
            if math.isfinite(end["gap_low"]) and not end["baseline"]:
                ends = [scale * end["gap_low"], scale * end["gap_high"]]
                axes.plot(ends, [place + lift] * 2, color=INK, linewidth=1.1, zorder=3)
            tips = [min(tips[0], *ends), max(tips[1], *ends)]
        reach = [min(reach[0], tips[0]), max(reach[1], tips[1])]
        sides = ((low, -1, "right", tips[0]), (high, 1, "left", tips[1]))
        for end, side, where, tip in sides:
            name = shortened(end["level"], 9.5, _NAME)
            name += " (baseline)" if end["baseline"] else ""
            axes.annotate(
                name,
                (tip, place),
                (6 * side, 0),
                textcoords="offset points",
                ha=where,
                va="center",
                fontsize=9.5,
                color=INK,
                parse_math=False,
            )
    axes.axvline(0, color=CONTRAST, linewidth=1.2, zorder=4)
    tidy_axes(
        axes,
        title=f"{results.title(metric)}: difference to the baseline",
        x=f"{'lower' if results.lower_is_better(metric) else 'higher'} is better",
        y="",
    )
    axes.set_yticks(range(len(spans)), [factor for _, factor, _, _ in spans], parse_math=False)
    # Room for the labels on both sides.
    room = 0.35 * (reach[1] - reach[0]) or 1.0
    axes.set_xlim(reach[0] - room, reach[1] + room)
    faint_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure
