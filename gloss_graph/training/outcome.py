"""Scores, history and description of a run, and the head fitted at its end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from gloss_graph._internal.files import atomic_write
from gloss_graph.analysis.scores import classification_scores, silhouette_scores
from gloss_graph.graph import visible_split
from gloss_graph.text import Corpus, Splits
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.multilabel import set_scores

_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
# How far below the others the logit of a class without documents starts.
_UNSEEN = 20.0


def predict_classes(classifier: TextClassifier, rows: Tensor) -> np.ndarray:
    """Classes (N,) the head gives embeddings (N, D)."""
    return _logits(classifier, rows).argmax(dim=1).cpu().numpy()


def predict_sets(classifier: TextClassifier, rows: Tensor) -> np.ndarray:
    """Label sets (N, C) bool the head gives embeddings (N, D): probability at least 1/2."""
    return (_logits(classifier, rows) >= 0).cpu().numpy()


@torch.no_grad()
def _logits(classifier: TextClassifier, rows: Tensor) -> Tensor:
    head = classifier.head.eval()
    return head(rows.to(head.weight.device))


def split_scores(
    split: str, predicted: np.ndarray, rows: Tensor | None, corpus: Corpus
) -> dict[str, float]:
    """Scores of a split, and of its embeddings (N, D), named `split.score`; none without label.

    Of label sets `predicted` is (N, C) bool and the space has no score: sets overlap.
    """
    if corpus.multilabel:
        if max(corpus.labels, default=-1) < 0:
            return {}
        found = set_scores(predicted, corpus.targets)
        return {f"{split}.{name}": value for name, value in found.items()}
    labels = torch.tensor(corpus.labels)
    if not bool((labels >= 0).any()):
        return {}
    scores = classification_scores(predicted, labels.numpy())
    if rows is not None:
        scores |= silhouette_scores(rows, labels)
    return {f"{split}.{name}": value for name, value in scores.items()}


class ClassReport:
    """Scores of every class by split and head, gathered during a run.

    Example:
        >>> corpus = Corpus(["a", "b"], [0, 1], [0, 1], ["x", "y"])
        >>> report = ClassReport()
        >>> report.add("test", "linear", np.array([0, 0]), corpus)
        >>> report.rows[0]["class"], report.rows[0]["precision"], report.rows[0]["recall"]
        ('x', 0.5, 1.0)
    """

    def __init__(self) -> None:
        #: One row a split, head and class.
        self.rows: list[dict[str, Any]] = []

    def add(self, split: str, head: str, predicted: np.ndarray, corpus: Corpus) -> None:
        """Score the predicted classes (N,), or sets (N, C) bool, of a split by `head`.

        There are no rows without a label.

        A class that is never predicted has precision 0, one without documents recall 0 and
        support 0.
        """
        labels = np.asarray(corpus.labels, dtype=np.int64)
        known = labels >= 0
        if not known.any():
            return
        truth = corpus.targets[known] == 1 if corpus.multilabel else labels[known]
        columns = precision_recall_fscore_support(
            truth, predicted[known], labels=range(corpus.num_classes), zero_division=0
        )
        for name, precision, recall, f1, support in zip(corpus.label_names, *columns, strict=True):
            row = {"split": split, "head": head, "class": name}
            row |= {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
            self.rows.append({**row, "support": int(support)})

    def write(self, file: Path) -> None:
        """Write the rows as CSV, atomically."""
        names = ["split", "head", "class", "precision", "recall", "f1", "support"]
        with atomic_write(file, overwrite=True) as draft:
            draft.write(csv_bytes(pd.DataFrame(self.rows, columns=names)))


def history_rows(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a step from the Trainer's log."""
    names = {
        "loss": "loss",
        "graph_loss": "graph_loss",
        "cross_entropy": "cross_entropy",
        "metric_loss": "metric_loss",
        "consistency": "consistency",
        "eval_accuracy": "val_accuracy",
        "eval_macro_f1": "val_macro_f1",
        "eval_micro_f1": "val_micro_f1",
        "eval_subset_accuracy": "val_subset_accuracy",
        "eval_macro_silhouette": "val_macro_silhouette",
        "eval_loss": "val_cross_entropy",
    }
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        if "eval_macro_silhouette" in entry:
            # Without a classifier there is no loss of its own.
            entry = {key: value for key, value in entry.items() if key != "eval_loss"}
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        row.update({names[key]: value for key, value in entry.items() if key in names})
    # In one order, whatever that of the entries: a resumed training reads them from a file.
    columns = ("step", *names.values())
    return [
        {name: rows[step][name] for name in columns if name in rows[step]}
        for step in sorted(rows)
        if len(rows[step]) > 1
    ]


def describe(splits: Splits) -> dict[str, Any]:
    """Name, classes and sizes of the splits, and whether they hold pairs."""
    return {
        "name": splits.train.name,
        "classes": splits.train.label_names,
        **{name: len(part) for name, part in splits.parts.items()},
        **(
            {"multilabel": True, "separator": splits.train.separator}
            if splits.train.multilabel
            else {}
        ),
        **({} if splits.train.texts_b is None else {"pairs": True}),
    }


def fit_balanced_head(
    classifier: TextClassifier, rows: Tensor, labels: Tensor, *, seed: int = 0
) -> float:
    """Fit the linear head as a class-balanced logistic regression, its strength C tuned.

    C is chosen on five held-out fifths of the labels where classes have two documents; the default
    of 1 collapses on skewed draws.

    Args:
        classifier: Its head is overwritten.
        rows: (n, D) embeddings of labeled documents.
        labels: (n,) long.
        seed: Of the held-out parts.

    Returns:
        The chosen C.
    """
    scale = 1.0 / float(rows.norm(dim=1).mean())
    points, truth = (rows * scale).numpy(), labels.numpy()
    generator = torch.Generator().manual_seed(seed)
    right = dict.fromkeys(_STRENGTHS, 0.0)
    for _ in range(5):
        shown = visible_split(labels, 0.8, generator=generator).numpy()
        if shown.all() or np.unique(truth[shown]).size < 2:
            continue
        for strength in _STRENGTHS:
            guess = _logistic(strength, points[shown], truth[shown]).predict(points[~shown])
            right[strength] += classification_scores(guess, truth[~shown])["macro_f1"]
    # Without held-out documents all are equal: 10, which does not collapse rare classes.
    best = max(_STRENGTHS, key=lambda strength: (round(right[strength], 6), strength == 10.0))
    _set_head(classifier, _logistic(best, points, truth), scale)
    return best


def logistic_probabilities(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class probabilities (N, C) by a class-balanced logistic regression on the labeled rows.

    Args:
        rows: (N, D) embeddings, normalised here.
        labels: (N,) long, -1 = unlabeled; of two classes at least.
        num_classes: C; classes without a label get 0.
    """
    points, known = F.normalize(rows.float(), dim=1).numpy(), (labels >= 0).numpy()
    model = _logistic(_STRENGTHS[1], points[known], labels.numpy()[known])
    out = torch.zeros(rows.size(0), num_classes, dtype=torch.float64)
    out[:, torch.from_numpy(model.classes_)] = torch.from_numpy(
        model.predict_proba(points)
    ).double()
    return out


def fit_propagated_head(
    classifier: TextClassifier, rows: Tensor, labels: Tensor, weights: Tensor
) -> None:
    """Fit the linear head to propagated labels, so that training starts from what they know.

    Args:
        classifier: Its head is overwritten.
        rows: (N, D) embeddings.
        labels: (N,) long, true or propagated.
        weights: (N,) confidence; rows of weight 0 are left out.
    """
    used = weights > 0
    scale = 1.0 / float(rows.norm(dim=1).mean())
    points = (rows[used] * scale).numpy()
    model = _logistic(_STRENGTHS[1], points, labels[used].numpy(), weights[used].numpy())
    _set_head(classifier, model, scale)


@torch.no_grad()
def _set_head(classifier: TextClassifier, model: LogisticRegression, scale: float) -> None:
    """Write a fit on `scale * rows` into the head; classes it has not seen are never predicted."""
    weight = torch.zeros_like(classifier.head.weight)
    known = torch.from_numpy(model.classes_)
    slope, offset = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if known.numel() == 2 and slope.shape[0] == 1:
        slope, offset = np.vstack([-slope / 2, slope / 2]), np.hstack([-offset / 2, offset / 2])
    # Far below the others, yet within reach of training.
    bias = torch.full_like(classifier.head.bias, float(offset.min()) - _UNSEEN)
    weight[known] = torch.from_numpy(slope * scale).to(weight)
    bias[known] = torch.from_numpy(offset).to(bias)
    classifier.head.weight.copy_(weight)
    classifier.head.bias.copy_(bias)


def _logistic(
    strength: float, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        # Many classes for few labels is what this is for.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return model.fit(rows, labels, sample_weight=weights)
