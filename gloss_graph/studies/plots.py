"""Pictures of studies: effects of factors, and the course of a search."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gloss_graph._internal.settings import Choice, Dimension
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
    save_figure,
    shortened,
    tidy_axes,
)

_COLUMNS = 4
# Inches of the name of a level, and of a setting.
_LEVEL, _SETTING = 2.2, 3.2


# ------------------------------------------------------------------ ablations


def plot_effect(results: Results, factor: str) -> Figure:
    """Draw the main effect of a factor: means with 95 % confidence intervals, a panel per metric.

    Grey lines are single seeds; the red ring is the baseline's value, the dashed line its mean.
    """
    metrics = results.shown
    effects = {metric: results.effect(factor, metric) for metric in metrics}
    count = max((len(effect) for effect in effects.values()), default=1)
    width = max(3.6, 1.5 + 0.62 * count)
    figure = new_figure(width * max(1, len(metrics)), 3.7)
    grid = figure.subplots(1, max(1, len(metrics)), squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=False):
        tidy_axes(axes, title=results.title(metric), x=factor, y="")
        axes.title.set_fontsize(11)
        if len(effects[metric]):
            _draw_effect(axes, results, effects[metric], metric)
        else:
            axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=GREY)
    return figure


def _draw_effect(axes: Axes, results: Results, effect: pd.DataFrame, metric: str) -> None:
    scale, places = results.scale(metric), np.arange(len(effect))
    seeds = scale * pd.DataFrame(dict(enumerate(effect["seeds"])))
    axes.plot(places, seeds.to_numpy().T, color=GREY, linewidth=0.7, alpha=0.55, zorder=1)
    means = scale * effect["mean"].to_numpy()
    base = np.flatnonzero(effect["baseline"].to_numpy())
    if base.size:
        axes.axhline(means[base[0]], color=CONTRAST, linewidth=0.9, linestyle="--", zorder=0)
        ring: dict[str, Any] = {"facecolor": "none", "edgecolor": CONTRAST, "linewidth": 1.6}
        axes.scatter(places[base], means[base], s=130, zorder=4, **ring)
    axes.plot(places, means, color=PALETTE[0], linewidth=1.4, zorder=2)
    spans = scale * effect[["low", "high"]].to_numpy().T
    axes.vlines(places, *spans, color=PALETTE[0], linewidth=2.4, zorder=2)
    axes.scatter(places, means, s=44, color=PALETTE[0], edgecolor="white", zorder=3)
    name_ticks(axes, list(effect["level"]))
    axes.set_xlim(-0.5, len(effect) - 0.5)
    # Only of metrics with a title, and of the first one, is it known which direction is better.
    if metric in {*results.titles, *results.metrics[:1]} - {"steps"}:
        axes.set_ylabel(_better(results, metric), fontsize=9.5, color=GREY)
    faint_grid(axes, "y")
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def _better(results: Results, metric: str) -> str:
    return f"{'lower' if results.lower_is_better(metric) else 'higher'} is better"


def plot_heatmap(results: Results, one: str, other: str, metric: str) -> Figure | None:
    """Draw the mean of a metric by a factor in rows and another in columns; None if not crossed."""
    crossed = results.crossed(one, other, metric)
    if crossed is None:
        return None
    lower = results.lower_is_better(metric)
    cells = results.scale(metric) * crossed.to_numpy()
    rows, columns = cells.shape
    figure = new_figure(2.6 + 0.95 * columns, 1.6 + 0.55 * rows)
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="Blues_r" if lower else "Blues", aspect="auto")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    base = canonical([results.study["baseline"][name] for name in (one, other)])
    for (row, column), value in np.ndenumerate(cells):
        if not math.isfinite(value):
            continue
        dark = value < middle if lower else value > middle
        text = results.show(metric, value / results.scale(metric))
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
        if canonical([crossed.index[row], crossed.columns[column]]) == base:
            edge: dict[str, Any] = {"fill": False, "edgecolor": CONTRAST, "linewidth": 2.2}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **edge))
    tidy_axes(axes, title=results.title(metric), x=other, y=one)
    name_ticks(axes, [shown(value) for value in crossed.columns])
    _name_rows(axes, [shown(value) for value in crossed.index], _LEVEL)
    axes.title.set_fontsize(11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=INK, length=2)
    return figure


def plot_tornado(results: Results, metric: str) -> Figure | None:
    """Draw how far each factor moves a metric from the baseline; None without a comparison.

    Bars reach from the worst to the best value of a factor, labeled with these; thin lines are
    95 % confidence intervals of the differences, paired by seed.
    """
    scale, spans = results.scale(metric), []
    for factor in results.factors:
        effect = results.effect(factor, metric)
        effect = effect[effect["difference"].notna()] if len(effect) else effect
        if len(effect) > 1:
            low = effect.loc[effect["difference"].idxmin()]
            high = effect.loc[effect["difference"].idxmax()]
            spans.append((high["difference"] - low["difference"], factor, low, high))
    if not spans:
        return None
    spans.sort(key=lambda span: span[0])
    figure = new_figure(8.2, 1.5 + 0.55 * len(spans))
    axes = figure.subplots()
    bad, good = PALETTE[1], PALETTE[0]
    if results.lower_is_better(metric):
        bad, good = good, bad
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
        for end, side, where, tip in ((low, -1, "right", tips[0]), (high, 1, "left", tips[1])):
            name = shortened(end["level"], 9.5, _LEVEL) + " (baseline)" * bool(end["baseline"])
            look: dict[str, Any] = {"ha": where, "va": "center", "fontsize": 9.5, "color": INK}
            axes.annotate(
                name,
                (tip, place),
                (6 * side, 0),
                textcoords="offset points",
                parse_math=False,
                **look,
            )
    axes.axvline(0, color=CONTRAST, linewidth=1.2, zorder=4)
    title = f"{results.title(metric)}: difference to the baseline"
    tidy_axes(axes, title=title, x=_better(results, metric), y="")
    axes.set_yticks(range(len(spans)), [factor for _, factor, _, _ in spans], parse_math=False)
    # Room for the labels on both sides.
    room = 0.35 * (reach[1] - reach[0]) or 1.0
    axes.set_xlim(reach[0] - room, reach[1] + room)
    faint_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _name_rows(axes: Axes, names: list[str], room: float) -> None:
    cut = [shortened(name, 10, room) for name in names]
    axes.set_yticks(range(len(names)), cut, parse_math=False)


# ------------------------------------------------------------------ searches


def plot_tuning(
    trials: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    metric: str = "val.macro_f1",
) -> Figure:
    """Draw the score of every trial in their order, and the best so far.

    Args:
        trials: Table with columns `number`, `state` (`complete`, `pruned`, ...) and `value`;
            trials without a value are left out.
        path: File to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        metric: Name of the score.

    Returns:
        The figure. Pruned trials have the score they were stopped with.

    Raises:
        ValueError: No trial has a value.

    Example:
        >>> rows = {"number": [0, 1], "state": ["complete", "pruned"], "value": [0.8, 0.4]}
        >>> plot_tuning(pd.DataFrame(rows)).axes[0].get_title(loc="left")
        'Trials: 1 complete, 1 pruned'
    """
    complete, pruned = _scored(trials)
    figure = new_figure(8.0, 4.6)
    axes = figure.add_subplot()
    title = f"Trials: {len(complete)} complete, {len(pruned)} pruned"
    tidy_axes(axes, title=title, x="trial", y=metric)
    faint_grid(axes)
    for rows, look, name in ((pruned, "x", "pruned"), (complete, "o", "complete")):
        color = GREY if look == "x" else PALETTE[0]
        axes.plot(rows["number"], rows["value"], look, color=color, label=name, markersize=6)
    # Drawn to the last trial, whether that one was complete or not.
    ends = complete["number"].tolist() + [trials["number"].max()] * (not complete.empty)
    best = complete["value"].cummax().tolist()
    axes.step(ends, best + best[-1:], where="post", color=CONTRAST, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.04, y=0.08)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="best")
    return save_figure(figure, path)


def plot_slices(
    trials: pd.DataFrame,
    space: Mapping[str, Dimension],
    path: str | os.PathLike[str] | None = None,
    *,
    metric: str = "val.macro_f1",
) -> Figure:
    """Draw the scores over the values of each setting, one panel per setting.

    Args:
        trials: Table as for `plot_tuning`, with a column for each setting.
        space: Setting -> the values that were tried; their scale is the panel's.
        path: File to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        metric: Name of the score.

    Returns:
        The figure; a star marks the best trial in every panel, later trials are darker.

    Raises:
        ValueError: No trial has a value, or there is no setting.
    """
    if not space:
        raise ValueError("'space' must hold at least one setting (got none).")
    complete, pruned = _scored(trials)
    columns = min(_COLUMNS, len(space))
    rows = math.ceil(len(space) / columns)
    # The title takes seven inches.
    figure = new_figure(max(1.2 + 3.1 * columns, 7.2), 0.6 + 3.1 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(space) :]:
        axes.set_visible(False)
    shades = {"c": np.linspace(0.35, 1.0, len(complete)), "cmap": "Blues", "vmin": 0, "vmax": 1}
    look: dict[str, Any] = {**shades, "edgecolors": "white", "linewidths": 0.5, "s": 42}
    for i, (name, tried) in enumerate(space.items()):
        axes = panels.flat[i]
        tidy_axes(axes, title="", x=name, y=metric if i % columns == 0 else "")
        faint_grid(axes)
        _scale(axes, tried)
        axes.plot(_places(pruned[name], tried), pruned["value"], "x", color=GREY, markersize=5)
        axes.scatter(_places(complete[name], tried), complete["value"], **look)
        if not complete.empty:
            best = complete.loc[[complete["value"].idxmax()]]
            place = _places(best[name], tried)
            axes.plot(place, best["value"], "*", color=CONTRAST, markersize=15)
    title = "Score by setting: dots complete (dark = late), crosses pruned, star best"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return save_figure(figure, path)


def plot_importance(
    importance: Mapping[str, float], path: str | os.PathLike[str] | None = None, *, trials: int
) -> Figure:
    """Draw the share of the spread of scores that each setting explains.

    Args:
        importance: Setting -> share; shares sum to 1.
        path: File to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        trials: Number of complete trials behind the shares.

    Returns:
        The figure, the most important setting on top.

    Raises:
        ValueError: There is no setting.

    Example:
        >>> figure = plot_importance({"k": 0.25, "bandwidth": 0.75}, trials=20)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25 %', '75 %']
    """
    if not importance:
        raise ValueError("'importance' must hold a setting (got none). Run two trials or more.")
    ordered = dict(sorted(importance.items(), key=lambda item: item[1]))
    shares = [100 * share for share in ordered.values()]
    figure = new_figure(8.0, 1.6 + 0.42 * len(shares))
    axes = figure.add_subplot()
    title = f"Which settings mattered (fANOVA, {trials} complete trials)"
    tidy_axes(axes, title=title, x="share of the spread of scores, %", y="")
    bars = axes.barh(range(len(shares)), shares, color=PALETTE[0], height=0.6)
    _name_rows(axes, list(ordered), _SETTING)
    labels = [f"{share:.0f} %" for share in shares]
    axes.bar_label(bars, labels=labels, padding=4, fontsize=10, color=INK)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.tick_params(axis="y", length=0)
    return save_figure(figure, path)


def _scored(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Complete and pruned trials that have a value."""
    scored = trials[trials["value"].notna()].sort_values("number")
    complete = scored[scored["state"] == "complete"]
    pruned = scored[scored["state"] == "pruned"]
    if complete.empty and pruned.empty:
        raise ValueError("'trials' must hold one with a value (got none). Run one first.")
    return complete, pruned


def _places(values: pd.Series, tried: Dimension) -> list[float]:
    """Positions of values on the axis: themselves, or the place in the list of choices."""
    if isinstance(tried, Choice):
        # In a table read from a CSV file None is NaN and numbers are of another type.
        order = [_word(value) for value in tried.values]
        return [float(order.index(_word(value))) for value in values]
    return [float(value) for value in values]


def _word(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "None"
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return f"{float(value):g}"
    return str(value)


def _scale(axes: Axes, tried: Dimension) -> None:
    if isinstance(tried, Choice):
        words = [_word(value) for value in tried.values]
        name_ticks(axes, words)
        axes.set_xlim(-0.5, len(words) - 0.5)
        return
    if tried.log:
        axes.set_xscale("log")
        if tried.high / tried.low < 30:
            # Less than two powers of ten would leave one number on the axis.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        room = (tried.high / tried.low) ** 0.06
        axes.set_xlim(tried.low / room, tried.high * room)
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=tried.integer))
    room = 0.06 * (tried.high - tried.low)
    axes.set_xlim(tried.low - room, tried.high + room)
