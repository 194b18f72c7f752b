"""What a run tells: scores, history and description at its end, progress bars on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from gloss_graph._internal.files import atomic_write
from gloss_graph.analysis.measures import classification_scores, silhouette_scores
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.text import Corpus, Splits
from gloss_graph.text.tables import csv_bytes

THRESHOLD = 0.5
"""Probability from which on a class of a label set counts as predicted."""

# Entries of the Trainer's log and their columns in `history.csv`.
_HISTORY = {
    **{n: n for n in ("loss", "graph_loss", "cross_entropy", "metric_loss")},
    **{n: n for n in ("consistency", "contrast")},
    **{f"eval_{n}": f"val_{n}" for n in ("accuracy", "macro_f1", "micro_f1")},
    **{f"eval_{n}": f"val_{n}" for n in ("subset_accuracy", "macro_silhouette")},
    "eval_loss": "val_cross_entropy",
}
_CLASS_COLUMNS = ["split", "head", "class", "precision", "recall", "f1", "support"]


def set_scores(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of predicted label sets (N, C) bool.

    In the targets (N, C) 1 = has the class; rows of NaN are left out. `micro_f1` is over all
    decisions, `macro_f1` over the classes that occur in either, and `subset_accuracy` the share of
    documents whose whole set is right.

    Example:
        >>> truth = np.array([[1.0, 0.0], [1.0, 1.0]])
        >>> scores = set_scores(np.array([[True, False], [True, False]]), truth)
        >>> round(scores["micro_f1"], 3), scores["macro_f1"], scores["subset_accuracy"]
        (0.8, 0.5, 0.5)
    """
    known = ~np.isnan(targets).any(axis=1)
    if not known.any():
        raise ValueError("'targets' must hold a labeled document (got none).")
    guess, truth = predicted[known].astype(bool), targets[known] >= THRESHOLD
    present = guess.any(axis=0) | truth.any(axis=0)
    each = f1_score(truth, guess, average=None, zero_division=0)
    return {
        "subset_accuracy": float((guess == truth).all(axis=1).mean()),
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),
        # With no label to find and none predicted there is no mistake.
        "macro_f1": float(np.mean(each[present])) if present.any() else 1.0,
    }


def split_scores(
    split: str, predicted: np.ndarray, rows: Tensor | None, corpus: Corpus
) -> dict[str, float]:
    """Scores of a split, and of its embeddings (N, D), named `split.score`; none without label.

    For label sets `predicted` is (N, C) bool and embeddings are not scored, as sets overlap.
    """
    labels = torch.tensor(corpus.labels)
    if not bool((labels >= 0).any()):
        return {}
    if corpus.multilabel:
        scores = set_scores(predicted, corpus.targets)
    else:
        scores = classification_scores(predicted, labels.numpy())
        scores |= {} if rows is None else silhouette_scores(rows, labels)
    return {f"{split}.{name}": value for name, value in scores.items()}


class ClassReport:
    """Scores of every class by split and head, one of the `rows` for each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, split: str, head: str, predicted: np.ndarray, corpus: Corpus) -> None:
        """Score the classes (N,), or sets (N, C) bool, that `head` predicts for a split.

        A class that is never predicted has precision 0, one without documents recall 0.
        """
        labels = np.asarray(corpus.labels, dtype=np.int64)
        if not (known := labels >= 0).any():
            return
        truth = corpus.targets[known] == 1 if corpus.multilabel else labels[known]
        columns = precision_recall_fscore_support(
            truth, predicted[known], labels=range(corpus.num_classes), zero_division=0
        )
        for name, *scores in zip(corpus.label_names, *(c.tolist() for c in columns), strict=True):
            self.rows.append(dict(zip(_CLASS_COLUMNS, (split, head, name, *scores), strict=True)))

    def write(self, file: Path) -> None:
        """Write the rows as CSV, atomically."""
        with atomic_write(file, overwrite=True) as draft:
            draft.write(csv_bytes(pd.DataFrame(self.rows, columns=_CLASS_COLUMNS)))


def history_rows(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row per step from the Trainer's log."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        row = rows.setdefault(entry["step"], {})
        row |= {_HISTORY[key]: value for key, value in entry.items() if key in _HISTORY}
        if "eval_macro_silhouette" in entry:
            # Without a classifier there is no cross-entropy.
            row.pop("val_cross_entropy", None)
    # In one order: a resumed training reads its entries from a file.
    return [
        {"step": step, **{name: row[name] for name in _HISTORY.values() if name in row}}
        for step, row in sorted(rows.items())
        if row
    ]


def describe(splits: Splits) -> dict[str, Any]:
    """Name, classes and sizes of the splits, and whether they hold label sets or pairs."""
    train = splits.train
    return {
        "name": train.name,
        "classes": train.label_names,
        **{name: len(part) for name, part in splits.parts.items()},
        "digest": documents_digest(splits.parts.values()),
        **({"multilabel": True, "separator": train.separator} if train.multilabel else {}),
        **({} if train.texts_b is None else {"pairs": True}),
    }


# ------------------------------------------------------------------ progress, on stderr


class ProgressBar(TrainerCallback):
    """Steps done, time left, latest loss and validation macro-F1."""

    def __init__(self, description: str) -> None:
        self.display = _bars(TimeRemainingColumn())
        self._task = self.display.add_task(description, total=None, note="")
        self._shown: dict[str, str] = {}

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self.display.update(self._task, completed=state.global_step, total=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest numbers."""
        for key, name in (("loss", "loss"), ("eval_macro_f1", "val F1")):
            if logs and key in logs:
                self._shown[name] = f"{name} {logs[key]:.3f}"
        self.display.update(self._task, note="  ".join(self._shown.values()))


class TrialBar:
    """Trials done of a study, best score and the steps of the running trial; a line per trial.

    `show=False` shows nothing.
    """

    def __init__(self, trials: int, *, show: bool) -> None:
        self.shown = show
        self._best: float | None = None
        self._bar = _bars(show=show)
        self._all = self._bar.add_task("Trials", total=trials, note="")
        self._one = self._bar.add_task("Steps", total=None, note="")

    def __enter__(self) -> TrialBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def finished(self, trials: int) -> None:
        """Show the finished trials of the study, including those of other workers."""
        self._bar.update(self._all, completed=trials)

    def steps(self, number: int, done: int, total: int) -> None:
        """Show the steps of the running trial."""
        self._bar.update(self._one, completed=done, total=total, note=f"trial {number}")

    def waiting(self, running: int) -> None:
        """Say that the last trials run on other workers, or on killed ones."""
        self._bar.update(self._one, note=f"waiting for {running} trials begun elsewhere")

    def ended(
        self, number: int, state: str, value: float | None, params: Mapping[str, object], done: int
    ) -> None:
        """Show a trial that has ended; `done` are finished by now."""
        if value is not None and state == "complete":
            self._best = value if self._best is None else max(value, self._best)
        best = "" if self._best is None else f"best {self._best:.4f}"
        self._bar.update(self._all, completed=done, note=best)
        if self.shown:
            score = "" if value is None else f" {value:.4f}"
            tried = ", ".join(f"{name} {setting}" for name, setting in params.items())
            line = f"trial {number}: {state}{score} ({tried})"
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _bars(*more: TimeRemainingColumn, show: bool = True) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    note = TextColumn("{task.fields[note]}")
    return Progress(*columns, note, console=Console(stderr=True), disable=not show)
