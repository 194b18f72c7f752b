"""Few-label settings: which documents keep their label, and which joined without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph.text import Corpus, Splits
from gloss_graph.text.corpora import UNLABELED


def draw_labels(
    corpus: Corpus, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> list[int]:
    """Choose the documents that keep their label, at least one a class.

    Args:
        corpus: Documents, some of them labeled.
        fraction: Share of every class's labeled documents, in (0, 1].
        per_class: Number of documents a class; all of a class that has fewer.
        seed: Of the draw. The draw depends on nothing else, so every method sees the same.

    Returns:
        Positions in ascending order.

    Raises:
        ValueError: Both or none of `fraction` and `per_class`, or one out of range.

    Example:
        >>> corpus = Corpus(["a", "b", "c"], [0, 0, 1], [0, 1, 2], ["x", "y"])
        >>> len(draw_labels(corpus, per_class=1))
        2
    """
    if corpus.multilabel:
        raise ValueError("'corpus' must hold class numbers to draw labels of (got label sets).")
    if (fraction is None) == (per_class is None):
        raise ValueError("Give either 'fraction' or 'per_class' (got both or neither).")
    if fraction is not None:
        check_range("label_fraction", fraction, 0.0, 1.0, open_low=True)
    if per_class is not None:
        check_positive_int("labels_per_class", per_class)
    labels = np.asarray(corpus.labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for label in range(corpus.num_classes):
        members = np.flatnonzero(labels == label)
        wanted = per_class if fraction is None else max(1, round(fraction * members.size))
        drawn.extend(rng.permutation(members)[:wanted].tolist())
    return sorted(drawn)


def hide_labels(corpus: Corpus, kept: list[int]) -> Corpus:
    """The same documents with the labels of all but the `kept` positions hidden."""
    shown = set(kept)
    if corpus.label_sets is not None:
        sets = [s if position in shown else None for position, s in enumerate(corpus.label_sets)]
        return replace(corpus, label_sets=sets)
    labels = [
        label if position in shown else UNLABELED for position, label in enumerate(corpus.labels)
    ]
    return replace(corpus, labels=labels)


def with_unlabeled(splits: Splits, unlabeled: Corpus) -> Splits:
    """The training documents and more without labels, numbered after all others.

    Labels the unlabeled documents have are dropped. A text that is also in the validation or
    test part is allowed: it carries no label.

    Raises:
        ValueError: Pairs joined with single texts.
    """
    train = splits.train
    if (train.texts_b is None) != (unlabeled.texts_b is None):
        raise ValueError("'unlabeled' must hold pairs exactly if the training documents do.")
    pairs = None if train.texts_b is None else train.texts_b + (unlabeled.texts_b or [])
    if train.features is not None or unlabeled.features is not None:
        raise ValueError("'splits' must get its features after the unlabeled documents join it.")
    first = splits.next_id
    joined = replace(
        train,
        texts=train.texts + unlabeled.texts,
        labels=train.labels + [UNLABELED] * len(unlabeled),
        ids=train.ids + list(range(first, first + len(unlabeled))),
        texts_b=pairs,
        label_sets=train.label_sets and train.label_sets + [None] * len(unlabeled),
    )
    return Splits(joined, splits.val, splits.test)
