"""A run folder as the report reads it, and the command that repeats the run."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from gloss_graph._internal.files import utf8_folder
from gloss_graph.baselines import CONFIGS, MODELS, BertGCNConfig
from gloss_graph.runs import RunFolder, read_run
from gloss_graph.text.tables import read_columns
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.losses import LOSSES
from gloss_graph.training.snapshots import SnapshotData, load_snapshots

#: Parts of the data, and their names on a page.
PARTS = {"train": "training", "val": "validation", "test": "test"}
# Columns of our tables that hold words, which may look like numbers.
_WORDS = ("split", "head", "class")


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run folder.

    Attributes:
        folder: The folder.
        settings: `config.json`.
        metrics: `metrics.json` without null values.
        history: Rows of `history.csv`.
        classes: `classes.csv`, empty without this file.
        label_counts: Class name -> labeled training documents, from `labels_used.csv`.
        snapshots: Recorded embeddings, None where nothing was recorded.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    classes: pd.DataFrame
    label_counts: dict[str, int]
    snapshots: SnapshotData | None


def read_files(folder: str | Path) -> RunFiles:
    """Read a run folder; a damaged or foreign one is a `ValueError`."""
    folder = Path(folder)
    run, files = read_run(folder), RunFolder(folder)
    try:
        history = _table(files.history)
        counts = Counter(files.read_labels_used().labels)
        return RunFiles(
            folder=folder,
            settings=run.settings,
            metrics=run.metrics,
            history=[dict(row) for row in history.to_dict("records")],
            classes=_table(files.classes) if files.classes.exists() else pd.DataFrame(),
            label_counts=dict(counts),
            snapshots=load_snapshots(utf8_folder(folder)),
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"'folder' must be a finished run folder of gloss-graph train ({folder}: {error})."
        ) from error


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


def summary(settings: Mapping[str, Any]) -> str:
    """Describe loss or model, encoder and data in one line."""
    loss, name = settings["loss"], str(settings["data"].get("name") or "documents")
    what = LOSSES[loss].help if loss in LOSSES else MODELS.get(loss, "another loss")
    if settings.get("model") == "text-gcn":
        return f"{what}. Data {name}."
    encoder = settings.get("encoder_name") or settings.get("encoder") or "unknown"
    return f"{what if loss in MODELS else f'{loss}: {what}'}. Encoder {encoder}, data {name}."


def setting_values(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults of the settings of a run's kind, and the run's values."""
    model = str(settings.get("model"))
    kind: Any = CONFIGS.get(model, TrainConfig)
    inner = settings.get(model.replace("-", "_"))
    values = {**settings, **(inner if isinstance(inner, Mapping) else {})}
    return {field.name: field.default for field in fields(kind)}, values


def repetition(settings: Mapping[str, Any]) -> tuple[str, str]:
    """Return the command of a run with a new folder, and the same in Python."""
    words = settings.get("command")
    command = ""
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        quoted = map(shlex.quote, _with_new_folder([str(word) for word in words]))
        command = " ".join(f"\\\n    {w}" if w.startswith("--") else w for w in quoted)
    known, values = setting_values(settings)
    options = ", ".join(
        f"{key}={values[key]!r}"
        for key, default in known.items()
        if key in values and (values[key] != default or key in ("loss", "seed"))
    )
    data = settings["data"]
    parts = ", ".join(f'"{part}.csv"' if part in data else "None" for part in PARTS)
    parts += ', separator=";"' if data.get("multilabel") else ""
    loading = [f"{key}={settings[key]!r}" for key in ("pooling", "max_length") if settings.get(key)]
    name = settings.get("encoder_name") or "YOUR_ENCODER"
    load = f"load_encoder({', '.join([repr(name), *loading])})"
    model: Any = CONFIGS.get(str(settings.get("model")))
    if model is None:
        lines = [
            "from gloss_graph.text import load_encoder, read_splits",
            "from gloss_graph.training import TrainConfig, train_text",
            "",
            f"splits = read_splits({parts})",
            f"encoder = {load}",
            f"config = TrainConfig({options})",
            'train_text(splits, encoder, config, "NEW_FOLDER")',
        ]
    else:
        encoded = model is BertGCNConfig
        lines = [
            f"from gloss_graph.baselines import {model.__name__}, train_graph_model",
            f"from gloss_graph.text import {'load_encoder, ' if encoded else ''}read_splits",
            "",
            f"splits = read_splits({parts})",
            f"config = {model.__name__}({options})",
            f'train_graph_model(splits, config, "NEW_FOLDER"{f", encoder={load}" * encoded})',
        ]
    return command, "\n".join(lines)


def _with_new_folder(words: list[str]) -> list[str]:
    """Replace the folder of the results, since a used one is refused."""
    kept = []
    for word, before in zip(words, ["", *words], strict=False):
        if "--out" not in (word, before) and not word.startswith("--out="):
            kept.append(word)
    return [*kept, "--out", "NEW_FOLDER"]


def plain(value: Any) -> str:
    """Format a setting."""
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str)
