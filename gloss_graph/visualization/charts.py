"""Document graphs and trainings in numbers: histograms, curves, bars, a matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import known_communities
from gloss_graph.visualization.layout import edge_list

_SIDE, _NAME = 5.4, 9.0  # of an adjacency matrix: inches, and points of a class name
_MOST = 14  # most classes in the table beside it
# From nearly white, so that no edge and few edges differ only in shade.
_COLORS = LinearSegmentedColormap.from_list(
    "links", ["#F7F8FA", "#BFD9EA", "#56B4E9", "#0072B2", "#22164F"]
)
# Losses of a history row: name in the legend, kind of line.
_LOSSES: dict[str, tuple[str, Any]] = {
    "loss": ("total loss", "solid"),
    "cross_entropy": ("cross-entropy", "dashed"),
    "graph_loss": ("graph loss", "dotted"),
    "consistency": ("consistency", "dashdot"),
    "contrast": ("contrast", (0, (1, 3))),
}
_SCORES = {"val_macro_f1": "macro-F1", "val_accuracy": "accuracy"}
_LONG = 100  # most points of a curve that is drawn as it is
# Of a legend under a chart: points, and length of a handle in units of these.
_LEGEND: dict[str, Any] = {"fontsize": 10.0, "handlelength": 2.6}
_WIDTH, _RUN = 10.0, 3.2  # inches of the picture of stages, and of the name of a run


def plot_degrees(
    graph: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    title: str = "Degrees and edge weights",
) -> Figure:
    """Draw the histograms of degrees and of edge weights, within and between classes.

    A long right tail of the degrees is hubness: a few documents are neighbors of very many. A good
    kernel gives edges between classes smaller weights than edges within classes. `label_names` are
    only checked, as the other pictures take them.

    Raises:
        ValueError: A directed graph, no document, or a damaged graph.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> figure = plot_degrees(Data(edge_index=edges, num_nodes=3))
        >>> figure.axes[0].get_title(loc="left").splitlines()[1]
        'mean 1.3 · median 1 · largest 2 · 0 isolated · skew 0.7'
    """
    documents = read_arrays(graph, label_names, allow_empty=False)
    degree = np.diff(documents.links.indptr)
    ends, weight = edge_list(documents.links)
    figure = style.new_figure(11.0, 4.4, title)
    left, right = figure.subplots(1, 2)
    style.tidy_axes(left, x="degree", y="documents")
    style.tidy_axes(right, x="weight", y="edges")
    for axes in (left, right):
        style.faint_grid(axes, "y")
    top, mean, median, spread = degree.max(), degree.mean(), np.median(degree), degree.std()
    width = max(1, -(-(top + 1) // 60))
    bars: dict[str, Any] = {"bins": np.arange(0, top + width + 1, width) - 0.5, "linewidth": 0.4}
    counts, _, _ = left.hist(degree, color=style.PALETTE[0], edgecolor="white", **bars)
    left.axvline(mean, color=style.INK, linewidth=1, linestyle="dashed")
    # Long tails would be invisible on a linear scale.
    if top > 4 * max(median, 1) and np.max(counts) > 50:
        left.set_yscale("log")
        left.set_ylim(bottom=0.7)
    left.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    facts = f"mean {mean:.1f} · median {median:.0f} · largest {top:,} · "
    facts += f"{int((degree == 0).sum()):,} isolated"
    if spread > 0 and degree.size > 2:
        facts += f" · skew {np.mean(((degree - mean) / spread) ** 3):.1f}"
    style.set_facts(left, f"Neighbors per document\n{facts}")
    facts = _draw_weights(right, weight, style.relations(documents.y[ends]))
    style.set_facts(right, f"Weight of an edge\n{facts}")
    return style.save_figure(figure, path)


def _draw_weights(axes: Axes, weight: np.ndarray, relation: np.ndarray) -> str:
    """Draw a histogram by kind of edge; return its facts."""
    if not weight.size:
        style.say_nothing(axes, "no edges")
        return "no edges"
    unlabeled = style.OPEN if relation.any() else style.PALETTE[0]
    kinds = (
        (1, style.PALETTE[0], "within a class"),
        (2, style.CONTRAST, "between classes"),
        (0, unlabeled, "with an unlabeled end"),
    )
    parts = {name: weight[relation == kind] for kind, _, name in kinds if kind in relation}
    low, high = float(weight.min()), float(weight.max())
    if high - low < 1e-9 * max(high, 1):
        low, high = low - 0.5, high + 0.5
    look: dict[str, Any] = {"bins": np.linspace(low, high, 51), "linewidth": 0.3}
    look["color"] = [color for _, color, name in kinds if name in parts]
    look["label"] = [f"{name} ({part.size:,})" for name, part in parts.items()]
    axes.hist(list(parts.values()), stacked=True, edgecolor="white", **look)
    low_y, high_y = axes.get_ylim()
    axes.set_ylim(low_y, high_y * (1.05 + 0.08 * len(parts)))
    axes.legend(loc="upper left", frameon=False, fontsize=9.5)
    return " · ".join(f"mean {part.mean():.2f} {name}" for name, part in parts.items())


class Reach(NamedTuple):
    """Shares of the documents within 0..H hops of a visible label.

    `any_label` (H+1,), of a label of any class; `every_class` (H+1,), of a label of every class;
    `by_class`, class number -> (H+1,). All zeros without a visible label.
    """

    any_label: np.ndarray
    every_class: np.ndarray
    by_class: dict[int, np.ndarray]


def reach_curves(graph: Data | GraphArrays, *, max_hops: int = 10) -> Reach:
    """Share of the documents within h hops of a visible label, for h = 0, 1, ...

    Labels outside `seed_mask` are not visible; labeled documents are reached at 0 hops. The curves
    end before `max_hops` when they stop rising.

    Raises:
        ValueError: A directed graph, no document, or a damaged graph.

    Cost: O(hops · E · C).

    Example:
        >>> import torch
        >>> chain = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> reach_curves(Data(edge_index=chain, y=torch.tensor([0, -1, 1]))).every_class.round(2)
        array([0.  , 0.33, 1.  ])
    """
    check_positive_int("max_hops", max_hops)
    documents = graph if isinstance(graph, GraphArrays) else read_arrays(graph, allow_empty=False)
    classes = np.unique(documents.y[documents.seeds])
    near = (documents.y[:, None] == classes) & documents.seeds[:, None]
    links = documents.links.astype(np.float32)
    links.data[:] = 1
    rounds = [near]
    while classes.size and len(rounds) <= max_hops:
        more = near | (links @ near.astype(np.float32) > 0)
        if (more == near).all():
            break
        rounds.append(near := more)
    any_label = np.array([reached.any(axis=1).mean() for reached in rounds])
    every = np.array([reached.all(axis=1).mean() if classes.size else 0.0 for reached in rounds])
    shares = np.array([reached.mean(axis=0) for reached in rounds])
    by_class = {int(label): shares[:, i] for i, label in enumerate(classes)}
    return Reach(any_label, every, by_class)


def plot_reach(
    graph: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    max_hops: int = 10,
    title: str = "How far labels reach",
) -> Figure:
    """Draw the share of documents within h hops of a visible label.

    The solid line counts labels of any class; the dashed one requires a label of every class, which
    propagation needs to weigh all classes. A class whose line stays low is cut off. Labels outside
    `seed_mask` are not visible.

    Raises:
        ValueError: A directed graph, no document, no visible label, or a damaged graph.

    Example:
        >>> import torch
        >>> chain = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> figure = plot_reach(Data(edge_index=chain, y=torch.tensor([0, -1, 1])))
        >>> [text.get_text() for text in figure.legends[0].get_texts()][:2]
        ['a label of any class', 'a label of every class']
    """
    documents = read_arrays(graph, label_names, allow_empty=False)
    curves = reach_curves(documents, max_hops=max_hops)
    if not curves.by_class:
        raise ValueError(
            "'graph' must hold a visible label (got none). Set 'y' (and 'seed_mask') first."
        )
    hops = np.arange(len(curves.any_label))
    figure = style.new_figure(9.2, 4.8, title)
    axes = figure.add_subplot()
    style.tidy_axes(axes, x="hops from a label", y="documents reached, %")
    entries: list[style.Entry] = []
    for values, dash, name in (
        (curves.any_label, "solid", "a label of any class"),
        (curves.every_class, "dashed", "a label of every class"),
    ):
        look: dict[str, Any] = {"linewidth": 2.4, "linestyle": dash, "zorder": 3}
        entries.append((axes.plot(hops, 100 * values, color=style.INK, **look)[0], name))
    for look_of in style.class_looks(np.where(documents.seeds, documents.y, -1), documents.names):
        if look_of.hollow:
            continue
        look = {"color": look_of.color, "marker": look_of.marker, "markersize": 4.5}
        for label in np.unique(documents.y[look_of.members]).tolist():
            values = 100 * curves.by_class[label]
            line = axes.plot(hops, values, linewidth=1.4, alpha=0.9, zorder=2, **look)[0]
        count = int(look_of.members.sum())
        entries.append((line, f"{look_of.name} ({count:,} label{'s' * (count != 1)})"))
    axes.set(ylim=(-2, 103), xlim=(-0.1, max(len(hops) - 1, 1) + 0.1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    style.faint_grid(axes)
    facts = (
        f"{documents.size:,} documents, {int(documents.seeds.sum()):,} visible labels\n"
        f"after {len(hops) - 1} hops {100 * curves.any_label[-1]:.1f} % reach a label, "
        f"{100 * curves.every_class[-1]:.1f} % one of every class"
    )
    style.set_facts(axes, facts)
    legend = style.legend_beside(figure, entries, title="within h hops of")
    legend.get_title().set(size=9.5, weight="bold")
    return style.save_figure(figure, path)


def plot_adjacency(
    graph: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    within: str = "community",
    communities: np.ndarray | None = None,
    bins: int = 400,
    seed: int = 0,
    title: str = "Who is linked to whom",
) -> Figure:
    """Draw the adjacency matrix with documents sorted by class, and the classes' links in numbers.

    Blocks on the diagonal are links within a class; bright spots off the diagonal are classes that
    are confused. The table on the right has a row per class: the share of its edge weight that
    leads to every class. Within a class documents are sorted by `"community"` (Louvain, or the
    known `communities` (N,)) or by `"degree"`, largest first. With more documents than `bins`,
    neighboring rows share a cell, which shows their mean.

    Raises:
        ValueError: A directed graph, no document, a damaged graph, communities of another shape,
            or a setting out of range.

    Cost: O(E + bins²), and the communities.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> figure = plot_adjacency(Data(edge_index=edges, y=torch.tensor([0, 1, 1, 1])))
        >>> [text.get_text() for text in figure.axes[1].texts]
        ['0', '100', '33', '67']
    """
    check_choice("within", within, ("community", "degree"))
    check_positive_int("bins", bins)
    documents = read_arrays(graph, label_names, allow_empty=False)
    size, links = documents.size, documents.links
    second = -np.diff(links.indptr)
    if within == "community":
        second = known_communities(links, communities, seed)
    # Unlabeled documents come last.
    classes = np.where(documents.y < 0, np.iinfo(np.int64).max, documents.y)
    order = np.lexsort((np.arange(size), second, classes))
    _, starts, place = np.unique(classes[order], return_index=True, return_inverse=True)
    labels = documents.y[order[starts]].tolist()
    names = ["unlabeled" if c < 0 else style.short_name(c, documents.names) for c in labels]

    few = len(names) <= _MOST
    figure = style.new_figure(_SIDE + (_SIDE if few else 1.2) + 1.6, _SIDE + 1.2, title)
    panels = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    cells, groups = np.empty((2, size), dtype=np.int64)
    cells[order], groups[order] = np.arange(size) * min(bins, size) // size, place
    members = np.bincount(cells)
    mean = _sums(links, cells) / np.outer(members, members)
    top = float(np.quantile(mean[mean > 0], 0.995)) if (mean > 0).any() else 1.0
    shape: dict[str, Any] = {"extent": (0, size, size, 0), "interpolation": "nearest"}
    colors = PowerNorm(0.5, 0, top, clip=True)
    image = panels[0].imshow(np.ma.masked_equal(mean, 0), cmap=_COLORS, norm=colors, **shape)
    panels[0].spines[:].set(color="#D5D9DE", linewidth=0.8)
    shape = {"location": "bottom", "shrink": 0.5, "aspect": 30, "pad": 0.02}
    bar = figure.colorbar(image, ax=panels[0], **shape)
    style.tidy_colorbar(bar, "mean edge weight", 9.5, labelsize=8.5, length=2)
    ticks = [0, top / 10, top / 3, top]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    # Names need room for a line of type.
    room, borders = size * _NAME * 1.1 / (72 * _SIDE * 0.85), [*starts.tolist(), size]
    line: dict[str, Any] = {"color": style.GREY, "linewidth": 0.4}
    style.part_classes(panels[0], names, borders, size=_NAME, room=room, **line)
    each = -(-size // min(bins, size))
    cell = "a cell is a pair of documents"
    if each > 1:
        cell = f"a cell is about {each} × {each} documents, its color their mean edge weight"
    style.set_facts(panels[0], f"{size:,} documents, sorted by class and {within}\n{cell}")
    if few:
        _draw_shares(panels[1], _sums(links, groups), names)
    return style.save_figure(figure, path)


def _sums(links: sparse.csr_array, groups: np.ndarray) -> np.ndarray:
    """Weight (G, G) between groups of documents."""
    entries, count = links.tocoo(), int(groups.max()) + 1
    pairs = groups[entries.row] * count + groups[entries.col]
    return np.bincount(pairs, entries.data, count * count).reshape(count, count)


def _draw_shares(axes: Axes, sums: np.ndarray, names: list[str]) -> None:
    """Share of every class's edge weight that leads to every class, in percent."""
    total = sums.sum(axis=1, keepdims=True)
    share = 100 * sums / np.where(total > 0, total, 1)
    axes.imshow(share, cmap=_COLORS, vmin=0, vmax=110)
    for i, j in np.ndindex(share.shape):
        color = "white" if share[i, j] > 55 else style.INK
        text = "–" if total[i, 0] == 0 else f"{share[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    ticks = range(len(names))
    look: dict[str, Any] = {"parse_math": False, "fontsize": _NAME, "color": style.INK}
    axes.set_yticks(ticks, names, **look)
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **look)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    style.set_facts(axes, "Where a class's edges lead\nshare of the row's edge weight, %")


def plot_training(history: Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw losses and validation scores of one or several runs over their steps.

    Runs differ in color, losses in line style. A curve of more than 100 points becomes its running
    mean, over the faint points of the total loss. The score is macro-F1, or accuracy if no run
    logged macro-F1; a star marks the best value, which the legend names. A side without numbers is
    left out.

    `history` maps the name of each run to its rows, dicts or a `pandas.DataFrame`, with any of
    `step`, `loss`, `cross_entropy`, `graph_loss`, `consistency`, `contrast`, `val_macro_f1`,
    `val_accuracy`. Missing values, None and NaN are skipped; rows without `step` count from 0.

    Raises:
        ValueError: No run, or a run that is not rows with numbers.

    Example:
        >>> rows = [{"step": 0, "loss": 2.0}, {"step": 10, "loss": 1.0, "val_macro_f1": 0.5}]
        >>> [axes.get_title(loc="left") for axes in plot_training({"gloss": rows}).axes]
        ['Training loss', 'Validation macro-F1']
    """
    if not history:
        raise ValueError("'history' must hold at least one run (got none). Train one first.")
    runs = {str(name): _curves(str(name), rows) for name, rows in history.items()}
    logged = {key for curves in runs.values() for key in curves}
    known = [key for key in _LOSSES if key in logged]
    score = next((key for key in _SCORES if key in logged), "")

    sides = [("Training loss", "loss")] if known or not score else []
    if score:
        sides.append((f"Validation {_SCORES[score]}", _SCORES[score]))
    figure = style.new_figure(11.5 if len(sides) == 2 else 8.0, 4.8 + 0.2 * len(runs))
    panels = figure.subplots(1, len(sides), squeeze=False)[0]
    for axes, (title, side) in zip(panels, sides, strict=True):
        style.tidy_axes(axes, title=title, x="step", y=side)
    entries: list[style.Entry] = []
    for i, (name, curves) in enumerate(runs.items()):
        # Yellow, the last of the palette, is too weak for a line.
        color = style.PALETTE[i % (len(style.PALETTE) - 1)]
        for place, key in enumerate(key for key in known if key in curves):
            step, value = curves[key]
            look: dict[str, Any] = {"linewidth": 1.3 if place else 2.0, "ls": _LOSSES[key][1]}
            if value.size > _LONG:
                if place == 0:
                    panels[0].plot(step, value, color=color, linewidth=0.6, alpha=0.25)
                window = 2 * (value.size // 50) + 1
                near = pd.Series(value).rolling(window, center=True, min_periods=1)
                value = near.mean().to_numpy()
            panels[0].plot(step, value, color=color, **look)
        text = name
        if score in curves:
            panels[-1].plot(*curves[score], "o-", color=color, linewidth=1.8, markersize=3.5)
            step, value = curves[score][:, curves[score][1].argmax()]
            look = {"markersize": 14, "markeredgecolor": style.INK, "zorder": 5}
            panels[-1].plot(step, value, "*", color=color, **look)
            text += f"  ★ {value:.3f} at step {step:,.0f}"
        entries.append((Line2D([], [], color=color, linewidth=3), text))
    looks = [_LOSSES[key] for key in known if known != ["loss"]]
    kinds = [
        (Line2D([], [], color=style.INK, linewidth=1.6, ls=look), name) for name, look in looks
    ]
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        style.faint_grid(axes)
        if not logged:
            style.say_nothing(axes, "nothing logged")
    widths = [style.text_width(name, _LEGEND["fontsize"]) for _, name in kinds]
    beside, left = max(widths, default=0.0) + 1.0, "outside lower left"
    room = figure.get_figwidth() - 0.4 - beside
    style.add_legend(figure, entries, room=room, loc=left, **_LEGEND)
    if kinds:
        style.add_legend(figure, kinds, room=beside, loc="outside lower right", **_LEGEND)
    return style.save_figure(figure, path)


def _curves(name: str, rows: Any) -> dict[str, np.ndarray]:
    """Steps and values (2, n) of the known columns of one run, without gaps."""
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
    return {key: np.array(sorted(found)).T for key, found in points.items()}


def _number(value: Any, run: str, key: str) -> float:
    """A float, NaN for empty and infinite entries."""
    try:
        number = math.nan if value is None or value == "" else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"'history' must hold numbers (got {value!r} for {key!r} of run {run!r})."
        ) from error
    return number if math.isfinite(number) else math.nan


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

    room, type_size, handle = _WIDTH - 0.4, _LEGEND["fontsize"], _LEGEND["handlelength"]
    columns = style.legend_columns(stages, room, 4, type_size, handle=handle)
    lines = math.ceil(len(stages) / columns)
    figure = style.new_figure(_WIDTH, 1.9 + 0.55 * len(seconds) + 0.25 * lines)
    axes = figure.add_subplot()
    style.tidy_axes(axes, title="Where the time goes", x="share of the time of a run, %")
    start = np.zeros(len(seconds))
    entries: list[style.Entry] = []
    rows = np.arange(len(seconds))
    for j, stage in enumerate(stages):
        # Beyond the palette its colors return hatched.
        color = style.PALETTE[j % len(style.PALETTE)]
        hatch = ("", "////", "....")[min(j // len(style.PALETTE), 2)]
        look: dict[str, Any] = {"facecolor": color, "hatch": hatch, "edgecolor": "white"}
        axes.barh(rows, share[:, j], left=start, height=0.62, linewidth=0.8, **look)
        bright = np.dot(to_rgb(color), (0.299, 0.587, 0.114)) >= 0.55
        ink, back = style.INK if bright else "white", {"facecolor": color, "edgecolor": "none"}
        for i in np.flatnonzero(share[:, j] >= 4).tolist():
            text = axes.text(start[i] + share[i, j] / 2, i, f"{share[i, j]:.0f} %", color=ink)
            text.set(ha="center", va="center", fontsize=9.5, bbox={**back, "pad": 1.5})
        start += share[:, j]
        entries.append((Patch(**look), stage))
    for i, took in enumerate(total.tolist()):
        told = f"{took:.2f} s" if took >= 1 else f"{1000 * took:.3g} ms"
        told = f"{took / 60:.1f} min" if took >= 120 else told
        axes.text(101, i, told, va="center", fontsize=10, color=style.INK)
    names = [style.shortened(str(run), 10.5, _RUN) for run in seconds]
    axes.set_yticks(rows, names, fontsize=10.5, parse_math=False)
    axes.set(xlim=(0, 100), ylim=(len(seconds) - 0.5, -0.5))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    left = "outside lower left"
    style.add_legend(figure, entries, room=room, columns=columns, loc=left, **_LEGEND)
    return style.save_figure(figure, path)
