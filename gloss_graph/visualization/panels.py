"""Two panels side by side with classes in the same colours: documents before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector, check_matrix, check_positive_int
from gloss_graph._internal.sampling import stratified_sample
from gloss_graph.visualization.style import GREY, INK, PALETTE, add_legend, new_figure, set_heading

_MARKERS = ("o", "s", "^")
#: Classes that are told apart; with more, the largest `_NAMED` are and the others are grey.
_MOST, _NAMED = 20, 16
_OTHER = "#8A9099"
_NAME = 24
#: Inches of a legend to the right of the panels.
BESIDE = 2.9

Entry = tuple[Line2D, str]


class ClassLook(NamedTuple):
    """How the documents of a class are drawn."""

    name: str
    color: str
    marker: str
    members: np.ndarray  # (N,) bool
    hollow: bool = False


class Documents(NamedTuple):
    """N documents as drawn in both panels."""

    before: Tensor  # (N, D)
    after: Tensor  # (N, D')
    labels: np.ndarray  # (N,)
    looks: list[ClassLook]
    total: int


def drawn_documents(
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    label_names: Sequence[str] | None,
    max_documents: int,
    seed: int,
) -> Documents:
    """Check the arguments of a picture and draw the documents it shows.

    Raises:
        TypeError: A value that is not a tensor.
        ValueError: Shapes that disagree, non-finite rows, no document, or a class without name.
    """
    check_matrix("before", before)
    check_matrix("after", after)
    if after.size(0) != before.size(0) or not before.size(0):
        raise ValueError(
            f"'before' and 'after' must hold the same documents, at least one (got "
            f"{before.size(0)} and {after.size(0)})."
        )
    check_positive_int("max_documents", max_documents)
    classes = checked_labels(labels, before.size(0), label_names)
    chosen = stratified_sample(classes, max_documents, seed=seed)
    rows = torch.from_numpy(chosen)
    looks = class_looks(classes, label_names)
    looks = [look._replace(members=look.members[chosen]) for look in looks]
    return Documents(
        before.detach().cpu().float()[rows],
        after.detach().cpu().float()[rows],
        classes[chosen],
        [look for look in looks if look.members.any()],
        classes.size,
    )


def checked_labels(labels: Tensor, size: int, label_names: Sequence[str] | None) -> np.ndarray:
    """Labels as (N,) int64, -1 for unlabeled.

    Raises:
        TypeError: Not a tensor.
        ValueError: Wrong shape or dtype, or a class without name.
    """
    check_index_vector("labels", labels, size)
    classes = labels.cpu().numpy().astype(np.int64)
    top = int(classes.max(initial=-1))
    if label_names is not None and top >= len(label_names):
        raise ValueError(
            f"'label_names' must name every class (got {len(label_names)} names for class {top}). "
            "Pass them in the order of the class numbers."
        )
    return np.maximum(classes, -1)


def class_looks(labels: np.ndarray, label_names: Sequence[str] | None) -> list[ClassLook]:
    """Give every class a colour and a marker, in the order of the class numbers.

    Beyond 20 classes the 16 largest have looks of their own and the others share a grey one.
    """
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    named = np.arange(found.size)
    if found.size > _MOST:
        named = np.sort(np.argsort(-counts, kind="stable")[:_NAMED])
    looks = [
        ClassLook(
            short_name(label, label_names),
            PALETTE[place % len(PALETTE)],
            _MARKERS[place // len(PALETTE)],
            labels == label,
        )
        for place, label in enumerate(found[named].tolist())
    ]
    rest = np.setdiff1d(found, found[named])
    if rest.size:
        members = np.isin(labels, rest)
        looks.append(ClassLook(f"{rest.size} other classes", _OTHER, "D", members))
    if (labels < 0).any():
        looks.append(ClassLook("unlabeled", GREY, "o", labels < 0, hollow=True))
    return looks


def short_name(label: int, label_names: Sequence[str] | None) -> str:
    """Name of a class, shortened."""
    name = str(label) if label_names is None else " ".join(str(label_names[label]).split())
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def draw_documents(
    axes: Axes, places: np.ndarray, looks: Sequence[ClassLook], *, least: float = 11
) -> list[Entry]:
    """Draw documents (N, 2) as dots, small classes over large ones; return legend entries.

    `least` bounds the area of a dot from below, in square points.
    """
    area = float(np.clip(9000 / max(len(places), 1), least, 70))
    entries: dict[str, Entry] = {}
    for look in sorted(looks, key=lambda look: -int(look.members.sum())):
        rim: Any = look.color if look.hollow else tuple(0.7 * part for part in to_rgb(look.color))
        face = "white" if look.hollow else look.color
        size = area * (0.7 if look.marker == "D" else 1.0)
        axes.scatter(
            places[look.members, 0],
            places[look.members, 1],
            s=size,
            c=[face],
            marker=look.marker,
            edgecolors=[rim],
            linewidths=0.35 if area > 6 else 0.1,
            # Grey ones are the ground the others stand on.
            zorder=2.5 if look.hollow or look.color == _OTHER else 3,
        )
        dot = Line2D([], [], marker=look.marker, linestyle="none", markersize=7.5)
        dot.set(markerfacecolor=face, markeredgecolor=rim, markeredgewidth=0.7)
        entries[look.name] = (dot, legend_name(look))
    return [entries[look.name] for look in looks]


def legend_name(look: ClassLook) -> str:
    """Name of a class and the number of its documents."""
    return f"{look.name} ({int(look.members.sum()):,})"


def aligned(places: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Turn and mirror places (N, 2) so that documents lie near their reference places (N, 2).

    Neighbour embeddings come in any orientation; one they share makes the panels comparable.
    """
    centred = places - places.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (reference - reference.mean(axis=0)))
    return centred @ (left @ right)


def two_panels(width: float = 12.6, height: float = 6.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with two square panels without scales."""
    figure = new_figure(width, height)
    panels = list(figure.subplots(1, 2))
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="#D5D9DE", linewidth=0.8)
    return figure, panels


def fit_panel(axes: Axes, places: np.ndarray) -> None:
    """Set limits to a square around places (N, 2), whatever their scale."""
    low, high = places.min(axis=0), places.max(axis=0)
    half = 0.54 * max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2
    axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_aspect("equal")


def set_headings(figure: Figure, panels: Sequence[Axes], title: str, heads: Sequence[str]) -> None:
    """Title over the figure, one heading over each panel."""
    set_heading(figure, title)
    for axes, head in zip(panels, heads, strict=True):
        axes.set_title(head, loc="left", fontsize=11, color=INK, linespacing=1.4, parse_math=False)


def legend_beside(figure: Figure, entries: Sequence[Entry]) -> None:
    """A legend to the right of the panels."""
    add_legend(
        figure,
        entries,
        room=BESIDE,
        loc="outside right upper",
        fontsize=9.5,
        handlelength=1.4,
        labelspacing=0.5,
        alignment="left",
    )
