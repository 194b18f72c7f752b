"""A run folder: the one place that knows its files, writes them in order and reads them back."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.folders import Claim, check_folder, claim, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.runs.provenance import model_card, provenance
from gloss_graph.text import Corpus
from gloss_graph.text.checkpoints import file_digest
from gloss_graph.text.corpora import UNLABELED
from gloss_graph.text.tables import csv_bytes, has_column, joined_names, read_columns

_CONFIG, _METRICS, _LABELS = "config.json", "metrics.json", "labels_used.csv"
_MODEL, _MEMORY, _CHECKPOINTS = "model", "memory", "checkpoints"


class LabelsUsed(NamedTuple):
    """The labeled documents of a run; label sets are joined, `texts_b` is None without pairs."""

    ids: list[int]
    labels: list[str]
    texts: list[str]
    texts_b: list[str] | None


class RunFolder:
    """The files of a run, whether they exist or not.

    `metrics.json` is written last and marks the run as finished; until then there may be
    `checkpoints/`, which an interrupted run continues from.

    Args:
        path: The folder.

    Example:
        >>> RunFolder("runs/mine").metrics.name
        'metrics.json'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.config = path / _CONFIG
        self.metrics = path / _METRICS
        self.history = path / "history.csv"
        self.classes = path / "classes.csv"
        self.labels_used = path / _LABELS
        #: The class of every document, of a graph model only.
        self.predictions = path / "predictions.csv"
        self.model = path / _MODEL
        #: The encoder before training, kept where nothing else names it.
        self.encoder = path / "encoder"
        #: The model card.
        self.card = path / "README.md"
        #: State of the objective, with its bank.
        self.objective = path / _MEMORY / "objective.safetensors"
        #: Embeddings that the report is drawn from, and its pictures.
        self.pictures = path / "pictures"
        self.curves = path / "training.png"
        self.stages = path / "stages.png"
        self.page = path / "report.html"
        self.checkpoints = path / _CHECKPOINTS

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.config.is_file() and self.metrics.is_file()

    def check_new(self) -> None:
        """Refuse a folder that a training would refuse."""
        check_folder(self.path, "train", marker=_METRICS, work=(_CHECKPOINTS,))

    def claim(self, *, resume: bool = False) -> AbstractContextManager[Claim]:
        """Own the folder until the run is finished."""
        work = (_CHECKPOINTS,)
        return claim(self.path, "train", marker=_METRICS, work=work, resume=resume)

    def write(
        self,
        settings: Mapping[str, Any],
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
        train: Corpus,
    ) -> None:
        """Write used labels, settings, card, history and, last, the metrics.

        Model and memory are there already; the settings get their digests.
        """
        labels = Counter(self.write_labels_used(train))
        contents = {
            file.relative_to(self.path).as_posix(): file_digest(file)
            for part in (_MODEL, _MEMORY)
            for file in sorted(self.path.glob(f"{part}/*"))
            if file.is_file()
        }
        settings = {**settings, "contents": contents, **provenance()}
        write_json(self.config, settings)
        with atomic_write(self.card, overwrite=True) as draft:
            # Names of files need not be UTF-8.
            draft.write(model_card(settings, metrics, labels).encode(errors="replace"))
        with atomic_write(self.history, overwrite=True) as draft:
            draft.write(csv_bytes(pd.DataFrame(history)))
        write_json(self.metrics, metrics)

    def note(self, **noted: Any) -> None:
        """Add keys that have a value to the settings."""
        if noted := {name: value for name, value in noted.items() if value}:
            settings = json.loads(self.config.read_text(encoding="utf-8"))
            write_json(self.config, {**settings, **noted})

    def write_labels_used(self, corpus: Corpus) -> list[str]:
        """Write id, label and text (of pairs both) of the labeled documents; return the labels."""
        names = [corpus.label_names[label] for label in corpus.labels]
        if corpus.multilabel:
            names = joined_names(corpus.targets == 1, corpus.label_names, corpus.separator)
        table = pd.DataFrame({"id": corpus.ids, "label": names, "text": corpus.texts})
        if corpus.texts_b is not None:
            table["text_b"] = corpus.texts_b
        table = table[[label != UNLABELED for label in corpus.labels]]
        with atomic_write(self.labels_used, overwrite=True) as draft:
            draft.write(csv_bytes(table))
        return table["label"].tolist()

    def settings(self) -> dict[str, Any]:
        """Read `config.json`; an `OSError` or `ValueError` if it holds no JSON object."""
        return read_object(self.config)

    def read_metrics(self) -> dict[str, float]:
        """Read `metrics.json`; errors as in `settings`."""
        return read_object(self.metrics)

    def read_labels_used(self) -> LabelsUsed:
        """Read the labeled training documents; a `ValueError` names a damaged file and its line."""
        file = self.labels_used
        second = ["text_b"] if has_column(file, "text_b") else []
        table = read_columns(file, ["id", "label", "text", *second])
        ids = table.parsed("id", int)
        if len(set(ids)) < len(ids):
            raise ValueError(f"{file} names a document twice. Put back the file that was written.")
        labels, texts, *texts_b = (
            [str(v) for v in table.columns[n]] for n in table.columns if n != "id"
        )
        return LabelsUsed(ids, labels, texts, texts_b[0] if texts_b else None)

    def check_digests(self, settings: Mapping[str, Any]) -> None:
        """Refuse, by a `ValueError`, a model or memory other than that which the settings record.

        Runs of older versions record no digests and are not checked.
        """
        recorded = settings.get("contents", {})
        if not isinstance(recorded, Mapping):
            raise ValueError(f"{self.config} must hold an object under 'contents'")
        for name, digest in recorded.items():
            file = self.path / name
            if not file.is_file():
                raise ValueError(f"{file} is missing")
            if file_digest(file) != digest:
                raise ValueError(
                    f"{file} is damaged or of another run: it is not the file that training wrote"
                )


@dataclass(frozen=True)
class FinishedRun:
    """The numbers of a finished run: `settings` of `config.json` and `metrics` of `metrics.json`.

    The metrics lack empty values and have `seconds.per_step`: the timed stages of training divided
    by its steps, without evaluation and set-up.
    """

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, float]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.settings["seed"])

    def label_ids(self) -> frozenset[int]:
        """Ids of the labeled documents; a `ValueError` if their list is missing or damaged."""
        run = RunFolder(self.folder)
        if not run.labels_used.is_file():
            raise refused(self.folder, f"{_LABELS} is missing")
        try:
            return frozenset(run.read_labels_used().ids)
        except ValueError as error:
            raise refused(self.folder, f"{_LABELS} cannot be read: {error}") from error


def read_run(folder: str | Path) -> FinishedRun:
    """Read settings and metrics of a run folder; a `ValueError` if they are missing or damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise refused(folder, "there is no such folder")
    content = {}
    for file in (_CONFIG, _METRICS):
        try:
            content[file] = read_object(folder / file)
        except FileNotFoundError:
            raise refused(folder, f"{file} is missing") from None
        except (OSError, ValueError) as error:
            raise refused(folder, f"{file} cannot be read: {error.__cause__ or error}") from error
    settings, stored = content[_CONFIG], content[_METRICS]
    for key, kind in {"seed": int, "loss": str, "data": dict}.items():
        if type(settings.get(key)) is not kind:
            raise refused(folder, f"config.json lacks {key!r}")
    data = settings["data"]
    names = data.get("classes")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(data.get("name"), str) or not named:
        raise refused(folder, "config.json lacks the name and classes of 'data'")
    for part in ("train", "val", "test"):
        if not isinstance(data.get(part, 0), int):
            raise refused(folder, f"config.json has no number for 'data.{part}'")
    for key, value in stored.items():
        if value is not None and type(value) not in (int, float):
            raise refused(folder, f"metrics.json has no number for {key!r}")
    known = {key: value for key, value in stored.items() if value is not None}
    metrics = {key: float(value) for key, value in known.items() if math.isfinite(value)}
    timed = stage_seconds(metrics)
    if timed and metrics.get("steps", 0) > 0:
        metrics["seconds.per_step"] = sum(timed.values()) / metrics["steps"]
    return FinishedRun(folder, settings, metrics)


def find_runs(folders: Iterable[str | Path]) -> tuple[list[Path], list[Path]]:
    """Finished and unfinished run folders among `folders` and below them, each once.

    A folder without a finished run is a `ValueError` that names what is missing.
    """
    finished: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    known = {_CONFIG, _METRICS, _LABELS}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise refused(folder, "there is no such folder")
        found, broken = False, len(unfinished)
        for place, inner, files in os.walk(folder):
            inner.sort()
            marks = known.intersection(files)
            if not marks and _CHECKPOINTS not in inner:
                continue
            here = Path(place)
            if {_CONFIG, _METRICS} <= marks:
                found = True
                finished.setdefault(here.resolve(), here)
                # A run holds no runs.
                inner.clear()
            elif _LABELS in marks or any(here.glob(f"{_CHECKPOINTS}/checkpoint-*")):
                unfinished.setdefault(here.resolve(), here)
        if not found:
            missing = [name for name in (_CONFIG, _METRICS) if not (folder / name).is_file()]
            state = "; a run in it has not finished" if len(unfinished) > broken else ""
            raise refused(folder, f"no {' and no '.join(missing)} in it or below{state}")
    if not finished:
        raise ValueError("'folders' must name at least one run folder (got none).")
    return list(finished.values()), list(unfinished.values())


def refused(folder: Path, problem: object) -> ValueError:
    """The error of a folder that is not a finished run."""
    return ValueError(
        f"'folder' must be a finished run folder of gloss-graph train ({folder}: {problem})."
    )
