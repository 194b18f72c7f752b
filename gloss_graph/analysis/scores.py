"""Scores of a classifier and of its embedding space."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, silhouette_samples
from torch import Tensor


def classification_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 of the labeled rows, over the classes that occur among them.

    Both arrays (N,) hold class numbers; rows labeled -1 are left out. At least one must be labeled.

    Example:
        >>> classification_scores(np.array([0, 1, 1]), np.array([0, 1, 0]))["accuracy"]
        0.6666666666666666
    """
    labeled = labels >= 0
    if not labeled.any():
        raise ValueError("'labels' must hold a label >= 0 (got none).")
    predicted, labels = predicted[labeled], labels[labeled]
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def macro_silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """Mean over classes of the mean silhouette of their rows, as in `silhouette_scores`."""
    return silhouette_scores(embeddings, labels)["macro_silhouette"]


def micro_silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """Mean silhouette of all rows, as in `silhouette_scores`."""
    return silhouette_scores(embeddings, labels)["micro_silhouette"]


def silhouette_scores(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean silhouettes of embeddings (N, D) after L2 normalization, at the cost of one, O(N² D).

    Rows labeled -1 are left out. Returns `macro_silhouette`, the mean over classes of their means,
    and `micro_silhouette`, the mean over rows; NaN below two classes or if every row has another
    class.

    Example:
        >>> scores = silhouette_scores(torch.eye(2).repeat(3, 1), torch.arange(6) % 2)
        >>> round(scores["micro_silhouette"], 3)
        1.0
    """
    values, classes = silhouette_rows(embeddings, labels)
    if not values.size:
        return {"macro_silhouette": float("nan"), "micro_silhouette": float("nan")}
    means = [values[classes == label].mean() for label in np.unique(classes)]
    return {"macro_silhouette": float(np.mean(means)), "micro_silhouette": float(values.mean())}


def silhouette_rows(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Silhouettes (n,) of the labeled rows, empty if not defined, and the classes of these rows."""
    labeled = labels >= 0
    rows = torch.nn.functional.normalize(embeddings[labeled].float(), dim=1).numpy()
    classes = labels[labeled].numpy()
    if not 2 <= np.unique(classes).size < classes.size:
        return np.empty(0), classes
    return silhouette_samples(rows, classes), classes
