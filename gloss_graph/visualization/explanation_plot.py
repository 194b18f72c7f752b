"""The picture of an explanation: a document, and the labeled documents that decided it."""

from __future__ import annotations

import os
from textwrap import shorten
from typing import Any

from matplotlib.figure import Figure

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.explanation import DOCUMENT, NodeExplanation
from gloss_graph.export.attributes import clean_text
from gloss_graph.visualization import style

__all__ = ["plot_explanation"]

_ROW = 0.42  # inches of a row
_TEXT = 74
_THICKEST = 9.0  # points


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
