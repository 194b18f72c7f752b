"""Run folders of finished runs, as numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gloss_graph._internal.limits import read_object
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.training.labels import LABELS_USED, read_labels_used

_FILES = ("config.json", "metrics.json")


@dataclass(frozen=True)
class FinishedRun:
    """A run folder as numbers.

    Attributes:
        folder: Where it is.
        settings: Content of `config.json`.
        metrics: Content of `metrics.json` without empty values, and `seconds.per_step`: the
            timed stages of training over its steps, without evaluation and set-up.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.settings["seed"])


def is_finished(folder: str | Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return all((Path(folder) / name).is_file() for name in _FILES)


def read_run(folder: str | Path) -> FinishedRun:
    """Read settings and metrics of a run folder that `train_text` wrote.

    Raises:
        ValueError: The folder, one of the two files or something in them is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _refused(folder, "there is no such folder")
    settings, stored = (_json(folder, file) for file in _FILES)
    for key, kind in {"seed": int, "loss": str, "data": dict}.items():
        if not isinstance(settings.get(key), kind) or isinstance(settings[key], bool):
            raise _refused(folder, f"config.json lacks {key!r}")
    data = settings["data"]
    names = data.get("classes")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(data.get("name"), str) or not named:
        raise _refused(folder, "config.json lacks the name and classes of 'data'")
    for part in ("train", "val", "test"):
        if not isinstance(data.get(part, 0), int):
            raise _refused(folder, f"config.json has no number for 'data.{part}'")
    metrics: dict[str, float] = {}
    for key, value in stored.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _refused(folder, f"metrics.json has no number for {key!r}")
        if math.isfinite(value):
            metrics[key] = float(value)
    timed = stage_seconds(metrics)
    if timed and metrics.get("steps", 0) > 0:
        metrics["seconds.per_step"] = sum(timed.values()) / metrics["steps"]
    return FinishedRun(folder, settings, metrics)


def find_runs(folders: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Run folders among `folders` and below them, each once, and those of unfinished runs.

    Raises:
        ValueError: A folder without a finished run; names what is missing.
    """
    finished: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise _refused(folder, "there is no such folder")
        found, broken = False, len(unfinished)
        for place, inner, files in os.walk(folder):
            here = Path(place)
            inner.sort()
            if set(_FILES) <= set(files):
                found = True
                finished.setdefault(here.resolve(), here)
                # A run holds no runs.
                inner.clear()
            elif LABELS_USED in files or any(here.glob("checkpoints/checkpoint-*")):
                unfinished.setdefault(here.resolve(), here)
        if not found:
            missing = [name for name in _FILES if not (folder / name).is_file()]
            state = "; a run in it has not finished" if len(unfinished) > broken else ""
            raise _refused(folder, f"no {' and no '.join(missing)} in it or below{state}")
    if not finished:
        raise ValueError("'folders' must name at least one run folder (got none).")
    return list(finished.values()), list(unfinished.values())


def labels_used(folder: Path) -> frozenset[int]:
    """Ids of the labeled documents a run was trained on.

    Raises:
        ValueError: The run has no list of them, or a damaged one.
    """
    if not (folder / LABELS_USED).is_file():
        raise _refused(folder, f"{LABELS_USED} is missing")
    try:
        return frozenset(read_labels_used(folder).ids)
    except ValueError as error:
        raise _refused(folder, f"{LABELS_USED} cannot be read: {error}") from error


def _refused(folder: Path, problem: str) -> ValueError:
    return ValueError(
        f"'folder' must be a finished run folder of gloss-graph train ({folder}: {problem})."
    )


def _json(folder: Path, file: str) -> dict[str, Any]:
    try:
        return read_object(folder / file)
    except FileNotFoundError:
        raise _refused(folder, f"{file} is missing") from None
    except (OSError, ValueError) as error:
        raise _refused(folder, f"{file} cannot be read: {error.__cause__ or error}") from error
