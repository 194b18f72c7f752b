"""How far labels reach over the document graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.matrix import GraphTable, graph_table
from gloss_graph.visualization.panels import BESIDE, Entry, class_looks
from gloss_graph.visualization.style import (
    INK,
    add_legend,
    faint_grid,
    new_figure,
    save_figure,
    set_heading,
    tidy_axes,
)

__all__ = ["Reach", "plot_reach", "reach_curves"]


class Reach(NamedTuple):
    """Shares of the documents within 0..H hops of a label.

    `any_label` (H+1,) of any visible label, `every_class` (H+1,) of one of every class, `by_class`
    class number -> (H+1,) of one of that class. All zeros without a visible label.
    """

    any_label: np.ndarray
    every_class: np.ndarray
    by_class: dict[int, np.ndarray]


def reach_curves(graph: Data, *, max_hops: int = 10) -> Reach:
    """Count the documents within h hops of a visible label, for h = 0, 1, ...

    Args:
        graph: a document graph; labels outside `seed_mask` are not visible.
        max_hops: largest h; the curves end earlier when nothing more is reached.

    Returns:
        The curves; labeled documents count as reached at 0 hops.

    Raises:
        ValueError: no document or a damaged graph.

    Cost: O(hops · E · C).

    Example:
        >>> import torch
        >>> chain = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> reach_curves(Data(edge_index=chain, y=torch.tensor([0, -1, 1]))).every_class.round(2)
        array([0.  , 0.33, 1.  ])
    """
    return _curves(graph_table(graph), max_hops)


def _curves(table: GraphTable, max_hops: int) -> Reach:
    check_positive_int("max_hops", max_hops)
    if not len(table.labels):
        raise ValueError("'graph' must hold at least one document (got none).")
    classes = np.unique(table.labels[table.seeds])
    near = (table.labels[:, None] == classes) & table.seeds[:, None]
    links = table.adjacency.astype(np.float32)
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

    The solid line counts labels of any class, the dashed one asks for a label of every class: only
    there can propagation weigh all classes. A class whose line stays low is cut off.

    Args:
        graph: a document graph; labels outside `seed_mask` are not visible.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; the graph's own or their numbers otherwise.
        max_hops: largest number of hops.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: no document, no visible label, or a damaged graph.

    Example:
        >>> import torch
        >>> chain = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> figure = plot_reach(Data(edge_index=chain, y=torch.tensor([0, -1, 1])))
        >>> [text.get_text() for text in figure.legends[0].get_texts()][:2]
        ['a label of any class', 'a label of every class']

    See also: ``reach_curves``, for the numbers.
    """
    table = graph_table(graph, label_names)
    curves = _curves(table, max_hops)
    if not curves.by_class:
        raise ValueError(
            "'graph' must hold a visible label (got none). Set 'y' (and 'seed_mask') first."
        )
    hops = np.arange(len(curves.any_label))
    figure = new_figure(9.2, 4.8)
    axes = figure.add_subplot()
    tidy_axes(axes, title="", x="hops from a label", y="documents reached, %")
    entries: list[Entry] = []
    for look in class_looks(np.where(table.seeds, table.labels, -1), table.names):
        if look.hollow:
            continue
        for number, label in enumerate(np.unique(table.labels[look.members]).tolist()):
            line = axes.plot(hops, 100 * curves.by_class[label], color=look.color, zorder=2)[0]
            line.set(linewidth=1.4, marker=look.marker, markersize=4.5, alpha=0.9)
            if number == 0:
                entries.append((line, f"{look.name} ({_labels(int(look.members.sum()))})"))
    looks = (
        (curves.any_label, "solid", "a label of any class"),
        (curves.every_class, "dashed", "a label of every class"),
    )
    for place, (values, style, name) in enumerate(looks):
        line = axes.plot(hops, 100 * values, color=INK, linewidth=2.4, linestyle=style, zorder=3)[0]
        entries.insert(place, (line, name))
    axes.set(ylim=(-2, 103), xlim=(-0.1, max(len(hops) - 1, 1) + 0.1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    faint_grid(axes)
    size, visible = len(table.labels), int(table.seeds.sum())
    facts = (
        f"{size:,} documents, {visible:,} visible labels\nafter {len(hops) - 1} hops "
        f"{100 * curves.any_label[-1]:.1f} % reach a label, "
        f"{100 * curves.every_class[-1]:.1f} % one of every class"
    )
    axes.set_title(facts, loc="left", fontsize=10.5, color=INK, linespacing=1.4)
    legend = add_legend(figure, entries, room=BESIDE, loc="outside right upper", fontsize=9.5)
    legend.set_title("within h hops of")
    legend.get_title().set(size=9.5, weight="bold")
    legend.set_alignment("left")
    set_heading(figure, title)
    return save_figure(figure, path)


def _labels(number: int) -> str:
    return "1 label" if number == 1 else f"{number:,} labels"
