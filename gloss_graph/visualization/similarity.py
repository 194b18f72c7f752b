"""Similarities within one batch as training goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from gloss_graph._internal.checks import check_matrix
from gloss_graph.visualization.panels import checked_labels, short_name
from gloss_graph.visualization.style import INK, new_figure, save_figure, set_heading

__all__ = ["plot_similarities"]

_COLUMNS = 3
_SIDE = 3.3  # inches of a panel
_TYPE = 7.5  # points of a class name


def plot_similarities(
    moments: Mapping[str, Tensor],
    labels: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    label_names: Sequence[str] | None = None,
    title: str = "Similarity within one batch",
) -> Figure:
    r"""Draw the cosine similarities of a batch at several moments, documents sorted by class.

    White lines part the classes; blocks on the diagonal that brighten while the rest darkens are
    classes that come together. All panels share one colour scale, over each stand the mean
    similarities within and between classes (of different documents).

    Args:
        moments: name of each moment -> (B, D) floating embeddings of the same documents in the
            same order, in order of time.
        labels: (B,) integer, -1 = unlabeled (a block of their own, in neither mean).
        path: where to save, as PNG, PDF or SVG; an older picture is replaced. None saves nothing.
        label_names: names of the classes; their numbers otherwise. Classes too thin for a line of
            type go without.
        title: first line of the picture.

    Returns:
        The figure.

    Raises:
        TypeError: a value that is not a tensor.
        ValueError: no moment or document, shapes that disagree, non-finite rows, or a class
            without name.

    Example:
        >>> x = torch.eye(4)[[0, 0, 1, 1]]
        >>> figure = plot_similarities({"start": x, "end": x}, torch.tensor([0, 0, 1, 1]))
        >>> figure.axes[0].get_title(loc="left")
        'start\nwithin classes 1.00 · between 0.00'

    See also: ``plot_embeddings``, for more documents at two moments.
    """
    if not moments:
        raise ValueError("'moments' must hold at least one (got none). Encode the batch once.")
    names = [str(name) for name in moments]
    size = _batch_size(moments)
    classes = checked_labels(labels, size, label_names)
    # Unlabeled documents stand last.
    order = np.argsort(np.where(classes < 0, classes.max() + 1, classes), kind="stable")
    sorted_classes = classes[order]
    tables = []
    for rows in moments.values():
        unit = normalize(rows.detach().cpu().double(), dim=1)[torch.from_numpy(order)]
        tables.append((unit @ unit.T).numpy().clip(-1, 1))
    low = min(float(table.min()) for table in tables)

    columns = min(_COLUMNS, len(tables))
    lines = math.ceil(len(tables) / columns)
    width = max(columns * (_SIDE + 0.15) + 2.2, 7.0)
    figure = new_figure(width, lines * (_SIDE + 0.6) + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, (axes, table, name) in enumerate(zip(panels, tables, names, strict=False)):
        picture = axes.imshow(
            table, vmin=min(low, 0.9), vmax=1.0, cmap="viridis", interpolation="nearest"
        )
        _draw_classes(axes, sorted_classes, label_names, named=place % columns == 0)
        head = f"{name}\n{_means(table, sorted_classes)}"
        axes.set_title(head, loc="left", fontsize=10, color=INK, linespacing=1.4, parse_math=False)
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    bar = figure.colorbar(picture, ax=list(panels), shrink=0.75, aspect=30, pad=0.02)
    bar.set_label("cosine similarity", fontsize=10.5, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=INK, length=3)
    set_heading(figure, title)
    return save_figure(figure, path)


def _batch_size(moments: Mapping[str, Tensor]) -> int:
    sizes = []
    for name, rows in moments.items():
        check_matrix(f"moments[{name!r}]", rows)
        sizes.append(rows.size(0))
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(
            f"'moments' must hold the same documents, at least one (got {sizes}). Encode one batch "
            "at every moment."
        )
    return sizes[0]


def _draw_classes(
    axes: Axes, classes: np.ndarray, label_names: Sequence[str] | None, *, named: bool
) -> None:
    """Lines between classes and, where asked and wide enough, their names."""
    starts = np.flatnonzero(np.diff(classes, prepend=classes[0] - 1))
    ends = np.append(starts[1:], classes.size)
    width = 0.8 if starts.size <= 12 else 0.4
    for border in starts[1:] - 0.5:
        axes.axhline(border, color="white", linewidth=width)
        axes.axvline(border, color="white", linewidth=width)
    point = 72 * _SIDE / classes.size
    ticks = [
        ((start + end - 1) / 2, classes[start])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if (end - start) * point >= _TYPE
    ]
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    if not named:
        axes.set_yticks([])
        return
    words = ["unlabeled" if c < 0 else short_name(int(c), label_names) for _, c in ticks]
    axes.set_yticks([place for place, _ in ticks], words, fontsize=_TYPE, parse_math=False)
    axes.tick_params(length=0, colors=INK)


def _means(table: np.ndarray, classes: np.ndarray) -> str:
    """Mean similarity of pairs within and between classes, in words."""
    known = classes >= 0
    pair = known[:, None] & known[None, :] & ~np.eye(classes.size, dtype=bool)
    same = classes[:, None] == classes[None, :]
    found = [
        # Plus zero: no "-0.00".
        f"{word} {round(float(table[mask].mean()), 2) + 0.0:.2f}"
        for word, mask in (("within classes", pair & same), ("between", pair & ~same))
        if mask.any()
    ]
    return " · ".join(found) or "a single document"
