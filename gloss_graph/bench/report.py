"""Tables and the picture of a benchmark."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gloss_graph._files import atomic_write
from gloss_graph.analysis.style import GREY, PALETTE, new_figure, save_figure, tidy_axes

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
            file.write(table.to_csv(index=False).encode())
        written.append(path)
    path = folder / "bench.md"
    with atomic_write(path, overwrite=True) as file:
        file.write("\n".join(parts).encode())
    return [path, *written]


def plot_stages(table: pd.DataFrame, path: str | os.PathLike[str] | None = None) -> Figure:
    """Milliseconds of a step and its alternatives over the bank's rows, both axes logarithmic.

    Args:
        table: Of `stage_table`.
        path: Where to save; None saves nothing.
    """
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    table = table[table["bank"] > 0].sort_values("bank")
    lines = {
        "step": "whole step",
        "search ms": "search",
        "propagation ms": "propagation",
        "backward ms": "backward",
        "unrolled ms": "30 unrolled layers",
        "encoder ms": "encoder step",
    }
    styles = ["-", "--", ":"]
    for number, (dim, part) in enumerate(table.groupby("dim")):
        style = styles[number % len(styles)]
        main = part[part["dense / step"].isna()] if "dense / step" in part else part
        rows = main["bank"].to_numpy(float)
        for color, (column, label) in zip(PALETTE, lines.items(), strict=False):
            column = "step ms" if column == "step" else column
            if column not in main or main[column].isna().all():
                continue
            name = f"{label}, D={dim}"
            if column == "step ms":
                exponent = fitted_exponent(rows, main[column].to_numpy(float))
                if not math.isnan(exponent):
                    name += f", exponent {exponent:.2f}"
            width = 2.4 if column == "step ms" else 1.3
            axes.plot(
                rows, main[column], style, color=color, label=name, lw=width, marker="o", ms=4
            )
        if "dense float32 ms" in part:
            dense = part.dropna(subset=["dense float32 ms"])
            label = f"dense closed form, D={dim}"
            axes.plot(
                dense["bank"], dense["dense float32 ms"], "s", color=GREY, label=label, zorder=3
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    tidy_axes(
        axes,
        title="A training step beside its alternatives",
        x="rows in the bank",
        y="milliseconds (median)",
    )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, path)
