"""Training on documents of several classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gloss_graph.studies import tune_text
from gloss_graph.text import Corpus, Splits
from gloss_graph.training import (
    Run,
    TextCollator,
    TextDataset,
    draw_labels,
    hide_labels,
    set_scores,
    with_unlabeled,
)
from gloss_graph.training.config import check_multilabel
from training.tiny import CLASSES, quick, run, tiny_corpus, tiny_encoder, tiny_splits


def several(corpus: Corpus, unlabeled: int = 0) -> Corpus:
    """The documents with the classes whose words they hold most of: one or two."""
    sets: list[list[int] | None] = []
    for position, (text, label) in enumerate(zip(corpus.texts, corpus.labels, strict=True)):
        more = [(label + 1) % len(CLASSES)] if len(text.split()) > 6 else []
        sets.append(None if position < unlabeled else [label, *more])
    return replace(corpus, label_sets=sets)


def several_splits(unlabeled: int = 0) -> Splits:
    plain = tiny_splits()
    assert plain.val is not None
    assert plain.test is not None
    return Splits(several(plain.train, unlabeled), several(plain.val), several(plain.test))


def test_scores_by_hand() -> None:
    nan = np.nan
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [nan] * 4])
    guess = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    scores = set_scores(guess, truth)
    assert scores["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)  # the last class occurs nowhere
    assert scores["subset_accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="'targets' must hold a labeled document"):
        set_scores(guess[3:], truth[3:])


def test_batches_hold_targets() -> None:
    corpus, encoder = several(tiny_corpus(6), 1), tiny_encoder()
    dataset = TextDataset(corpus, encoder)
    batch = TextCollator(encoder)([dataset[i] for i in range(6)])
    assert batch["labels"].dtype == torch.float32
    np.testing.assert_array_equal(batch["labels"].numpy(), corpus.targets)


@pytest.mark.parametrize(("loss", "unlabeled"), [("ce", 0), ("ce", 9), ("gloss", 0), ("gloss", 9)])
def test_a_run_scores_and_predicts_sets(tmp_path: Path, loss: str, unlabeled: int) -> None:
    splits = several_splits(unlabeled)
    out = tmp_path / "run"
    result = run(out, quick(loss=loss, max_steps=6, unlabeled_batch_size=4), splits)
    for head in ("test", "test_propagation", "val"):
        for score in ("micro_f1", "macro_f1", "subset_accuracy"):
            assert 0.0 <= result.metrics[f"{head}.{score}"] <= 1.0
    assert "test.accuracy" not in result.metrics
    assert result.predictions["test"].shape == (15, 3)
    assert any("val_macro_f1" in row for row in result.history)
    assert result.objective.multilabel
    memory = result.objective.memory
    assert memory is not None
    used = pd.read_csv(out / "labels_used.csv")
    assert len(used) == 36 - unlabeled
    assert used["label"].str.contains(";").any()
    assert int(memory.labeled.sum()) == 36 - unlabeled
    order = torch.tensor(splits.train.targets)[memory.ids]
    torch.testing.assert_close(memory.labels, order, equal_nan=True)
    if loss == "gloss" and unlabeled:
        assert max(row.get("consistency", 0.0) for row in result.history) > 0

    loaded = Run(out)
    assert loaded.multilabel
    assert splits.test is not None
    answer = loaded.predict(splits.test.texts, anchor=0.0)
    assert answer.linear.shape == (15, 3)
    np.testing.assert_array_equal((answer.linear >= 0.5).numpy(), result.predictions["test"])
    spread = answer.explanation.probabilities
    assert bool(((spread > 0) & (spread < 1)).all())
    assert float((spread.sum(dim=1) - 1).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="'rule' must not be 'poisson'"):
        loaded.predict(splits.test.texts, anchor=0.0, rule="poisson")


def test_training_learns_the_sets(tmp_path: Path) -> None:
    settings = {
        "max_steps": 80,
        "learning_rate": 5e-3,
        "head_learning_rate": 2e-2,
        "eval_steps": 40,
    }
    before = run(tmp_path / "a", quick(max_steps=1, eval_steps=1), several_splits())
    after = run(tmp_path / "b", quick(**settings), several_splits())
    assert after.metrics["test.micro_f1"] > 0.7
    assert after.metrics["test.micro_f1"] > before.metrics["test.micro_f1"] + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({"loss": loss}, "'loss' must be one of")
            for loss in ("scl", "xbm-scl", "setfit", "static-lp", "pseudo-label", "gloss-published")
        ],
        ({"mode": "standalone"}, "'mode' must be 'integrated'"),
        ({"rule": "poisson"}, "'rule' must be"),
        ({"bandwidth": "interclass_min"}, "'bandwidth' must not be"),
        ({"max_steps": 0}, "'max_steps' must be at least 1"),
        ({"warm_start_steps": 2}, "'warm_start_steps' is not defined"),
        ({"graph_start_steps": 2}, "'graph_start_steps' is not defined"),
        ({"class_balance": True}, "'class_balance' is not defined"),
        ({"refit_head": True}, "'refit_head' is not defined"),
        ({"label_fraction": 0.5}, "'label_fraction' is not defined"),
        ({"labels_per_class": 2}, "'labels_per_class' is not defined"),
    ],
)
def test_settings_that_need_one_class_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_multilabel(quick(**settings))
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", quick(**settings), several_splits())
    assert not (tmp_path / "run").exists()


def test_other_uses_of_sets() -> None:
    corpus = several(tiny_corpus(4))
    with pytest.raises(ValueError, match="'corpus' must hold class numbers"):
        draw_labels(corpus, fraction=0.5)
    assert corpus.label_sets is not None
    hidden = hide_labels(corpus, [2])
    assert hidden.label_sets == [None, None, corpus.label_sets[2], None]
    more = with_unlabeled(Splits(corpus), tiny_corpus(2)).train
    assert more.label_sets == [*corpus.label_sets, None, None]
    assert more.labels == [0, 0, 0, 0, -1, -1]


def test_tuning_refuses_sets(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match="'splits' must hold class numbers to tune on"):
        tune_text(several_splits(), tiny_encoder, quick(), tmp_path / "s", space={}, trials=1)
