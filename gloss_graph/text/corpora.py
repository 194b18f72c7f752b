"""Documents with labels and identities, and their splits."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.unicode import whole_text

UNLABELED = -1
"""The label of a document whose class is not known."""

SEPARATOR = ";"
"""Separates the labels of a document in a file by default."""

_LISTS = ("texts", "label_sets", "labels", "ids", "texts_b")


@dataclass(frozen=True, repr=False)
class Corpus:
    """Documents in a fixed order, each with a label and an identity.

    Args:
        texts: The N documents.
        labels: N class numbers in `[0, C)`, -1 for an unlabeled document.
        ids: N distinct non-negative identities, which stay with the documents through selections
            and splits, so that a memory recognizes them in every epoch.
        label_names: The C class names, in the order of the class numbers.
        texts_b: The second text of every document where documents are pairs.
        name: Name of the corpus in messages and reports.
        features: (N, D) finite float32 array of precomputed features, if there are any.
        label_sets: For documents with several classes, N lists of class numbers, None for an
            unlabeled document. `labels` are then 0 for a labeled document and -1 for the others.
        separator: Separates the names of a label set in files.

    Raises:
        ValueError: A value of the wrong type or out of range, repeated, or not one per document.

    Example:
        >>> corpus = Corpus(["good", "bad", "well"], [1, 0, -1], [0, 1, 2], ["neg", "pos"])
        >>> corpus
        Corpus(3 documents, 2 classes, 1 unlabeled)
        >>> corpus.select([2, 0]).ids
        [2, 0]
    """

    texts: list[str]
    labels: list[int]
    ids: list[int]
    label_names: list[str]
    texts_b: list[str] | None = None
    name: str = ""
    features: np.ndarray | None = field(default=None, compare=False)
    label_sets: list[list[int] | None] | None = None
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        def store(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for part in ("texts", "label_names", "texts_b"):
            if getattr(self, part) is not None:
                store(part, string_list(part, getattr(self, part)))
        if self.label_sets is not None:
            sets = _checked_sets(self.label_sets, self.num_classes)
            store("label_sets", sets)
            store("labels", [UNLABELED if members is None else 0 for members in sets])
            if name := next((name for name in self.label_names if self.separator in name), None):
                rule = f"not hold the separator {self.separator!r} of label sets"
                advice = "Name another separator (--separator), or rename the class."
                raise misfit("label_names", rule, repr(name), advice)
        store("labels", _integers("labels", self.labels))
        store("ids", _integers("ids", self.ids))
        for part in _LISTS:
            values = getattr(self, part)
            if values is not None and len(values) != len(self):
                got = f"{len(values)} for {len(self)} texts"
                raise misfit(part, "hold one value per document", got, "Give every document one.")
        if min(self.ids, default=0) < 0:
            raise misfit("ids", "not be negative", min(self.ids), "Number the documents from 0.")
        _check_distinct("ids", self.ids, "Number the documents from 0.")
        _check_distinct("label_names", self.label_names, "Merge the classes or rename one.")
        for position, label in enumerate(self.labels):
            if not UNLABELED <= label < self.num_classes:
                rule = f"be -1 (unlabeled) or a class number below {self.num_classes}"
                got = f"{label} at position {position}"
                raise misfit("labels", rule, got, "Extend 'label_names' or correct it.")
        if self.features is not None:
            table = np.ascontiguousarray(self.features, dtype=np.float32)
            if table.ndim != 2 or len(table) != len(self) or not np.isfinite(table).all():
                rule = f"be a finite matrix with a row for each of the {len(self)} documents"
                raise misfit("features", rule, f"shape {table.shape}")
            store("features", table)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        pairs = "pairs" if self.texts_b is not None else "documents"
        classes = f"{self.num_classes} classes{', label sets' if self.multilabel else ''}"
        unlabeled = self.labels.count(UNLABELED)
        return f"Corpus({name}{len(self)} {pairs}, {classes}, {unlabeled} unlabeled)"

    @property
    def multilabel(self) -> bool:
        """Whether documents have sets of classes."""
        return self.label_sets is not None

    @property
    def _sets(self) -> list[list[int] | None]:
        """Classes per document, None for an unlabeled one."""
        return self.label_sets or [None if label < 0 else [label] for label in self.labels]

    @property
    def targets(self) -> np.ndarray:
        """(N, C) float32, 1 where a document has a class; rows of NaN for unlabeled documents."""
        table = np.zeros((len(self), self.num_classes), dtype=np.float32)
        for row, members in enumerate(self._sets):
            if members is None:
                table[row] = np.nan
            else:
                table[row, members] = 1
        return table

    @property
    def num_classes(self) -> int:
        """C, the number of classes the corpus knows (some may have no document here)."""
        return len(self.label_names)

    @property
    def class_counts(self) -> list[int]:
        """Labeled documents per class, C values; a document counts for each of its classes."""
        labels = np.array([label for members in self._sets for label in members or ()], np.int64)
        return np.bincount(labels, minlength=self.num_classes).tolist()

    def select(self, indices: Iterable[Any]) -> Corpus:
        """The documents at distinct positions (not ids), in the order given, or of a mask (N,)."""
        chosen = np.asarray(indices if hasattr(indices, "__array__") else list(indices))
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise ValueError(
                    f"'indices' as a mask must have shape ({len(self)},) (got {chosen.shape})."
                )
            chosen = chosen.nonzero()[0]
        rows = _integers("indices", chosen.tolist())
        outside = next((row for row in rows if not 0 <= row < len(self)), None)
        if outside is not None:
            advice = "Positions count from 0; ids are not positions."
            raise misfit("indices", f"lie in [0, {len(self)})", outside, advice)
        _check_distinct("indices", rows, "Repeat a document in the sampler instead.")
        lists = {name: getattr(self, name) for name in _LISTS}
        parts: Any = {name: list_ and [list_[row] for row in rows] for name, list_ in lists.items()}
        features = None if self.features is None else self.features[rows]
        return replace(self, features=features, **parts)


@dataclass(frozen=True)
class Splits:
    """The parts of one data set: the same classes, no document in two parts.

    Args:
        train: Documents to learn from.
        val: Documents for the choice of settings and for early stopping, or None.
        test: Documents to report on, or None.

    Example:
        >>> Splits(Corpus(["a", "b"], [0, 1], [0, 1], ["x", "y"]))
        Splits(train=Corpus(2 documents, 2 classes, 0 unlabeled), val=None, test=None)
    """

    train: Corpus
    val: Corpus | None = None
    test: Corpus | None = None

    def __post_init__(self) -> None:
        seen: set[int] = set()
        for part, corpus in self.parts.items():
            if corpus.multilabel != self.train.multilabel:
                got = f"{corpus!r}, train is {self.train!r}"
                raise misfit(part, "have label sets exactly if 'train' has", got)
            if corpus.label_names != self.train.label_names:
                got = f"{corpus.label_names}, train has {self.train.label_names}"
                advice = "Read it with the same 'label_names'."
                raise misfit(part, "have the label names of 'train'", got, advice)
            if shared := seen.intersection(corpus.ids):
                rule, got = "not share ids with an earlier part", f"{min(shared)} in both"
                advice = "Number the documents across the parts, e.g. with 'first_id'."
                raise misfit(part, rule, got, advice)
            seen.update(corpus.ids)

    @property
    def parts(self) -> dict[str, Corpus]:
        """The parts that are present, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def next_id(self) -> int:
        """The smallest id above all used ones, for documents that join later."""
        return 1 + max(max(part.ids, default=-1) for part in self.parts.values())


def stratified_draw(labels: Sequence[int], fraction: float, *, seed: int = 0) -> list[int]:
    """Draw a share of the labeled documents, the same share of every class, as ascending positions.

    Shares are rounded by largest remainders; every class keeps a document that is not drawn.

    Args:
        labels: Class numbers, -1 for unlabeled documents, which are never drawn.
        fraction: Share of the labeled documents to draw, in `(0, 1)`; at least one is drawn.
        seed: Seed of the draw.

    Example:
        >>> len(stratified_draw([0] * 10 + [1] * 30 + [2], 0.25))
        10
    """
    if not 0 < fraction < 1:
        raise misfit("fraction", "lie between 0 and 1", fraction, "Try 0.1.")
    classes = np.asarray(labels, dtype=np.int64)
    members = [np.flatnonzero(classes == label) for label in np.unique(classes[classes >= 0])]
    if all(len(group) < 2 for group in members):
        rule = "hold a class with two documents or more to draw from"
        raise misfit("labels", rule, "none", "Label more, or pass the drawn part explicitly.")
    wanted = np.array([fraction * len(group) for group in members])
    spare = np.array([len(group) - 1 for group in members])
    counts = np.minimum(np.floor(wanted).astype(np.int64), spare)
    total = max(1, round(float(wanted.sum())))
    for group in np.argsort(counts - wanted, kind="stable").tolist() * 2:
        if counts.sum() < total and counts[group] < spare[group]:
            counts[group] += 1
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(group)[:count] for group, count in zip(members, counts, strict=True)]
    return np.sort(np.concatenate(drawn)).tolist()


def string_list(field: str, values: Iterable[str]) -> list[str]:
    """The values as a list, or a ValueError that names the argument and the first misfit.

    Half of a surrogate pair, which neither tokenizers nor files take, becomes U+FFFD.
    """
    if values is None or isinstance(values, str):
        raise misfit(field, "be a list of strings", type(values).__name__, "Put it in a list.")
    strings = list(values)
    for position, value in enumerate(strings):
        if not isinstance(value, str):
            raise misfit(
                field,
                "hold strings",
                f"{type(value).__name__} at position {position}",
                "Convert or remove it.",
            )
    return [whole_text(value) for value in strings]


def _checked_sets(sets: Iterable[Any], number: int) -> list[list[int] | None]:
    """Label sets in ascending order."""
    found: list[list[int] | None] = []
    for position, members in enumerate(sets):
        if members is None:
            found.append(None)
            continue
        if isinstance(members, str) or not isinstance(members, Iterable):
            rule, got = "hold lists of class numbers or None", f"{members!r} at position {position}"
            raise misfit("label_sets", rule, got, "Write one class as a list of one.")
        numbers = sorted(_integers("label_sets", members))
        inside = all(0 <= label < number for label in numbers)
        if not inside or len(set(numbers)) != len(numbers):
            rule, got = f"hold distinct class numbers below {number}", f"{numbers} at position "
            advice = "Extend 'label_names' or correct it."
            raise misfit("label_sets", rule, f"{got}{position}", advice)
        found.append(numbers)
    return found


def _integers(field: str, values: Iterable[Any]) -> list[int]:
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        got = f"{list(values)[:3]}..."
        raise misfit(field, "hold whole numbers", got, "Convert them.") from None


def _check_distinct(field: str, values: Sequence[Any], advice: str) -> None:
    if len(set(values)) != len(values):
        repeated = Counter(values).most_common(1)[0][0]
        raise misfit(field, "be distinct", f"{repeated!r} more than once", advice)
