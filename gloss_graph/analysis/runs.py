"""A run folder as the report reads it: settings, scores, curves, classes, snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gloss_graph.training.finished import read_run
from gloss_graph.training.snapshots import SnapshotData, load_snapshots

__all__ = ["RunFiles", "read_files"]


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
    run = read_run(folder)
    try:
        history = _table(folder / "history.csv")
        classes = folder / "classes.csv"
        used = _table(folder / "labels_used.csv", dtype=str, keep_default_na=False)
        counts = used["label"].value_counts().to_dict() if "label" in used else {}
        return RunFiles(
            folder=folder,
            settings=run.settings,
            metrics=run.metrics,
            history=[dict(row) for row in history.to_dict("records")],
            classes=_table(classes, keep_default_na=False) if classes.exists() else None,
            label_counts={str(name): int(count) for name, count in counts.items()},
            snapshots=load_snapshots(folder),
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"'folder' must be a finished run folder of gloss-graph train ({folder}: {error})."
        ) from error


def _table(file: Path, **options: Any) -> pd.DataFrame:
    """A CSV file; one without a column is a table without rows."""
    try:
        return pd.read_csv(file, **options)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
