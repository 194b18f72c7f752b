"""The report of a study: tables, pictures, Markdown and one HTML page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gloss_graph._internal.files import atomic_write
from gloss_graph.reports.evaluation import markdown_table, shown_p
from gloss_graph.reports.page import render_page
from gloss_graph.studies.ablation_plots import plot_effect, plot_heatmap, plot_tornado
from gloss_graph.studies.designs import DESIGNS
from gloss_graph.studies.results import Results
from gloss_graph.studies.trials import shown
from gloss_graph.text.tables import csv_bytes
from gloss_graph.visualization.style import PagePicture, page_picture

__all__ = ["write_report"]

# Pairs of factors a report draws at most.
_PAIRS = 6
_TEST_HEADS = (
    *("arm", "pairs", "difference", "95 % interval"),
    *("p (t)", "Holm", "p (Wilcoxon)", "Holm", "d"),
)
# Characters of a picture's file name: of four bytes each they fit every file system.
_NAME = 60
_SECTIONS = (
    *(("says", "What it says"), ("settings", "Settings"), ("pictures", "Pictures")),
    *(("arms", "All arms"), ("tests", "Tests"), ("made", "Made with")),
)
_SETTING_COLUMNS = ("setting", "baseline", "tried", "what it is")


def write_report(results: Results) -> list[Path]:
    """Write what a study found into its folder; older files are replaced.

    `results.csv` and `results.parquet` (a row a trial), `summary.csv` (a row an arm and metric),
    `tests.csv` (paired tests), pictures in `pictures/`, `report.md` and `report.html`, which needs
    no other file.

    Args:
        results: What `Study.run` or `read_results` gave back.

    Returns:
        The files.

    Raises:
        ValueError: Not one trial has a result.
        OSError: The folder cannot be written.
    """
    if not len(results.table):
        raise ValueError(f"{results.folder} has no finished trial to report. Run the study first.")
    folder, written = results.folder, []
    tables = {"summary": results.summary(), "tests": results.tests()}
    for name, table in {"results": results.table, **tables}.items():
        written.append(folder / f"{name}.csv")
        _write(written[-1], csv_bytes(table))
    written.append(folder / "results.parquet")
    buffer = io.BytesIO()
    _typed(results.table, results.factors).to_parquet(buffer, index=False)
    _write(written[-1], buffer.getvalue())
    (folder / "pictures").mkdir(exist_ok=True)
    pictures: dict[str, PagePicture] = {}
    for name, title, caption, figure in _figures(results):
        path = _picture_path(name, pictures)
        pictures[path] = page_picture(figure, title, caption)
        written.append(folder / path)
        _write(written[-1], pictures[path].png)
    content = _content(results, tables["summary"], tables["tests"])
    written.append(folder / "report.md")
    _write(written[-1], _markdown(content, pictures).encode("utf-8", "backslashreplace"))
    page = {**content, "pictures": pictures.values(), "tests_note": _TESTS}
    written.append(folder / "report.html")
    _write(written[-1], render_page("study.html.jinja", page, package="gloss_graph.studies"))
    return written


def _picture_path(name: str, taken: Iterable[str]) -> str:
    """A file of its own for a picture that is called after factors and metrics."""
    plain = re.sub(r"[^\w.+-]", "-", name)[:_NAME]
    names = chain([plain], (f"{plain}-{number}" for number in count(2)))
    return next(path for name in names if (path := f"pictures/{name}.png") not in taken)


def _write(file: Path, content: bytes) -> None:
    with atomic_write(file, overwrite=True) as draft:
        draft.write(content)


def _typed(table: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Parquet wants one type a column; factors of several become strings."""
    plain = table.copy()
    for name in factors:
        known = [value for value in plain[name] if value is not None]
        kinds = {type(value) for value in known}
        if kinds <= {int, float} and kinds:
            plain[name] = pd.to_numeric(plain[name])
        elif kinds != {bool} or len(known) < len(plain):
            plain[name] = plain[name].map(shown)
        else:
            plain[name] = plain[name].astype(bool)
    return plain


def _figures(results: Results) -> list[tuple[str, str, str, Figure]]:
    """File name, title, caption and figure of every picture."""
    if not results.metrics:
        return []
    found: list[tuple[str, str, str, Figure]] = []
    main = results.metrics[0]
    crossed = results.study["design"] != "one-at-a-time" and len(results.factors) > 1
    tornado = plot_tornado(results, main)
    if tornado is not None:
        found.append(
            (
                "tornado",
                "Which factor matters most",
                "A bar reaches from the worst to the best value of a factor, measured from the "
                "baseline (red line); the values stand at its ends. Thin lines: 95 % confidence "
                "intervals of the differences, paired by seed.",
                tornado,
            )
        )
    for factor in results.factors:
        note = " averaged over the other factors" if crossed else ""
        found.append(
            (
                f"effect-{factor}",
                f"Effect of {factor}",
                f"{results.study.get('glossary', {}).get(factor, '')} Dots: means{note}, with 95 % "
                "confidence intervals over seeds; grey lines: single seeds; red ring and dashed "
                "line: the baseline's value.".strip(),
                plot_effect(results, factor),
            )
        )
    for one, other in list(combinations(results.factors, 2))[:_PAIRS]:
        for metric in results.shown[:2]:
            figure = plot_heatmap(results, one, other, metric)
            if figure is not None:
                found.append(
                    (
                        f"heatmap-{one}-{other}-{metric}",
                        f"{one} and {other}: {results.title(metric)}",
                        "Means over seeds; darker is better; red frame: the baseline.",
                        figure,
                    )
                )
    return found


def _content(results: Results, summary: pd.DataFrame, tests: pd.DataFrame) -> dict[str, Any]:
    study, main = results.study, (results.metrics or [""])[0]
    glossary = study.get("glossary", {})
    settings = [
        [name, shown(study["baseline"][name]), _tried(tried), glossary.get(name, "")]
        for name, tried in study["factors"].items()
    ]
    fixed = [
        [name, shown(value), "", glossary.get(name, "")]
        for name, value in study["settings"].items()
    ]
    fine = results.table[results.table["status"] == "ok"]
    seconds = fine["seconds"].sum()
    return {
        "title": study["question"] or study["name"],
        "summary": study.get("about", ""),
        "design": f"{study['design']}: {DESIGNS[study['design']]}",
        "figures": [
            ["arms", str(len(results.arms))],
            ["seeds", str(len(study["seeds"]))],
            ["trials", f"{len(fine)} of {len(fine) + _missing(results)}"],
            ["seconds a trial", f"{seconds / max(1, len(fine)):.1f}"],
            ["peak memory, MB", f"{fine['peak_memory_mb'].max():,.0f}" if len(fine) else ""],
        ],
        "findings": _findings(results, tests, main),
        "problems": results.problems(),
        "contents": _SECTIONS,
        "setting_heads": _SETTING_COLUMNS,
        "settings": settings + fixed,
        "baseline": results.baseline,
        "arm_heads": ["arm", *map(results.title, results.metrics)],
        "arms": _arm_rows(results, summary),
        "test_heads": _TEST_HEADS,
        "tests": {
            results.title(metric): _test_rows(results, tests, metric) for metric in results.shown
        },
        "versions": _versions(results.table),
        "tracebacks": [
            [_trial_name(results, key), text] for key, text in results.tracebacks.items()
        ],
    }


def _missing(results: Results) -> int:
    return results.left + int((results.table["status"] == "failed").sum())


def _tried(tried: dict[str, Any]) -> str:
    if "values" in tried:
        return ", ".join(map(shown, tried["values"]))
    return f"{shown(tried['low'])} to {shown(tried['high'])}{' (log)' if tried['log'] else ''}"


def _findings(results: Results, tests: pd.DataFrame, metric: str) -> list[str]:
    """What the numbers say, in sentences."""
    own = tests[(tests["metric"] == metric) & tests["difference"].notna()]
    if not len(own):
        return ["No arm can be compared with the baseline yet."]
    title, sign = results.title(metric), -1 if results.lower_is_better(metric) else 1
    best = own.loc[(sign * own["difference"]).idxmax()]
    worst = own.loc[(sign * own["difference"]).idxmin()]
    found = []
    for word, row in (("Best", best), ("Worst", worst)):
        gap = results.show(metric, row["difference"], sign=True)
        p = shown_p(row["p_t_holm"])
        relation = "" if p.startswith("<") else "= "
        sure = f"Holm-corrected p {relation}{p}" if p else "no test possible"
        found.append(f"{word} arm by {title}: {row['arm']}, {gap} against the baseline ({sure}).")
    clear = own[own["p_t_holm"] < 0.05]
    better = int((sign * clear["difference"] > 0).sum())
    found.append(
        f"Of {len(own)} arms {better} are better and {len(clear) - better} worse than the baseline "
        f"({results.baseline}) at a Holm-corrected level of 0.05."
    )
    return found


def _arm_rows(results: Results, summary: pd.DataFrame) -> list[list[str]]:
    cells = {(row.arm, row.metric): row for row in summary.itertuples()}
    rows = []
    for arm in results.arms:
        line = [arm + (" (baseline)" if arm == results.baseline else "")]
        for metric in results.metrics:
            row: Any = cells[arm, metric]
            spread = results.show(metric, row.std)
            bad = results.table[(results.table["arm"] == arm)]["nan"].str.split(", ")
            nan = sum(metric in names for names in bad)
            text = results.show(metric, row.mean) + (f" ± {spread}" if spread else "")
            line.append((text + (f" ({nan} NaN)" if nan else "")).strip())
        rows.append(line)
    return rows


def _test_rows(results: Results, tests: pd.DataFrame, metric: str) -> list[list[str]]:
    rows = []
    for row in tests[tests["metric"] == metric].itertuples():
        ends = [results.show(metric, value, sign=True) for value in (row.low, row.high)]
        rows.append(
            [
                row.arm,
                str(row.pairs),
                results.show(metric, row.difference, sign=True),
                f"{ends[0]} to {ends[1]}" if all(ends) else "",
                shown_p(row.p_t),
                shown_p(row.p_t_holm),
                shown_p(row.p_wilcoxon),
                shown_p(row.p_wilcoxon_holm),
                "" if math.isnan(row.effect) else f"{row.effect:+.2f}",
            ]
        )
    return rows


def _versions(table: pd.DataFrame) -> list[list[str]]:
    names = [name for name in table if name.startswith("version.")]
    found = [[name.removeprefix("version."), name] for name in names]
    found += [["Python", "python"], ["git commit", "git_commit"]]
    return [[name, ", ".join(map(str, table[column].dropna().unique()))] for name, column in found]


def _trial_name(results: Results, key: str) -> str:
    row = results.table[results.table["trial"] == key].iloc[0]
    return f"{row['arm']}, seed {row['seed']}"


def _markdown(content: dict[str, Any], pictures: Mapping[str, PagePicture]) -> str:
    lines = [
        f"# {content['title']}",
        "",
        content["summary"],
        "",
        f"Design {content['design']}.",
        "",
    ]
    lines += ["## What it says", "", *(f"- {text}" for text in content["findings"]), ""]
    if content["problems"]:
        lines += ["## Know before you believe it", ""]
        lines += [*(f"- {text}" for text in content["problems"]), ""]
    lines += ["## Settings", ""]
    lines += [*markdown_table(content["setting_heads"], content["settings"], left=4), ""]
    for path, picture in pictures.items():
        lines += [f"## {picture.alt}", "", f"![{picture.alt}]({path})", ""]
        lines += [picture.caption, ""]
    lines += ["## All arms", "", "Mean ± standard deviation over seeds.", ""]
    lines += [*markdown_table(content["arm_heads"], content["arms"], left=1), ""]
    lines += ["## Differences to the baseline", "", _TESTS, ""]
    for title, rows in content["tests"].items():
        lines += [f"### {title}", "", *markdown_table(content["test_heads"], rows, left=1), ""]
    lines += ["## Made with", "", *markdown_table(["", ""], content["versions"], left=2), ""]
    for name, text in content["tracebacks"]:
        lines += [f"## Failed: {name}", "", "```", text.rstrip(), "```", ""]
    return "\n".join(lines)


_TESTS = (
    "Arm minus baseline, paired by seed: 95 % confidence interval, paired t-test and Wilcoxon's "
    "signed-rank test (two-sided), each with Holm's correction over the arms of the metric; d is "
    "the mean difference in standard deviations of the differences."
)
