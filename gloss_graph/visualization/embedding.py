"""The embedding space before and after training, as t-SNE sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from gloss_graph.visualization.panels import (
    aligned,
    draw_documents,
    drawn_documents,
    fit_panel,
    legend_beside,
    set_headings,
    two_panels,
)
from gloss_graph.visualization.style import save_figure

__all__ = ["plot_embeddings"]

_PERPLEXITY = 30.0


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
    """Draw the same documents in the plane before and after training, by t-SNE.

    t-SNE (van der Maaten & Hinton 2008) of the L2-normalised rows from a PCA start; the right
    panel is turned to lie as the left one does. Which documents lie together can be read from it,
    sizes of clusters and distances between them cannot. Up to 20 classes have a look of their own,
    with more the 16 largest, the others are grey.

    Args:
        before: (N, D) floating, embeddings of the encoder as given.
        after: (N, D') of the trained encoder, same documents, same order.
        labels: (N,) integer, -1 = unlabeled (hollow).
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; their numbers otherwise.
        max_documents: with more, a stratified sample that keeps a document of every class.
        seed: of sample and t-SNE; the same seed gives the same picture.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        TypeError: a value that is not a tensor.
        ValueError: shapes that disagree, non-finite rows, no document, or a class without name.

    Cost: some seconds at 1,000 documents.

    Example:
        >>> import torch
        >>> x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        >>> figure = plot_embeddings(x, 2 * x, torch.arange(12) % 3)
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['before training', 'after training']

    See also: ``plot_graph_change``, for who is next to whom; ``plot_similarities``, on the way.
    """
    shown = drawn_documents(before, after, labels, label_names, max_documents, seed)
    first = _places(shown.before, seed)
    second = aligned(_places(shown.after, seed), first)
    figure, panels = two_panels()
    for axes, places in zip(panels, (first, second), strict=True):
        entries = draw_documents(axes, places, shown.looks)
        fit_panel(axes, places)
    if len(shown.labels) < shown.total:
        title += f" · {len(shown.labels):,} of {shown.total:,} documents"
    set_headings(figure, panels, title, ["before training", "after training"])
    legend_beside(figure, entries)
    return save_figure(figure, path)


def _places(rows: Tensor, seed: int) -> np.ndarray:
    """Places (N, 2) of rows (N, D); all in one spot where the rows are equal."""
    unit = normalize(rows, dim=1).numpy().astype(np.float64)
    unit -= unit.mean(axis=0)
    size = len(unit)
    # Fewer than four documents have no neighbourhoods to keep.
    if size < 4 or np.abs(unit).max() < 1e-6:
        flat = np.pad(unit, ((0, 0), (0, 2)))
        left, scale, _ = np.linalg.svd(flat, full_matrices=False)
        places = left * scale
        return np.pad(places, ((0, 0), (0, 2)))[:, :2]
    if unit.shape[1] == 1:
        unit = np.pad(unit, ((0, 0), (0, 1)))
    # The start is scaled to a known size: PCA by hand, as a flat cloud would divide by zero.
    left, scale, _ = np.linalg.svd(unit, full_matrices=False)
    signs = np.sign(left[np.abs(left[:, :2]).argmax(axis=0), [0, 1]])
    start = left[:, :2] * scale[:2] * signs
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    perplexity = min(_PERPLEXITY, (size - 1) / 3)
    model = TSNE(perplexity=perplexity, init=start.astype(np.float32), random_state=seed)
    # The order in which threads add up would decide where documents end.
    with threadpool_limits(limits=1):
        return model.fit_transform(unit.astype(np.float32)).astype(np.float64)
