"""How many neighbours documents have, and how strong edges are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch_geometric.data import Data

from gloss_graph.analysis.matrix import graph_table
from gloss_graph.visualization.style import (
    CONTRAST,
    GREY,
    INK,
    PALETTE,
    faint_grid,
    new_figure,
    save_figure,
    set_heading,
    tidy_axes,
)

__all__ = ["plot_degrees"]

_OPEN = "#C9CDD2"


def plot_degrees(
    graph: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    title: str = "Degrees and edge weights",
) -> Figure:
    """Draw the histogram of degrees and that of edge weights, within and between classes apart.

    A long right tail of the degrees is hubness: few documents that are everybody's neighbour.
    Weights of edges between classes that lie left of those within classes are what the kernel is
    for.

    Args:
        graph: a document graph.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: as for the other pictures; only checked.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: no document or a damaged graph.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> figure = plot_degrees(Data(edge_index=edges, num_nodes=3))
        >>> figure.axes[0].get_title(loc="left").splitlines()[1]
        'mean 1.3 · median 1 · largest 2 · 0 isolated · skew 0.7'

    See also: ``plot_adjacency``, for which classes the edges join.
    """
    table = graph_table(graph, label_names)
    if not len(table.labels):
        raise ValueError("'graph' must hold at least one document (got none).")
    degree = np.diff(table.adjacency.indptr)
    entries = table.adjacency.tocoo()
    one_way = entries.row < entries.col
    weight = entries.data[one_way]
    ends = table.labels[np.stack([entries.row, entries.col], axis=1)[one_way]]

    figure = new_figure(11.0, 4.4)
    left, right = figure.subplots(1, 2)
    _draw_degrees(left, degree)
    _draw_weights(right, weight, ends)
    set_heading(figure, title)
    return save_figure(figure, path)


def _draw_degrees(axes: Axes, degree: np.ndarray) -> None:
    top = int(degree.max())
    width = max(1, -(-(top + 1) // 60))
    edges = np.arange(0, top + width + 1, width) - 0.5
    axes.hist(degree, bins=edges.tolist(), color=PALETTE[0], edgecolor="white", linewidth=0.4)
    tallest = int(np.histogram(degree, edges)[0].max())
    mean = degree.mean()
    spread = degree.std()
    facts = f"mean {mean:.1f} · median {np.median(degree):.0f} · largest {top:,} · "
    facts += f"{int((degree == 0).sum()):,} isolated"
    if spread > 0 and degree.size > 2:
        facts += f" · skew {np.mean(((degree - mean) / spread) ** 3):.1f}"
    _head(axes, "Neighbours a document", facts, x="degree", y="documents")
    axes.axvline(mean, color=INK, linewidth=1, linestyle="dashed")
    # Long tails would be invisible on a linear scale.
    if top > 4 * max(np.median(degree), 1) and tallest > 50:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _draw_weights(axes: Axes, weight: np.ndarray, ends: np.ndarray) -> None:
    known = (ends >= 0).all(axis=1)
    same = ends[:, 0] == ends[:, 1]
    kinds = [
        (known & same, PALETTE[0], "within a class"),
        (known & ~same, CONTRAST, "between classes"),
        (~known, _OPEN if known.any() else PALETTE[0], "with an unlabeled end"),
    ]
    if not weight.size:
        _head(axes, "Weight of an edge", "no edges", x="weight", y="edges")
        axes.text(0.5, 0.5, "no edges", ha="center", color=GREY, transform=axes.transAxes)
        return
    low, high = float(weight.min()), float(weight.max())
    if high - low < 1e-9 * max(high, 1):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 51).tolist()
    shown = [kind for kind in kinds if kind[0].any()]
    axes.hist(
        [weight[mask] for mask, _, _ in shown],
        bins=edges,
        stacked=True,
        color=[color for _, color, _ in shown],
        label=[f"{name} ({int(mask.sum()):,})" for mask, _, name in shown],
        edgecolor="white",
        linewidth=0.3,
    )
    means = [f"mean {weight[mask].mean():.2f} {name}" for mask, _, name in shown]
    _head(axes, "Weight of an edge", " · ".join(means), x="weight", y="edges")
    low_y, high_y = axes.get_ylim()
    axes.set_ylim(low_y, high_y * (1.05 + 0.08 * len(shown)))
    axes.legend(loc="upper left", frameon=False, fontsize=9.5)


def _head(axes: Axes, head: str, facts: str, *, x: str, y: str) -> None:
    tidy_axes(axes, title="", x=x, y=y)
    axes.set_title(
        f"{head}\n{facts}", loc="left", fontsize=10.5, color=INK, linespacing=1.4, parse_math=False
    )
    faint_grid(axes, "y")
