"""Few-label settings: which documents keep their label, and which joined without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.files import atomic_write
from gloss_graph.text import Corpus, Splits
from gloss_graph.text.corpora import UNLABELED
from gloss_graph.text.tables import has_column, read_columns
from gloss_graph.text.writers import csv_bytes
from gloss_graph.training.multilabel import joined_names

LABELS_USED = "labels_used.csv"
"""The file of a run folder that lists the labeled documents."""


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


def write_labels_used(corpus: Corpus, file: Path) -> None:
    """Write id, label and text (of pairs both) of every labeled document, atomically."""
    names = [corpus.label_names[label] if label >= 0 else "" for label in corpus.labels]
    if corpus.multilabel:
        names = joined_names(corpus.targets == 1, corpus.label_names, corpus.separator)
    table = {"id": corpus.ids, "label": names, "text": corpus.texts}
    if corpus.texts_b is not None:
        table["text_b"] = corpus.texts_b
    known = [label != UNLABELED for label in corpus.labels]
    with atomic_write(file, overwrite=True) as draft:
        draft.write(csv_bytes(pd.DataFrame(table)[known]))


class LabelsUsed(NamedTuple):
    """The labeled documents of a run, in the order of its `labels_used.csv`.

    `labels` are class names, of label sets joined; `texts_b` is None without pairs.
    """

    ids: list[int]
    labels: list[str]
    texts: list[str]
    texts_b: list[str] | None


def read_labels_used(folder: Path) -> LabelsUsed:
    """Read the `labels_used.csv` of a run folder.

    Raises:
        ValueError: It is missing or damaged; names the file and, where it can be told, the line.
    """
    file = folder / LABELS_USED
    second = ["text_b"] if has_column(file, "text_b") else []
    table = read_columns(file, ["id", "label", "text", *second])
    ids = table.parsed("id", int)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{file} names a document twice. Put back the file that was written.")
    labels, texts, *texts_b = (
        [str(v) for v in table.columns[n]] for n in table.columns if n != "id"
    )
    return LabelsUsed(ids, labels, texts, texts_b[0] if texts_b else None)
