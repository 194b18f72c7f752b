"""The adjacency matrix of the document graph, sorted by class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.analysis.communities import louvain_communities
from gloss_graph.analysis.matrix import GraphTable, graph_table
from gloss_graph.visualization.panels import short_name
from gloss_graph.visualization.style import GREY, INK, new_figure, save_figure, set_heading

__all__ = ["plot_adjacency"]

_SIDE = 5.4  # inches of the matrix
_TYPE = 9.0  # points of a class name
_MOST = 14  # classes that the table beside shows
# From nearly white, so that no edge and few edges look alike but for the shade.
_COLORS = LinearSegmentedColormap.from_list(
    "links", ["#F7F8FA", "#BFD9EA", "#56B4E9", "#0072B2", "#22164F"]
)


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

    Blocks on the diagonal are links within a class; what shines beside them are classes that bleed
    into each other. The table on the right gives, a class a row, the share of its edge weight that
    leads to every class.

    Args:
        graph: a document graph.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; the graph's own or their numbers otherwise.
        within: order within a class: ``community`` (Louvain) or ``degree``, largest first.
        communities: (N,) communities of your own, else they are found.
        bins: with more documents, neighbouring rows share a cell, which shows their mean.
        seed: of the communities.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: no document, a damaged graph, communities of another shape, or a setting out of
            range.

    Cost: O(E + bins²), and the communities.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> figure = plot_adjacency(Data(edge_index=edges, y=torch.tensor([0, 1, 1, 1])))
        >>> [text.get_text() for text in figure.axes[1].texts]
        ['0', '100', '33', '67']

    See also: ``plot_communities``, for the same graph as a map.
    """
    check_choice("within", within, ("community", "degree"))
    check_positive_int("bins", bins)
    table = graph_table(graph, label_names)
    size = len(table.labels)
    if not size:
        raise ValueError("'graph' must hold at least one document (got none).")
    second = -np.diff(table.adjacency.indptr)
    if within == "community":
        found = communities
        if found is None:
            found = louvain_communities(table.adjacency, seed=seed)
        second = np.asarray(found)
        if np.shape(second) != (size,):
            raise ValueError(f"'communities' must have shape ({size},) (got {np.shape(second)}).")
    # Unlabeled documents come last.
    classes = np.where(table.labels < 0, np.iinfo(np.int64).max, table.labels)
    order = np.lexsort((np.arange(size), second, classes))
    found, starts = np.unique(classes[order], return_index=True)
    names = [_name(label, table) for label in found.tolist()]
    stops = [*starts[1:].tolist(), size]

    few = len(found) <= _MOST
    figure = new_figure(_SIDE + (_SIDE if few else 1.2) + 1.6, _SIDE + 1.2)
    panels = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    _draw_matrix(figure, panels[0], table.adjacency, order, min(bins, size))
    _mark_classes(panels[0], names, starts.tolist(), stops, size)
    each = -(-size // min(bins, size))
    cell = "a cell is a pair of documents" if each == 1 else f"a cell is about {each} × {each}"
    panels[0].set_title(
        f"{size:,} documents, sorted by class and {within}\n{cell}"
        + ("" if each == 1 else " documents, its colour their mean edge weight"),
        loc="left",
        fontsize=10.5,
        color=INK,
        linespacing=1.4,
    )
    if few:
        _draw_shares(panels[1], table.adjacency, classes, found, names)
    set_heading(figure, title)
    return save_figure(figure, path)


def _name(label: int, table: GraphTable) -> str:
    return "unlabeled" if label == np.iinfo(np.int64).max else short_name(label, table.names)


def _draw_matrix(
    figure: Figure, axes: Axes, adjacency: sparse.csr_array, order: np.ndarray, bins: int
) -> None:
    size = len(order)
    cell = np.empty(size, dtype=np.int64)
    cell[order] = np.arange(size) * bins // size
    members = np.bincount(cell, minlength=bins).astype(float)
    entries = adjacency.tocoo()
    sums = np.zeros((bins, bins))
    np.add.at(sums, (cell[entries.row], cell[entries.col]), entries.data)
    mean = sums / np.outer(members, members)
    top = float(np.quantile(mean[mean > 0], 0.995)) if (mean > 0).any() else 1.0
    image = axes.imshow(
        np.ma.masked_equal(mean, 0),
        cmap=_COLORS,
        norm=PowerNorm(0.5, 0, top, clip=True),
        extent=(0, size, size, 0),
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("mean edge weight", fontsize=9.5, color=INK)
    bar.set_ticks([0, top / 10, top / 3, top], labels=_round([0, top / 10, top / 3, top]))
    bar.ax.tick_params(labelsize=8.5, colors=INK, length=2)
    bar.outline.set_visible(False)


def _round(values: list[float]) -> list[str]:
    return [f"{value:.2g}" for value in values]


def _mark_classes(
    axes: Axes, names: list[str], starts: list[int], stops: list[int], size: int
) -> None:
    """Part classes by lines and name, at the left, those with room for a line of type."""
    room = size * _TYPE * 1.1 / (72 * _SIDE * 0.85)
    shown, last = [], -room
    for name, start, stop in zip(names, starts, stops, strict=True):
        if start:
            axes.axhline(start, color=GREY, linewidth=0.4)
            axes.axvline(start, color=GREY, linewidth=0.4)
        middle = (start + stop) / 2
        if middle - last >= room:
            shown.append((middle, name))
            last = middle
    look: dict[str, Any] = {"parse_math": False, "fontsize": _TYPE, "color": INK}
    axes.set_yticks([at for at, _ in shown], [name for _, name in shown], **look)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set(color="#D5D9DE", linewidth=0.8)


def _draw_shares(
    axes: Axes,
    adjacency: sparse.csr_array,
    classes: np.ndarray,
    found: np.ndarray,
    names: list[str],
) -> None:
    """Share of every class's edge weight that leads to every class, in per cent."""
    place = np.searchsorted(found, classes)
    entries = adjacency.tocoo()
    sums = np.zeros((len(found), len(found)))
    np.add.at(sums, (place[entries.row], place[entries.col]), entries.data)
    total = sums.sum(axis=1, keepdims=True)
    share = 100 * sums / np.where(total > 0, total, 1)
    axes.imshow(share, cmap=_COLORS, vmin=0, vmax=110)
    for i, j in np.ndindex(share.shape):
        color = "white" if share[i, j] > 55 else INK
        text = "–" if total[i, 0] == 0 else f"{share[i, j]:.0f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color)
    ticks = range(len(names))
    look: dict[str, Any] = {"parse_math": False, "fontsize": _TYPE, "color": INK}
    axes.set_yticks(ticks, names, **look)
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **look)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    axes.set_title(
        "Where a class's edges lead\nshare of the row's edge weight, %",
        loc="left",
        fontsize=10.5,
        color=INK,
        linespacing=1.4,
    )
