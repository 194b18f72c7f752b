"""Pictures of the document graph: a sample, all documents by community, one explanation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.figure import Figure
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.explanation import DOCUMENT, NodeExplanation
from gloss_graph.analysis.measures import group_words, louvain_communities
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.export.networkx_graphs import to_networkx
from gloss_graph.visualization import style
from gloss_graph.visualization.layout import edge_list, place_nodes, sample_nodes

_GROUPS = 12  # most categories with a name
_BESIDE = 3.4  # inches of a legend beside a graph
_COLUMNS = 3  # most columns of a legend under a map,
_UNDER, _TYPE = 6.0, 9.5  # its width in inches, that of a panel, and its type in points
_LINE = 1.25 * _TYPE / 72  # inches of a line of words within a panel
_ROW, _THICKEST = 0.42, 9.0  # of an explanation: inches, points
_EDGES = style.EdgeLook(alpha=(0.35, 0.5, 0.75), full=4000, ink=(0.25, 1.8), width=(0.5, 0.4))
_MAP_EDGES = style.EdgeLook(alpha=(0.5, 0.5, 0.4), full=1500, ink=(0.1, 1.2), width=(0.3, 0.4))


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
    nodes = sample_nodes(graph, max_nodes, seed=seed)
    data = [graph.nodes[node] for node in nodes]
    if not any(color_by in entry for entry in data):
        present = sorted({str(key) for entry in data for key in entry})
        raise ValueError(
            f"'color_by' must be an attribute of the nodes (got {color_by!r}). "
            f"Known here: {', '.join(present) or 'none'}."
        )
    word = "class" if color_by in ("label", "predicted") else "group"
    groups, names, scale = _categories([entry.get(color_by) for entry in data], word)
    missing = "unlabeled" if word == "class" else "no value"
    many = {"most": _GROUPS, "named": _GROUPS, "length": 28}
    looks = style.class_looks(groups, names, word=word, missing=missing, **many)
    links = nx.to_scipy_sparse_array(graph, nodes, dtype=float, format="coo")
    places = place_nodes(links, seed=seed)
    ends, weight = edge_list(links)
    weight = np.clip(weight / max(weight.max(initial=0.0), 1e-12), 0, 1)
    relation = style.relations(groups[ends])

    figure = style.new_figure(10.5, 7.6)
    figure.suptitle(
        title, x=0.004, ha="left", fontsize=15, fontweight="bold", color=style.INK, parse_math=False
    )
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_aspect("equal", anchor="NW")
    axes.set(xlim=(-1.04, 1.04), ylim=(min(-1.04, places[:, 1].min() - 0.04), 1.04))
    area = float(np.clip(26000 / len(places), 14, 110))
    if scale is not None:
        relation, looks = np.zeros(len(ends)), [look for look in looks if look.hollow]
        known = ~np.isnan(scale)
        dots: dict[str, Any] = {"s": area, "c": scale[known], "cmap": "viridis"}
        dots["edgecolors"] = "white"
        colored = axes.scatter(*places[known].T, zorder=3, linewidths=0.45, **dots)
        bar = figure.colorbar(colored, cax=axes.inset_axes((1.04, 0.02, 0.03, 0.45)))
        bar.set_label(color_by.replace("_", " "), fontsize=11)
        bar.outline.set_visible(False)
    entries = style.draw_documents(axes, places, looks, area=area)
    wrong = np.array([_is_wrong(entry) for entry in data])
    if wrong.any():
        ring: dict[str, Any] = {"s": 1.8 * area, "edgecolors": "black", "linewidths": 1.2}
        axes.scatter(*places[wrong].T, facecolors="none", zorder=4, **ring)
        handle = style.dot_handle("o", "none", "black", width=1.6)
        entries.append((handle, f"misclassified ({int(wrong.sum()):,})"))
    called = word if scale is None else ""
    edges = style.draw_edges(axes, places, ends, relation, _EDGES, weight, called)
    entries += [(handle, f"{name} ({count:,})") for handle, name, count in edges]
    bold: dict[str, Any] = {"title_fontproperties": {"size": 11.5, "weight": "bold"}}
    bold["title"] = color_by.replace("_", " ") if len(entries) > 1 else None
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "alignment": "left"}
    style.add_legend(axes, entries, room=_BESIDE, fontsize=10.5, labelspacing=0.6, **bold, **place)
    facts = f"{len(nodes):,} documents"
    if len(nodes) < len(graph):
        facts = f"{len(nodes):,} of {len(graph):,} documents (random-walk sample)"
    facts += f" · {len(ends):,} edges"
    if alone := len(nodes) - np.unique(ends).size:
        facts += f" · {alone:,} isolated, in the lowest rows"
    if known_ends := int((relation > 0).sum()):
        share = 100 * int((relation == 2).sum()) / known_ends
        of = "edges" if known_ends == len(ends) else "edges with known ends"
        facts += f"\n{share:.1f} % of the {of} join two {style.plural(word)}"
    style.set_facts(axes, facts, spacing=1.5)
    return style.save_figure(figure, path)


def _known(value: Any) -> Any:
    """The value, or None for the ways to have no class: None, the empty name, -1."""
    return None if value is None or value == "" or (value == -1 and value is not True) else value


def _categories(
    values: Sequence[Any], word: str
) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Category (n,) of every value, -1 for none, and their names; (n,) numbers if they are many."""
    values = [_known(value) for value in values]
    found = sorted({*values} - {None}, key=lambda value: (isinstance(value, str), value))
    code = {value: place for place, value in enumerate(found)}
    groups = np.array([code.get(value, -1) for value in values])
    names = [("no", "yes")[v] if isinstance(v, bool) else str(v) for v in found]
    numeric = all(type(value) in (int, float) for value in found)
    if numeric and word == "group" and len(found) > _GROUPS:
        return groups, names, np.array(values, dtype=float)
    return groups, names, None


def _is_wrong(node: dict[str, Any]) -> bool:
    """Whether a node's label and prediction are known and differ."""
    label, predicted = _known(node.get("label")), _known(node.get("predicted"))
    known = label is not None and predicted is not None
    return known and type(predicted) is type(label) and predicted != label


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
    """
    check_positive_int("max_edges", max_edges)
    documents = read_arrays(graph, label_names, allow_empty=False)
    size, y, links = documents.size, documents.y, documents.links
    communities = np.maximum(known_communities(links, communities, seed), -1)
    if places is None:
        places = place_nodes(links, seed=seed, iterations=400)
    if np.shape(places) != (size, 2) or not np.isfinite(places).all():
        raise ValueError(
            f"'places' must be finite with shape ({size}, 2) (got {np.shape(places)})."
        )
    names = community_names(communities, y, documents.names)
    found = style.class_looks(communities, names, word="community", missing="isolated")
    sides = (y, style.class_looks(y, documents.names)), (communities, found)
    ends, _ = edge_list(links)
    edges = len(ends)
    if edges > max_edges:
        chosen = np.random.default_rng(seed).choice(edges, max_edges, replace=False)
        ends = ends[np.sort(chosen)]
    rows = 0
    for _, looks in sides:
        named = [look.counted for look in looks]
        rows = max(rows, -(-len(named) // style.legend_columns(named, _UNDER, _COLUMNS, _TYPE)))
    figure, panels = style.two_panels(title, 6.95 + 0.2 * rows)
    for axes, (groups, looks) in zip(panels, sides, strict=True):
        style.draw_edges(axes, places, ends, style.relations(groups[ends]), _MAP_EDGES)
        entries = style.draw_documents(axes, places, looks, least=3)
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.01)}
        place |= {"fontsize": _TYPE, "handletextpad": 0.3, "labelspacing": 0.45}
        style.add_legend(axes, entries, room=_UNDER, columns=_COLUMNS, **place)
        style.fit_panel(axes, places)
    if documents.text is not None:
        telling = group_words(documents.text, communities, top=3)
        largest = Counter(communities[communities >= 0].tolist()).most_common(_GROUPS)
        blocks = []
        for community, _ in largest:
            middle = np.median(places[communities == community], axis=0)
            if told := "\n".join(telling[community]):
                blocks.append((middle, [(told, _TYPE, "bold")], style.INK))
        style.write_apart(panels[1], blocks, side=_UNDER, line=_LINE)
    share = f"{edges:,} edges" if len(ends) == edges else f"{len(ends):,} of {edges:,} edges drawn"
    number = np.unique(communities[communities >= 0]).size
    words = ", each with its most frequent label" if bool((y >= 0).any()) else ""
    labeled = f"{size:,} documents, {int((y >= 0).sum()):,} labeled"
    style.set_facts(panels[0], f"by label\n{labeled} · {share}", 11)
    style.set_facts(panels[1], f"by community\n{number:,} communities (Louvain){words}", 11)
    return style.save_figure(figure, path)


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


def community_names(
    communities: np.ndarray, y: np.ndarray, label_names: Sequence[str]
) -> list[str]:
    """Name every community by its number from 1 and its most frequent label."""
    names = []
    for community in range(int(communities.max(initial=-1)) + 1):
        labels = y[(communities == community) & (y >= 0)]
        name = f"{community + 1}"
        if labels.size:
            counts = np.bincount(labels)
            top = int(counts.argmax())
            share = f" {100 * counts[top] / labels.size:.0f} %"
            word = style.short_name(top, label_names)
            name += f": {style.elided(word, 22 - len(name) - len(share))}{share}"
        names.append(name)
    return names


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
    table = explanation.head(max_documents).table
    # The largest classes get colors; beyond the palette all are grey.
    named = [label for label in explanation.classes.index if label][: len(style.PALETTE) - 1]
    colors = dict(zip(named, style.PALETTE, strict=False))
    figure = style.new_figure(10.5, 1.6 + _ROW * max(len(table), 2))
    axes = figure.add_subplot()
    axes.set(xlim=(0.0, 1.0), ylim=(len(table) - 0.4, -0.6))
    axes.axis("off")
    given = f'labeled "{explanation.label}"' if explanation.label else "unlabeled"
    said = "no label reaches it"
    if explanation.predicted:
        said = f'the graph says "{explanation.predicted}"'
    title = f"Document {explanation.doc_id} ({given}): {said}"
    if text := _short(explanation.text, 110):
        title += f"\n{text}"
    axes.set_title(title, loc="left", fontsize=11, color=style.INK, parse_math=False, pad=10)
    middle, most = (len(table) - 1) / 2, table["mass"].max()
    look: dict[str, Any] = {"va": "center", "fontsize": 9.5, "color": style.INK}
    look |= {"clip_on": True, "parse_math": False}
    for place, row in enumerate(table.itertuples()):
        label, words = "", f"({row.kind})"
        if row.kind == DOCUMENT:
            label, words = str(row.label), _short(str(row.text), 74) or f"document {row.doc_id}"
        color = colors.get(label, style.GREY)
        width = max(_THICKEST * row.mass / most, 0.6)
        axes.plot([0.02, 0.2], [middle, place], color=color, linewidth=width, alpha=0.75, zorder=1)
        axes.plot(0.2, place, "o", markersize=9, color=color, markeredgecolor=style.INK, zorder=2)
        axes.text(0.275, place, f"{100 * row.mass:.1f} %", ha="right", **look)
        axes.text(0.285, place, _short(label, 22), ha="left", weight="bold", **look)
        axes.text(0.46, place, words, ha="left", **look)
    face = colors.get(explanation.predicted, style.GREY)
    axes.plot(0.02, middle, "o", markersize=15, color=face, markeredgecolor=style.INK, zorder=3)
    return style.save_figure(figure, path)


def _short(text: str, width: int) -> str:
    return shorten(clean_text(text, 4 * width), width, placeholder=" …")
