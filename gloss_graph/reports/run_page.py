"""The report of a training run: settings, scores, curves, embeddings, times."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.inference import GraphSkill
from gloss_graph.reports.evaluation import PERCENT, SCORES
from gloss_graph.reports.page import render_page
from gloss_graph.reports.run_data import (
    PARTS,
    RunFiles,
    plain,
    read_files,
    repetition,
    setting_values,
    summary,
)
from gloss_graph.runs import RunFolder
from gloss_graph.visualization import (
    plot_embeddings,
    plot_graph_change,
    plot_similarities,
    plot_stage_times,
    plot_training,
)
from gloss_graph.visualization.style import PagePicture, page_picture

_PICTURES = ("embeddings", "similarities", "graph")
_SCORE = re.compile(r"(val|test)(?:_(\w+))?\.(\w+)")

_ABOUT = {
    "encoder": "encoder",
    "encoder_name": "loaded as",
    "max_length": "tokens kept",
    "pooling": "pooling",
    "seed": "seed",
    "bank": "bank",
    "finished": "finished",
}
_TOP = {
    "macro_f1": "macro-F1",
    "accuracy": "accuracy",
    "micro_f1": "micro-F1",
    "_propagation.macro_f1": "macro-F1 propagated",
}

Rows = list[list[str]]


def write_run_report(
    folder: str | Path, out: str | Path | None = None, *, place: str | Path | None = None
) -> Path:
    """Write the report of a run as one HTML file that needs no other file.

    Pictures are embedded as PNG; the page has no script and fetches nothing, so it can be sent and
    archived. Labels, names and settings are escaped.

    Args:
        folder: Finished run folder of `train_text` or `gloss-graph train`.
        out: The file, replaced if it exists. None: `report.html` in the folder, and its pictures
            in `pictures/`.
        place: Name of the folder on the page, if the folder will be renamed.

    Returns:
        The file.

    Raises:
        ValueError: The folder is missing, damaged or holds something else.
        OSError: The file cannot be written.

    Cost: about ten seconds, most of them for t-SNE and the layout of two graphs.
    """
    run = read_files(folder)
    files = RunFolder(run.folder)
    target = files.page if out is None else Path(out)
    figures = _draw(run)
    content = _content(run, figures, Path(run.folder if place is None else place))
    written = {target: render_page("run.html.jinja", content)}
    if out is None and run.snapshots is not None:
        written |= {files.pictures / f"{name}.png": figures[name].png for name in _PICTURES}
    for file, data in written.items():
        with atomic_write(file, overwrite=True) as draft:
            draft.write(data)
    return target


def _draw(run: RunFiles) -> dict[str, PagePicture]:
    """All pictures of a run, by name."""
    loss, found = run.settings["loss"], {}
    if run.history:
        found["curves"] = page_picture(
            plot_training({loss: run.history}), "Losses and validation score over the steps"
        )
    stages = stage_seconds(run.metrics)
    if sum(stages.values()) > 0:
        found["stages"] = page_picture(
            plot_stage_times({loss: stages}), "Share of the time each stage of a step took"
        )
    data = run.snapshots
    if data is None:
        return found
    seed = int(run.settings.get("seed") or 0)
    names, part = data.label_names, PARTS.get(data.split, data.split)
    of = "" if data.labels.numel() == data.split_size else f" of {data.split_size:,}"
    what = f"{data.labels.numel():,}{of} {part} documents"
    found["embeddings"] = page_picture(
        plot_embeddings(data.before, data.after, data.labels, label_names=names, seed=seed),
        f"t-SNE of {what} before and after training",
        f"{what}, each a dot in the color of its class, by t-SNE. It shows which documents "
        "lie together, not sizes of clusters or distances between them.",
    )
    batch = PARTS.get(data.batch_split, data.batch_split)
    found["similarities"] = page_picture(
        plot_similarities(data.moments, data.batch_labels, label_names=names),
        "Cosine similarities within one batch over the training",
        f"{data.batch_labels.numel()} fixed {batch} documents of "
        f"{_classes(data.batch_labels.unique().numel())}, sorted by class, at several moments of "
        "the training. Lines separate the classes; all panels share one color scale.",
    )
    found["graph"] = page_picture(
        plot_graph_change(data.before, data.after, data.labels, label_names=names, seed=seed),
        f"Nearest-neighbor graph of {part} documents before and after training",
        "The graph of nearest neighbors among these documents. Places follow from the graph "
        "alone, labels only color it. The more edges are grey, the more propagation can gain.",
    )
    return found


def _content(run: RunFiles, figures: Mapping[str, PagePicture], place: Path) -> dict[str, Any]:
    """The values of the template."""
    settings = run.settings
    scores, score_heads = _scores(run.metrics)
    sizes, classes, class_heads = _data(run)
    command, snippet = repetition(settings)
    skill = _skill(run.metrics)
    contents = {
        "run": "What was run",
        "data": "Data",
        "scores": "Scores",
        "skill": "Graph skill" if skill else "",
        "curves": "Curves" if "curves" in figures else "",
        "pictures": "Pictures",
        "time": "Time",
        "repeat": "How to repeat it",
        "versions": "Versions",
    }
    known, values = setting_values(settings)
    changed = [key for key in known if key in values and values[key] != known[key]]
    rest = [key for key in known if key in values and key not in changed]
    about = [[_ABOUT[key], plain(settings[key])] for key in _ABOUT if key in settings]
    return {
        "title": place.resolve().name,
        "summary": summary(settings),
        "figures": _figures(run.metrics),
        "contents": [(key, title) for key, title in contents.items() if title],
        "changed": [[key, plain(values[key]), plain(known[key])] for key in changed],
        "about": about,
        "settings": [[key, plain(values[key])] for key in [*changed, *rest]],
        "data_line": f"{settings['data']['name'] or 'documents'}, {_classes(len(classes))}.",
        "sizes": sizes,
        "classes": classes,
        "class_heads": class_heads,
        "scores": scores,
        "score_heads": score_heads,
        "per_class": _cells(run.classes),
        "per_class_heads": list(map(str, run.classes.columns)),
        "skill": skill,
        "curves": figures.get("curves"),
        "pictures": [figures[key] for key in _PICTURES if key in figures],
        "stages": figures.get("stages"),
        "seconds": [
            [key.removeprefix("seconds.").replace("_", " "), f"{value:,.2f}"]
            for key, value in run.metrics.items()
            if key.startswith("seconds.")
        ],
        "command": command,
        "snippet": snippet,
        "rebuild": shlex.join(["gloss-graph", "report", str(place)]),
        "versions": _versions(settings),
    }


def _figures(metrics: Mapping[str, float]) -> Rows:
    """The few numbers at the top."""
    rows = []
    part = next((part for part in ("test", "val") if f"{part}.macro_f1" in metrics), "")
    for score, name in _TOP.items():
        key = part + score if score.startswith("_") else f"{part}.{score}"
        if part and key in metrics:
            rows.append([f"{PARTS[part].capitalize()} {name}", f"{100 * metrics[key]:.1f}"])
    if "steps" in metrics:
        rows.append(["Steps", f"{metrics['steps']:,.0f}"])
    if "seconds.train" in metrics:
        seconds = metrics["seconds.train"]
        text = f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
        rows.append(["Training", text])
    return rows


def _scores(metrics: Mapping[str, float]) -> tuple[Rows, list[str]]:
    """One row per part and head, one column per score."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for key, value in metrics.items():
        if match := _SCORE.fullmatch(key):
            part, head, score = match.groups()
            text = f"{100 * value:.1f}" if score in PERCENT else f"{value:.3f}"
            table.setdefault((part, head or "linear head"), {})[score] = text
    found = {score for row in table.values() for score in row}
    scores = [*(score for score in SCORES if score in found), *sorted(found - {*SCORES})]
    rows = [
        [PARTS[part], head.replace("_", " "), *(row.get(score, "–") for score in scores)]
        for (part, head), row in sorted(table.items(), key=lambda item: item[0][0], reverse=True)
    ]
    return rows, ["part", "by", *(SCORES.get(score, score.replace("_", " ")) for score in scores)]


def _data(run: RunFiles) -> tuple[Rows, Rows, list[str]]:
    """Sizes of the parts, and labels per class with their headings."""
    data = run.settings["data"]
    counts = {} if run.snapshots is None else run.snapshots.class_counts
    parts = [part for part in PARTS if isinstance(data.get(part), int)]
    labeled = {part: sum(row[:-1]) for part, row in counts.items()}
    labeled.setdefault("train", sum(run.label_counts.values()))
    sizes = [
        [PARTS[part], f"{data[part]:,}", f"{labeled[part]:,}" if part in labeled else "–"]
        for part in parts
    ]
    names = list(map(str, data.get("classes") or run.label_counts))
    shown = [part for part in parts if part in counts and len(counts[part]) == len(names) + 1]
    if not shown:
        return sizes, [[n, f"{run.label_counts.get(n, 0):,}"] for n in names], ["class", "training"]
    rows = [[n, *(f"{counts[part][i]:,}" for part in shown)] for i, n in enumerate(names)]
    return sizes, rows, ["class", *(PARTS[part] for part in shown)]


def _cells(table: pd.DataFrame) -> Rows:
    return [
        [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in table.itertuples(index=False)
    ]


def _skill(metrics: Mapping[str, float]) -> str:
    """The graph skill in words, "" if it was not measured."""
    try:
        values = {name: metrics[f"graph_skill.{name}"] for name in GraphSkill._fields}
    except KeyError:
        return ""
    scored = int(values.pop("scored"))
    return str(GraphSkill(**values, scored=scored))


def _versions(settings: Mapping[str, Any]) -> Rows:
    versions = settings.get("versions")
    rows = [["python", plain(settings.get("python"))]]
    if isinstance(versions, Mapping):
        rows += [[str(name), plain(value)] for name, value in versions.items()]
    return [*rows, ["git commit", plain(settings.get("git_commit"))]]


def _classes(number: int) -> str:
    return f"{number:,} {'class' if number == 1 else 'classes'}"
