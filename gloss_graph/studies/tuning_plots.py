"""Pictures of a search for settings: its course, what mattered, and where the good values lie."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gloss_graph._internal.search_space import Choice, Dimension
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

__all__ = ["plot_importance", "plot_slices", "plot_tuning"]

_COLUMNS = 4
_NAME = 3.2  # inches of the name of a setting


def plot_tuning(
    trials: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    metric: str = "val.macro_f1",
) -> Figure:
    """Draw the score of every trial in their order, and the best so far.

    Args:
        trials: with columns ``number``, ``state`` (``complete``, ``pruned``, ...) and ``value``;
            trials without a value are left out.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        metric: name of the score.

    Returns:
        The figure. Pruned trials stand at the score they were stopped with.

    Raises:
        ValueError: if no trial has a value.

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
    axes.plot(pruned["number"], pruned["value"], "x", color=GREY, label="pruned", markersize=6)
    axes.plot(
        complete["number"], complete["value"], "o", color=PALETTE[0], label="complete", markersize=6
    )
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
    """Draw the scores over the values of each setting, one panel a setting.

    Args:
        trials: as for ``plot_tuning``, with a column for each setting.
        space: setting -> what was tried; its scale is the panel's.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        metric: name of the score.

    Returns:
        The figure; the best trial wears a star in every panel, later trials are darker.

    Raises:
        ValueError: if no trial has a value, or there is no setting.

    See also: ``plot_importance``, for how much each setting matters.
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
    best = None if complete.empty else complete.loc[complete["value"].idxmax()]
    for i, (name, tried) in enumerate(space.items()):
        axes = panels.flat[i]
        tidy_axes(axes, title="", x=name, y=metric if i % columns == 0 else "")
        faint_grid(axes)
        _scale(axes, tried)
        axes.plot(_places(pruned[name], tried), pruned["value"], "x", color=GREY, markersize=5)
        axes.scatter(
            _places(complete[name], tried),
            complete["value"],
            c=np.linspace(0.35, 1.0, len(complete)),
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            edgecolors="white",
            linewidths=0.5,
            s=42,
        )
        if best is not None:
            place = _places(pd.Series([best[name]]), tried)
            axes.plot(place, [best["value"]], "*", color=CONTRAST, markersize=15)
    figure.suptitle(
        "Score by setting: dots complete (dark = late), crosses pruned, star best",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
        color=INK,
    )
    return save_figure(figure, path)


def plot_importance(
    importance: Mapping[str, float],
    path: str | os.PathLike[str] | None = None,
    *,
    trials: int,
) -> Figure:
    """Draw the share of the spread of scores that each setting explains.

    Args:
        importance: setting -> share; shares sum to 1.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        trials: number of complete trials behind the shares; few say little.

    Returns:
        The figure, the most important setting on top.

    Raises:
        ValueError: if there is no setting.

    Example:
        >>> figure = plot_importance({"k": 0.25, "bandwidth": 0.75}, trials=20)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25 %', '75 %']
    """
    if not importance:
        raise ValueError("'importance' must hold a setting (got none). Run two trials or more.")
    ordered = sorted(importance.items(), key=lambda item: item[1])
    names, shares = [name for name, _ in ordered], [100 * share for _, share in ordered]
    figure = new_figure(8.0, 1.6 + 0.42 * len(names))
    axes = figure.add_subplot()
    tidy_axes(
        axes,
        title=f"Which settings mattered (fANOVA, {trials} complete trials)",
        x="share of the spread of scores, %",
        y="",
    )
    names = [shortened(name, 10, _NAME) for name in names]
    bars = axes.barh(range(len(names)), shares, color=PALETTE[0], height=0.6)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    labels = [f"{share:.0f} %" for share in shares]
    axes.bar_label(bars, labels=labels, padding=4, fontsize=10, color=INK)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.tick_params(axis="y", length=0)
    return save_figure(figure, path)


def _scored(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    scored = trials[trials["value"].notna()].sort_values("number")
    complete = scored[scored["state"] == "complete"]
    pruned = scored[scored["state"] == "pruned"]
    if complete.empty and pruned.empty:
        raise ValueError("'trials' must hold one with a value (got none). Run one first.")
    return complete, pruned


def _places(values: pd.Series, tried: Dimension) -> list[float]:
    """Where values stand on the axis: themselves, or the place in the list of choices."""
    if isinstance(tried, Choice):
        # Read back from a CSV, None is NaN and numbers are of another type.
        order = [_word(value) for value in tried.values]
        return [float(order.index(_word(value))) for value in values]
    return [float(value) for value in values]


def _word(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "None"
    if isinstance(value, float | np.floating | np.integer) and not isinstance(value, bool):
        return f"{float(value):g}"
    return f"{value:g}" if type(value) is int else str(value)


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
