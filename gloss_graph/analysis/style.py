"""One look for all pictures: colours that colour-blind readers can tell apart, readable type."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from gloss_graph._files import atomic_write

__all__ = [
    "CONTRAST",
    "DPI",
    "GREY",
    "INK",
    "PALETTE",
    "PagePicture",
    "add_legend",
    "faint_grid",
    "new_figure",
    "page_picture",
    "save_figure",
    "set_heading",
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
    with warnings.catch_warnings():
        # Emoji and other scripts that the font lacks are drawn as boxes; every text has some.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure.savefig(handle, format=kind, dpi=DPI, bbox_inches="tight", pad_inches=0.15)


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


def add_legend(owner: Axes | Figure, entries: Sequence[tuple[Any, str]], **look: Any) -> Legend:
    """Add a frameless legend of (handle, name), every name as it is written.

    Args:
        owner: Axes or figure.
        entries: What is drawn, and its name.
        **look: Of the ``legend`` of matplotlib.
    """
    handles = [handle for handle, _ in entries]
    legend = owner.legend(handles, ["-"] * len(handles), frameon=False, **look)
    # Set afterwards: a name may start with "_" or hold "$", which matplotlib would interpret.
    for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
        text.set(text=name, parse_math=False)
    return legend


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
