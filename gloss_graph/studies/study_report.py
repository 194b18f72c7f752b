"""The report of a study: tables, pictures, Markdown and one HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, combinations, count
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from gloss_graph._internal.files import atomic_write
from gloss_graph.reports.evaluation import TEST_HEADINGS, difference_cells, markdown_table, shown_p
from gloss_graph.reports.run_page import render_page
from gloss_graph.studies.plots import plot_effect, plot_heatmap, plot_tornado
from gloss_graph.studies.results import Results
from gloss_graph.studies.trials import DESIGNS, shown
from gloss_graph.text.tables import csv_bytes
from gloss_graph.visualization.style import PagePicture, page_picture

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
        plain = re.sub(r"[^\w.+-]", "-", name)[:_NAME]
        names = chain([plain], (f"{plain}-{number}" for number in count(2)))
        path = next(path for name in names if (path := f"pictures/{name}.png") not in pictures)
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
        known = [value for value in plain[name] if value is not None]
        kinds = {type(value) for value in known}
        if kinds <= {int, float} and kinds:
            plain[name] = pd.to_numeric(plain[name])
        elif kinds != {bool} or len(known) < len(plain):
            plain[name] = plain[name].map(shown)
        else:
            plain[name] = plain[name].astype(bool)
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
    trials = table.set_index("trial")
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
            [f"{trials.at[key, 'arm']}, seed {trials.at[key, 'seed']}", text]
            for key, text in results.tracebacks.items()
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
    cells: dict[tuple[str, str], str] = {}
    missing = results.table.groupby("arm")["nan"].apply(lambda names: ", ".join(names).split(", "))
    for row in summary.to_dict("records"):
        arm, metric = row["arm"], row["metric"]
        spread, nan = results.show(metric, row["std"]), missing[arm].count(metric)
        text = results.show(metric, row["mean"]) + (f" ± {spread}" if spread else "")
        cells[arm, metric] = (text + (f" ({nan} NaN)" if nan else "")).strip()
    return [
        [
            arm + (" (baseline)" if arm == results.baseline else ""),
            *(cells[arm, metric] for metric in results.metrics),
        ]
        for arm in results.arms
    ]


def _markdown(content: Mapping[str, Any], pictures: Mapping[str, PagePicture]) -> str:
    lines = [f"# {content['title']}", "", content["summary"], ""]
    lines += [f"Design {content['design']}.", ""]
    lines += ["## What it says", "", *(f"- {text}" for text in content["findings"]), ""]
    if content["problems"]:
        lines += ["## Know before you believe it", ""]
        lines += [*(f"- {text}" for text in content["problems"]), ""]
    lines += ["## Settings", ""]
    lines += [*markdown_table(content["setting_heads"], content["settings"], left=4), ""]
    for path, picture in pictures.items():
        lines += [f"## {picture.alt}", "", f"![{picture.alt}]({path})", "", picture.caption, ""]
    lines += ["## All arms", "", "Mean ± standard deviation over seeds.", ""]
    lines += [*markdown_table(content["arm_heads"], content["arms"], left=1), ""]
    lines += ["## Differences to the baseline", "", _TESTS, ""]
    for title, rows in content["tests"].items():
        lines += [f"### {title}", "", *markdown_table(content["test_heads"], rows, left=1), ""]
    lines += ["## Made with", "", *markdown_table(["", ""], content["versions"], left=2), ""]
    for name, text in content["tracebacks"]:
        lines += [f"## Failed: {name}", "", "```", text.rstrip(), "```", ""]
    return "\n".join(lines)
