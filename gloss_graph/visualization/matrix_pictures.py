"""Pictures of matrices sorted by class: the adjacency of a graph, the similarities of a batch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_matrix, check_positive_int
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import known_communities

__all__ = ["plot_adjacency", "plot_similarities"]

_SIDE, _TYPE = 5.4, 9.0  # of an adjacency matrix: inches, and points of a class name
_MOST = 14  # most classes in the table on the right
_COLUMNS, _PANEL, _SMALL = 3, 3.3, 7.5  # of similarities: panels per row, inches, points
_NAMES: dict[str, Any] = {"parse_math": False, "fontsize": _TYPE, "color": style.INK}
# From nearly white, so that no edge and few edges differ only in shade.
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
