"""Seeded draws of documents: of any, or of every class."""

from __future__ import annotations

from typing import Any

import numpy as np

from gloss_graph._internal.checks import check_positive_int


def seeded_sample(total: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw `min(size, total)` distinct positions at random, in ascending order; cost O(size).

    Every n-th position would show one class only if the classes alternate.

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
    """Draw `min(size, N)` distinct positions, in ascending order, that keep the classes' shares.

    Every class gets one document, the others go by share, or in equal numbers if `balanced`; with
    more classes than places the largest get one each. -1 (unlabeled) counts as a class.

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
