"""A run folder as the report reads it: settings, scores, curves, classes, snapshots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gloss_graph._internal.files import utf8_folder
from gloss_graph.runs import RunFolder, read_run
from gloss_graph.text.tables import read_columns
from gloss_graph.training.snapshots import SnapshotData, load_snapshots

__all__ = ["RunFiles", "read_files"]

# Columns of our tables that hold words, which may look like numbers.
_WORDS = ("split", "head", "class")


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds.

    Attributes:
        folder: The folder.
        settings: `config.json`.
        metrics: `metrics.json`, without what is null.
        history: Rows of `history.csv`.
        classes: `classes.csv`, None where there is none.
        label_counts: Class name -> labeled training documents, from `labels_used.csv`.
        snapshots: What the pictures are drawn from, None where nothing was recorded.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    classes: pd.DataFrame | None
    label_counts: dict[str, int]
    snapshots: SnapshotData | None


def read_files(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises:
        ValueError: The folder is missing, damaged or holds something else.
    """
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
            classes=_table(files.classes) if files.classes.exists() else None,
            label_counts=dict(counts),
            snapshots=load_snapshots(utf8_folder(folder)),
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"'folder' must be a finished run folder of gloss-graph train ({folder}: {error})."
        ) from error


def _table(file: Path) -> pd.DataFrame:
    """A CSV file of numbers and of the words of `_WORDS`; an empty one is a table without rows."""
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
    """An integer where it is one; NaN where there is none."""
    return int(value) if value.isdecimal() else float(value or "nan")
