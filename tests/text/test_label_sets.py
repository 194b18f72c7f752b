"""Documents of several classes: corpora and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gloss_graph.text import Corpus, Splits, read_splits, read_table

NAMES = ["x", "y", "z"]
SETS: list[list[int] | None] = [[2, 0], None, [], [1]]


def corpus(**changes: Any) -> Corpus:
    plain = {"texts": list("abcd"), "labels": [], "ids": [0, 1, 2, 3], "label_names": NAMES}
    return Corpus(**{**plain, "label_sets": SETS, **changes})


def test_label_sets_make_targets_and_mark_the_labeled() -> None:
    found = corpus()
    assert found.multilabel
    assert found.label_sets == [[0, 2], None, [], [1]]
    assert found.labels == [0, -1, 0, 0]
    nan = np.nan
    expected = [[1, 0, 1], [nan, nan, nan], [0, 0, 0], [0, 1, 0]]
    np.testing.assert_array_equal(found.targets, expected)
    assert found.targets.dtype == np.float32
    assert found.class_counts == [1, 1, 1]
    assert "3 classes, label sets, 1 unlabeled" in repr(found)
    part = found.select([3, 1])
    assert (part.label_sets, part.labels) == ([[1], None], [0, -1])


def test_a_corpus_of_class_numbers_has_targets_too() -> None:
    plain = corpus(label_sets=None, labels=[1, -1, 0, 2])
    assert not plain.multilabel
    np.testing.assert_array_equal(plain.targets[[0, 2, 3]], np.eye(3)[[1, 0, 2]])
    assert np.isnan(plain.targets[1]).all()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[0], [1], [2], [3]], r"distinct class numbers below 3 \(got \[3\] at position 3"),
        ([[0, 0], None, None, None], "distinct class numbers below 3"),
        ([[-1], None, None, None], "distinct class numbers below 3"),
        ([1, None, None, None], "lists of class numbers or None"),
        (["xy", None, None, None], "lists of class numbers or None"),
        ([[0.5], None, None, None], "whole numbers"),
        ([[0]], r"'label_sets' must hold one value per document \(got 1 for 4"),
    ],
)
def test_bad_sets(sets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus(label_sets=sets)


def test_parts_of_different_kinds_are_refused() -> None:
    other = Corpus(["e"], [0], [9], NAMES)
    with pytest.raises(ValueError, match="'val' must have label sets exactly if 'train' has"):
        Splits(corpus(), other)


def test_delimited_files_join_labels_by_a_separator(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,z| x\nb,\nc,|\nd,y\ne,x|x\n")
    found = read_table(file, separator="|")
    assert found.label_names == NAMES
    assert found.label_sets == [[0, 2], None, [], [1], [0]]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_labels(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"text": list("abcd"), "label": [["z", "x"], None, [], ["y"]]})
    file = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_json(file, orient="records", lines=True)
    assert read_table(file, separator=";").label_sets == [[0, 2], None, [], [1]]
    with pytest.raises(ValueError, match=r"one label per document \(got list"):
        read_table(file)


def test_splits_share_the_classes_of_training(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    lines = [f"t{i},{'x;y' if i % 2 else 'z'}" for i in range(20)]
    train.write_text("\n".join(["text,label", *lines]))
    test.write_text("text,label\na,y;z\n")
    splits = read_splits(train, None, test, separator=";", val_fraction=0.2)
    assert splits.val is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.val)) == (16, 4)
    assert splits.test.label_sets == [[1, 2]]
    assert all(part.multilabel for part in (splits.train, splits.val, splits.test))
    test.write_text("text,label\na,y;w\n")
    with pytest.raises(ValueError, match="label 'w' at line 2 is not among the labels of"):
        read_splits(train, None, test, separator=";")


def test_bad_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "label": ["x", null]}\n')
    with pytest.raises(ValueError, match="lists of labels"):
        read_table(file, separator=";")
    with pytest.raises(ValueError, match="'separator' must hold a visible character"):
        read_table(file, separator=" ")
