"""Pictures of a training: its curves, where its time went, the similarities in a batch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.functional import normalize

from gloss_graph._internal.checks import check_matrix
from gloss_graph.visualization import style

# Losses of a history row: name in the legend, kind of line.
_LOSSES: dict[str, tuple[str, Any]] = {
    "loss": ("total loss", "solid"),
    "cross_entropy": ("cross-entropy", "dashed"),
    "graph_loss": ("graph loss", "dotted"),
    "consistency": ("consistency", "dashdot"),
    "contrast": ("contrast", (0, (1, 3))),
}
_SCORES = {"val_macro_f1": "macro-F1", "val_accuracy": "accuracy"}
_LONG = 100
_TYPE, _HANDLE = 10.0, 2.6  # of a legend: points, and length of a handle in units of these
_WIDTH = 10.0  # inches of the picture of stages
_RUN = 3.2  # inches of the name of a run
_COLUMNS, _PANEL, _SMALL = 3, 3.3, 7.5  # of similarities: panels per row, inches, points


def plot_training(history: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw losses and validation scores of one or several runs over their steps.

    Runs differ in color, losses in line style. A curve of more than 100 points becomes its running
    mean, over the faint points of the total loss. The score is macro-F1, or accuracy if no run
    logged macro-F1; a star marks the best value, which the legend names. A side without numbers is
    left out.

    `history` maps the name of each run to its rows, dicts or a `pandas.DataFrame`, with any of
    `step`, `loss`, `cross_entropy`, `graph_loss`, `consistency`, `contrast`,
    `val_macro_f1`, `val_accuracy`.
    Missing values, None and NaN are skipped; rows without `step` count from 0.

    Raises:
        ValueError: No run, or a run that is not rows with numbers.

    Example:
        >>> rows = [{"step": 0, "loss": 2.0}, {"step": 10, "loss": 1.0, "val_macro_f1": 0.5}]
        >>> [axes.get_title(loc="left") for axes in plot_training({"gloss": rows}).axes]
        ['Training loss', 'Validation macro-F1']

    See also: `plot_stage_times`, for the seconds of these steps.
    """
    if not history:
        raise ValueError("'history' must hold at least one run (got none). Train one first.")
    runs = {str(name): _curves(str(name), rows) for name, rows in history.items()}
    scores = [key for key in _SCORES if any(key in curves for curves in runs.values())]
    score = scores[0] if scores else "val_macro_f1"

    known = [key for key in _LOSSES if any(key in curves for curves in runs.values())]
    sides = [side for side, keys in (("loss", known), ("score", scores)) if keys] or ["loss"]
    figure = style.new_figure(11.5 if len(sides) == 2 else 8.0, 4.8 + 0.2 * len(runs))
    panels = dict(zip(sides, figure.subplots(1, len(sides), squeeze=False)[0], strict=True))
    titles = {"loss": ("Training loss", "loss")}
    titles["score"] = (f"Validation {_SCORES[score]}", _SCORES[score])
    for side, axes in panels.items():
        title, name = titles[side]
        style.tidy_axes(axes, title=title, x="step", y=name)
    entries: list[style.Entry] = []
    for i, (name, curves) in enumerate(runs.items()):
        # Yellow, the last of the palette, is too weak for a line.
        color = style.PALETTE[i % (len(style.PALETTE) - 1)]
        keys = [key for key in _LOSSES if key in curves]
        for key in keys:
            leading = key == keys[0]
            _draw_loss(panels["loss"], curves[key], color, _LOSSES[key][1], leading=leading)
        text = name
        if score in curves:
            text += "  " + _draw_score(panels["score"], curves[score], color)
        entries.append((Line2D([], [], color=color, linewidth=3), text))
    looks = [_LOSSES[key] for key in known if known != ["loss"]]
    kinds = [
        (Line2D([], [], color=style.INK, linewidth=1.6, ls=look), name) for name, look in looks
    ]
    for axes in panels.values():
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        style.faint_grid(axes)
        if not known and not scores:
            axes.text(
                0.5, 0.5, "nothing logged", ha="center", color=style.GREY, transform=axes.transAxes
            )
    room = figure.get_figwidth() - 0.4
    beside = max((style.text_width(name, _TYPE) for _, name in kinds), default=0.0) + 1.0
    _legend_below(figure, entries, "left", room=room - beside)
    if kinds:
        _legend_below(figure, kinds, "right", room=beside)
    return style.save_figure(figure, path)


def plot_stage_times(
    seconds: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw the share of the time that each stage of a step took, per run.

    `seconds` maps the name of each run to its stages, in the order of the step, and their seconds.
    A run is a bar with its total, and shares of 4 % and more written inside.

    Raises:
        ValueError: No run or no stage, or a time that is negative or not finite.

    Example:
        >>> figure = plot_stage_times({"gloss": {"encoder": 3.0, "search": 1.0}})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['75 %', '25 %', '4.00 s']

    See also: `plot_training`, for losses and scores.
    """
    stages: list[str] = []
    for row in seconds.values():
        place = 0
        for stage in map(str, row):
            if stage not in stages:
                stages.insert(place, stage)  # after the stage that it follows in its run
            place = stages.index(stage) + 1
    if not stages:
        raise ValueError("'seconds' must hold a run with a stage (got none). Time one first.")
    table = np.zeros((len(seconds), len(stages)))
    for i, (run, row) in enumerate(seconds.items()):
        for stage, value in row.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"'seconds' must be finite and at least 0 (got {value} for stage {stage!r} "
                    f"of run {run!r})."
                )
            table[i, stages.index(str(stage))] += value
    total = table.sum(axis=1)
    share = 100 * table / np.where(total > 0, total, 1)[:, None]

    columns = style.legend_columns(stages, _WIDTH - 0.4, 4, _TYPE, handle=_HANDLE)
    lines = math.ceil(len(stages) / columns)
    figure = style.new_figure(_WIDTH, 1.9 + 0.55 * len(seconds) + 0.25 * lines)
    axes = figure.add_subplot()
    style.tidy_axes(axes, title="Where the time goes", x="share of the time of a run, %", y="")
    start = np.zeros(len(seconds))
    entries: list[style.Entry] = []
    rows = np.arange(len(seconds))
    for j, stage in enumerate(stages):
        # Beyond the palette its colors return hatched.
        color = style.PALETTE[j % len(style.PALETTE)]
        hatch = ("", "////", "....")[min(j // len(style.PALETTE), 2)]
        look: dict[str, Any] = {"facecolor": color, "hatch": hatch, "edgecolor": "white"}
        axes.barh(rows, share[:, j], left=start, height=0.62, linewidth=0.8, **look)
        red, green, blue = to_rgb(color)
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else style.INK
        back = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
        for i in np.flatnonzero(share[:, j] >= 4).tolist():
            text = axes.text(start[i] + share[i, j] / 2, i, f"{share[i, j]:.0f} %", color=ink)
            text.set(ha="center", va="center", fontsize=9.5, bbox=back)
        start += share[:, j]
        entries.append((Patch(**look), stage))
    for i in rows.tolist():
        axes.text(101, i, _duration(total[i]), va="center", fontsize=10, color=style.INK)
    names = [style.shortened(str(run), 10.5, _RUN) for run in seconds]
    axes.set_yticks(rows, names, fontsize=10.5, parse_math=False)
    axes.set(xlim=(0, 100), ylim=(len(seconds) - 0.5, -0.5))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _legend_below(figure, entries, "left", room=_WIDTH - 0.4, columns=columns)
    return style.save_figure(figure, path)


class _Curve(NamedTuple):
    """Values over steps, (n,) each, without gaps."""

    step: np.ndarray
    value: np.ndarray


def _curves(name: str, rows: Any) -> dict[str, _Curve]:
    """Read the known columns of one run."""
    if hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    points: dict[str, list[tuple[float, float]]] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"'history' must map runs to rows, dicts or a DataFrame (got "
                f"{type(row).__name__} in run {name!r}). Pass {{'name': rows}}."
            )
        step = _number(row.get("step"), name, "step")
        for key in (*_LOSSES, *_SCORES):
            value = _number(row.get(key), name, key)
            if not math.isnan(value):
                points.setdefault(key, []).append((i if math.isnan(step) else step, value))
    return {key: _Curve(*np.array(sorted(found)).T) for key, found in points.items()}


def _number(value: Any, run: str, key: str) -> float:
    """A float, NaN for empty and infinite entries."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'history' must hold numbers (got {value!r} for {key!r} of run {run!r})."
        ) from error
    return number if math.isfinite(number) else math.nan


def _draw_loss(axes: Axes, curve: _Curve, color: str, dash: str, *, leading: bool) -> None:
    value, size = curve.value, len(curve.value)
    if size > _LONG:
        if leading:
            axes.plot(*curve, color=color, linewidth=0.6, alpha=0.25)
        near = pd.Series(value).rolling(2 * (size // 50) + 1, center=True, min_periods=1)
        value = near.mean().to_numpy()
    width = 2.0 if leading else 1.3
    axes.plot(curve.step, value, color=color, linewidth=width, linestyle=dash)


def _draw_score(axes: Axes, curve: _Curve, color: str) -> str:
    """Draw a score with a star at its best value; return the words for the legend."""
    axes.plot(*curve, color=color, linewidth=1.8, marker="o", markersize=3.5)
    best = int(np.argmax(curve.value))
    step, value = curve.step[best], curve.value[best]
    axes.plot(
        step, value, color=color, marker="*", markersize=14, markeredgecolor=style.INK, zorder=5
    )
    return f"★ {value:.3f} at step {step:,.0f}"


def _legend_below(
    figure: Figure, entries: list[style.Entry], side: str, *, room: float, columns: int = 1
) -> None:
    style.add_legend(
        figure,
        entries,
        room=room,
        columns=columns,
        loc=f"outside lower {side}",
        fontsize=_TYPE,
        handlelength=_HANDLE,
    )


def _duration(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def plot_similarities(
    moments: Mapping[str, Tensor],
    labels: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    title: str = "Similarity within one batch",
) -> Figure:
    r"""Draw the cosine similarities of a batch at several moments, documents sorted by class.

    White lines separate the classes; blocks on the diagonal that brighten while the rest darkens
    are classes that come together. All panels share one color scale; their headings give the mean
    similarities within and between classes (of different documents).

    `moments` are names, in order of time, with embeddings (B, D) of the same documents in the same
    order. Unlabeled documents (-1) are a separate block, in neither mean. Classes too thin for a
    line of type have no name.

    Raises:
        ValueError: No moment or document, shapes that disagree, rows that are not finite, or a
            class without a name.

    Example:
        >>> x = torch.eye(4)[[0, 0, 1, 1]]
        >>> figure = plot_similarities({"start": x, "end": x}, torch.tensor([0, 0, 1, 1]))
        >>> figure.axes[0].get_title(loc="left")
        'start\nwithin classes 1.00 · between 0.00'

    See also: `plot_embeddings`, for more documents at two moments.
    """
    if not moments:
        raise ValueError("'moments' must hold at least one (got none). Encode the batch once.")
    for name, rows in moments.items():
        check_matrix(f"moments[{name!r}]", rows)
    sizes = [rows.size(0) for rows in moments.values()]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(
            f"'moments' must hold the same documents, at least one (got {sizes}). Encode one batch "
            "at every moment."
        )
    classes = style.checked_labels(labels, sizes[0], label_names)
    # Unlabeled documents come last.
    order = np.argsort(np.where(classes < 0, classes.max() + 1, classes), kind="stable")
    sorted_classes = classes[order]
    tables = []
    for rows in moments.values():
        unit = normalize(rows.detach().cpu().double(), dim=1)[torch.from_numpy(order)]
        tables.append((unit @ unit.T).numpy().clip(-1, 1))
    low = min(float(table.min()) for table in tables)

    columns = min(_COLUMNS, len(tables))
    lines = math.ceil(len(tables) / columns)
    width = max(columns * (_PANEL + 0.15) + 2.2, 7.0)
    figure = style.new_figure(width, lines * (_PANEL + 0.6) + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, (axes, table, name) in enumerate(zip(panels, tables, moments, strict=False)):
        picture = axes.imshow(
            table, vmin=min(low, 0.9), vmax=1.0, cmap="viridis", interpolation="nearest"
        )
        _part_classes(axes, sorted_classes, label_names, named=place % columns == 0)
        style.set_facts(axes, f"{name}\n{_means(table, sorted_classes)}", 10)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.75, aspect=30, pad=0.02)
    bar.set_label("cosine similarity", fontsize=10.5, color=style.INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=style.INK, length=3)
    style.set_heading(figure, title)
    return style.save_figure(figure, path)


def _part_classes(
    axes: Axes, classes: np.ndarray, label_names: Sequence[str] | None, *, named: bool
) -> None:
    """Draw lines between classes and, if `named`, the names of those that are wide enough."""
    starts = np.flatnonzero(np.diff(classes, prepend=classes[0] - 1))
    ends = np.append(starts[1:], classes.size)
    width = 0.8 if starts.size <= 12 else 0.4
    for border in starts[1:] - 0.5:
        axes.axhline(border, color="white", linewidth=width)
        axes.axvline(border, color="white", linewidth=width)
    point = 72 * _PANEL / classes.size
    ticks = [
        ((start + end - 1) / 2, classes[start])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if (end - start) * point >= _SMALL
    ]
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    if not named:
        axes.set_yticks([])
        return
    words = ["unlabeled" if c < 0 else style.short_name(int(c), label_names) for _, c in ticks]
    axes.set_yticks([place for place, _ in ticks], words, fontsize=_SMALL, parse_math=False)
    axes.tick_params(length=0, colors=style.INK)


def _means(table: np.ndarray, classes: np.ndarray) -> str:
    """Mean similarity of pairs within and between classes, in words."""
    known = classes >= 0
    pair = known[:, None] & known[None, :] & ~np.eye(classes.size, dtype=bool)
    same = classes[:, None] == classes[None, :]
    found = [
        # Plus zero avoids "-0.00".
        f"{word} {round(float(table[mask].mean()), 2) + 0.0:.2f}"
        for word, mask in (("within classes", pair & same), ("between", pair & ~same))
        if mask.any()
    ]
    return " · ".join(found) or "a single document"
