"""Labels as users have them: names, numbers, missing ones; and draws that keep their shares."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gloss_graph._internal.checks import check_positive_int


def seeded_sample(total: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw `min(size, total)` distinct positions at random, in ascending order; cost O(size).

    Every n-th position would show one class only if the classes alternate.
    """
    if size >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, size, replace=False, shuffle=False))


def stratified_sample(
    labels: Any, size: int, *, balanced: bool = False, seed: int = 0
) -> np.ndarray:
    """Draw `min(size, N)` distinct positions, in ascending order, that keep the classes' shares.

    Every class gets one document, the others go by share, or in equal numbers if `balanced`; with
    more classes than places the largest get one each. -1 (unlabeled) counts as a class.
    """
    check_positive_int("size", size)
    classes = np.asarray(labels, dtype=np.int64)
    if size >= classes.size:
        return np.arange(classes.size)
    found, counts = np.unique(classes, return_counts=True)
    first = np.argsort(-counts, kind="stable")[:size]
    taken = np.zeros_like(counts)
    taken[first] = 1
    share = np.zeros(found.size) if balanced else size * counts / classes.size
    for _ in range(size - first.size):
        # The class farthest behind its share; in equal numbers, the one with fewest so far.
        behind = np.where(taken < counts, share - taken, -np.inf)
        taken[int(behind.argmax())] += 1
    rng = np.random.default_rng(seed)
    drawn = [
        rng.permutation(np.flatnonzero(classes == label))[:count]
        for label, count in zip(found, taken, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def label_array(labels: ArrayLike) -> NDArray[Any]:
    """Labels as an array that keeps None and NaN apart from names."""
    if not isinstance(labels, np.ndarray) and hasattr(labels, "tolist"):
        labels = labels.tolist()
    if isinstance(labels, list | tuple) and any(isinstance(v, str) for v in labels):
        return np.asarray(labels, dtype=object)
    return np.asarray(labels)


def class_codes(labels: NDArray[Any], *, what: str = "y") -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Classes (C,), sorted, and the class (N,) of every label, -1 for None, NaN and -1.

    Where the labels are -1 and 1 only, the convention of binary classifiers, both are classes.
    """
    missing = np.array([_is_missing(value) for value in labels.flat], dtype=bool)
    missing = missing.reshape(labels.shape)
    if labels.dtype.kind in "if" and set(np.unique(labels).tolist()) == {-1, 1}:
        warnings.warn(
            f"{what!r} holds -1 and 1 only: both are taken as classes. Mark unlabeled rows by "
            "None.",
            UserWarning,
            stacklevel=3,
        )
        missing[:] = False
    known = labels[~missing]
    if known.size == 0:
        raise ValueError(f"{what!r} holds no label. Give at least one row of each class its class.")
    if known.dtype.kind == "O":
        if len({isinstance(value, str) for value in known}) > 1:
            raise ValueError(f"{what!r} mixes names and numbers as classes. Use one of the two.")
        known = np.array(known.tolist())
    classes, found = np.unique(known, return_inverse=True)
    codes = np.full(labels.shape, -1, dtype=np.int64)
    codes[~missing] = found
    return classes, codes


def _is_missing(value: Any) -> bool:
    return value is None or (not isinstance(value, str) and bool(value != value or value == -1))
