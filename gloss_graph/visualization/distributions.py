"""Distributions over a document graph: degrees, edge weights, distance to labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import relations

__all__ = ["Reach", "plot_degrees", "plot_reach", "reach_curves"]

_OPEN = "#C9CDD2"


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
