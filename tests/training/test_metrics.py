"""Scores against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    silhouette_samples,
    silhouette_score,
)

from gloss_graph.analysis import classification_scores, macro_silhouette, micro_silhouette
from gloss_graph.text import Corpus
from gloss_graph.training.outcome import ClassReport

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=40)


@given(PAIRS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    kept = labels >= 0
    if not kept.any():
        with pytest.raises(ValueError, match="'labels' must hold a label >= 0"):
            classification_scores(predicted, labels)
        return
    scores = classification_scores(predicted, labels)
    assert scores["accuracy"] == accuracy_score(labels[kept], predicted[kept])
    assert scores["macro_f1"] == pytest.approx(
        f1_score(labels[kept], predicted[kept], average="macro", zero_division=0)
    )
    assert all(type(value) is float for value in scores.values())


def test_a_class_that_is_never_predicted_counts_as_zero() -> None:
    scores = classification_scores(np.zeros(4, int), np.array([0, 0, 1, 1]))
    assert scores["accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx(1 / 3)


def test_perfect_and_wrong() -> None:
    labels = np.array([2, 1, 0])
    assert classification_scores(labels, labels) == {"accuracy": 1.0, "macro_f1": 1.0}
    wrong = classification_scores((labels + 1) % 3, labels)
    assert wrong == {"accuracy": 0.0, "macro_f1": 0.0}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_silhouette_of_balanced_classes_is_the_plain_one(
    generator: torch.Generator, scale: float
) -> None:
    """Rows count by direction, so their length does not matter."""
    labels = torch.arange(30) % 3
    rows = torch.randn(30, 5, generator=generator) + labels[:, None]
    unit = torch.nn.functional.normalize(rows, dim=1).numpy()
    found = macro_silhouette(rows * scale, labels)
    assert found == pytest.approx(silhouette_score(unit, labels.numpy()), abs=1e-5)


def test_silhouette_weighs_classes_alike(generator: torch.Generator) -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [4] + [-1] * 5)
    rows = torch.randn(29, 6, generator=generator)
    unit = torch.nn.functional.normalize(rows[:24], dim=1).numpy()
    values = silhouette_samples(unit, labels[:24].numpy())
    expected = np.mean([values[:20].mean(), values[20:23].mean(), values[23]])
    assert macro_silhouette(rows, labels) == pytest.approx(expected, abs=1e-6)
    assert micro_silhouette(rows, labels) == pytest.approx(values.mean(), abs=1e-6)
    assert abs(values.mean() - expected) > 0.01, "the two means differ"
    assert values[23] == 0, "the only member of its class"


def test_silhouette_of_separated_classes_is_one() -> None:
    labels = torch.arange(8) % 2
    rows = torch.nn.functional.one_hot(labels, 4).to(torch.bfloat16)
    assert macro_silhouette(rows, labels) == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 0, 0], [0, -1, -1], [0, 1, 2], []])
def test_silhouette_needs_two_classes_and_a_pair(labels: list[int]) -> None:
    rows = torch.eye(3)[: len(labels)]
    assert math.isnan(macro_silhouette(rows, torch.tensor(labels, dtype=torch.long)))
    assert math.isnan(micro_silhouette(rows, torch.tensor(labels, dtype=torch.long)))


def test_classes_are_reported_as_by_scikit_learn(tmp_path: Path) -> None:
    """Also classes that are never predicted and those that have no document."""
    labels = [0, 0, 1, 2, 2, -1, 2, 1]
    predicted = np.array([0, 2, 1, 2, 2, 0, 1, 1])
    names = ["a", "b, c", "d", "e"]
    corpus = Corpus([f"t{i}" for i in range(8)], labels, list(range(8)), names)
    report = ClassReport()
    report.add("test", "linear", predicted, corpus)
    report.add("test", "propagation", np.zeros(8, int), corpus)
    report.add("val", "linear", np.zeros(1, int), Corpus(["x"], [-1], [9], names))
    report.write(tmp_path / "classes.csv")
    frame = pd.read_csv(tmp_path / "classes.csv")
    assert frame["head"].tolist() == ["linear"] * 4 + ["propagation"] * 4
    assert set(frame["split"]) == {"test"}, "no rows for a split without labels"
    linear = frame[:4].set_index("class")
    known = np.array(labels) >= 0
    expected = classification_report(
        np.array(labels)[known],
        predicted[known],
        labels=range(4),
        target_names=names,
        output_dict=True,
        zero_division=0,
    )
    for name in names:
        row = linear.loc[name]
        assert row["precision"] == pytest.approx(expected[name]["precision"])
        assert row["recall"] == pytest.approx(expected[name]["recall"])
        assert row["f1"] == pytest.approx(expected[name]["f1-score"])
        assert row["support"] == expected[name]["support"]
    assert linear.loc["e", ["precision", "recall", "f1", "support"]].tolist() == [0, 0, 0, 0]
    assert frame[4:]["recall"].tolist() == [1, 0, 0, 0]


def test_a_report_without_labels_is_a_heading(tmp_path: Path) -> None:
    ClassReport().write(tmp_path / "classes.csv")
    text = (tmp_path / "classes.csv").read_text()
    assert text == '"split","head","class","precision","recall","f1","support"\n'
