"""The same documents over a training: their embeddings, their graph, their similarities."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from gloss_graph._internal.checks import check_matrix, check_positive_int
from gloss_graph._internal.labels import stratified_sample
from gloss_graph.analysis.measures import group_words
from gloss_graph.export.graph_arrays import edge_homophily, read_arrays
from gloss_graph.graph import build_document_graph
from gloss_graph.visualization import style
from gloss_graph.visualization.layout import place_nodes

_PERPLEXITY = 30.0
_EDGES = style.EdgeLook(
    alpha=(0.5, 0.55, 0.65), full=600, ink=(0.25, 1.4), width=(0.4, 0.35), unknown=style.OPEN
)
_NAME_SIZE, _WORD_SIZE = 9.0, 7.0  # points
_LINE = 0.17  # inches of a line of either
_PANEL = 5.0  # inches of a panel's side, about
_COLUMNS, _TABLE, _SMALL = 3, 3.3, 7.5  # of similarities: panels per row, inches, points


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
    """
    shown = _sample(before, after, labels, label_names, max_documents, seed)
    figure, panels = style.two_panels(title + shown.part)
    first = None
    for axes, name, rows in zip(panels, ("before", "after"), shown.rows, strict=True):
        places = _aligned(_tsne(rows, seed), first)
        first = places if first is None else first
        entries = _draw_panel(axes, places, shown.looks, [[]] * len(shown.looks))
        style.set_facts(axes, f"{name} training", 11)
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
    """
    check_positive_int("k", k)
    check_positive_int("drawn", drawn)
    shown = _sample(before, after, labels, label_names, max_documents, seed)
    found = {} if texts is None else group_words(texts, labels.tolist(), top=3)
    # Names may be shortened to the same; the class of a look is that of its first member.
    words = [found.get(int(shown.labels[look.members][0]), []) for look in shown.looks]
    counts = np.bincount(shown.labels[shown.labels >= 0])
    pairs = counts.sum() * (counts.sum() - 1)
    chance = 100 * ((counts * (counts - 1)).sum() / max(pairs, 1))
    figure, panels = style.two_panels(title + shown.part)
    first = None
    edges: dict[str, style.Entry] = {}
    for axes, name, rows in zip(panels, ("before", "after"), shown.rows, strict=True):
        data = build_document_graph(rows, torch.from_numpy(shown.labels), k=k)
        places = _aligned(place_nodes(read_arrays(data).links, seed=seed), first)
        first = places if first is None else first
        # Those among the `drawn` heaviest of one of their documents.
        ends, weight = data.edge_index.T.numpy(), data.edge_weight.numpy()
        ends = ends[np.lexsort((-weight, ends[:, 0]))]
        starts = np.searchsorted(ends[:, 0], ends[:, 0])
        ends = ends[np.arange(len(ends)) - starts < drawn]
        ends = np.unique(np.sort(ends, axis=1), axis=0)
        relation = style.relations(shown.labels[ends])
        lines = style.draw_edges(axes, places, ends, relation, _EDGES)
        edges |= {kind: (handle, kind) for handle, kind, _ in lines}
        dots = _draw_panel(axes, places, shown.looks, words)
        share = 100 * edge_homophily(data)
        fact = f"{share:.1f} % of the edges within a class ({chance:.1f} % by chance)"
        if math.isnan(share):
            fact = "no edge with two labeled ends"
        total = data.edge_index.size(1) // 2
        some = "" if len(ends) == total else f", {len(ends):,} drawn"
        head = f"{name} training · k = {k} · {total:,} edges{some}\n{fact}"
        style.set_facts(axes, head, 11)
    style.legend_beside(figure, [*dots, *edges.values()], handlelength=1.4, labelspacing=0.5)
    return style.save_figure(figure, path)


class _Sample(NamedTuple):
    """N documents as both panels show them."""

    rows: tuple[Tensor, Tensor]  # before (N, D) and after (N, D')
    labels: np.ndarray  # (N,)
    looks: list[style.ClassLook]
    part: str  # what a title says of a sample


def _sample(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    label_names: Sequence[str] | None,
    max_documents: int,
    seed: int,
) -> _Sample:
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
    first, second = (rows.detach().cpu().float()[chosen] for rows in (before, after))
    part = f" · {len(chosen):,} of {classes.size:,} documents"
    looks = style.class_looks(classes, label_names)
    looks = [look._replace(members=look.members[chosen]) for look in looks]
    shown = [look for look in looks if look.members.any()]
    part = part if len(chosen) < classes.size else ""
    return _Sample((first, second), classes[chosen], shown, part)


def _tsne(rows: Tensor, seed: int) -> np.ndarray:
    """Places (N, 2) of rows (N, D); one spot for all if the rows are equal."""
    unit = normalize(rows, dim=1).numpy().astype(np.float64)
    unit -= unit.mean(axis=0)
    # Fewer than four documents have no neighborhoods to keep.
    plain = len(unit) < 4 or np.abs(unit).max() < 1e-6
    if plain or unit.shape[1] == 1:
        unit = np.pad(unit, ((0, 0), (0, 2)))
    # PCA by hand, as scikit-learn's would divide by zero for a flat cloud.
    left, scale, _ = np.linalg.svd(unit, full_matrices=False)
    if plain:
        return np.pad(left * scale, ((0, 0), (0, 2)))[:, :2]
    signs = np.sign(left[np.abs(left[:, :2]).argmax(axis=0), [0, 1]])
    start = left[:, :2] * scale[:2] * signs
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    perplexity = min(_PERPLEXITY, (len(unit) - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed)
    # The order in which threads add up would change the places.
    with threadpool_limits(limits=1):
        return model.fit_transform(unit.astype(np.float32)).astype(np.float64)


def _aligned(places: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Rotate and mirror places (N, 2) to lie near the reference places (N, 2), if there are any.

    The orientation of a neighbor embedding is arbitrary; a common one makes panels comparable.
    """
    if reference is None:
        return places
    centered = places - places.mean(axis=0)
    turn, _ = orthogonal_procrustes(centered, reference - reference.mean(axis=0))
    return centered @ turn


def _draw_panel(
    axes: Axes,
    places: np.ndarray,
    looks: Sequence[style.ClassLook],
    words: Sequence[Sequence[str]],
) -> list[style.Entry]:
    """Draw documents, and the name of every class with its words where most of its documents lie.

    Returns legend entries.
    """
    entries = style.draw_documents(axes, places, looks)
    style.fit_panel(axes, places)
    blocks = []
    pairs = zip(looks, words, strict=True)
    for look, telling in sorted(pairs, key=lambda pair: -int(pair[0].members.sum())):
        if not look.hollow and look.color != style.OTHER:
            spots = places[look.members]
            middle = spots[np.sqrt(cdist(spots, spots)).sum(axis=1).argmin()]
            lines = [(look.name, _NAME_SIZE, "bold"), (", ".join(telling), _WORD_SIZE, "normal")]
            blocks.append((middle, lines if telling else lines[:1], look.rim))
    steps = (0, 1, -1, 2, -2, 3, -3)
    style.write_apart(axes, blocks, side=_PANEL, line=_LINE, steps=steps)
    return entries


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
    classes = classes[order]
    tables = []
    for rows in moments.values():
        unit = normalize(rows.detach().cpu().double(), dim=1)[torch.from_numpy(order)]
        tables.append((unit @ unit.T).numpy().clip(-1, 1))
    low = min(0.9, *(float(table.min()) for table in tables))
    starts = np.flatnonzero(np.diff(classes, prepend=classes[0] - 1))
    borders = [*(starts - 0.5).tolist(), classes.size - 0.5]
    thin = np.diff(borders) * 72 * _TABLE / classes.size < _SMALL
    names = ["unlabeled" if c < 0 else style.short_name(c, label_names) for c in classes[starts]]
    names = ["" if cut else name for name, cut in zip(names, thin, strict=True)]
    width = 0.8 if starts.size <= 12 else 0.4

    columns = min(_COLUMNS, len(tables))
    lines = math.ceil(len(tables) / columns)
    size = max(columns * (_TABLE + 0.15) + 2.2, 7.0), lines * (_TABLE + 0.6) + 0.6
    figure = style.new_figure(*size, title)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, (axes, table, name) in enumerate(zip(panels, tables, moments, strict=False)):
        picture = axes.imshow(table, vmin=low, vmax=1.0, cmap="viridis", interpolation="nearest")
        shown = names if place % columns == 0 else [""] * len(names)
        style.part_classes(axes, shown, borders, size=_SMALL, color="white", linewidth=width)
        axes.spines[:].set_visible(False)
        style.set_facts(axes, f"{name}\n{_means(table, classes)}", 10)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.75, aspect=30, pad=0.02)
    style.tidy_colorbar(bar, "cosine similarity", 10.5, labelsize=9, length=3)
    return style.save_figure(figure, path)


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
