"""Tables and the picture of a benchmark."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from gloss_graph._internal.files import atomic_write
from gloss_graph.text.tables import csv_bytes
from gloss_graph.visualization.style import GREY, PALETTE, new_figure, save_figure, tidy_axes

# Of the picture: the exponent is that of a straight line through the banks from here on.
FIT_FROM = 16_000


def fitted_exponent(rows: np.ndarray, seconds: np.ndarray, least: int = FIT_FROM) -> float:
    """Slope of log seconds over log rows for banks of `least` rows and more; NaN for fewer than 2.

    Example:
        >>> import numpy as np
        >>> round(fitted_exponent(np.array([16e3, 64e3]), np.array([1.0, 4.0])), 6)
        1.0
    """
    keep = rows >= least
    if keep.sum() < 2:
        return math.nan
    return float(np.polyfit(np.log(rows[keep]), np.log(seconds[keep]), 1)[0])


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, three figures a number."""

    def cell(value: object) -> str:
        if isinstance(value, str):
            return value
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, (int, np.integer)):
            return f"{value:,}"
        number = float(str(value))
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

    head = [f"| {' | '.join(map(str, table.columns))} |", f"|{'---|' * len(table.columns)}"]
    body = [f"| {' | '.join(cell(v) for v in row)} |" for row in table.itertuples(index=False)]
    return "\n".join([*head, *body]) + "\n"


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path, note: str = "") -> list[Path]:
    """`bench.md` with all tables under their titles, and a CSV each.

    Args:
        tables: Title -> table; the CSV is named after the title's first word.
        folder: Where; made if it is not there.
        note: A line about the machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmark\n"] + ([note + "\n"] if note else [])
    written = []
    for title, table in tables.items():
        parts.append(f"## {title}\n\n{markdown(table)}")
        path = folder / f"{title.split()[0].lower().strip(':,')}.csv"
        with atomic_write(path, overwrite=True) as file:
            file.write(csv_bytes(table))
        written.append(path)
    path = folder / "bench.md"
    with atomic_write(path, overwrite=True) as file:
        file.write("\n".join(parts).encode())
    return [path, *written]


def machine_note(rounds: int, load: float) -> str:
    """What a reader of the figures must know; `load` is the load average at the start."""
    return (
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; load average {load:.1f} "
        f"at the start, {os.getloadavg()[0]:.1f} at the end. Medians of {rounds} rounds by turns; "
        "compare within a row."
    )


def show_tables(tables: Mapping[str, pd.DataFrame], folder: Path, note: str) -> None:
    """Print the tables and write them into `folder`."""
    write_tables(tables, folder, note)
    for title, table in tables.items():
        print(f"\n{title}\n\n{markdown(table)}")
    print(f"{note} Written to {folder}.")


LINES = {
    "step ms": "whole step",
    "search ms": "search",
    "propagation ms": "propagation",
    "backward ms": "backward",
    "unrolled ms": "30 unrolled layers",
    "encoder ms": "encoder step",
}


def plot_stages(table: pd.DataFrame, path: str | os.PathLike[str] | None = None) -> Figure:
    """Milliseconds of a step and its alternatives over the bank's rows, both axes logarithmic.

    A panel a dimension. Behind the name of a line the exponent of the power of N fitted to its
    points from 16,000 rows on, where there are two.

    Args:
        table: Of `stage_table`.
        path: Where to save; None saves nothing.
    """
    table = table[table["bank"] > 0].sort_values("bank")
    parts = list(table.groupby("dim"))
    figure = new_figure(1.5 + 5.0 * max(1, len(parts)), 5.4)
    panels = figure.subplots(1, max(1, len(parts)), sharey=True, squeeze=False)[0]
    for axes, (dim, part) in zip(panels, parts, strict=False):
        _plot_dimension(axes, part)
        tidy_axes(axes, title=f"D = {dim}", x="rows in the bank", y="")
    panels[0].set_ylabel("milliseconds (median)")
    figure.suptitle("A training step beside its alternatives", fontweight="bold")
    return save_figure(figure, path)


def _plot_dimension(axes: Axes, part: pd.DataFrame) -> None:
    main = part[part["dense / step"].isna()] if "dense / step" in part else part
    rows = main["bank"].to_numpy(float)
    for color, (column, label) in zip(PALETTE, LINES.items(), strict=False):
        if column not in main or main[column].isna().all():
            continue
        known = main[column].notna().to_numpy()
        own, spent = rows[known], main[column].to_numpy(float)[known]
        # The encoder does not see the bank.
        exponent = math.nan if column == "encoder ms" else fitted_exponent(own, spent)
        if not math.isnan(exponent):
            label += f" ∝ $N^{{{exponent:.2f}}}$"
        width = 2.6 if column == "step ms" else 1.3
        axes.plot(own, spent, color=color, label=label, lw=width, marker="o", ms=4)
    if "dense float32 ms" in part:
        dense = part.dropna(subset=["dense float32 ms"])
        label = "dense closed form"
        axes.plot(dense["bank"], dense["dense float32 ms"], "s", color=GREY, label=label, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(rows, [_short(count) for count in rows])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.grid(axis="y", color=GREY, alpha=0.2, lw=0.6)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2)


def _short(count: float) -> str:
    """A number of rows in powers of two: 4,096 is 4k, 1,048,576 is 1M."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"
