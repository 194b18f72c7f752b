"""Training on documents of several classes: what it takes, and its scores."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from gloss_graph.text import Corpus
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.losses import LOSSES

THRESHOLD = 0.5
"""Probability from which on a class counts as predicted."""


def check_multilabel(config: TrainConfig) -> None:
    """Raise unless every setting has a meaning for label sets.

    Raises:
        ValueError: Names the setting.
    """
    if not config.loss_spec.label_sets:
        fine = [name for name, spec in LOSSES.items() if spec.label_sets]
        raise ValueError(
            f"'loss' must be one of {fine} for label sets (got {config.loss!r}, which "
            "needs one class a document)."
        )
    if config.mode != "integrated":
        raise ValueError(f"'mode' must be 'integrated' for label sets (got {config.mode!r}).")
    if config.rule == "poisson":
        raise ValueError("'rule' must be 'harmonic' or 'spreading' for label sets (got 'poisson').")
    if config.bandwidth == "interclass_min":
        raise ValueError("'bandwidth' must not be 'interclass_min' for label sets: they overlap.")
    if config.eviction == "class-balanced":
        raise ValueError(
            "'eviction' must not be 'class-balanced' for label sets, where a document has several "
            "classes."
        )
    if config.max_steps == 0:
        raise ValueError("'max_steps' must be at least 1 for label sets (got 0).")
    unset = {
        "warm_start_steps": 0,
        "graph_start_steps": 0,
        "refit_head": False,
        "class_balance": False,
        "label_fraction": None,
        "labels_per_class": None,
    }
    for name, value in unset.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"'{name}' is not defined for label sets, where a document has several classes "
                f"(got {getattr(config, name)}). Leave it out."
            )


def label_tensor(corpus: Corpus) -> Tensor:
    """Class numbers (N,) long, or targets (N, C) float of label sets: what objectives take."""
    if corpus.multilabel:
        return torch.from_numpy(corpus.targets)
    return torch.tensor(corpus.labels, dtype=torch.long)


def set_scores(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of predicted label sets.

    Args:
        predicted: (N, C) bool.
        targets: (N, C), 1 = has the class; rows of NaN are left out.

    Returns:
        `micro_f1` over all decisions; `macro_f1` over the classes that occur in either;
        `subset_accuracy`, the share of documents whose whole set is right.

    Raises:
        ValueError: No labeled row.

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
    right = float((guess == truth).all(axis=1).mean())
    return {
        "subset_accuracy": right,
        "micro_f1": float(f1_score(truth, guess, average="micro", zero_division=0)),
        # Nothing to find and nothing claimed is no mistake.
        "macro_f1": float(np.mean(each[present])) if present.any() else 1.0,
    }
