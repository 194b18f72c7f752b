"""The document graph as a picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch_geometric.data import Data

from gloss_graph.export.to_networkx import to_networkx
from gloss_graph.visualization.layout import place_nodes, sample_nodes
from gloss_graph.visualization.style import (
    CONTRAST,
    GREY,
    INK,
    PALETTE,
    add_legend,
    new_figure,
    save_figure,
)

__all__ = ["plot_graph"]

_NAMED = 12
_LEGEND = 3.4  # inches
_OTHER = "#5F6368"
_EDGE = "#7F8791"
_FAINT = "#B9BEC5"


def plot_graph(
    graph: nx.Graph | Data,
    path: str | os.PathLike[str] | None = None,
    *,
    color_by: str = "label",
    label_names: Sequence[str] | None = None,
    predicted: Any = None,
    max_nodes: int = 2000,
    seed: int = 0,
    title: str = "Document graph",
) -> Figure:
    """Draw the document graph: who is near whom, and where classes meet.

    Nodes are coloured by ``color_by``; without a value they are hollow. Edges within a class are
    grey, edges between classes red, both the more opaque the heavier. Where ``label`` and
    ``predicted`` differ, the node wears a black ring. Above ``max_nodes`` a random-walk sample
    is drawn and the subtitle says so. A number with many values (``age``) gets a colour scale.

    Args:
        graph: the graph of ``to_networkx``, or the PyG graph it takes.
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        color_by: node attribute that gives the colour: ``label``, ``predicted``, ``split``,
            ``in_batch``, ``seed``, ``age`` or one of your own.
        label_names: names of the classes, for a PyG graph.
        predicted: predicted classes (N,), for a PyG graph.
        max_nodes: largest number of nodes drawn.
        seed: of the sample and the places; the same seed gives the same picture.
        title: first line of the picture.

    Returns:
        The figure, known to no pyplot state and in need of no display.

    Raises:
        ValueError: if the graph is directed, a multigraph or empty, no node has ``color_by``, or
            an argument does not fit the kind of graph.

    Cost: O(n²) for n = min(N, max_nodes): a few seconds at 1,500 nodes.

    Example:
        >>> graph = nx.karate_club_graph()
        >>> figure = plot_graph(graph, color_by="club")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2]
        ['Mr. Hi (17)', 'Officer (17)']

    See also: ``write_graphml``, to explore the graph in Gephi or Cytoscape.
    """
    if max_nodes < 1:
        raise ValueError(f"'max_nodes' must be at least 1 (got {max_nodes}).")
    if isinstance(graph, Data):
        graph = to_networkx(graph, label_names=label_names, predicted=predicted)
    elif label_names is not None or predicted is not None:
        raise ValueError(
            "'label_names' and 'predicted' only go with a PyG graph (got an nx.Graph). "
            "Give them to to_networkx."
        )
    if graph.is_directed() or graph.is_multigraph() or not graph:
        raise ValueError(
            f"'graph' must be an undirected simple graph with nodes (got {graph}). "
            "Convert it with nx.Graph(graph)."
        )
    shown = _shown(graph, sample_nodes(graph, max_nodes, seed=seed))
    scene = _scene(shown, color_by)
    places = place_nodes(shown, seed=seed)

    figure = new_figure(10.5, 7.6)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    axes.set(xlim=(-1.04, 1.04), ylim=(min(-1.04, places[:, 1].min() - 0.04), 1.04))
    entries = [*_draw_nodes(axes, scene, places), *_draw_edges(axes, scene, places)]
    _add_legend(axes, entries, color_by.replace("_", " "))
    if scene.scale is not None:
        bar = figure.colorbar(axes.collections[0], cax=axes.inset_axes((1.04, 0.02, 0.03, 0.45)))
        bar.set_label(color_by.replace("_", " "), fontsize=11)
        bar.outline.set_visible(False)
    axes.set_title(_facts(graph, scene), loc="left", fontsize=10.5, color=INK, linespacing=1.5)
    figure.suptitle(
        title, x=0.004, ha="left", fontsize=15, fontweight="bold", color=INK, parse_math=False
    )
    return save_figure(figure, path)


class _Scene(NamedTuple):
    """What is drawn: n nodes, p edges."""

    group: np.ndarray  # (n,) position of the node's category in shares, -1 without one
    shares: list[tuple[str, int]]  # categories of the legend with their size
    scale: np.ndarray | None  # (n,) values when colour is a scale
    edges: np.ndarray  # (p, 2) positions of the ends
    weight: np.ndarray  # (p,) in [0, 1]
    relation: np.ndarray  # (p,) 0 unknown, 1 within a category, 2 between two
    wrong: np.ndarray  # (n,) label and predicted differ
    word: str  # what a category is called


_Entry = tuple[Line2D, str]


def _shown(graph: nx.Graph, nodes: list[Any]) -> nx.Graph:
    """Return the induced subgraph in the order of ``nodes``, without loops."""
    shown = nx.Graph()
    shown.add_nodes_from((node, graph.nodes[node]) for node in nodes)
    rank = {node: i for i, node in enumerate(nodes)}
    for node, i in rank.items():
        near = graph.adj[node].items()
        shown.add_edges_from((node, other, d) for other, d in near if rank.get(other, -1) > i)
    return shown


def _scene(graph: nx.Graph, color_by: str) -> _Scene:
    data = [values for _, values in graph.nodes(data=True)]
    values = [_known(entry.get(color_by)) for entry in data]
    if not any(color_by in entry for entry in data):
        present = sorted({str(key) for entry in data for key in entry})
        raise ValueError(
            f"'color_by' must be an attribute of the nodes (got {color_by!r}). "
            f"Known here: {', '.join(present) or 'none'}."
        )
    rank = {node: i for i, node in enumerate(graph)}
    edges = np.array([(rank[i], rank[j]) for i, j in graph.edges], dtype=int).reshape(-1, 2)
    weight = np.array([w for _, _, w in graph.edges(data="weight", default=1.0)], dtype=float)
    weight = np.clip(weight / max(weight.max(initial=0.0), 1e-12), 0, 1)
    wrong = [
        _known(entry.get("label")) is not None
        and type(entry.get("predicted")) is type(entry["label"])
        and _known(entry["predicted"]) not in (None, entry["label"])
        for entry in data
    ]

    word = "class" if color_by in ("label", "predicted") else "group"
    counts = Counter(value for value in values if value is not None)
    numeric = all(type(value) in (int, float) for value in counts)
    if numeric and word == "group" and len(counts) > _NAMED:
        scale = np.array([np.nan if value is None else value for value in values], dtype=float)
        group = np.where(np.isnan(scale), -1, 0)
        unknown = np.zeros(len(edges), dtype=int)
        return _Scene(group, [], scale, edges, weight, unknown, np.array(wrong), word)
    code = {value: i for i, value in enumerate(counts)}
    ends = np.array([code.get(value, -1) for value in values])[edges]
    relation = np.where((ends < 0).any(axis=1), 0, np.where(ends[:, 0] == ends[:, 1], 1, 2))
    named = [value for value, _ in counts.most_common(_NAMED)]
    named.sort(key=lambda value: (isinstance(value, str), value))
    shares = [(_name(value), counts[value]) for value in named]
    place = {None: -1} | {value: i for i, value in enumerate(named)}
    group = np.array([place.get(value, _NAMED) for value in values])
    if rest := len(counts) - len(named):
        noun = word if rest == 1 else _plural(word)
        shares.append((f"{rest} other {noun}", int((group == _NAMED).sum())))
    return _Scene(group, shares, None, edges, weight, relation, np.array(wrong), word)


def _known(value: Any) -> Any:
    """Return None for the ways of having no class: nothing, the empty name, -1."""
    return None if value is None or value == "" or (value == -1 and value is not True) else value


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    name = str(value)
    return name if len(name) <= 28 else name[:27] + "…"


def _plural(word: str) -> str:
    return "classes" if word == "class" else f"{word}s"


def _draw_nodes(axes: Axes, scene: _Scene, places: np.ndarray) -> list[_Entry]:
    """Draw dots over everything else; return their entries of the legend."""
    area = float(np.clip(26000 / max(len(places), 1), 14, 110))
    dots: dict[str, Any] = {"s": area, "zorder": 3, "linewidths": 0.45}
    entries: list[_Entry] = []
    if scene.scale is not None:
        known = scene.group >= 0
        dots |= {"c": scene.scale[known], "cmap": "viridis", "edgecolors": "white"}
        axes.scatter(*places[known].T, **dots)
    for i, (name, count) in enumerate(scene.shares):
        # Past the palette its colours return as squares; what has no name of its own is grey.
        color, marker = (PALETTE * 2)[i], "os"[i // len(PALETTE)]
        if i == _NAMED:
            color, marker = _OTHER, "D"
        rim = tuple(0.7 * part for part in to_rgb(color))
        look: dict[str, Any] = {**dots, "c": [color], "edgecolors": [rim], "marker": marker}
        axes.scatter(*places[scene.group == i].T, **look)
        entries.append((_dot(marker, color, rim), f"{name} ({count:,})"))
    hollow = scene.group < 0
    if hollow.any():
        look = {"s": area, "c": "white", "edgecolors": GREY, "linewidths": 0.8, "zorder": 2.5}
        axes.scatter(*places[hollow].T, **look)
        name = "unlabeled" if scene.word == "class" else "no value"
        entries.append((_dot("o", "white", GREY), f"{name} ({int(hollow.sum()):,})"))
    if scene.wrong.any():
        look = {"s": 1.8 * area, "facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
        axes.scatter(*places[scene.wrong].T, zorder=4, **look)
        count = int(scene.wrong.sum())
        entries.append((_dot("o", "none", "black", 1.6), f"misclassified ({count:,})"))
    return entries


def _dot(marker: str, face: str, rim: Any, width: float = 0.8) -> Line2D:
    dot = Line2D([], [], marker=marker, linestyle="none", markersize=8.5)
    dot.set(markerfacecolor=face, markeredgecolor=rim, markeredgewidth=width)
    return dot


def _draw_edges(axes: Axes, scene: _Scene, places: np.ndarray) -> list[_Entry]:
    """Draw edges, the lightest first; return their entries of the legend."""
    entries: list[_Entry] = []
    order = np.argsort(scene.weight, kind="stable")
    # Many edges share the ink of a few, so a dense graph does not turn into a blot.
    ink = float(np.clip(np.sqrt(4000 / max(len(order), 1)), 0.25, 1.8))
    loose = "edge with an unlabeled end" if scene.word == "class" else "edge with an open end"
    loose = loose if scene.scale is None else "edge"
    looks = (
        (0, _FAINT, 0.35, loose),
        (1, _EDGE, 0.5, f"edge within a {scene.word}"),
        (2, CONTRAST, 0.75, f"edge between {_plural(scene.word)}"),
    )
    for code, color, alpha, name in looks:
        mine = order[scene.relation[order] == code]
        if not mine.size:
            continue
        rgba = np.empty((mine.size, 4))
        rgba[:, :3] = to_rgb(color)
        rgba[:, 3] = np.minimum(1, ink * alpha * (0.15 + 0.85 * scene.weight[mine]))
        lines = LineCollection(
            list(places[scene.edges[mine]]), colors=rgba, linewidths=0.5 + 0.4 * ink
        )
        lines.set(zorder=1 + 0.1 * code, rasterized=True)
        axes.add_collection(lines)
        entries.append((Line2D([], [], color=color, linewidth=2), f"{name} ({mine.size:,})"))
    return entries


def _add_legend(axes: Axes, entries: list[_Entry], title: str) -> None:
    add_legend(
        axes,
        entries,
        room=_LEGEND,
        title=title if len(entries) > 1 else None,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=10.5,
        title_fontproperties={"size": 11.5, "weight": "bold"},
        alignment="left",
        labelspacing=0.6,
    )


def _facts(graph: nx.Graph, scene: _Scene) -> str:
    total, shown = graph.number_of_nodes(), len(scene.group)
    what = f"{shown:,} documents"
    if shown < total:
        what = f"{shown:,} of {total:,} documents (random-walk sample)"
    parts = [what, f"{len(scene.edges):,} edges"]
    if alone := shown - np.unique(scene.edges).size:
        parts.append(f"{alone:,} isolated, in the lowest rows")
    facts = " · ".join(parts)
    if known := int((scene.relation > 0).sum()):
        share = 100 * int((scene.relation == 2).sum()) / known
        of = "edges" if known == len(scene.edges) else "edges with known ends"
        facts += f"\n{share:.1f} % of the {of} join two {_plural(scene.word)}"
    return facts
