"""Pages of reports: the template engine, and the page of a training run."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from gloss_graph._internal.files import atomic_write, utf8_folder
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.baselines import CONFIGS, MODELS, BertGCNConfig
from gloss_graph.inference import GraphSkill
from gloss_graph.reports.evaluation import PERCENT, SCORES
from gloss_graph.runs import RunFolder, read_run
from gloss_graph.runs.folder import refused
from gloss_graph.text.tables import read_columns
from gloss_graph.training.config import DEFAULTS, LOSSES
from gloss_graph.training.snapshots import SnapshotData, load_snapshots
from gloss_graph.visualization import (
    plot_embeddings,
    plot_graph_change,
    plot_similarities,
    plot_stage_times,
    plot_training,
)
from gloss_graph.visualization.style import PagePicture, page_picture

# Parts of the data, and their names on a page.
_PARTS = {"train": "training", "val": "validation", "test": "test"}
# Columns of the tables of a run that hold words, which may look like numbers.
_WORDS = ("split", "head", "class")
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
    ".macro_f1": "macro-F1",
    ".accuracy": "accuracy",
    ".micro_f1": "micro-F1",
    "_propagation.macro_f1": "macro-F1 propagated",
}

Rows = list[list[str]]


def render_page(template: str, content: Mapping[str, Any]) -> bytes:
    """Fill a template of this room and return the page as UTF-8.

    A template extends `page.html.jinja`, whose frame shows `title`, `summary`, `figures` (pairs of
    a name and a value) and `contents` (pairs of a section's id and name). Values are escaped; the
    filter `code` marks text between backticks as code.
    """
    loader = PackageLoader("gloss_graph.reports", "")
    engine = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    engine.filters["code"] = _code
    return engine.get_template(template).render(content).encode("utf-8", "backslashreplace")


def _code(text: object) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def write_run_report(
    folder: str | Path, out: str | Path | None = None, *, place: str | Path | None = None
) -> Path:
    """Write the report of a run as one HTML file that needs no other file.

    Pictures are embedded as PNG; the page has no script and fetches nothing, so it can be sent and
    archived. Labels, names and settings are escaped.

    The `folder` is that of a finished run. The file `out` is replaced if it exists; by default it
    is `report.html` in the folder, which gets the pictures as well. A folder that will be renamed
    is named `place` on the page.

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
    if out is None:
        places = {name: files.pictures / f"{name}.png" for name in _PICTURES}
        places |= {"curves": files.curves, "stages": files.stages}
        written |= {places[name]: figure.png for name, figure in figures.items()}
    for file, data in written.items():
        with atomic_write(file, overwrite=True) as draft:
            draft.write(data)
    return target


class RunFiles(NamedTuple):
    """Contents of a run folder."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]  # without null values
    history: list[dict[str, Any]]
    classes: pd.DataFrame  # scores per class, empty where the run has none
    label_counts: dict[str, int]  # class name -> labeled training documents
    snapshots: SnapshotData | None  # recorded embeddings, None where nothing was recorded


def read_files(folder: str | Path) -> RunFiles:
    """Read a run folder; a damaged or foreign one is a `ValueError`."""
    folder = Path(folder)
    run, files = read_run(folder), RunFolder(folder)
    try:
        history = [dict(row) for row in _table(files.history).to_dict("records")]
        classes = _table(files.classes) if files.classes.exists() else pd.DataFrame()
        counts = dict(Counter(files.read_labels_used().labels))
        snapshots = load_snapshots(utf8_folder(folder))
    except (OSError, ValueError, TypeError) as error:
        raise refused(folder, error) from error
    return RunFiles(folder, run.settings, run.metrics, history, classes, counts, snapshots)


def _table(file: Path) -> pd.DataFrame:
    """Read a CSV file of numbers, and words in the columns `_WORDS`; it may be empty."""
    if not file.read_bytes().strip():
        return pd.DataFrame()
    try:
        table = read_columns(file, allow_empty=True)
        columns = {
            name: values if name in _WORDS else table.parsed(name, _number)
            for name, values in table.columns.items()
        }
    except ValueError as error:
        raise ValueError(f"{file.name}: Error, the file is damaged: {error}") from error
    return pd.DataFrame(columns)


def _number(value: str) -> float:
    return int(value) if value.isdecimal() else float(value or "nan")


def setting_values(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults of the settings of a run's kind, and the run's values."""
    model = str(settings.get("model"))
    if model not in CONFIGS:
        return DEFAULTS, dict(settings)
    inner = settings.get(model.replace("-", "_"))
    values = {**settings, **(inner if isinstance(inner, Mapping) else {})}
    return {field.name: field.default for field in fields(CONFIGS[model])}, values


def _draw(run: RunFiles) -> dict[str, PagePicture]:
    """All pictures of a run, by name."""
    loss, found = run.settings["loss"], {}
    if run.history:
        figure = plot_training({loss: run.history})
        found["curves"] = page_picture(figure, "Losses and validation score over the steps")
    stages = stage_seconds(run.metrics)
    if sum(stages.values()) > 0:
        figure = plot_stage_times({loss: stages})
        found["stages"] = page_picture(figure, "Share of the time each stage of a step took")
    data, seed = run.snapshots, run.settings["seed"]
    if data is None:
        return found
    names, part = data.label_names, _PARTS.get(data.split, data.split)
    of = "" if data.labels.numel() == data.split_size else f" of {data.split_size:,}"
    what = f"{data.labels.numel():,}{of} {part} documents"
    figure = plot_embeddings(data.before, data.after, data.labels, label_names=names, seed=seed)
    found["embeddings"] = page_picture(
        figure,
        f"t-SNE of {what} before and after training",
        f"{what}, each a dot in the color of its class, by t-SNE. It shows which documents "
        "lie together, not sizes of clusters or distances between them.",
    )
    batch = _PARTS.get(data.batch_split, data.batch_split)
    found["similarities"] = page_picture(
        plot_similarities(data.moments, data.batch_labels, label_names=names),
        "Cosine similarities within one batch over the training",
        f"{data.batch_labels.numel()} fixed {batch} documents of "
        f"{_classes(data.batch_labels.unique())}, sorted by class, at several moments of "
        "the training. Lines separate the classes; all panels share one color scale.",
    )
    figure = plot_graph_change(data.before, data.after, data.labels, label_names=names, seed=seed)
    found["graph"] = page_picture(
        figure,
        f"Nearest-neighbor graph of {part} documents before and after training",
        "The graph of nearest neighbors among these documents. Places follow from the graph "
        "alone, labels only color it. The more edges are grey, the more propagation can gain.",
    )
    return found


def _content(run: RunFiles, figures: Mapping[str, PagePicture], place: Path) -> dict[str, Any]:
    """The values of the template."""
    settings, metrics = run.settings, run.metrics
    data = _data(run)
    skill = ""  # if it was not measured
    found: dict[str, Any] = {
        name: metrics.get(f"graph_skill.{name}") for name in GraphSkill._fields
    }
    if None not in found.values():
        skill = str(GraphSkill(**found | {"scored": int(found["scored"])}))
    known, values = setting_values(settings)
    given = [key for key in known if key in values]
    changed = [key for key in given if values[key] != known[key]]
    recorded = settings.get("versions")
    versions = {"python": settings.get("python")}
    versions |= recorded if isinstance(recorded, Mapping) else {}
    versions["git commit"] = settings.get("git_commit")
    return {
        "title": place.resolve().name,
        "summary": _summary(settings),
        "figures": _figures(metrics),
        "changed": [[key, _plain(values[key]), _plain(known[key])] for key in changed],
        "about": [[_ABOUT[key], _plain(settings[key])] for key in _ABOUT if key in settings],
        "settings": [[key, _plain(values[key])] for key in dict.fromkeys([*changed, *given])],
        "data_line": f"{settings['data']['name'] or 'documents'}, {_classes(data['classes'])}.",
        **data,
        **_scores(metrics),
        "per_class": [
            [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
            for row in run.classes.itertuples(index=False)
        ],
        "per_class_heads": list(map(str, run.classes.columns)),
        "skill": skill,
        "curves": figures.get("curves"),
        "pictures": [figures[key] for key in _PICTURES if key in figures],
        "stages": figures.get("stages"),
        "seconds": [
            [key.removeprefix("seconds.").replace("_", " "), f"{value:,.2f}"]
            for key, value in metrics.items()
            if key.startswith("seconds.")
        ],
        **_repetition(settings),
        "rebuild": shlex.join(["gloss-graph", "report", str(place)]),
        "versions": [[name, _plain(value)] for name, value in versions.items()],
    }


def _figures(metrics: Mapping[str, float]) -> Rows:
    """The few numbers at the top."""
    rows = []
    part = next((part for part in ("test", "val") if f"{part}.macro_f1" in metrics), "")
    for score, name in _TOP.items():
        if f"{part}{score}" in metrics:
            value = f"{100 * metrics[f'{part}{score}']:.1f}"
            rows.append([f"{_PARTS[part].capitalize()} {name}", value])
    if "steps" in metrics:
        rows.append(["Steps", f"{metrics['steps']:,.0f}"])
    if "seconds.train" in metrics:
        seconds = metrics["seconds.train"]
        text = f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.0f} s"
        rows.append(["Training", text])
    return rows


def _scores(metrics: Mapping[str, float]) -> dict[str, Any]:
    """A table with one row per part and head, one column per score."""
    table: dict[tuple[str, str], dict[str, str]] = {}
    for key, value in metrics.items():
        if match := _SCORE.fullmatch(key):
            part, head, score = match.groups()
            text = f"{100 * value:.1f}" if score in PERCENT else f"{value:.3f}"
            table.setdefault((part, head or "linear head"), {})[score] = text
    found = {score for row in table.values() for score in row}
    scores = [*(score for score in SCORES if score in found), *sorted(found - {*SCORES})]
    rows = [
        [_PARTS[part], head.replace("_", " "), *(row.get(score, "–") for score in scores)]
        for (part, head), row in sorted(table.items(), key=lambda item: item[0][0], reverse=True)
    ]
    titles = [SCORES.get(score, score.replace("_", " ")) for score in scores]
    return {"scores": rows, "score_heads": ["part", "by", *titles]}


def _data(run: RunFiles) -> dict[str, Any]:
    """Tables of the sizes of the parts, and of labels per class."""
    data = run.settings["data"]
    counts = {} if run.snapshots is None else run.snapshots.class_counts
    parts = [part for part in _PARTS if isinstance(data.get(part), int)]
    labeled = {part: sum(row[:-1]) for part, row in counts.items()}
    labeled.setdefault("train", sum(run.label_counts.values()))
    sizes = [
        [_PARTS[part], f"{data[part]:,}", f"{labeled[part]:,}" if part in labeled else "–"]
        for part in parts
    ]
    names = list(map(str, data.get("classes") or run.label_counts))
    shown = [part for part in parts if part in counts and len(counts[part]) == len(names) + 1]
    if not shown:
        shown, counts = ["train"], {"train": [run.label_counts.get(name, 0) for name in names]}
    rows = [[n, *(f"{counts[part][i]:,}" for part in shown)] for i, n in enumerate(names)]
    heads = ["class", *(_PARTS[part] for part in shown)]
    return {"sizes": sizes, "classes": rows, "class_heads": heads}


def _classes(found: Sized) -> str:
    return f"{len(found):,} {'class' if len(found) == 1 else 'classes'}"


def _summary(settings: Mapping[str, Any]) -> str:
    """Describe loss or model, encoder and data in one line."""
    loss, name = settings["loss"], str(settings["data"].get("name") or "documents")
    what = LOSSES[loss].help if loss in LOSSES else MODELS.get(loss, "another loss")
    if settings.get("model") == "text-gcn":
        return f"{what}. Data {name}."
    encoder = settings.get("encoder_name") or settings.get("encoder") or "unknown"
    return f"{what if loss in MODELS else f'{loss}: {what}'}. Encoder {encoder}, data {name}."


def _repetition(settings: Mapping[str, Any]) -> dict[str, str]:
    """The command of a run with a new folder, and the same in Python."""
    words = settings.get("command")
    command = ""
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        pairs = zip(map(str, words), ["", *map(str, words)], strict=False)
        # Another folder of the results, since a used one is refused.
        kept = [w for w, b in pairs if "--out" not in (w, b) and not w.startswith("--out=")]
        quoted = map(shlex.quote, [*kept, "--out", "NEW_FOLDER"])
        command = " ".join(f"\\\n    {w}" if w.startswith("--") else w for w in quoted)
    known, values = setting_values(settings)
    options = ", ".join(
        f"{key}={values[key]!r}"
        for key, default in known.items()
        if key in values and (values[key] != default or key in ("loss", "seed"))
    )
    data, out = settings["data"], '"NEW_FOLDER"'
    parts = ", ".join(f'"{part}.csv"' if part in data else "None" for part in _PARTS)
    parts += ', separator=";"' if data.get("multilabel") else ""
    loading = [f"{key}={settings[key]!r}" for key in ("pooling", "max_length") if settings.get(key)]
    encoder = settings.get("encoder_name") or "YOUR_ENCODER"
    load = f"load_encoder({', '.join([repr(encoder), *loading])})"
    model: Any = CONFIGS.get(str(settings.get("model")))
    name, train = "TrainConfig", f"train_text(splits, {load}, config, {out})"
    home, encoded = "training", model in (None, BertGCNConfig)
    if model is not None:
        name, home = model.__name__, "baselines"
        train = f"train_graph_model(splits, config, {out}{f', encoder={load}' * encoded})"
    lines = [
        f"from gloss_graph.{home} import {name}, {train.partition('(')[0]}",
        f"from gloss_graph.text import {'load_encoder, ' * encoded}read_splits",
        "",
        f"splits = read_splits({parts})",
        f"config = {name}({options})",
        train,
    ]
    return {"command": command, "snippet": "\n".join(lines)}


def _plain(value: Any) -> str:
    """Format a setting."""
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str)
