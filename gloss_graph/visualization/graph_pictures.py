"""Pictures of the document graph: a sample, all documents by community, one explanation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.explanation import DOCUMENT, NodeExplanation
from gloss_graph.analysis.measures import group_words, louvain_communities
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.export.networkx_graphs import to_networkx
from gloss_graph.visualization import style
from gloss_graph.visualization.layout import place_adjacency, place_nodes, sample_nodes

_GROUPS = 12  # most categories with a name
_WITHIN, _FAINT = "#7F8791", "#B9BEC5"
_BESIDE = 3.4  # inches of a legend beside a graph
_COLUMNS = 3  # most columns of a legend under a map,
_ROW, _TEXT, _THICKEST = 0.42, 74, 9.0  # of an explanation: inches, characters, points
_UNDER, _TYPE = 6.0, 9.5  # its width in inches, that of a panel, and its type in points
_LINE = 1.25 * _TYPE / 72  # inches of a line of words within a panel


class EdgeLook(NamedTuple):
    """Color, opacity and legend name of each kind of edge, then the ink and width of a line.

    Many edges share the ink of a few: `full` edges have ink 1, fewer have more, within the bounds
    `ink`. A line is `width[0] + width[1] * ink` points wide.
    """

    unknown: tuple[str, float, str]
    within: tuple[str, float, str]
    between: tuple[str, float, str]
    full: int
    ink: tuple[float, float]
    width: tuple[float, float]


_MAP_EDGES = EdgeLook(
    unknown=(_FAINT, 0.5, "edge with an unlabeled end"),
    within=(_WITHIN, 0.5, "edge within a group"),
    between=(style.CONTRAST, 0.4, "edge between groups"),
    full=1500,
    ink=(0.1, 1.2),
    width=(0.3, 0.4),
)


def relations(groups: np.ndarray) -> np.ndarray:
    """Kinds of edges (p,) by the groups (p, 2) of their ends: 0 unknown, 1 within, 2 between."""
    return np.where((groups < 0).any(axis=1), 0, np.where(groups[:, 0] == groups[:, 1], 1, 2))


def draw_edges(
    axes: Axes,
    places: np.ndarray,
    ends: np.ndarray,
    relation: np.ndarray,
    look: EdgeLook,
    weight: np.ndarray | None = None,
) -> list[tuple[Line2D, str, int]]:
    """Draw edges (p, 2) below the nodes (N, 2), those between groups on top.

    Edges of a larger `weight` (p,), in [0, 1], are more opaque and on top of lighter ones. Returns
    legend handle, name and number of every kind drawn.
    """
    low, high = look.ink
    ink = float(np.clip(np.sqrt(look.full / max(len(ends), 1)), low, high))
    order = np.arange(len(ends)) if weight is None else np.argsort(weight, kind="stable")
    entries: list[tuple[Line2D, str, int]] = []
    for kind, (color, alpha, name) in enumerate((look.unknown, look.within, look.between)):
        chosen = order[relation[order] == kind]
        if not chosen.size:
            continue
        rgba = np.empty((chosen.size, 4))
        rgba[:, :3] = to_rgb(color)
        opacity = 1.0 if weight is None else 0.15 + 0.85 * weight[chosen]
        rgba[:, 3] = np.minimum(1, ink * alpha * opacity)
        width = look.width[0] + look.width[1] * ink
        lines = LineCollection(list(places[ends[chosen]]), colors=rgba, linewidths=width)
        lines.set(zorder=1 + 0.1 * kind, rasterized=True)
        axes.add_collection(lines)
        entries.append((Line2D([], [], color=color, linewidth=2), name, int(chosen.size)))
    return entries


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
    """Draw the document graph: its neighborhoods, and where classes meet.

    Nodes have the color of the attribute `color_by`, or are hollow without one; a number with many
    values (`age`) gets a color scale. Edges within a class are grey, edges between classes red, and
    the more opaque the heavier. A node whose `label` and `predicted` differ has a black ring. With
    more than `max_nodes` nodes a random-walk sample is drawn and the subtitle says so.

    The graph is one of `to_networkx`, or the PyG graph it takes, with its `label_names` and
    `predicted`.

    Raises:
        ValueError: A directed graph, a multigraph, an empty graph, no node with `color_by`, or an
            argument that does not fit the kind of graph.

    Cost: O(n²) for n = min(N, max_nodes): a few seconds at 1,500 nodes.

    Example:
        >>> graph = nx.karate_club_graph()
        >>> figure = plot_graph(graph, color_by="club")
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2]
        ['Mr. Hi (17)', 'Officer (17)']

    See also: `plot_communities`, for all documents; `write_graph`, for Gephi or Cytoscape.
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

    figure = style.new_figure(10.5, 7.6)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    axes.set(xlim=(-1.04, 1.04), ylim=(min(-1.04, places[:, 1].min() - 0.04), 1.04))
    entries = _draw_nodes(axes, scene, places)
    look = _edge_look(scene)
    edges = draw_edges(axes, places, scene.edges, scene.relation, look, scene.weight)
    entries += [(handle, f"{name} ({count:,})") for handle, name, count in edges]
    style.add_legend(
        axes,
        entries,
        room=_BESIDE,
        title=color_by.replace("_", " ") if len(entries) > 1 else None,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=10.5,
        title_fontproperties={"size": 11.5, "weight": "bold"},
        alignment="left",
        labelspacing=0.6,
    )
    if scene.scale is not None:
        bar = figure.colorbar(axes.collections[0], cax=axes.inset_axes((1.04, 0.02, 0.03, 0.45)))
        bar.set_label(color_by.replace("_", " "), fontsize=11)
        bar.outline.set_visible(False)
    style.set_facts(axes, _facts(graph, scene), spacing=1.5)
    figure.suptitle(
        title, x=0.004, ha="left", fontsize=15, fontweight="bold", color=style.INK, parse_math=False
    )
    return style.save_figure(figure, path)


class _Scene(NamedTuple):
    """n nodes and p edges as drawn."""

    looks: list[style.ClassLook]  # categories, the nodes without one last
    scale: np.ndarray | None  # (n,) values if the color is a scale
    edges: np.ndarray  # (p, 2) positions of the ends
    weight: np.ndarray  # (p,) in [0, 1]
    relation: np.ndarray  # (p,) 0 unknown, 1 within a category, 2 between two
    wrong: np.ndarray  # (n,) label and predicted differ
    word: str  # what categories are called


def _shown(graph: nx.Graph, nodes: list[Any]) -> nx.Graph:
    """The induced subgraph in the order of `nodes`, without loops."""
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
    triples = list(graph.edges(data="weight", default=1.0))
    edges = np.array([(rank[i], rank[j]) for i, j, _ in triples], dtype=int).reshape(-1, 2)
    weight = np.array([w for _, _, w in triples], dtype=float)
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
    if numeric and word == "group" and len(counts) > _GROUPS:
        scale = np.array([np.nan if value is None else value for value in values], dtype=float)
        unknown = np.zeros(len(edges), dtype=int)
        looks = _hollow(np.isnan(scale), word)
        return _Scene(looks, scale, edges, weight, unknown, np.array(wrong), word)
    code = {value: i for i, value in enumerate(counts)}
    group = np.array([code.get(value, -1) for value in values])
    named = [value for value, _ in counts.most_common(_GROUPS)]
    named.sort(key=lambda value: (isinstance(value, str), value))
    # Beyond the palette its colors return as squares; unnamed categories are grey.
    colors = [(color, marker) for marker in "os" for color in style.PALETTE]
    looks = [
        style.ClassLook(_name(value), color, marker, group == code[value])
        for value, (color, marker) in zip(named, colors, strict=False)
    ]
    if rest := len(counts) - len(named):
        noun = word if rest == 1 else _plural(word)
        members = (group >= 0) & ~np.any([look.members for look in looks], axis=0)
        looks.append(style.ClassLook(f"{rest} other {noun}", style.OTHER, "D", members))
    looks += _hollow(group < 0, word)
    relation = relations(group[edges])
    return _Scene(looks, None, edges, weight, relation, np.array(wrong), word)


def _hollow(members: np.ndarray, word: str) -> list[style.ClassLook]:
    """The look of nodes (n,) without a category, if there are any."""
    name = "unlabeled" if word == "class" else "no value"
    look = style.ClassLook(name, style.GREY, "o", members, hollow=True)
    return [look] if members.any() else []


def _known(value: Any) -> Any:
    """The value, or None for the ways to have no class: None, the empty name, -1."""
    return None if value is None or value == "" or (value == -1 and value is not True) else value


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    name = str(value)
    return style.elided(name, 28)


def _plural(word: str) -> str:
    return "classes" if word == "class" else f"{word}s"


def _draw_nodes(axes: Axes, scene: _Scene, places: np.ndarray) -> list[style.Entry]:
    """Draw nodes on top of the edges; return their legend entries."""
    area = float(np.clip(26000 / max(len(places), 1), 14, 110))
    if scene.scale is not None:
        known = ~np.isnan(scene.scale)
        dots: dict[str, Any] = {"s": area, "c": scene.scale[known], "cmap": "viridis"}
        axes.scatter(*places[known].T, zorder=3, linewidths=0.45, edgecolors="white", **dots)
    entries = style.draw_documents(axes, places, scene.looks, area)
    if scene.wrong.any():
        look: dict[str, Any] = {
            "s": 1.8 * area,
            "facecolors": "none",
            "edgecolors": "black",
            "linewidths": 1.2,
        }
        axes.scatter(*places[scene.wrong].T, zorder=4, **look)
        ring = style.dot_handle("o", "none", "black", width=1.6)
        entries.append((ring, f"misclassified ({int(scene.wrong.sum()):,})"))
    return entries


def _edge_look(scene: _Scene) -> EdgeLook:
    unknown = "edge with an unlabeled end" if scene.word == "class" else "edge with an open end"
    return EdgeLook(
        unknown=(_FAINT, 0.35, unknown if scene.scale is None else "edge"),
        within=(_WITHIN, 0.5, f"edge within a {scene.word}"),
        between=(style.CONTRAST, 0.75, f"edge between {_plural(scene.word)}"),
        full=4000,
        ink=(0.25, 1.8),
        width=(0.5, 0.4),
    )


def _facts(graph: nx.Graph, scene: _Scene) -> str:
    total, shown = graph.number_of_nodes(), len(scene.wrong)
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
    """Draw all documents twice at the same places: colored by label and by Louvain community.

    Where the two colorings agree, the graph knows the classes; a community of two labels is a
    place where propagation will mix them. Places depend on neither labels nor communities. Known
    `places` (N, 2), such as those of an earlier picture, and `communities` (N,) of integers, -1 for
    none, are used where given. Of more than `max_edges` edges a random sample is drawn, and the
    heading says so. If the graph has texts, the largest communities carry their most telling words.

    Raises:
        ValueError: A directed graph, no document, a damaged graph, or places or communities of the
            wrong shape.

    Cost: O(N + E) per step; 20,000 documents take about 20 s.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> figure = plot_communities(Data(edge_index=edges, y=torch.tensor([0, 0, 1, -1])))
        >>> [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes]
        ['by label', 'by community']

    See also: `plot_graph`, for a sample with predictions; `write_html`, for an interactive page.
    """
    check_positive_int("max_edges", max_edges)
    documents = read_arrays(graph, label_names, allow_empty=False)
    size, y, links = documents.size, documents.y, documents.links
    communities = np.maximum(known_communities(links, communities, seed), -1)
    if places is None:
        places = place_adjacency(links, seed=seed, iterations=400)
    if np.shape(places) != (size, 2) or not np.isfinite(places).all():
        raise ValueError(
            f"'places' must be finite with shape ({size}, 2) (got {np.shape(places)})."
        )
    names = community_names(communities, y, documents.names)
    by_label = style.class_looks(y, documents.names)
    by_community = community_looks(communities, names)
    ends = _drawn_ends(links, max_edges, seed)
    rows = 0
    for looks in (by_label, by_community):
        named = [style.legend_name(look) for look in looks]
        rows = max(rows, -(-len(named) // style.legend_columns(named, _UNDER, _COLUMNS, _TYPE)))
    figure, panels = style.two_panels(12.6, 6.95 + 0.2 * rows)
    sides = (y, by_label), (communities, by_community)
    for axes, (groups, looks) in zip(panels, sides, strict=True):
        draw_edges(axes, places, ends, relations(groups[ends]), _MAP_EDGES)
        style.add_legend(
            axes,
            style.draw_documents(axes, places, looks, style.dot_area(len(places), 3)),
            room=_UNDER,
            columns=_COLUMNS,
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.01),
            fontsize=_TYPE,
            handletextpad=0.3,
            labelspacing=0.45,
        )
        style.fit_panel(axes, places)
    if documents.text is not None:
        telling = group_words(documents.text, communities, top=3)
        _write_words(panels[1], places, communities, telling)
    edges, drawn = links.nnz // 2, len(ends)
    share = f"{edges:,} edges" if drawn == edges else f"{drawn:,} of {edges:,} edges drawn"
    found = np.unique(communities[communities >= 0]).size
    words = ", each with its most frequent label" if bool((y >= 0).any()) else ""
    heads = [
        f"by label\n{size:,} documents, {int((y >= 0).sum()):,} labeled · {share}",
        f"by community\n{found:,} communities (Louvain){words}",
    ]
    style.set_headings(figure, panels, title, heads)
    return style.save_figure(figure, path)


def _write_words(
    axes: Axes, places: np.ndarray, communities: np.ndarray, words: dict[int, list[str]]
) -> None:
    """Write words in the middle of the largest communities, a word per line, none over another."""
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    inch = (high - low)[0] / _UNDER
    written = np.empty((0, 4))  # left, bottom, right, top
    for community, _ in Counter(communities[communities >= 0].tolist()).most_common(_GROUPS):
        lines = words[community]
        width = max((style.text_width(line, _TYPE) for line in lines), default=0.0)
        half = inch * np.array([width, _LINE * len(lines)]) / 2
        middle = np.median(places[communities == community], axis=0)
        middle = np.clip(middle, low + half, high - half)
        box = np.concatenate([middle - half, middle + half])
        apart = (written[:, :2] >= box[2:]) | (written[:, 2:] <= box[:2])
        if not lines or not apart.any(axis=1).all():
            continue
        written = np.vstack([written, box])
        axes.text(
            float(middle[0]),
            float(middle[1]),
            "\n".join(lines),
            fontsize=_TYPE,
            fontweight="bold",
            color=style.INK,
            ha="center",
            va="center",
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=5,
        )


def known_communities(
    links: sparse.csr_array, communities: np.ndarray | None, seed: int
) -> np.ndarray:
    """The communities (N,) that were given, else those found."""
    if communities is None:
        return louvain_communities(links, seed=seed)
    size = links.shape[0]
    if np.shape(communities) != (size,):
        raise ValueError(f"'communities' must have shape ({size},) (got {np.shape(communities)}).")
    return np.asarray(communities)


def community_looks(communities: np.ndarray, names: Sequence[str]) -> list[style.ClassLook]:
    """Looks of communities (N,), as classes have them."""
    looks = style.class_looks(communities, names)
    other = [look.name.replace("other classes", "other communities") for look in looks]
    return [
        look._replace(name="isolated" if look.hollow else name)
        for look, name in zip(looks, other, strict=True)
    ]


def community_names(
    communities: np.ndarray, y: np.ndarray, label_names: Sequence[str]
) -> list[str]:
    """Name every community by its number from 1 and its most frequent label."""
    names = []
    for community in range(int(communities.max(initial=-1)) + 1):
        labels = y[communities == community]
        labels = labels[labels >= 0]
        name = f"{community + 1}"
        if labels.size:
            counts = np.bincount(labels)
            top = int(counts.argmax())
            share = f" {100 * counts[top] / labels.size:.0f} %"
            word = style.short_name(top, label_names)
            name += f": {style.elided(word, 22 - len(name) - len(share))}{share}"
        names.append(name)
    return names


def _drawn_ends(links: sparse.csr_array, max_edges: int, seed: int) -> np.ndarray:
    """Ends (p, 2) of all edges, or of a random sample of them."""
    entries = links.tocoo()
    ends = np.stack([entries.row, entries.col], axis=1)[entries.row < entries.col]
    if len(ends) <= max_edges:
        return ends
    chosen = np.random.default_rng(seed).choice(len(ends), max_edges, replace=False)
    return ends[np.sort(chosen)]


def plot_explanation(
    explanation: NodeExplanation,
    path: str | os.PathLike[str] | None = None,
    *,
    max_documents: int = 12,
) -> Figure:
    """Draw the labeled documents that decided a document's label, lines as thick as their mass.

    With more than `max_documents` the others are drawn as one line.

    Raises:
        ValueError: `max_documents` below 1, or another suffix of `path`.

    Example:
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> from gloss_graph.analysis import explain
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> answer = explain(Data(edge_index=edges, y=torch.tensor([1, -1, 1])), 1)
        >>> figure = plot_explanation(answer)
        >>> figure.axes[0].get_title(loc="left")
        'Document 1 (unlabeled): the graph says "1"'
    """
    check_positive_int("max_documents", max_documents)
    rows = _rows(explanation, max_documents)
    # The largest classes get colors; beyond the palette all are grey.
    named = [label for label in explanation.classes.index if label][: len(style.PALETTE) - 1]
    colors = dict(zip(named, style.PALETTE, strict=False))
    height = 1.6 + _ROW * max(len(rows), 2)
    figure = style.new_figure(10.5, height)
    axes = figure.add_subplot()
    axes.set(xlim=(0.0, 1.0), ylim=(len(rows) - 0.4, -0.6))
    axes.axis("off")
    given = f'labeled "{explanation.label}"' if explanation.label else "unlabeled"
    said = "no label reaches it"
    if explanation.predicted:
        said = f'the graph says "{explanation.predicted}"'
    title = f"Document {explanation.doc_id} ({given}): {said}"
    if text := _short(explanation.text, 110):
        title += f"\n{text}"
    axes.set_title(title, loc="left", fontsize=11, color=style.INK, parse_math=False, pad=10)
    middle = (len(rows) - 1) / 2
    most = max(mass for _, mass, _ in rows)
    look: dict[str, Any] = {"va": "center", "fontsize": 9.5, "color": style.INK}
    look |= {"clip_on": True, "parse_math": False}
    for place, (label, mass, words) in enumerate(rows):
        color = colors.get(label, style.GREY)
        width = max(_THICKEST * mass / most, 0.6)
        axes.plot([0.02, 0.2], [middle, place], color=color, linewidth=width, alpha=0.75, zorder=1)
        axes.plot(0.2, place, "o", markersize=9, color=color, markeredgecolor=style.INK, zorder=2)
        axes.text(0.275, place, f"{100 * mass:.1f} %", ha="right", **look)
        axes.text(0.285, place, _short(label, 22), ha="left", weight="bold", **look)
        axes.text(0.46, place, words, ha="left", **look)
    face = colors.get(explanation.predicted, style.GREY)
    axes.plot(0.02, middle, "o", markersize=15, color=face, markeredgecolor=style.INK, zorder=3)
    return style.save_figure(figure, path)


def _rows(explanation: NodeExplanation, most: int) -> list[tuple[str, float, str]]:
    """Label, mass and words of every line."""
    return [
        (str(r.label), float(r.mass), _short(str(r.text), _TEXT) or f"document {r.doc_id}")
        if r.kind == DOCUMENT
        else ("", float(r.mass), f"({r.kind})")
        for r in explanation.head(most).table.itertuples()
    ]


def _short(text: str, width: int) -> str:
    return shorten(clean_text(text, 4 * width), width, placeholder=" …")
