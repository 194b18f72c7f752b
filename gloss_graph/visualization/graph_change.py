"""The document graph before and after training."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.export.edges import edge_homophily
from gloss_graph.export.to_networkx import to_networkx
from gloss_graph.graph import build_document_graph
from gloss_graph.visualization.layout import place_nodes
from gloss_graph.visualization.panels import (
    Entry,
    aligned,
    draw_documents,
    drawn_documents,
    fit_panel,
    legend_beside,
    set_headings,
    two_panels,
)
from gloss_graph.visualization.style import CONTRAST, save_figure

__all__ = ["plot_graph_change"]

_WITHIN = "#7F8791"
_OPEN = "#C9CDD2"


def plot_graph_change(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    k: int = 8,
    max_documents: int = 600,
    seed: int = 0,
    title: str = "Document graph before and after training",
) -> Figure:
    """Draw the nearest-neighbour graph of the same documents before and after training.

    Edges within a class are grey, edges between classes red; the heading of a panel gives the
    share of the former (edge homophily) beside what a random graph on these labels would have.
    Places come from the graph alone, not from the labels.

    Args:
        before: (N, D) floating, embeddings of the encoder as given.
        after: (N, D') of the trained encoder, same documents, same order.
        labels: (N,) integer, -1 = unlabeled (hollow, its edges faint).
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; their numbers otherwise.
        k: neighbours a document; edges are the union of both directions.
        max_documents: with more, a stratified sample that keeps a document of every class; the
            graph is that of the sample.
        seed: of sample and places; the same seed gives the same picture.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        TypeError: a value that is not a tensor.
        ValueError: shapes that disagree, non-finite rows, no document, a class without name, or
            ``k`` below 1.

    Cost: O(n²) for n = min(N, max_documents): some seconds at 600 documents.

    Example:
        >>> x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        >>> y = torch.arange(12) % 3
        >>> figure = plot_graph_change(x, torch.eye(3)[y], y, k=3)
        >>> figure.axes[1].get_title(loc="left").splitlines()[1]
        '100.0 % of the edges within a class (27.3 % by chance)'

    See also: ``plot_graph``, for one graph, larger and with predictions.
    """
    check_positive_int("k", k)
    shown = drawn_documents(before, after, labels, label_names, max_documents, seed)
    classes = torch.from_numpy(shown.labels)
    chance = _chance(shown.labels)
    figure, panels = two_panels()
    heads: list[str] = []
    first: np.ndarray | None = None
    edges: dict[str, Entry] = {}
    for axes, rows, name in zip(
        panels, (shown.before, shown.after), ("before", "after"), strict=True
    ):
        data = build_document_graph(rows, classes, k=k)
        places = place_nodes(to_networkx(data), seed=seed)
        places = places if first is None else aligned(places, first)
        first = places if first is None else first
        edges |= _draw_edges(axes, data, places)
        dots = draw_documents(axes, places, shown.looks)
        fit_panel(axes, places)
        share = edge_homophily(data)
        fact = "no edge with two labeled ends"
        if share == share:
            fact = (
                f"{100 * share:.1f} % of the edges within a class ({100 * chance:.1f} % by chance)"
            )
        number = data.edge_index.size(1) // 2
        heads.append(f"{name} training · k = {k} · {number:,} edges\n{fact}")
    if len(shown.labels) < shown.total:
        title += f" · {len(shown.labels):,} of {shown.total:,} documents"
    set_headings(figure, panels, title, heads)
    legend_beside(figure, [*dots, *edges.values()])
    return save_figure(figure, path)


def _chance(labels: np.ndarray) -> float:
    """Share of the pairs of labeled documents that are of one class."""
    counts = np.bincount(labels[labels >= 0])
    total = counts.sum()
    pairs = total * (total - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else float("nan")


def _draw_edges(axes: Axes, data: Data, places: np.ndarray) -> dict[str, Entry]:
    """Draw edges, those between classes on top; return the legend entries of kinds drawn."""
    one_way = data.edge_index[0] < data.edge_index[1]
    ends = data.edge_index[:, one_way].T.numpy()
    classes = data.y.numpy()[ends]
    known = (classes >= 0).all(axis=1)
    same = classes[:, 0] == classes[:, 1]
    # Many edges share the ink of a few, so a dense graph does not turn into a blot.
    ink = float(np.clip(np.sqrt(1500 / max(len(ends), 1)), 0.25, 1.4))
    looks = [
        (~known, _OPEN, 0.5, "edge with an unlabeled end"),
        (known & same, _WITHIN, 0.55, "edge within a class"),
        (known & ~same, CONTRAST, 0.65, "edge between classes"),
    ]
    entries: dict[str, Entry] = {}
    for level, (mask, color, alpha, name) in enumerate(looks):
        if not mask.any():
            continue
        lines = LineCollection(
            list(places[ends[mask]]),
            colors=[(*to_rgb(color), min(1.0, ink * alpha))],
            linewidths=0.4 + 0.35 * ink,
        )
        lines.set(zorder=1 + 0.1 * level, rasterized=True)
        axes.add_collection(lines)
        entries[name] = (Line2D([], [], color=color, linewidth=2), name)
    return entries
