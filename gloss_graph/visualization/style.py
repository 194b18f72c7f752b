"""One look for all pictures: colours that colour-blind readers can tell apart, readable type."""

from __future__ import annotations

import base64
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend

from gloss_graph._internal.files import atomic_write

__all__ = [
    "CONTRAST",
    "DPI",
    "GREY",
    "INK",
    "PALETTE",
    "PagePicture",
    "add_legend",
    "faint_grid",
    "legend_columns",
    "name_ticks",
    "new_figure",
    "page_picture",
    "save_figure",
    "set_heading",
    "shortened",
    "text_width",
    "tidy_axes",
]

#: Okabe & Ito (2008) with a dark violet for their black; yellow last, it is weak on white.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#4B2E83",
    "#F0E442",
)
INK = "#222222"
GREY = "#9AA0A6"
CONTRAST = "#B3123C"

DPI = 160
_FORMATS = ("png", "pdf", "svg")
_NO_GLYPH = re.compile(r"Glyph \d+ .* missing from")
_COUNT = re.compile(r" \([\d,]+( labels?)?\)$|  ★ .*$")
_MEASURED = 100.0
# Of a legend, in units of its type: around a handle, and between columns.
_PAD, _SPACING = 1.6, 1.6


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure, in inches, that no pyplot state knows of.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str] | BinaryIO | None) -> Figure:
    """Write a figure as PNG, PDF or SVG by its suffix, whole or not at all, and return it.

    An older picture of that name is replaced. Into an open binary file goes a PNG. Without a path
    nothing is written.

    Raises:
        ValueError: if the suffix is none of the three.
        OSError: if the folder is missing or cannot be written.

    Example:
        >>> save_figure(new_figure(4, 3), "picture.bmp")
        Traceback (most recent call last):
        ValueError: 'path' must end in .png, .pdf or .svg (got 'picture.bmp').
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
        # Once, where matplotlib speaks of every letter.
        warnings.warn(
            f"The font {FontProperties().get_name()!r} lacks letters of the names in a picture; "
            "they are drawn as boxes. Install a font that has them, for example Noto Sans CJK, "
            "and name it in the 'font.family' of a matplotlibrc file.",
            UserWarning,
            stacklevel=4,
        )


def text_width(text: str, size: float) -> float:
    """Inches that a line of text takes, at a size in points."""
    with warnings.catch_warnings():
        # Said when the picture is saved.
        warnings.filterwarnings("ignore", _NO_GLYPH.pattern, UserWarning)
        renderer = RendererAgg(1, 1, _MEASURED)
        font = FontProperties(size=size)
        width, _, _ = renderer.get_text_width_height_descent(text, font, False)
    return float(width) / _MEASURED


def shortened(text: str, size: float, room: float) -> str:
    """Text that takes at most `room` inches: itself, or its start and an ellipsis.

    A count in brackets at its end stays.

    Example:
        >>> shortened("short (3)", 10, 2.0)
        'short (3)'
        >>> shortened("of very many words (12)", 10, 1.0)  # how much depends on the font
        'of ...… (12)'
    """
    if text_width(text, size) <= room:
        return text
    found = _COUNT.search(text)
    end = "" if found is None else found.group()
    start = text.removesuffix(end)
    low, high = 0, len(start)
    while low < high:
        middle = (low + high + 1) // 2
        fits = text_width(f"{start[:middle].rstrip()}…{end}", size) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return f"{start[:low].rstrip()}…{end}"


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
    """Columns, at most `most`, in which a legend of these names fits into `room` inches.

    Args:
        names: In order.
        room: Inches.
        most: Columns at most.
        size: Of the type, in points.
        handle: Length of what stands before a name, in units of `size`.
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
    entries: Sequence[tuple[Any, str]],
    *,
    room: float,
    columns: int = 1,
    fontsize: float = 10,
    handlelength: float = 2.0,
    **look: Any,
) -> Legend:
    """Add a frameless legend of (handle, name) that takes no more width than it is given.

    Every name is as it is written, or shortened where a column of it alone is too wide.

    Args:
        owner: Axes or figure.
        entries: What is drawn, and its name.
        room: Inches it may take.
        columns: At most so many; fewer where names are long.
        fontsize: In points.
        handlelength: Of what stands before a name, in units of `fontsize`.
        **look: Of the ``legend`` of matplotlib.
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
    """Name the places 0, 1, ... under axes; turned, and at most `room` inches, where names touch.

    Call it once the axes have their place in the figure.
    """
    width = float(axes.get_window_extent().width) / DPI
    turn = max(text_width(name, size) for name in names) > 0.9 * width / len(names)
    shown = [shortened(name, size, room) for name in names] if turn else list(names)
    look: dict[str, Any] = {"parse_math": False, "fontsize": size}
    if turn:
        look |= {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), shown, **look)


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
    """Draw a figure for a page.

    Example:
        >>> page_picture(new_figure(4, 3), "nothing").width
        413
    """
    buffer = io.BytesIO()
    save_figure(figure, buffer)
    png = buffer.getvalue()
    # Width and height stand at a fixed place of every PNG.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return PagePicture(png, round(width * 96 / DPI), round(height * 96 / DPI), alt, caption)
