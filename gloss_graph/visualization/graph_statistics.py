"""A document graph in numbers: degrees, edge weights, distance to labels, links of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import known_communities, relations

_OPEN = "#C9CDD2"
_SIDE, _TYPE = 5.4, 9.0  # of an adjacency matrix: inches, and points of a class name
_MOST = 14  # most classes in the table on the right
_NAMES: dict[str, Any] = {"parse_math": False, "fontsize": _TYPE, "color": style.INK}
# From nearly white, so that no edge and few edges differ only in shade.
_COLORS = LinearSegmentedColormap.from_list(
    "links", ["#F7F8FA", "#BFD9EA", "#56B4E9", "#0072B2", "#22164F"]
)


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

    See also: `plot_adjacency`, for the classes that edges join.
    """
    documents = read_arrays(graph, label_names, allow_empty=False)
    degree = np.diff(documents.links.indptr)
    entries = documents.links.tocoo()
    one_way = entries.row < entries.col
    weight = entries.data[one_way]
    ends = documents.y[np.stack([entries.row, entries.col], axis=1)[one_way]]

    figure = style.new_figure(11.0, 4.4)
    left, right = figure.subplots(1, 2)
    style.tidy_axes(left, title="", x="degree", y="documents")
    style.tidy_axes(right, title="", x="weight", y="edges")
    style.set_facts(left, f"Neighbors per document\n{_draw_degrees(left, degree)}")
    style.set_facts(right, f"Weight of an edge\n{_draw_weights(right, weight, ends)}")
    for axes in (left, right):
        style.faint_grid(axes, "y")
    style.set_heading(figure, title)
    return style.save_figure(figure, path)


def _draw_degrees(axes: Axes, degree: np.ndarray) -> str:
    """Draw a histogram; return its facts."""
    top = int(degree.max())
    width = max(1, -(-(top + 1) // 60))
    edges = np.arange(0, top + width + 1, width) - 0.5
    counts, _, _ = axes.hist(
        degree, bins=edges.tolist(), color=style.PALETTE[0], edgecolor="white", linewidth=0.4
    )
    mean, spread = degree.mean(), degree.std()
    axes.axvline(mean, color=style.INK, linewidth=1, linestyle="dashed")
    # Long tails would be invisible on a linear scale.
    if top > 4 * max(np.median(degree), 1) and np.max(counts) > 50:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    facts = f"mean {mean:.1f} · median {np.median(degree):.0f} · largest {top:,} · "
    facts += f"{int((degree == 0).sum()):,} isolated"
    if spread > 0 and degree.size > 2:
        facts += f" · skew {np.mean(((degree - mean) / spread) ** 3):.1f}"
    return facts


def _draw_weights(axes: Axes, weight: np.ndarray, ends: np.ndarray) -> str:
    """Draw a histogram by kind of edge; return its facts."""
    if not weight.size:
        axes.text(0.5, 0.5, "no edges", ha="center", color=style.GREY, transform=axes.transAxes)
        return "no edges"
    relation = relations(ends)
    labeled = bool((relation > 0).any())
    kinds = [
        (relation == 1, style.PALETTE[0], "within a class"),
        (relation == 2, style.CONTRAST, "between classes"),
        (relation == 0, _OPEN if labeled else style.PALETTE[0], "with an unlabeled end"),
    ]
    low, high = float(weight.min()), float(weight.max())
    if high - low < 1e-9 * max(high, 1):
        low, high = low - 0.5, high + 0.5
    shown = [kind for kind in kinds if kind[0].any()]
    axes.hist(
        [weight[mask] for mask, _, _ in shown],
        bins=np.linspace(low, high, 51).tolist(),
        stacked=True,
        color=[color for _, color, _ in shown],
        label=[f"{name} ({int(mask.sum()):,})" for mask, _, name in shown],
        edgecolor="white",
        linewidth=0.3,
    )
    low_y, high_y = axes.get_ylim()
    axes.set_ylim(low_y, high_y * (1.05 + 0.08 * len(shown)))
    axes.legend(loc="upper left", frameon=False, fontsize=9.5)
    return " · ".join(f"mean {weight[mask].mean():.2f} {name}" for mask, _, name in shown)


class Reach(NamedTuple):
    """Shares of the documents within 0..H hops of a visible label.

    `any_label` (H+1,), of a label of any class; `every_class` (H+1,), of a label of every class;
    `by_class`, class number -> (H+1,). All zeros without a visible label.
    """

    any_label: np.ndarray
    every_class: np.ndarray
    by_class: dict[int, np.ndarray]


def reach_curves(graph: Data, *, max_hops: int = 10) -> Reach:
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
    return _curves(read_arrays(graph, allow_empty=False), max_hops)


def _curves(documents: GraphArrays, max_hops: int) -> Reach:
    check_positive_int("max_hops", max_hops)
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

    See also: `reach_curves`, for the numbers.
    """
    documents = read_arrays(graph, label_names, allow_empty=False)
    curves = _curves(documents, max_hops)
    if not curves.by_class:
        raise ValueError(
            "'graph' must hold a visible label (got none). Set 'y' (and 'seed_mask') first."
        )
    hops = np.arange(len(curves.any_label))
    figure = style.new_figure(9.2, 4.8)
    axes = figure.add_subplot()
    style.tidy_axes(axes, title="", x="hops from a label", y="documents reached, %")
    entries: list[style.Entry] = []
    for look in style.class_looks(np.where(documents.seeds, documents.y, -1), documents.names):
        if look.hollow:
            continue
        for number, label in enumerate(np.unique(documents.y[look.members]).tolist()):
            line = axes.plot(hops, 100 * curves.by_class[label], color=look.color, zorder=2)[0]
            line.set(linewidth=1.4, marker=look.marker, markersize=4.5, alpha=0.9)
            if number == 0:
                count = int(look.members.sum())
                entries.append((line, f"{look.name} ({count:,} label{'s' * (count != 1)})"))
    looks = (
        (curves.any_label, "solid", "a label of any class"),
        (curves.every_class, "dashed", "a label of every class"),
    )
    for place, (values, dash, name) in enumerate(looks):
        line = axes.plot(
            hops, 100 * values, color=style.INK, linewidth=2.4, linestyle=dash, zorder=3
        )[0]
        entries.insert(place, (line, name))
    axes.set(ylim=(-2, 103), xlim=(-0.1, max(len(hops) - 1, 1) + 0.1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    style.faint_grid(axes)
    size, visible = len(documents.y), int(documents.seeds.sum())
    facts = (
        f"{size:,} documents, {visible:,} visible labels\nafter {len(hops) - 1} hops "
        f"{100 * curves.any_label[-1]:.1f} % reach a label, "
        f"{100 * curves.every_class[-1]:.1f} % one of every class"
    )
    style.set_facts(axes, facts)
    legend = style.legend_beside(figure, entries)
    legend.set_title("within h hops of")
    legend.get_title().set(size=9.5, weight="bold")
    legend.set_alignment("left")
    style.set_heading(figure, title)
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

    See also: `plot_communities`, for the same graph as a map.
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
    figure = style.new_figure(_SIDE + (_SIDE if few else 1.2) + 1.6, _SIDE + 1.2)
    panels = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    cells, groups = np.empty((2, size), dtype=np.int64)
    cells[order], groups[order] = np.arange(size) * min(bins, size) // size, place
    _draw_matrix(figure, panels[0], _sums(links, cells), np.bincount(cells), size)
    _mark_classes(panels[0], names, [*starts.tolist(), size])
    each = -(-size // min(bins, size))
    cell = "a cell is a pair of documents"
    if each > 1:
        cell = f"a cell is about {each} × {each} documents, its color their mean edge weight"
    style.set_facts(panels[0], f"{size:,} documents, sorted by class and {within}\n{cell}")
    if few:
        _draw_shares(panels[1], _sums(links, groups), names)
    style.set_heading(figure, title)
    return style.save_figure(figure, path)


def _sums(links: sparse.csr_array, groups: np.ndarray) -> np.ndarray:
    """Weight (G, G) between groups of documents."""
    count = int(groups.max()) + 1
    sums = np.zeros((count, count))
    entries = links.tocoo()
    np.add.at(sums, (groups[entries.row], groups[entries.col]), entries.data)
    return sums


def _draw_matrix(
    figure: Figure, axes: Axes, sums: np.ndarray, members: np.ndarray, size: int
) -> None:
    mean = sums / np.outer(members, members).astype(float)
    top = float(np.quantile(mean[mean > 0], 0.995)) if (mean > 0).any() else 1.0
    image = axes.imshow(
        np.ma.masked_equal(mean, 0),
        cmap=_COLORS,
        norm=PowerNorm(0.5, 0, top, clip=True),
        extent=(0, size, size, 0),
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("mean edge weight", fontsize=9.5, color=style.INK)
    ticks = [0, top / 10, top / 3, top]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.ax.tick_params(labelsize=8.5, colors=style.INK, length=2)
    bar.outline.set_visible(False)


def _mark_classes(axes: Axes, names: list[str], borders: list[int]) -> None:
    """Separate classes by lines and name, at the left, those with room for a line of type."""
    room = borders[-1] * _TYPE * 1.1 / (72 * _SIDE * 0.85)
    shown, last = [], -room
    for name, (start, stop) in zip(names, pairwise(borders), strict=True):
        if start:
            axes.axhline(start, color=style.GREY, linewidth=0.4)
            axes.axvline(start, color=style.GREY, linewidth=0.4)
        middle = (start + stop) / 2
        if middle - last >= room:
            shown.append((middle, name))
            last = middle
    axes.set_yticks([at for at, _ in shown], [name for _, name in shown], **_NAMES)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set(color="#D5D9DE", linewidth=0.8)


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
    axes.set_yticks(ticks, names, **_NAMES)
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **_NAMES)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    style.set_facts(axes, "Where a class's edges lead\nshare of the row's edge weight, %")
