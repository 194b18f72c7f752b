from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gloss_graph.text import Corpus, Splits, stratified_draw


def make(number: int = 4, **changes: object) -> Corpus:
    fields: dict[str, object] = {
        "texts": [f"text {position}" for position in range(number)],
        "labels": [position % 2 for position in range(number)],
        "ids": list(range(number)),
        "label_names": ["no", "yes"],
    }
    return Corpus(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, r"'labels' must hold one value per document \(got 2 for 4 texts\)"),
        ({"ids": [0, 1, 2]}, r"'ids' must hold one value per document \(got 3 for 4 texts\)"),
        ({"texts_b": ["a"]}, r"'texts_b' must hold one value per document \(got 1 for 4"),
        ({"ids": [0, 1, 2, 2]}, r"'ids' must be distinct \(got 2 more than once\)"),
        ({"ids": [0, 1, 2, -3]}, r"'ids' must not be negative \(got -3\)"),
        ({"labels": [0, 1, 2, 0]}, r"'labels' must be -1 .* below 2 \(got 2 at position 2\)"),
        ({"labels": [0, -2, 1, 0]}, r"got -2 at position 1"),
        ({"labels": [0, 0.5, 1, 0]}, r"'labels' must hold whole numbers"),
        ({"label_names": ["a", "a"]}, r"'label_names' must be distinct \(got 'a'"),
        ({"texts": "four"}, r"'texts' must be a list of strings \(got str\)"),
        ({"texts": ["a", None, "c", "d"]}, r"'texts' must hold strings \(got NoneType at posit"),
    ],
)
def test_corpus_names_what_is_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_corpus_takes_tensors_and_stores_plain_values() -> None:
    corpus = make(labels=torch.tensor([0, -1, 1, 1]), ids=np.arange(4), texts=("a", "b", "c", "d"))
    assert corpus.labels == [0, -1, 1, 1]
    assert all(type(value) is int for value in corpus.labels + corpus.ids)
    assert corpus.texts == ["a", "b", "c", "d"]
    assert corpus.class_counts == [1, 2]
    with pytest.raises(FrozenInstanceError):
        corpus.name = "x"  # type: ignore[misc]


def test_repr_is_short_whatever_the_size() -> None:
    assert repr(make(1000, name="big")) == "Corpus('big', 1000 documents, 2 classes, 0 unlabeled)"
    assert repr(make(2, texts_b=["a", "b"])) == "Corpus(2 pairs, 2 classes, 0 unlabeled)"


def test_select_keeps_identities_and_second_texts() -> None:
    corpus = make(texts_b=["p", "q", "r", "s"], ids=[7, 5, 3, 1], name="n")
    for indices in ([3, 1], np.array([3, 1]), torch.tensor([3, 1]), iter([3, 1])):
        chosen = corpus.select(indices)
        assert (chosen.ids, chosen.texts_b, chosen.name) == ([1, 5], ["s", "q"], "n")
    assert corpus.select(torch.tensor([True, False, False, True])).ids == [7, 1]
    assert len(corpus.select([])) == 0
    assert corpus.select([]).num_classes == 2


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([4], r"'indices' must lie in \[0, 4\) \(got 4\)"),
        ([-1], r"got -1"),
        ([1, 1], r"'indices' must be distinct \(got 1"),
        (np.array([True, False]), r"as a mask must have shape \(4,\) \(got \(2,\)\)"),
        ([0.5], r"whole numbers"),
    ],
)
def test_select_refuses(indices: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().select(indices)  # type: ignore[arg-type]


def test_splits_share_classes_and_no_ids() -> None:
    train = make()
    later = make(2, ids=[4, 9])
    splits = Splits(train, test=later)
    assert splits.next_id == 10
    with pytest.raises(ValueError, match=r"'val' must not share ids .* \(got 0 in both\)"):
        Splits(train, make(2))
    with pytest.raises(ValueError, match=r"'test' must not share ids"):
        Splits(train, later, make(1, ids=[9]))
    with pytest.raises(ValueError, match=r"'test' must have the label names of 'train'"):
        Splits(train, test=make(2, ids=[4, 5], label_names=["yes", "no"]))


@given(
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=200),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_draw_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    counts = np.bincount([label for label in labels if label >= 0], minlength=6)
    if counts.max(initial=0) < 2:
        with pytest.raises(ValueError, match="class with two documents"):
            stratified_draw(labels, fraction, seed=seed)
        return
    drawn = stratified_draw(labels, fraction, seed=seed)
    assert drawn == sorted(set(drawn)) == stratified_draw(labels, fraction, seed=seed)
    taken = np.bincount([labels[position] for position in drawn], minlength=6)
    assert all(labels[position] >= 0 for position in drawn)
    assert (taken <= np.maximum(counts - 1, 0)).all()
    spare = np.maximum(counts - 1, 0).sum()
    assert 1 <= len(drawn) <= min(max(1, round(fraction * counts.sum())), spare)
    assert (np.abs(taken - fraction * counts) <= 2).all()


def test_draw_depends_on_the_seed_only() -> None:
    labels = [0] * 50 + [1] * 50
    assert stratified_draw(labels, 0.2, seed=1) != stratified_draw(labels, 0.2, seed=2)
    with pytest.raises(ValueError, match=r"'fraction' must lie between 0 and 1 \(got 1\)"):
        stratified_draw(labels, 1)
