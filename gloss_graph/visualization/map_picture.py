"""The whole document graph, coloured by label and by community."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.communities import louvain_communities
from gloss_graph.analysis.matrix import GraphTable, graph_table
from gloss_graph.visualization.layout import place_adjacency
from gloss_graph.visualization.panels import (
    ClassLook,
    Entry,
    class_looks,
    draw_documents,
    fit_panel,
    legend_name,
    set_headings,
    short_name,
    two_panels,
)
from gloss_graph.visualization.style import CONTRAST, add_legend, legend_columns, save_figure

__all__ = ["community_looks", "community_names", "plot_communities"]

_WITHIN, _OPEN = "#7F8791", "#B9BEC5"
_COLUMNS = 3  # of a legend, at most
_ROOM, _TYPE = 6.0, 9.5  # its width in inches, that of a panel, and its type in points


def plot_communities(
    graph: Data,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    places: np.ndarray | None = None,
    communities: np.ndarray | None = None,
    max_edges: int = 60_000,
    seed: int = 0,
    title: str = "Documents by label and by community",
) -> Figure:
    """Draw all documents at the same places twice: coloured by label and by Louvain community.

    Where the two colourings agree, the graph knows the classes; a community of two labels is a
    place where propagation will mix them. Neither labels nor communities decide the places.

    Args:
        graph: a document graph.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; the graph's own or their numbers otherwise.
        places: (N, 2) places of your own, such as an earlier picture's; else they are computed.
        communities: (N,) integer communities of your own, -1 = none.
        max_edges: with more edges a random draw is shown, and the heading says so.
        seed: of places, communities and draw; the same seed gives the same picture.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: no document, a damaged graph, or places or communities of the wrong shape.

    Cost: O(N + E) a step; 20,000 documents take about 20 s.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> figure = plot_communities(Data(edge_index=edges, y=torch.tensor([0, 0, 1, -1])))
        >>> [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes]
        ['by label', 'by community']

    See also: ``plot_graph``, for a sample with predictions; ``write_html``, to walk through it.
    """
    check_positive_int("max_edges", max_edges)
    table = graph_table(graph, label_names)
    size = len(table.labels)
    if not size:
        raise ValueError("'graph' must hold at least one document (got none).")
    if communities is None:
        communities = louvain_communities(table.adjacency, seed=seed)
    if np.shape(communities) != (size,):
        raise ValueError(f"'communities' must have shape ({size},) (got {np.shape(communities)}).")
    communities = np.maximum(communities, -1)
    if places is None:
        places = place_adjacency(table.adjacency, seed=seed, iterations=400)
    if np.shape(places) != (size, 2) or not np.isfinite(places).all():
        raise ValueError(
            f"'places' must be finite with shape ({size}, 2) (got {np.shape(places)})."
        )
    names = community_names(communities, table)
    by_label = class_looks(table.labels, table.names)
    by_community = community_looks(communities, names)
    rows = max(map(_legend_rows, (by_label, by_community)))
    figure, panels = two_panels(12.6, 6.95 + 0.2 * rows)
    for axes, groups, looks in (
        (panels[0], table.labels, by_label),
        (panels[1], communities, by_community),
    ):
        drawn = _draw_edges(axes, table, places, groups, max_edges, seed)
        _legend_under(axes, draw_documents(axes, places, looks, least=3))
        fit_panel(axes, places)
    edges = table.adjacency.nnz // 2
    share = f"{edges:,} edges" if drawn == edges else f"{drawn:,} of {edges:,} edges drawn"
    found = np.unique(communities[communities >= 0]).size
    named = ", each with its most frequent label" if bool((table.labels >= 0).any()) else ""
    heads = [
        f"by label\n{size:,} documents, {int((table.labels >= 0).sum()):,} labeled · {share}",
        f"by community\n{found:,} communities (Louvain){named}",
    ]
    set_headings(figure, panels, title, heads)
    return save_figure(figure, path)


def community_looks(communities: np.ndarray, names: Sequence[str]) -> list[ClassLook]:
    """Looks of communities (N,), as classes have them."""
    looks = class_looks(communities, names)
    other = [look.name.replace("other classes", "other communities") for look in looks]
    return [
        look._replace(name="isolated" if look.hollow else name)
        for look, name in zip(looks, other, strict=True)
    ]


def community_names(communities: np.ndarray, table: GraphTable) -> list[str]:
    """Name every community by its number from 1 and the label most frequent in it."""
    names = []
    for community in range(int(communities.max(initial=-1)) + 1):
        labels = table.labels[communities == community]
        labels = labels[labels >= 0]
        name = f"{community + 1}"
        if labels.size:
            counts = np.bincount(labels)
            top = int(counts.argmax())
            share = f" {100 * counts[top] / labels.size:.0f} %"
            word = short_name(top, table.names)
            room = 23 - len(name) - len(share)
            name += ": " + (word if len(word) < room else word[: room - 2] + "…") + share
        names.append(name)
    return names


def _draw_edges(
    axes: Axes,
    table: GraphTable,
    places: np.ndarray,
    groups: np.ndarray,
    max_edges: int,
    seed: int,
) -> int:
    """Draw edges as one collection, those between groups red and last; return their number."""
    entries = table.adjacency.tocoo()
    ends = np.stack([entries.row, entries.col], axis=1)[entries.row < entries.col]
    if len(ends) > max_edges:
        chosen = np.random.default_rng(seed).choice(len(ends), max_edges, replace=False)
        ends = ends[np.sort(chosen)]
    mine = groups[ends]
    known = (mine >= 0).all(axis=1)
    kind = np.where(~known, 0, np.where(mine[:, 0] == mine[:, 1], 1, 2))
    order = np.argsort(kind, kind="stable")
    # Many edges share the ink of a few, so a dense graph does not turn into a blot.
    ink = float(np.clip(np.sqrt(1500 / max(len(ends), 1)), 0.1, 1.2))
    colors = np.array([(*to_rgb(_OPEN), 0.5), (*to_rgb(_WITHIN), 0.5), (*to_rgb(CONTRAST), 0.4)])
    colors[:, 3] = np.minimum(1, ink * colors[:, 3])
    lines = LineCollection(
        places[ends[order]], colors=colors[kind[order]], linewidths=0.3 + 0.4 * ink
    )
    lines.set(zorder=1, rasterized=True)
    axes.add_collection(lines)
    return len(ends)


def _legend_rows(looks: Sequence[ClassLook]) -> int:
    names = [legend_name(look) for look in looks]
    return -(-len(names) // legend_columns(names, _ROOM, _COLUMNS, _TYPE))


def _legend_under(axes: Axes, entries: Sequence[Entry]) -> None:
    add_legend(
        axes,
        entries,
        room=_ROOM,
        columns=_COLUMNS,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.01),
        fontsize=_TYPE,
        handletextpad=0.3,
        labelspacing=0.45,
    )
