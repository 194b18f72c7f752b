"""The same documents before and after training: their embeddings, and their graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_matrix, check_positive_int
from gloss_graph._internal.labels import stratified_sample
from gloss_graph.analysis.measures import group_words
from gloss_graph.export.graph_arrays import edge_homophily
from gloss_graph.export.networkx_graphs import to_networkx
from gloss_graph.graph import build_document_graph
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import EdgeLook, draw_edges, relations
from gloss_graph.visualization.layout import place_nodes

__all__ = ["plot_embeddings", "plot_graph_change"]

_PERPLEXITY = 30.0
_EDGES = EdgeLook(
    unknown=("#C9CDD2", 0.5, "edge with an unlabeled end"),
    within=("#7F8791", 0.55, "edge within a class"),
    between=(style.CONTRAST, 0.65, "edge between classes"),
    full=600,
    ink=(0.25, 1.4),
    width=(0.4, 0.35),
)
_NAME_SIZE, _WORD_SIZE = 9.0, 7.0  # points
_LINE = 0.17  # inches of a line of either
_PANEL = 5.0  # inches of a panel's side, about


def plot_embeddings(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    max_documents: int = 1000,
    seed: int = 0,
    title: str = "Embeddings before and after training",
) -> Figure:
    """Draw the same documents before and after training, by t-SNE.

    t-SNE (van der Maaten & Hinton 2008) of the L2-normalized rows from a PCA start; the right panel
    is rotated to match the left one. The picture shows which documents lie together, not the sizes
    of clusters or the distances between them. Up to 20 classes get a color and marker each; with
    more, the 16 largest do and the others are grey. Unlabeled documents (-1) are hollow. The name
    of a class stands where most of its documents lie.

    The rows of `before` (N, D) and `after` (N, D') are of the same documents in the same order. Of
    more than `max_documents` a stratified sample is drawn that keeps a document of every class.

    Raises:
        ValueError: Shapes that disagree, rows that are not finite, no document, or a class without
            a name.

    Cost: some seconds at 1,000 documents.

    Example:
        >>> x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        >>> figure = plot_embeddings(x, 2 * x, torch.arange(12) % 3)
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['before training', 'after training']

    See also: `plot_graph_change`, for the neighbors; `plot_similarities`, for moments between.
    """
    shown = _shown_documents(before, after, labels, label_names, max_documents, seed)
    first = _places(shown.before, seed)
    second = _aligned(_places(shown.after, seed), first)
    figure, panels = style.two_panels()
    for axes, places in zip(panels, (first, second), strict=True):
        entries = style.draw_documents(axes, places, shown.looks)
        style.fit_panel(axes, places)
        _write_names(axes, places, shown.looks)
    style.set_headings(figure, panels, title + shown.part, ["before training", "after training"])
    style.legend_beside(figure, entries, handlelength=1.4, labelspacing=0.5)
    return style.save_figure(figure, path)


def plot_graph_change(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    k: int = 8,
    drawn: int = 2,
    max_documents: int = 600,
    seed: int = 0,
    title: str = "Document graph before and after training",
) -> Figure:
    """Draw the nearest-neighbor graph of the same documents before and after training.

    Edges within a class are grey, edges between classes red; the heading of a panel gives the share
    of the former (edge homophily) and its expected value for random edges. Places come from the
    graph alone, not from the labels. Rows, labels, names and sample are as in `plot_embeddings`;
    the graph is that of the sample, with edges between documents of which either lists the other
    among its `k` neighbors. Only the `drawn` heaviest edges of a document are drawn. With the N
    `texts` the three most telling words of a class (`group_words`) stand below its name.

    Raises:
        ValueError: Shapes that disagree, rows that are not finite, no document, a class without a
            name, texts that are not N strings, or `k` or `drawn` below 1.

    Cost: O(n²) for n = min(N, max_documents): some seconds at 600 documents.

    Example:
        >>> x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        >>> y = torch.arange(12) % 3
        >>> figure = plot_graph_change(x, torch.eye(3)[y], y, k=3)
        >>> figure.axes[1].get_title(loc="left").splitlines()[1]
        '100.0 % of the edges within a class (27.3 % by chance)'

    See also: `plot_graph`, for one graph, larger and with predictions.
    """
    check_positive_int("k", k)
    check_positive_int("drawn", drawn)
    shown = _shown_documents(before, after, labels, label_names, max_documents, seed)
    found = {} if texts is None else group_words(texts, labels.tolist(), top=3)
    # Names may be shortened to the same; the class of a look is that of its first member.
    words = [found.get(int(shown.labels[look.members][0]), []) for look in shown.looks]
    classes = torch.from_numpy(shown.labels)
    chance = _chance(shown.labels)
    figure, panels = style.two_panels()
    heads: list[str] = []
    first: np.ndarray | None = None
    edges: dict[str, style.Entry] = {}
    states = (("before", shown.before), ("after", shown.after))
    for axes, (name, rows) in zip(panels, states, strict=True):
        data = build_document_graph(rows, classes, k=k)
        places = place_nodes(to_networkx(data), seed=seed)
        if first is None:
            first = places
        else:
            places = _aligned(places, first)
        ends = _heaviest(data, drawn)
        lines = draw_edges(axes, places, ends, relations(shown.labels[ends]), _EDGES)
        edges |= {kind: (handle, kind) for handle, kind, _ in lines}
        dots = style.draw_documents(axes, places, shown.looks)
        style.fit_panel(axes, places)
        _write_names(axes, places, shown.looks, words)
        share, by_chance = 100 * edge_homophily(data), 100 * chance
        fact = f"{share:.1f} % of the edges within a class ({by_chance:.1f} % by chance)"
        if share != share:
            fact = "no edge with two labeled ends"
        total = data.edge_index.size(1) // 2
        some = "" if len(ends) == total else f", {len(ends):,} drawn"
        heads.append(f"{name} training · k = {k} · {total:,} edges{some}\n{fact}")
    style.set_headings(figure, panels, title + shown.part, heads)
    style.legend_beside(figure, [*dots, *edges.values()], handlelength=1.4, labelspacing=0.5)
    return style.save_figure(figure, path)


class _Shown(NamedTuple):
    """N documents as both panels show them."""

    before: Tensor  # (N, D)
    after: Tensor  # (N, D')
    labels: np.ndarray  # (N,)
    looks: list[style.ClassLook]
    part: str  # what a title says of a sample


def _shown_documents(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    label_names: Sequence[str] | None,
    max_documents: int,
    seed: int,
) -> _Shown:
    """Check the arguments of a picture and sample the documents it shows."""
    check_matrix("before", before)
    check_matrix("after", after)
    if after.size(0) != before.size(0) or not before.size(0):
        raise ValueError(
            f"'before' and 'after' must hold the same documents, at least one (got "
            f"{before.size(0)} and {after.size(0)})."
        )
    check_positive_int("max_documents", max_documents)
    classes = style.checked_labels(labels, before.size(0), label_names)
    chosen = stratified_sample(classes, max_documents, seed=seed)
    rows = torch.from_numpy(chosen)
    part = f" · {len(chosen):,} of {classes.size:,} documents"
    looks = style.class_looks(classes, label_names)
    looks = [look._replace(members=look.members[chosen]) for look in looks]
    return _Shown(
        before.detach().cpu().float()[rows],
        after.detach().cpu().float()[rows],
        classes[chosen],
        [look for look in looks if look.members.any()],
        part if len(chosen) < classes.size else "",
    )


def _places(rows: Tensor, seed: int) -> np.ndarray:
    """Places (N, 2) of rows (N, D); one spot for all if the rows are equal."""
    unit = normalize(rows, dim=1).numpy().astype(np.float64)
    unit -= unit.mean(axis=0)
    size = len(unit)
    # Fewer than four documents have no neighborhoods to keep.
    if size < 4 or np.abs(unit).max() < 1e-6:
        flat = np.pad(unit, ((0, 0), (0, 2)))
        left, scale, _ = np.linalg.svd(flat, full_matrices=False)
        places = left * scale
        return np.pad(places, ((0, 0), (0, 2)))[:, :2]
    if unit.shape[1] == 1:
        unit = np.pad(unit, ((0, 0), (0, 1)))
    # PCA by hand, as scikit-learn's would divide by zero for a flat cloud.
    left, scale, _ = np.linalg.svd(unit, full_matrices=False)
    signs = np.sign(left[np.abs(left[:, :2]).argmax(axis=0), [0, 1]])
    start = left[:, :2] * scale[:2] * signs
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    perplexity = min(_PERPLEXITY, (size - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed)
    # The order in which threads add up would change the places.
    with threadpool_limits(limits=1):
        return model.fit_transform(unit.astype(np.float32)).astype(np.float64)


def _heaviest(data: Data, most: int) -> np.ndarray:
    """Ends (p, 2) of the edges that are among the `most` heaviest of one of their documents."""
    ends, weight = data.edge_index.T.numpy(), data.edge_weight.numpy()
    order = np.lexsort((-weight, ends[:, 0]))
    ends = ends[order]
    starts = np.searchsorted(ends[:, 0], ends[:, 0])
    kept = ends[np.arange(len(ends)) - starts < most]
    return np.unique(np.sort(kept, axis=1), axis=0)


def _write_names(
    axes: Axes,
    places: np.ndarray,
    looks: Sequence[style.ClassLook],
    words: Sequence[Sequence[str]] | None = None,
) -> None:
    """Write the name of every class where most of its documents lie, none over another.

    Below a name the `words` of its class are written, where it has some.
    """
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    inch = (high - low)[0] / _PANEL
    written = np.empty((0, 4))  # left, bottom, right, top
    pairs = zip(looks, words or [[]] * len(looks), strict=True)
    for look, telling in sorted(pairs, key=lambda pair: -int(pair[0].members.sum())):
        if look.hollow or look.color == style.OTHER:
            continue
        spots = places[look.members]
        middle = spots[np.sqrt(cdist(spots, spots)).sum(axis=1).argmin()]
        lines = [(look.name, _NAME_SIZE, "bold")]
        if telling:
            lines.append((", ".join(telling), _WORD_SIZE, "normal"))
        width = max(style.text_width(text, size) for text, size, _ in lines)
        half = inch * np.array([width, _LINE * len(lines)]) / 2
        # The nearest free place above or below.
        for step in (0, 1, -1, 2, -2, 3, -3):
            spot = np.clip(middle + inch * _LINE * np.array([0, step]), low + half, high - half)
            box = np.concatenate([spot - half, spot + half])
            apart = (written[:, :2] >= box[2:]) | (written[:, 2:] <= box[:2])
            if not apart.any(axis=1).all():
                continue
            written = np.vstack([written, box])
            x, top = float(spot[0]), float(box[3])
            for number, (text, size, weight) in enumerate(lines):
                axes.text(
                    x,
                    top - inch * _LINE * (number + 0.5),
                    text,
                    fontsize=size,
                    fontweight=weight,
                    color=style.rim_of(look.color),
                    ha="center",
                    va="center",
                    parse_math=False,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                    zorder=5,
                )
            break


def _aligned(places: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rotate and mirror places (N, 2) to lie near the reference places (N, 2).

    The orientation of a neighbor embedding is arbitrary; a common one makes panels comparable.
    """
    centered = places - places.mean(axis=0)
    left, _, right = np.linalg.svd(centered.T @ (reference - reference.mean(axis=0)))
    return centered @ (left @ right)


def _chance(labels: np.ndarray) -> float:
    """Share of the pairs of labeled documents that are of one class."""
    counts = np.bincount(labels[labels >= 0])
    total = counts.sum()
    pairs = total * (total - 1)
    return float((counts * (counts - 1)).sum() / pairs) if pairs else float("nan")
