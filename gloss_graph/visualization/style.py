"""One look for all pictures: colors that color-blind readers can tell apart, readable type."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector
from gloss_graph._internal.colors import CONTRAST as CONTRAST
from gloss_graph._internal.colors import GREY as GREY
from gloss_graph._internal.colors import INK as INK
from gloss_graph._internal.colors import PALETTE as PALETTE
from gloss_graph._internal.files import atomic_write

DPI = 160
_FORMATS = ("png", "pdf", "svg")
_NO_GLYPH = re.compile(r"Glyph \d+ .* missing from")
_COUNT = re.compile(r" \([\d,]+( labels?)?\)$|  ★ .*$")
_MEASURED = 100.0
# Of a legend, in units of its type: around a handle, and between columns.
_PAD, _SPACING = 1.6, 1.6
_MARKERS = ("o", "s", "^")
# Classes that can be told apart; with more, the largest `_NAMED` can and the others are grey.
_MOST, _NAMED = 20, 16
OTHER = "#8A9099"
_NAME = 24
# Inches of a legend to the right of the panels.
BESIDE = 2.9
# A legend entry: what is drawn, and its name.
Entry = tuple[Any, str]


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, outside any pyplot state."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str] | BinaryIO | None) -> Figure:
    """Write a figure as PNG, PDF or SVG by its suffix, whole or not at all, and return it.

    An older picture of that name is replaced. An open binary file gets a PNG; None writes nothing.
    """
    if path is None:
        return figure
    if not isinstance(path, (str, os.PathLike)):
        _save(figure, path, "png")
        return figure
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise ValueError(f"'path' must end in .png, .pdf or .svg (got {os.fspath(path)!r}).")
    with atomic_write(path, overwrite=True) as handle:
        _save(figure, handle, suffix)
    return figure


def _save(figure: Figure, handle: BinaryIO, kind: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(handle, format=kind, dpi=DPI, bbox_inches="tight", pad_inches=0.15)
    lacking = False
    for one in caught:
        if _NO_GLYPH.search(str(one.message)):
            lacking = True
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking:
        # Once per picture, where matplotlib warns for every letter.
        warnings.warn(
            f"The font {FontProperties().get_name()!r} lacks letters of the names in a picture; "
            "they are drawn as boxes. Install a font that has them, for example Noto Sans CJK, "
            "and name it in the 'font.family' of a matplotlibrc file.",
            UserWarning,
            stacklevel=4,
        )


def text_width(text: str, size: float) -> float:
    """Width in inches of a line of text, at a size in points."""
    with warnings.catch_warnings():
        # The warning comes when the picture is saved.
        warnings.filterwarnings("ignore", _NO_GLYPH.pattern, UserWarning)
        renderer = RendererAgg(1, 1, _MEASURED)
        font = FontProperties(size=size)
        width, _, _ = renderer.get_text_width_height_descent(text, font, False)
    return float(width) / _MEASURED


def shortened(text: str, size: float, room: float) -> str:
    """Text that takes at most `room` inches: itself, or `elided`, with its count."""
    if text_width(text, size) <= room:
        return text
    found = _COUNT.search(text)
    end = "" if found is None else found.group()
    start = text.removesuffix(end)
    kept = bisect_right(
        range(2, len(start) + 1),
        room,
        key=lambda length: text_width(f"{elided(start, length)}{end}", size),
    )
    return f"{elided(start, kept + 1)}{end}"


def elided(name: str, length: int) -> str:
    """At most `length` characters of a name: names of classes often differ at their end only."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 3
    return f"{name[: length - 1 - tail].rstrip()}…{name[len(name) - tail :].lstrip()}"


def tidy_axes(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Give axes a title, named sides and no box."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    axes.set_xlabel(x, fontsize=11, color=INK, parse_math=False)
    axes.set_ylabel(y, fontsize=11, color=INK, parse_math=False)
    axes.tick_params(labelsize=10, colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def set_heading(figure: Figure, title: str) -> None:
    """Write a bold line over the whole figure, at its left."""
    figure.suptitle(
        title, x=0.006, ha="left", fontsize=14, fontweight="bold", color=INK, parse_math=False
    )


def faint_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Draw faint lines behind everything."""
    axes.grid(True, axis=axis, color="#E3E6EA", linewidth=0.7)
    axes.set_axisbelow(True)


def legend_columns(
    names: Sequence[str], room: float, most: int, size: float, *, handle: float = 2.0
) -> int:
    """Number of columns, at most `most`, in which a legend of these names fits into `room` inches.

    `size` of the type is in points, the length of a handle in units of it.
    """
    widths = [text_width(name, size) for name in names]
    for columns in range(min(most, len(names)), 1, -1):
        rows = -(-len(names) // columns)
        widest = [max(widths[at : at + rows]) for at in range(0, len(names), rows)]
        gaps = columns * (handle + _PAD) + (columns - 1) * _SPACING
        if sum(widest) + gaps * size / 72 <= room:
            return columns
    return 1


def add_legend(
    owner: Axes | Figure,
    entries: Sequence[Entry],
    *,
    room: float,
    columns: int = 1,
    fontsize: float = 10,
    handlelength: float = 2.0,
    **look: Any,
) -> Legend:
    """Add a frameless legend of at most `room` inches; `look` are options of matplotlib's `legend`.

    Long names get fewer columns, and are shortened only if a single column is too wide.
    """
    handles, names = [handle for handle, _ in entries], [name for _, name in entries]
    columns = legend_columns(names, room, columns, fontsize, handle=handlelength)
    alone = room - (handlelength + _PAD) * fontsize / 72
    legend = owner.legend(
        handles,
        ["-"] * len(handles),
        frameon=False,
        ncols=columns,
        fontsize=fontsize,
        handlelength=handlelength,
        columnspacing=_SPACING,
        **look,
    )
    # Set afterwards: a name may start with "_" or hold "$", which matplotlib would interpret.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=shortened(name, fontsize, alone), parse_math=False)
    return legend


def name_ticks(axes: Axes, names: Sequence[str], *, size: float = 10.0, room: float = 2.2) -> None:
    """Name the places 0, 1, ... under axes; names that touch are turned and cut to `room` inches.

    Call it once the layout of the figure is final.
    """
    width = float(axes.get_window_extent().width) / DPI
    turn = max(text_width(name, size) for name in names) > 0.9 * width / len(names)
    shown = [shortened(name, size, room) for name in names] if turn else list(names)
    look: dict[str, Any] = {"parse_math": False, "fontsize": size}
    if turn:
        look |= {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), shown, **look)


class ClassLook(NamedTuple):
    """How the documents of a class are drawn."""

    name: str
    color: str
    marker: str
    members: np.ndarray  # (N,) bool
    hollow: bool = False


def checked_labels(labels: Tensor, size: int, label_names: Sequence[str] | None) -> np.ndarray:
    """Labels as (N,) int64, -1 for unlabeled, each with a name."""
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
    """Give every class a color and a marker, in the order of the class numbers.

    With more than 20 classes the 16 largest get one each and the others share a grey one.
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
        looks.append(ClassLook(f"{rest.size} other classes", OTHER, "D", members))
    if (labels < 0).any():
        looks.append(ClassLook("unlabeled", GREY, "o", labels < 0, hollow=True))
    return looks


def short_name(label: int, label_names: Sequence[str] | None) -> str:
    """Name of a class, shortened."""
    name = str(label) if label_names is None else " ".join(str(label_names[label]).split())
    return elided(name, _NAME)


def rim_of(color: str) -> tuple[float, ...]:
    """The darker color around a dot."""
    return tuple(0.7 * part for part in to_rgb(color))


def dot_handle(marker: str, face: str, rim: Any, size: float = 8.5, width: float = 0.8) -> Line2D:
    """A dot as legends show it."""
    dot = Line2D([], [], marker=marker, linestyle="none", markersize=size)
    dot.set(markerfacecolor=face, markeredgecolor=rim, markeredgewidth=width)
    return dot


def draw_documents(
    axes: Axes, places: np.ndarray, looks: Sequence[ClassLook], *, least: float = 11
) -> list[Entry]:
    """Draw documents (N, 2) as dots, small classes over large ones; return legend entries.

    `least` is the least area of a dot, in square points.
    """
    area = float(np.clip(9000 / max(len(places), 1), least, 70))
    entries: dict[int, Entry] = {}
    sizes = [int(look.members.sum()) for look in looks]
    for place in sorted(range(len(looks)), key=lambda place: -sizes[place]):
        look = looks[place]
        rim: Any = look.color if look.hollow else rim_of(look.color)
        face = "white" if look.hollow else look.color
        axes.scatter(
            places[look.members, 0],
            places[look.members, 1],
            s=area * (0.7 if look.marker == "D" else 1.0),
            c=[face],
            marker=look.marker,
            edgecolors=[rim],
            linewidths=0.35 if area > 6 else 0.1,
            # Grey dots are the background of the others.
            zorder=2.5 if look.hollow or look.color == OTHER else 3,
        )
        entries[place] = (dot_handle(look.marker, face, rim, 7.5, 0.7), legend_name(look))
    return [entries[place] for place in range(len(looks))]


def legend_name(look: ClassLook) -> str:
    """Name of a class and the number of its documents."""
    return f"{look.name} ({int(look.members.sum()):,})"


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


def set_facts(axes: Axes, text: str, size: float = 10.5, spacing: float = 1.4) -> None:
    """Write lines over axes, at their left."""
    look: dict[str, Any] = {"loc": "left", "fontsize": size, "color": INK}
    axes.set_title(text, linespacing=spacing, parse_math=False, **look)


def set_headings(figure: Figure, panels: Sequence[Axes], title: str, heads: Sequence[str]) -> None:
    """Title over the figure, one heading over each panel."""
    set_heading(figure, title)
    for axes, head in zip(panels, heads, strict=True):
        set_facts(axes, head, 11)


def legend_beside(figure: Figure, entries: Sequence[Entry], **look: Any) -> Legend:
    """A legend to the right of all panels."""
    place: dict[str, Any] = {"loc": "outside right upper", "alignment": "left"}
    return add_legend(figure, entries, room=BESIDE, fontsize=9.5, **place, **look)


class PagePicture(NamedTuple):
    """A picture as a page holds it, with its size in CSS pixels."""

    png: bytes
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def data(self) -> str:
        """The file as base64."""
        return base64.b64encode(self.png).decode("ascii")


def page_picture(figure: Figure, alt: str, caption: str = "") -> PagePicture:
    """Draw a figure for a page."""
    buffer = io.BytesIO()
    save_figure(figure, buffer)
    png = buffer.getvalue()
    # Width and height are at a fixed place in every PNG.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return PagePicture(png, round(width * 96 / DPI), round(height * 96 / DPI), alt, caption)
