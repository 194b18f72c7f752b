"""Few labels: draws, mixed batches, warm start, joined documents, whole runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import snapshot

from gloss_graph.text import Corpus
from gloss_graph.training import (
    MixedSampler,
    Run,
    TrainConfig,
    contrastive_warm_start,
    draw_labels,
    hide_labels,
    train_text,
    with_unlabeled,
)
from training.tiny import CLASSES, quick, run, tiny_corpus, tiny_encoder, tiny_splits

# ------------------------------------------------------------------ draws


def test_a_draw_keeps_shares_and_at_least_one() -> None:
    labels = [0] * 200 + [1] * 50 + [2] * 3 + [-1] * 40
    corpus = Corpus([str(i) for i in range(293)], labels, list(range(293)), CLASSES)
    drawn = draw_labels(corpus, fraction=0.1, seed=3)
    assert Counter(labels[i] for i in drawn) == {0: 20, 1: 5, 2: 1}
    assert drawn == draw_labels(corpus, fraction=0.1, seed=3)
    assert drawn != draw_labels(corpus, fraction=0.1, seed=4)
    counts = Counter(labels[i] for i in draw_labels(corpus, per_class=7))
    assert counts == {0: 7, 1: 7, 2: 3}
    hidden = hide_labels(corpus, drawn)
    assert sum(label >= 0 for label in hidden.labels) == 26
    assert hidden.texts == corpus.texts


@pytest.mark.parametrize("options", [{}, {"fraction": 0.1, "per_class": 2}])
def test_one_way_to_draw(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either 'fraction' or 'per_class'"):
        draw_labels(tiny_corpus(9), **options)


def test_joined_documents_are_new_and_unlabeled() -> None:
    splits = tiny_splits()
    more = tiny_corpus(5, seed=9)  # its ids clash and its labels are known
    joined = with_unlabeled(splits, more)
    assert joined.train.labels[-5:] == [-1] * 5
    assert joined.train.texts[-5:] == more.texts
    ids = [*joined.train.ids, *joined.val.ids, *joined.test.ids]
    assert len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match="must hold pairs exactly if"):
        with_unlabeled(splits, replace(more, texts_b=more.texts))


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("balanced", [False, True])
def test_every_block_is_the_mixture_asked_for(balanced: bool) -> None:
    labels = [0] * 9 + [1] * 2 + [-1] * 50
    sampler = MixedSampler(labels, labeled=4, unlabeled=6, balanced=balanced, seed=5)
    order = list(sampler)
    assert len(order) == len(sampler) == 9 * 10
    blocks = np.array(order).reshape(-1, 10)
    known = np.array(labels)[blocks] >= 0
    assert (known.sum(axis=1) == 4).all()
    assert set(blocks[~known].tolist()) == set(range(11, 61))
    counts = Counter(labels[i] for i in blocks[known].tolist())
    assert counts == ({0: 18, 1: 18} if balanced else counts)
    rounds = Counter(blocks[known].tolist())
    if not balanced:  # every labeled document as often as the others
        assert max(rounds.values()) - min(rounds.values()) <= 1


def test_orders_follow_seed_and_epoch() -> None:
    sampler = MixedSampler([0, 1, -1, -1, -1, -1], labeled=1, unlabeled=2, seed=1)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    sampler.set_epoch(0)
    assert first == list(sampler)


def test_mixtures_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="must hold a labeled document"):
        MixedSampler([-1, -1], labeled=1, unlabeled=1)
    with pytest.raises(ValueError, match="must hold an unlabeled document"):
        MixedSampler([0, 1], labeled=1, unlabeled=1)


# ------------------------------------------------------------------ warm start


def test_warm_start_pulls_classes_together_reproducibly() -> None:
    corpus = tiny_corpus(24)
    finals = []
    for _ in range(2):
        encoder = tiny_encoder()
        losses = contrastive_warm_start(
            encoder, corpus, steps=25, batch_size=12, learning_rate=2e-3, seed=1
        )
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
        finals.append(snapshot(encoder))
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name])


def test_frozen_layers_stay() -> None:
    encoder = tiny_encoder()
    before = snapshot(encoder)
    encoder.freeze(1)
    contrastive_warm_start(encoder, tiny_corpus(12), steps=2, batch_size=6, learning_rate=1e-2)
    after = encoder.state_dict()
    still = [name for name in before if ".embeddings." in name or "layer.0." in name]
    assert still
    assert all(torch.equal(before[name], after[name]) for name in still)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="'freeze_layers' must be at most"):
        tiny_encoder().freeze(99)


# ------------------------------------------------------------------ runs


@pytest.mark.filterwarnings("ignore:Graph skill")
@pytest.mark.parametrize("loss", ["ce", "gloss", "static-lp", "pseudo-label", "setfit", "xbm-scl"])
def test_few_label_runs(tmp_path: Path, loss: str) -> None:
    config = quick(loss=loss, labels_per_class=2, batch_size=4, unlabeled_batch_size=6, max_steps=6)
    result = run(tmp_path / "run", config)
    used = pd.read_csv(tmp_path / "run" / "labels_used.csv")
    expected = sorted(draw_labels(tiny_splits().train, per_class=2, seed=0))
    assert used["id"].tolist() == expected
    assert used["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, 2)
    assert "test_propagation.macro_f1" in result.metrics
    assert "graph_skill.advantage" in result.metrics
    # Last step: nothing was evaluated on the way.
    assert not any("val_macro_f1" in row for row in result.history)
    if loss == "gloss":
        assert any(row["consistency"] > 0 for row in result.history)
        assert result.objective.memory.dim == 2 * 16
    again = Run(tmp_path / "run")
    anchor = {"anchor": 0.0}  # the tiny encoder was not loaded by name
    texts = tiny_splits().test.texts
    found = again.predict(texts, **anchor).explanation
    direct = result.objective.predict(result.embeddings["test"], frozen_weight=0.0)
    torch.testing.assert_close(found.probabilities, direct)
    assert set(found.ids.flatten().tolist()) <= {*expected, -1}


@pytest.mark.filterwarnings("ignore:Graph skill")
def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    config = quick(
        loss="gloss",
        labels_per_class=2,
        batch_size=4,
        unlabeled_batch_size=6,
        max_steps=8,
        warm_start_steps=3,
        teacher_decay=0.5,
    )
    first, second = (run(tmp_path / name, config) for name in "ab")
    assert first.history == second.history
    for name, value in first.objective.state_dict().items():
        assert torch.equal(value, second.objective.state_dict()[name])


def test_frozen_features_of_another_size_are_refused(tmp_path: Path) -> None:
    config = quick(loss="gloss", labels_per_class=2)
    with pytest.raises(ValueError, match="'frozen' must hold 36 rows for 'train'"):
        train_text(
            tiny_splits(),
            tiny_encoder(),
            config,
            tmp_path / "run",
            frozen={"train": torch.ones(3, 16)},
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_fraction": 0.1, "labels_per_class": 3}, "either 'label_fraction'"),
        ({"label_fraction": 1.5}, "'label_fraction' must be in"),
        ({"labels_per_class": 0}, "'labels_per_class' must be"),
        ({"select": "median"}, "'select' must be one of"),
        ({"teacher_decay": 1.0}, "'teacher_decay' must be in"),
        ({"refresh_every": -2}, "'refresh_every' must be"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
