"""One look for all pictures: colors that color-blind readers can tell apart, readable type."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector
from gloss_graph._internal.files import atomic_write
from gloss_graph.export.attributes import GREY as GREY
from gloss_graph.export.attributes import PALETTE as PALETTE

INK, CONTRAST = "#222222", "#B3123C"
WITHIN, FAINT, OPEN = "#7F8791", "#B9BEC5", "#C9CDD2"  # of edges
DPI = 160
_FORMATS = ("png", "pdf", "svg")
_NO_GLYPH = re.compile(r"Glyph \d+ .* missing from")
_COUNT = re.compile(r" \([\d,]+( labels?)?\)$|  ★ .*$")
_MEASURED = 100.0
# Of a legend, in units of its type: around a handle, and between columns.
_PAD, _SPACING = 1.6, 1.6
_MARKERS = ("o", "s", "^")
OTHER = "#8A9099"
# Inches of a legend to the right of the panels.
BESIDE = 2.9
# A legend entry: what is drawn, and its name.
Entry = tuple[Any, str]
# Lines of words in a picture: text, size in points, weight.
Words = tuple[str, float, str]


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty white figure, in inches, outside any pyplot state, with a bold line at its top."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        look: dict[str, Any] = {"fontsize": 14, "fontweight": "bold", "color": INK}
        figure.suptitle(title, x=0.006, ha="left", parse_math=False, **look)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """Write a figure as PNG, PDF or SVG by its suffix, whole or not at all, and return it."""
    if path is not None:
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
    others = [one for one in caught if not _NO_GLYPH.search(str(one.message))]
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if len(others) < len(caught):
        # Once per picture, where matplotlib warns for every letter.
        warnings.warn(
            f"The font {FontProperties().get_name()!r} lacks letters of the names in a picture; "
            "they are drawn as boxes. Install a font that has them, for example Noto Sans CJK, "
            "and name it in the 'font.family' of a matplotlibrc file.",
            UserWarning,
            stacklevel=4,
        )


def tidy_axes(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes a title, named sides and no box."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    axes.set_xlabel(x, fontsize=11, color=INK, parse_math=False)
    axes.set_ylabel(y, fontsize=11, color=INK, parse_math=False)
    axes.tick_params(labelsize=10, colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def faint_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Draw faint lines behind everything."""
    axes.grid(True, axis=axis, color="#E3E6EA", linewidth=0.7)
    axes.set_axisbelow(True)


def set_facts(axes: Axes, text: str, size: float = 10.5, spacing: float = 1.4) -> None:
    """Write lines over axes, at their left."""
    look: dict[str, Any] = {"loc": "left", "fontsize": size, "color": INK}
    axes.set_title(text, linespacing=spacing, parse_math=False, **look)


def say_nothing(axes: Axes, text: str) -> None:
    """Write a word in the middle of empty axes."""
    axes.text(0.5, 0.5, text, ha="center", color=GREY, transform=axes.transAxes)


def tidy_colorbar(bar: Colorbar, label: str, size: float, **ticks: Any) -> None:
    """Name a color scale, in points, and take its frame away."""
    bar.set_label(label, fontsize=size, color=INK)
    bar.ax.tick_params(colors=INK, **ticks)
    bar.outline.set_visible(False)


def part_classes(
    axes: Axes,
    names: Sequence[str],
    borders: Sequence[float],
    *,
    size: float,
    room: float = 0,
    **line: Any,
) -> None:
    """Draw lines between the classes of a matrix, class i at `borders` i to i + 1, and name them.

    Classes with an empty name, or less than `room` below the last named one, get none.
    """
    for border in borders[1:-1]:
        axes.axhline(border, **line)
        axes.axvline(border, **line)
    ticks: dict[float, str] = {}
    for name, start, stop in zip(names, borders[:-1], borders[1:], strict=True):
        middle = (start + stop) / 2
        if name and middle - max(ticks, default=-np.inf) >= room:
            ticks[middle] = name
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=size, color=INK, parse_math=False)
    axes.set_xticks([])
    axes.tick_params(length=0)


def name_ticks(axes: Axes, names: Sequence[str], *, size: float = 10.0, room: float = 2.2) -> None:
    """Name the places 0, 1, ... under laid out axes; names that touch are turned and cut."""
    width = float(axes.get_window_extent().width) / DPI
    turn = max(text_width(name, size) for name in names) > 0.9 * width / len(names)
    shown = [shortened(name, size, room) for name in names] if turn else list(names)
    look: dict[str, Any] = {"parse_math": False, "fontsize": size}
    if turn:
        look |= {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), shown, **look)


def text_width(text: str, size: float) -> float:
    """Width in inches of a line of text, at a size in points."""
    with warnings.catch_warnings():
        # The warning comes when the picture is saved.
        warnings.filterwarnings("ignore", _NO_GLYPH.pattern, UserWarning)
        renderer = RendererAgg(1, 1, _MEASURED)
        width, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size), False)
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


def short_name(label: int, label_names: Sequence[str] | None, length: int = 24) -> str:
    """Name of a class, shortened."""
    name = str(label) if label_names is None else " ".join(str(label_names[label]).split())
    return elided(name, length)


def write_apart(
    axes: Axes,
    blocks: Iterable[tuple[np.ndarray, Sequence[Words], Any]],
    *,
    side: float,
    line: float,
    steps: Sequence[int] = (0,),
) -> None:
    """Write blocks of words, none over another; those without a free place are left out.

    A block has a middle, its words and their color, and moves by the first of the `steps`, in lines
    up, that is free. The panel is about `side` inches wide, a line `line` inches high.
    """
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    inch = (high - low)[0] / side
    written = np.empty((0, 4))  # left, bottom, right, top
    for middle, words, color in blocks:
        rows = [(row, size) for text, size, _ in words for row in text.split("\n")]
        width = max(text_width(row, size) for row, size in rows)
        half = inch * np.array([width, line * len(rows)]) / 2
        for step in steps:
            spot = np.clip(middle + inch * line * np.array([0, step]), low + half, high - half)
            box = np.concatenate([spot - half, spot + half])
            apart = (written[:, :2] >= box[2:]) | (written[:, 2:] <= box[:2])
            if not apart.any(axis=1).all():
                continue
            written = np.vstack([written, box])
            top = float(box[3])
            for text, size, weight in words:
                height = inch * line * (text.count("\n") + 1)
                look: dict[str, Any] = {"fontsize": size, "fontweight": weight, "color": color}
                look |= {"path_effects": [withStroke(linewidth=3, foreground="white")]}
                look |= {"ha": "center", "va": "center", "parse_math": False, "zorder": 5}
                axes.text(float(spot[0]), top - height / 2, text, **look)
                top -= height
            break


def legend_columns(
    names: Sequence[str], room: float, most: int, size: float, *, handle: float = 2.0
) -> int:
    """Number of columns, at most `most`, in which a legend fits into `room` inches.

    The `size` of the type is in points, the length of a `handle` in units of it.
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
    look |= {"fontsize": fontsize, "handlelength": handlelength, "columnspacing": _SPACING}
    look["ncols"] = legend_columns(names, room, columns, fontsize, handle=handlelength)
    legend = owner.legend(handles, ["-"] * len(handles), frameon=False, **look)
    # Set afterwards: a name may start with "_" or hold "$", which matplotlib would interpret.
    alone = room - (handlelength + _PAD) * fontsize / 72
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=shortened(name, fontsize, alone), parse_math=False)
    return legend


def legend_beside(figure: Figure, entries: Sequence[Entry], **look: Any) -> Legend:
    """A legend to the right of all panels."""
    look |= {"loc": "outside right upper", "alignment": "left", "fontsize": 9.5}
    return add_legend(figure, entries, room=BESIDE, **look)


class ClassLook(NamedTuple):
    """How the documents of a class are drawn."""

    name: str
    color: str
    marker: str
    members: np.ndarray  # (N,) bool
    hollow: bool = False

    @property
    def counted(self) -> str:
        """Name of the class and the number of its documents."""
        return f"{self.name} ({int(self.members.sum()):,})"

    @property
    def face(self) -> str:
        """The color inside a dot."""
        return "white" if self.hollow else self.color

    @property
    def rim(self) -> Any:
        """The color around a dot: darker than the dot."""
        return self.color if self.hollow else tuple(0.7 * part for part in to_rgb(self.color))


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


def plural(word: str) -> str:
    """Of the words for a group of documents."""
    return {"class": "classes", "community": "communities"}.get(word, f"{word}s")


def class_looks(
    labels: np.ndarray,
    label_names: Sequence[str] | None,
    *,
    word: str = "class",
    missing: str = "unlabeled",
    most: int = 20,
    named: int = 16,
    length: int = 24,
) -> list[ClassLook]:
    """Give every class a color and a marker, in the order of the class numbers.

    With more than `most` classes the `named` largest get one each and the others share a grey one.
    Names have up to `length` characters. Documents of no class, -1, come last, as `missing`.
    """
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    if found.size > most:
        found = np.sort(found[np.argsort(-counts, kind="stable")[:named]])
    looks = [
        ClassLook(
            short_name(label, label_names, length),
            PALETTE[place % len(PALETTE)],
            _MARKERS[place // len(PALETTE)],
            labels == label,
        )
        for place, label in enumerate(found.tolist())
    ]
    if rest := counts.size - found.size:
        members = (labels >= 0) & ~np.isin(labels, found)
        name = f"{rest} other {word if rest == 1 else plural(word)}"
        looks.append(ClassLook(name, OTHER, "D", members))
    if (labels < 0).any():
        looks.append(ClassLook(missing, GREY, "o", labels < 0, hollow=True))
    return looks


def dot_handle(marker: str, face: str, rim: Any, size: float = 8.5, width: float = 0.8) -> Line2D:
    """A dot as legends show it."""
    dot = Line2D([], [], marker=marker, linestyle="none", markersize=size)
    dot.set(markerfacecolor=face, markeredgecolor=rim, markeredgewidth=width)
    return dot


def draw_documents(
    axes: Axes, places: np.ndarray, looks: Sequence[ClassLook], least: float = 11, area: float = 0
) -> list[Entry]:
    """Draw documents (N, 2) as dots, small classes over large ones; return legend entries.

    The `area` of a dot is in square points, by default that which suits N, at least `least`.
    """
    area = area or float(np.clip(9000 / max(len(places), 1), least, 70))
    for look in sorted(looks, key=lambda look: -int(look.members.sum())):
        axes.scatter(
            places[look.members, 0],
            places[look.members, 1],
            s=area * (0.7 if look.marker == "D" else 1.0),
            c=[look.face],
            marker=look.marker,
            edgecolors=[look.rim],
            linewidths=0.35 if area > 6 else 0.1,
            # Grey dots are the background of the others.
            zorder=2.5 if look.hollow or look.color == OTHER else 3,
        )
    return [
        (dot_handle(look.marker, look.face, look.rim, 7.5, 0.7), look.counted) for look in looks
    ]


class EdgeLook(NamedTuple):
    """How edges are drawn: opacity of those with an unknown end, within and between groups.

    Many edges share the ink of a few: `full` edges have ink 1, fewer have more, within the bounds
    `ink`. A line is `width[0] + width[1] * ink` points wide.
    """

    alpha: tuple[float, float, float]
    full: int
    ink: tuple[float, float]
    width: tuple[float, float]
    unknown: str = FAINT  # color of edges with an unknown end


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
    word: str = "class",
) -> list[tuple[Line2D, str, int]]:
    """Draw edges (p, 2) below the nodes (N, 2); return handle, name and number of every kind.

    Edges between groups are on top, and edges of a larger `weight` (p,), in [0, 1], more opaque and
    on top of lighter ones; `word` is what a group is called.
    """
    ink = float(np.clip(np.sqrt(look.full / max(len(ends), 1)), *look.ink))
    order = np.arange(len(ends)) if weight is None else np.argsort(weight, kind="stable")
    unknown = "an unlabeled" if word == "class" else "an open"
    kinds = (
        (look.unknown, f"edge with {unknown} end" if word else "edge"),
        (WITHIN, f"edge within a {word}"),
        (CONTRAST, f"edge between {plural(word)}"),
    )
    drawn = []
    for kind, (color, name) in enumerate(kinds):
        chosen = order[relation[order] == kind]
        if not chosen.size:
            continue
        opacity = np.ones(chosen.size) if weight is None else 0.15 + 0.85 * weight[chosen]
        rgba = to_rgba_array(color, np.minimum(1, ink * look.alpha[kind] * opacity))
        width = look.width[0] + look.width[1] * ink
        lines = LineCollection(list(places[ends[chosen]]), colors=rgba, linewidths=width)
        lines.set(zorder=1 + 0.1 * kind, rasterized=True)
        axes.add_collection(lines)
        drawn.append((Line2D([], [], color=color, linewidth=2), name, int(chosen.size)))
    return drawn


def two_panels(title: str, height: float = 6.0) -> tuple[Figure, list[Axes]]:
    """An empty figure with two square panels without scales."""
    figure = new_figure(12.6, height, title)
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


class PagePicture(NamedTuple):
    """A picture as a page holds it, with its size in CSS pixels."""

    png: bytes
    width: int
    height: int
    alt: str
    caption: str

    @property
    def data(self) -> str:
        """The file as base64."""
        return base64.b64encode(self.png).decode("ascii")


def page_picture(figure: Figure, alt: str, caption: str = "") -> PagePicture:
    """Draw a figure for a page."""
    buffer = io.BytesIO()
    _save(figure, buffer, "png")
    png = buffer.getvalue()
    # Width and height are at a fixed place in every PNG.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return PagePicture(png, round(width * 96 / DPI), round(height * 96 / DPI), alt, caption)
