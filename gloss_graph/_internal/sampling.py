"""Seeded draws of documents: any of them, or so that every class is kept in sight."""

from __future__ import annotations

from typing import Any

import numpy as np

from gloss_graph._internal.checks import check_positive_int

__all__ = ["seeded_sample", "stratified_sample"]


def seeded_sample(total: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw positions by chance, whatever order the documents are in.

    Every n-th of them would see one class only where the classes alternate.

    Args:
        total: Documents there are.
        size: Documents wanted.
        seed: Of the draw, which touches no other random state.

    Returns:
        `min(size, total)` distinct positions in ascending order, (n,) int64. Cost O(size).

    Example:
        >>> seeded_sample(3, 5).tolist(), seeded_sample(1000, 2).size
        ([0, 1, 2], 2)
    """
    if size >= total:
        return np.arange(total)
    draw = np.random.default_rng(seed).choice(total, size, replace=False, shuffle=False)
    return np.sort(draw)


def stratified_sample(
    labels: Any, size: int, *, balanced: bool = False, seed: int = 0
) -> np.ndarray:
    """Draw positions so that classes keep their shares and none is lost that there is room for.

    Every class gets one document, the others go by share; with more classes than places the
    largest get one each. A class is a value of its own, -1 (unlabeled) included.

    Args:
        labels: N class numbers.
        size: Documents wanted.
        balanced: Equal numbers a class, as far as they go, in place of the classes' shares.
        seed: Of the draw, which touches no other random state.

    Returns:
        `min(size, N)` distinct positions in ascending order, (n,) int64.

    Raises:
        ValueError: `size` below 1.

    Example:
        >>> stratified_sample([0, 0, 0, 0, 1], 2).tolist()[-1]
        4
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
