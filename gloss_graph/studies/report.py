"""Pictures of ablations and searches, and the report of a study: tables, Markdown, one page."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.settings import Choice, Dimension
from gloss_graph.reports.evaluation import TEST_HEADINGS, difference_cells, markdown_table, shown_p
from gloss_graph.reports.run_page import render_page
from gloss_graph.studies.results import Results
from gloss_graph.studies.trials import DESIGNS, canonical, shown
from gloss_graph.text.tables import csv_bytes
from gloss_graph.visualization.style import (
    CONTRAST,
    GREY,
    INK,
    PALETTE,
    PagePicture,
    faint_grid,
    name_ticks,
    new_figure,
    page_picture,
    save_figure,
    shortened,
    tidy_axes,
)

# Panels of settings in a row.
_COLUMNS = 4
# Inches of the name of a level, and of a setting.
_LEVEL, _SETTING = 2.2, 3.2
# Pairs of factors a report draws at most.
_PAIRS = 6
# Characters of a picture's file name: of four bytes each they fit every file system.
_NAME = 60
_SECTIONS = (
    *(("says", "What it says"), ("settings", "Settings"), ("pictures", "Pictures")),
    *(("arms", "All arms"), ("tests", "Tests"), ("made", "Made with")),
)
_TESTS = (
    "Arm minus baseline, paired by seed: 95 % confidence interval, paired t-test and Wilcoxon's "
    "signed-rank test (two-sided), each with Holm's correction over the arms of the metric; d is "
    "the mean difference in standard deviations of the differences."
)


def plot_effect(results: Results, factor: str) -> Figure:
    """Draw the main effect of a factor: means with 95 % confidence intervals, a panel per metric.

    Grey lines are single seeds; the red ring is the baseline's value, the dashed line its mean.
    """
    metrics = results.shown
    effects = [results.effect(factor, metric) for metric in metrics]
    width = max(3.6, 1.5 + 0.62 * max(map(len, effects), default=1))
    figure = new_figure(width * max(1, len(metrics)), 3.7)
    grid = figure.subplots(1, max(1, len(metrics)), squeeze=False)
    for axes, metric, effect in zip(grid[0], metrics, effects, strict=False):
        tidy_axes(axes, title=results.title(metric), x=factor, y="")
        axes.title.set_fontsize(11)
        if len(effect):
            _draw_effect(axes, results, effect, metric)
        else:
            axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=GREY)
    return figure


def _draw_effect(axes: Axes, results: Results, effect: pd.DataFrame, metric: str) -> None:
    scale, places = results.scale(metric), np.arange(len(effect))
    seeds = scale * pd.DataFrame(dict(enumerate(effect["seeds"])))
    axes.plot(places, seeds.to_numpy().T, color=GREY, linewidth=0.7, alpha=0.55, zorder=1)
    means = scale * effect["mean"].to_numpy()
    base = np.flatnonzero(effect["baseline"].to_numpy())
    if base.size:
        axes.axhline(means[base[0]], color=CONTRAST, linewidth=0.9, linestyle="--", zorder=0)
        ring: dict[str, Any] = {"facecolor": "none", "edgecolor": CONTRAST, "linewidth": 1.6}
        axes.scatter(places[base], means[base], s=130, zorder=4, **ring)
    axes.plot(places, means, color=PALETTE[0], linewidth=1.4, zorder=2)
    spans = scale * effect[["low", "high"]].to_numpy().T
    axes.vlines(places, *spans, color=PALETTE[0], linewidth=2.4, zorder=2)
    axes.scatter(places, means, s=44, color=PALETTE[0], edgecolor="white", zorder=3)
    name_ticks(axes, list(effect["level"]))
    axes.set_xlim(-0.5, len(effect) - 0.5)
    # Only of metrics with a title, and of the first one, is it known which direction is better.
    if metric in {*results.titles, *results.metrics[:1]} - {"steps"}:
        axes.set_ylabel(_better(results, metric), fontsize=9.5, color=GREY)
    faint_grid(axes, "y")
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def _better(results: Results, metric: str) -> str:
    return f"{'lower' if results.lower_is_better(metric) else 'higher'} is better"


def plot_heatmap(results: Results, one: str, other: str, metric: str) -> Figure | None:
    """Draw the mean of a metric by a factor in rows and another in columns; None if not crossed."""
    crossed = results.crossed(one, other, metric)
    if crossed is None:
        return None
    lower = results.lower_is_better(metric)
    cells = results.scale(metric) * crossed.to_numpy()
    rows, columns = cells.shape
    figure = new_figure(2.6 + 0.95 * columns, 1.6 + 0.55 * rows)
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="Blues_r" if lower else "Blues", aspect="auto")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    base = canonical([results.study["baseline"][name] for name in (one, other)])
    for (row, column), value in np.ndenumerate(cells):
        if not math.isfinite(value):
            continue
        dark = value < middle if lower else value > middle
        text = results.show(metric, value / results.scale(metric))
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
        if canonical([crossed.index[row], crossed.columns[column]]) == base:
            edge: dict[str, Any] = {"fill": False, "edgecolor": CONTRAST, "linewidth": 2.2}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **edge))
    tidy_axes(axes, title=results.title(metric), x=other, y=one)
    name_ticks(axes, [shown(value) for value in crossed.columns])
    _name_rows(axes, [shown(value) for value in crossed.index], _LEVEL)
    axes.title.set_fontsize(11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=INK, length=2)
    return figure


def plot_tornado(results: Results, metric: str) -> Figure | None:
    """Draw how far each factor moves a metric from the baseline; None without a comparison.

    Bars reach from the worst to the best value of a factor, labeled with these; thin lines are
    95 % confidence intervals of the differences, paired by seed.
    """
    rows = []
    for factor in results.factors:
        effect = results.effect(factor, metric)
        if len(effect) and effect["difference"].notna().sum() > 1:
            ends = (effect["difference"].idxmin(), effect["difference"].idxmax())
            rows.append((factor, *(effect.loc[end] for end in ends)))
    if not rows:
        return None
    rows.sort(key=lambda row: row[2]["difference"] - row[1]["difference"])
    figure = new_figure(8.2, 1.5 + 0.55 * len(rows))
    axes = figure.subplots()
    good, bad = PALETTE[:2]
    colors = (good, bad) if results.lower_is_better(metric) else (bad, good)
    places, reach = np.arange(len(rows)), np.zeros((len(rows), 1))
    # The two intervals of a factor often overlap: one above the middle, one below.
    for which, color, lift in ((1, colors[0], 0.12), (2, colors[1], -0.12)):
        spans = pd.DataFrame([row[which] for row in rows])[["difference", "gap_low", "gap_high"]]
        length, *interval = results.scale(metric) * spans.to_numpy(dtype=float).T
        axes.barh(places, length, height=0.58, color=color, zorder=2)
        axes.hlines(places + lift, *interval, color=INK, linewidth=1.1, zorder=3)
        reach = np.column_stack([reach, length, *interval])
    tips = (np.nanmin(reach, axis=1), np.nanmax(reach, axis=1))
    for place, row in enumerate(rows):
        for end, tip, side, gap in zip(row[1:], tips, ("right", "left"), (-6, 6), strict=True):
            name = shortened(end["level"], 9.5, _LEVEL) + " (baseline)" * bool(end["baseline"])
            look: dict[str, Any] = {"ha": side, "va": "center", "fontsize": 9.5, "color": INK}
            look |= {"textcoords": "offset points", "parse_math": False}
            axes.annotate(name, (tip[place], place), (gap, 0), **look)
    axes.axvline(0, color=CONTRAST, linewidth=1.2, zorder=4)
    title = f"{results.title(metric)}: difference to the baseline"
    tidy_axes(axes, title=title, x=_better(results, metric), y="")
    axes.set_yticks(places, [row[0] for row in rows], parse_math=False)
    # Room for the labels on both sides.
    low, high = tips[0].min(), tips[1].max()
    room = 0.35 * (high - low) or 1.0
    axes.set_xlim(low - room, high + room)
    faint_grid(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def _name_rows(axes: Axes, names: list[str], room: float) -> None:
    cut = [shortened(name, 10, room) for name in names]
    axes.set_yticks(range(len(names)), cut, parse_math=False)


def plot_tuning(
    trials: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    metric: str = "val.macro_f1",
) -> Figure:
    """Draw the score of every trial in their order, and the best so far.

    Args:
        trials: Table with columns `number`, `state` (`complete`, `pruned`, ...) and `value`;
            trials without a value are left out.
        path: File to save, as PNG, PDF or SVG; None saves nothing.
        metric: Name of the score.

    Returns:
        The figure. Pruned trials have the score they were stopped with.

    Raises:
        ValueError: No trial has a value.

    Example:
        >>> rows = {"number": [0, 1], "state": ["complete", "pruned"], "value": [0.8, 0.4]}
        >>> plot_tuning(pd.DataFrame(rows)).axes[0].get_title(loc="left")
        'Trials: 1 complete, 1 pruned'
    """
    complete, pruned = _scored(trials)
    figure = new_figure(8.0, 4.6)
    axes = figure.add_subplot()
    title = f"Trials: {len(complete)} complete, {len(pruned)} pruned"
    tidy_axes(axes, title=title, x="trial", y=metric)
    faint_grid(axes)
    axes.plot(pruned["number"], pruned["value"], "x", color=GREY, label="pruned")
    axes.plot(complete["number"], complete["value"], "o", color=PALETTE[0], label="complete")
    # Drawn to the last trial, whether that one was complete or not.
    ends = complete["number"].tolist() + [trials["number"].max()] * (not complete.empty)
    best = complete["value"].cummax().tolist()
    axes.step(ends, best + best[-1:], where="post", color=CONTRAST, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.04, y=0.08)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="best")
    return save_figure(figure, path)


def plot_slices(
    trials: pd.DataFrame,
    space: Mapping[str, Dimension],
    path: str | os.PathLike[str] | None = None,
    *,
    metric: str = "val.macro_f1",
) -> Figure:
    """Draw the scores over the values of each setting, one panel per setting.

    Args:
        trials: Table as for `plot_tuning`, with a column for each setting.
        space: Setting -> the values that were tried; their scale is the panel's.
        path: As for `plot_tuning`.
        metric: Name of the score.

    Returns:
        The figure; a star marks the best trial in every panel, later trials are darker.

    Raises:
        ValueError: No trial has a value, or there is no setting.
    """
    if not space:
        raise ValueError("'space' must hold at least one setting (got none).")
    complete, pruned = _scored(trials)
    columns = min(_COLUMNS, len(space))
    rows = math.ceil(len(space) / columns)
    # The title takes seven inches.
    figure = new_figure(max(1.2 + 3.1 * columns, 7.2), 0.6 + 3.1 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(space) :]:
        axes.set_visible(False)
    shades = {"c": np.linspace(0.35, 1.0, len(complete)), "cmap": "Blues", "vmin": 0, "vmax": 1}
    look: dict[str, Any] = {**shades, "edgecolors": "white", "linewidths": 0.5, "s": 42}
    best = complete.nlargest(1, "value")
    for i, (name, tried) in enumerate(space.items()):
        axes = panels.flat[i]
        tidy_axes(axes, title="", x=name, y=metric if i % columns == 0 else "")
        faint_grid(axes)
        _scale(axes, tried)
        axes.plot(_places(pruned[name], tried), pruned["value"], "x", color=GREY, markersize=5)
        axes.scatter(_places(complete[name], tried), complete["value"], **look)
        axes.plot(_places(best[name], tried), best["value"], "*", color=CONTRAST, markersize=15)
    title = "Score by setting: dots complete (dark = late), crosses pruned, star best"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    return save_figure(figure, path)


def plot_importance(
    importance: Mapping[str, float], path: str | os.PathLike[str] | None = None, *, trials: int
) -> Figure:
    """Draw the share of the spread of scores that each setting explains.

    Args:
        importance: Setting -> share; shares sum to 1.
        path: As for `plot_tuning`.
        trials: Number of complete trials behind the shares.

    Returns:
        The figure, the most important setting on top.

    Raises:
        ValueError: There is no setting.

    Example:
        >>> figure = plot_importance({"k": 0.25, "bandwidth": 0.75}, trials=20)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['25 %', '75 %']
    """
    if not importance:
        raise ValueError("'importance' must hold a setting (got none). Run two trials or more.")
    ordered = dict(sorted(importance.items(), key=lambda item: item[1]))
    shares = [100 * share for share in ordered.values()]
    figure = new_figure(8.0, 1.6 + 0.42 * len(shares))
    axes = figure.add_subplot()
    title = f"Which settings mattered (fANOVA, {trials} complete trials)"
    tidy_axes(axes, title=title, x="share of the spread of scores, %", y="")
    bars = axes.barh(range(len(shares)), shares, color=PALETTE[0], height=0.6)
    _name_rows(axes, list(ordered), _SETTING)
    axes.bar_label(bars, fmt="{:.0f} %", padding=4, fontsize=10, color=INK)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.tick_params(axis="y", length=0)
    return save_figure(figure, path)


def _scored(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Complete and pruned trials that have a value."""
    scored = trials[trials["value"].notna()].sort_values("number")
    complete, pruned = (scored[scored["state"] == state] for state in ("complete", "pruned"))
    if complete.empty and pruned.empty:
        raise ValueError("'trials' must hold one with a value (got none). Run one first.")
    return complete, pruned


def _places(values: pd.Series, tried: Dimension) -> list[float]:
    """Positions of values on the axis: themselves, or the place in the list of choices."""
    if not isinstance(tried, Choice):
        return list(map(float, values))
    order = list(map(_word, tried.values))
    return [float(order.index(_word(value))) for value in values]


def _word(value: Any) -> str:
    """A choice in words: in a table read from CSV None is NaN and numbers are of another type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "None"
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return f"{float(value):g}"
    return str(value)


def _scale(axes: Axes, tried: Dimension) -> None:
    if isinstance(tried, Choice):
        words = list(map(_word, tried.values))
        name_ticks(axes, words)
        axes.set_xlim(-0.5, len(words) - 0.5)
    elif tried.log:
        axes.set_xscale("log")
        if tried.high / tried.low < 30:
            # Less than two powers of ten would leave one number on the axis.
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        room = (tried.high / tried.low) ** 0.06
        axes.set_xlim(tried.low / room, tried.high * room)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=tried.integer))
        room = 0.06 * (tried.high - tried.low)
        axes.set_xlim(tried.low - room, tried.high + room)


def write_report(results: Results) -> list[Path]:
    """Write the results of a study into its folder; older files are replaced.

    `results.csv` and `results.parquet` (a row per trial), `summary.csv` (a row per arm and
    metric), `tests.csv` (paired tests), pictures in `pictures/`, `report.md` and `report.html`,
    which needs no other file.

    Args:
        results: Result of `Study.run` or `read_results`.

    Returns:
        The files.

    Raises:
        ValueError: No trial has a result.
        OSError: The folder cannot be written.
    """
    if not len(results.table):
        raise ValueError(f"{results.folder} has no finished trial to report. Run the study first.")
    summary, tests = results.summary(), results.tests()
    parquet = io.BytesIO()
    _typed(results).to_parquet(parquet, index=False)
    files = {
        "results.csv": csv_bytes(results.table),
        "summary.csv": csv_bytes(summary),
        "tests.csv": csv_bytes(tests),
        "results.parquet": parquet.getvalue(),
    }
    pictures: dict[str, PagePicture] = {}
    for name, title, caption, figure in _figures(results):
        plain, number = re.sub(r"[^\w.+-]", "-", name)[:_NAME], 1
        path = f"pictures/{plain}.png"
        while path in pictures:
            number += 1
            path = f"pictures/{plain}-{number}.png"
        pictures[path] = page_picture(figure, title, caption)
        files[path] = pictures[path].png
    content = _content(results, summary, tests)
    files["report.md"] = _markdown(content, pictures).encode("utf-8", "backslashreplace")
    page = {**content, "pictures": pictures.values()}
    files["report.html"] = render_page("study.html.jinja", page)
    (results.folder / "pictures").mkdir(exist_ok=True)
    for name, data in files.items():
        with atomic_write(results.folder / name, overwrite=True) as draft:
            draft.write(data)
    return [results.folder / name for name in files]


def _typed(results: Results) -> pd.DataFrame:
    """The table with one type per column, for Parquet; factors of several become strings."""
    plain = results.table.copy()
    for name in results.factors:
        kinds = {type(value) for value in plain[name]}
        if kinds - {type(None)} <= {int, float} and kinds != {type(None)}:
            plain[name] = pd.to_numeric(plain[name])
        else:
            plain[name] = plain[name].astype(bool) if kinds == {bool} else plain[name].map(shown)
    return plain


def _figures(results: Results) -> Iterator[tuple[str, str, str, Figure]]:
    """File name, title, caption and figure of every picture."""
    if not results.metrics:
        return
    tornado = plot_tornado(results, results.metrics[0])
    if tornado is not None:
        caption = (
            "A bar reaches from the worst to the best value of a factor, measured from the "
            "baseline (red line); the values stand at its ends. Thin lines: 95 % confidence "
            "intervals of the differences, paired by seed."
        )
        yield "tornado", "Which factor matters most", caption, tornado
    crossed = results.study["design"] != "one-at-a-time" and len(results.factors) > 1
    note = " averaged over the other factors" if crossed else ""
    for factor in results.factors:
        caption = (
            f"{results.study.get('glossary', {}).get(factor, '')} Dots: means{note}, with 95 % "
            "confidence intervals over seeds; grey lines: single seeds; red ring and dashed "
            "line: the baseline's value."
        ).strip()
        yield f"effect-{factor}", f"Effect of {factor}", caption, plot_effect(results, factor)
    for one, other in list(combinations(results.factors, 2))[:_PAIRS]:
        for metric in results.shown[:2]:
            figure = plot_heatmap(results, one, other, metric)
            if figure is not None:
                title = f"{one} and {other}: {results.title(metric)}"
                caption = "Means over seeds; darker is better; red frame: the baseline."
                yield f"heatmap-{one}-{other}-{metric}", title, caption, figure


def _content(results: Results, summary: pd.DataFrame, tests: pd.DataFrame) -> dict[str, Any]:
    """The values of the templates."""
    study, table = results.study, results.table
    glossary = study.get("glossary", {})
    tried = {name: _tried(values) for name, values in study["factors"].items()}
    settings = {**study["baseline"], **study["settings"]}
    fine = table[table["status"] == "ok"]
    unfinished = results.left + int((table["status"] == "failed").sum())
    versions = {
        name.removeprefix("version."): name for name in table if name.startswith("version.")
    }
    versions |= {"Python": "python", "git commit": "git_commit"}
    return {
        "title": study["question"] or study["name"],
        "summary": study.get("about", ""),
        "design": f"{study['design']}: {DESIGNS[study['design']]}",
        "figures": [
            ["arms", str(len(results.arms))],
            ["seeds", str(len(study["seeds"]))],
            ["trials", f"{len(fine)} of {len(fine) + unfinished}"],
            ["seconds per trial", f"{fine['seconds'].sum() / max(1, len(fine)):.1f}"],
            ["peak memory, MB", f"{fine['peak_memory_mb'].max():,.0f}" if len(fine) else ""],
        ],
        "findings": _findings(results, tests),
        "problems": results.problems(),
        "contents": _SECTIONS,
        "setting_heads": ("setting", "baseline", "tried", "what it is"),
        "settings": [
            [name, shown(value), tried.get(name, ""), glossary.get(name, "")]
            for name, value in settings.items()
        ],
        "baseline": results.baseline,
        "arm_heads": ["arm", *map(results.title, results.metrics)],
        "arms": _arm_rows(results, summary),
        "test_heads": ("arm", *TEST_HEADINGS),
        "tests_note": _TESTS,
        "tests": {
            results.title(metric): [
                [row.arm, *difference_cells(row, partial(results.show, metric, sign=True))]
                for row in tests[tests["metric"] == metric].itertuples()
            ]
            for metric in results.shown
        },
        "versions": [
            [name, ", ".join(map(str, table[column].dropna().unique()))]
            for name, column in versions.items()
        ],
        "tracebacks": [
            [f"{row.arm}, seed {row.seed}", results.tracebacks[row.trial]]
            for row in table.itertuples()
            if row.trial in results.tracebacks
        ],
    }


def _tried(tried: Mapping[str, Any]) -> str:
    if "values" in tried:
        return ", ".join(map(shown, tried["values"]))
    return f"{shown(tried['low'])} to {shown(tried['high'])}{' (log)' if tried['log'] else ''}"


def _findings(results: Results, tests: pd.DataFrame) -> list[str]:
    """Sentences about the metric that the study is about."""
    metric = results.metrics[0] if results.metrics else ""
    tests = tests[(tests["metric"] == metric) & tests["difference"].notna()]
    if not len(tests):
        return ["No arm can be compared with the baseline yet."]
    gains = tests["difference"] * (-1 if results.lower_is_better(metric) else 1)
    found = []
    for word, place in (("Best", gains.idxmax()), ("Worst", gains.idxmin())):
        row = tests.loc[place]
        gap = results.show(metric, row["difference"], sign=True)
        p = shown_p(row["p_t_holm"])
        sure = f"Holm-corrected p {p if p.startswith('<') else f'= {p}'}"
        found.append(
            f"{word} arm by {results.title(metric)}: {row['arm']}, {gap} against the baseline "
            f"({sure if p else 'no test possible'})."
        )
    clear = gains[tests["p_t_holm"] < 0.05]
    better = int((clear > 0).sum())
    found.append(
        f"Of {len(tests)} arms {better} are better and {len(clear) - better} worse than the "
        f"baseline ({results.baseline}) at a Holm-corrected level of 0.05."
    )
    return found


def _arm_rows(results: Results, summary: pd.DataFrame) -> list[list[str]]:
    rows = {arm: [f"{arm} (baseline)" if arm == results.baseline else arm] for arm in results.arms}
    missing = results.table.groupby("arm")["nan"].apply(lambda names: ", ".join(names).split(", "))
    for _, row in summary.iterrows():  # by metric, in the order of the headings
        metric, nan = row["metric"], missing[row["arm"]].count(row["metric"])
        spread = results.show(metric, row["std"])
        text = results.show(metric, row["mean"]) + (f" ± {spread}" if spread else "")
        rows[row["arm"]].append((text + (f" ({nan} NaN)" if nan else "")).strip())
    return list(rows.values())


def _markdown(content: Mapping[str, Any], pictures: Mapping[str, PagePicture]) -> str:
    def bullets(name: str) -> str:
        return "\n".join(f"- {text}" for text in content[name])

    def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
        return "\n".join(markdown_table(heads, rows, left=left))

    parts = [f"# {content['title']}", content["summary"], f"Design {content['design']}."]
    parts += ["## What it says", bullets("findings")]
    if content["problems"]:
        parts += ["## Know before you believe it", bullets("problems")]
    parts += ["## Settings", table(content["setting_heads"], content["settings"], left=4)]
    for path, picture in pictures.items():
        parts += [f"## {picture.alt}", f"![{picture.alt}]({path})", picture.caption]
    parts += ["## All arms", "Mean ± standard deviation over seeds."]
    parts += [table(content["arm_heads"], content["arms"])]
    parts += ["## Differences to the baseline", _TESTS]
    for title, rows in content["tests"].items():
        parts += [f"### {title}", table(content["test_heads"], rows)]
    parts += ["## Made with", table(["", ""], content["versions"], left=2)]
    for name, text in content["tracebacks"]:
        parts += [f"## Failed: {name}", f"```\n{text.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"
