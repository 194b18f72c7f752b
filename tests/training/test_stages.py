"""The contrastive stages before training, and heads fitted without training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gloss_graph.text import Corpus
from gloss_graph.training import (
    Run,
    TextClassifier,
    TrainConfig,
    classification_scores,
    contrastive_warm_start,
)
from gloss_graph.training.run import with_few_labels
from gloss_graph.training.stages import agreed_labels, corpus_labels, fit_head, head_settings
from gloss_graph.training.warmstart import _draws, _turns
from training.tiny import CLASSES, copied_state, quick, run, tiny_corpus, tiny_encoder, tiny_splits

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")


def corpus_of(labels: list[int]) -> Corpus:
    return Corpus([f"text {i}" for i in range(len(labels))], labels, [*range(len(labels))], CLASSES)


def test_agreed_labels_keep_the_known_ones() -> None:
    """Two tight groups of four, one document far away that no label reaches."""
    torch.manual_seed(0)
    centres = torch.eye(5).repeat_interleave(torch.tensor([4, 4, 0, 0, 0]), dim=0)
    rows = torch.cat([centres + 0.01 * torch.randn(8, 5), torch.eye(5)[4:]])
    labels = torch.tensor([0, -1, -1, -1, 1, -1, -1, -1, -1])
    settings = head_settings(TrainConfig(k=3, bandwidth=0.05), 2)
    found, trust = agreed_labels(rows, labels, settings)
    assert found[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert trust[[0, 4]].tolist() == [1.0, 1.0]
    assert (trust[:8] > 0.9).all()
    assert float(trust[8]) < 0.01


def test_auto_agrees_from_three_labels_a_class_on() -> None:
    """Of two groups every sixth document is labeled; the frozen view says something else."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(60) % 2
    rows = torch.eye(4)[own] + 0.5 * torch.randn(60, 4, generator=generator)
    frozen = torch.randn(60, 4, generator=generator)
    for count, expected in ((2, "propagated"), (5, "propagated"), (6, "agreed"), (20, "agreed")):
        labels = torch.where(torch.arange(60) < count, own, -1)
        settings = head_settings(TrainConfig(k=6), 2)
        found = {
            name: corpus_labels(
                rows, frozen, labels, settings, TrainConfig(k=6, graph_start_classes=name)
            )
            for name in ("auto", "agreed", "propagated")
        }
        assert torch.equal(found["auto"][1], found[expected][1])
        assert not torch.equal(found["agreed"][1], found["propagated"][1])
        for classes, trust in found.values():
            assert torch.equal(classes[labels >= 0], labels[labels >= 0])
            assert (trust[labels >= 0] == 1.0).all()
            assert ((trust >= 0) & (trust <= 1)).all()
    # Where the frozen view is noise, what the embeddings say is right more often.
    share = {name: float((classes == own).float().mean()) for name, (classes, _) in found.items()}
    assert share["agreed"] > share["propagated"]
    assert share["agreed"] > 0.9


def test_labels_of_one_class_leave_out_the_regression() -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(20) < 8, 1, -1)
    found, trust = agreed_labels(rows, labels, head_settings(TrainConfig(k=4), 3))
    assert (found == 1).all()
    assert bool(torch.isfinite(trust).all())


def test_other_classes_of_the_corpus_stage_are_refused() -> None:
    with pytest.raises(ValueError, match="'graph_start_classes' must be one of"):
        TrainConfig(graph_start_classes="graph")


def test_draws_follow_class_and_weight() -> None:
    corpus = corpus_of([0] * 4 + [1] * 2 + [-1] * 3)
    weights = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.5, 0.5, 9.0, 9.0, 9.0])
    drawn = _draws(corpus, weights, 6000, 3)
    counts = Counter(drawn)
    assert drawn == _draws(corpus, weights, 6000, 3) != _draws(corpus, weights, 6000, 4)
    assert set(counts) == {0, 1, 2, 4, 5}
    expected = {0: 750, 1: 750, 2: 1500, 4: 1500, 5: 1500}
    assert all(abs(counts[place] - number) < 150 for place, number in expected.items())


def test_turns_balance_classes() -> None:
    corpus = corpus_of([0] * 5 + [1] * 2 + [-1] * 3)
    counts = Counter(_turns(corpus, 40, 0))
    assert sum(counts[place] for place in range(5)) == pytest.approx(20, abs=4)
    assert set(counts) == set(range(7))


@pytest.mark.parametrize(
    "weights",
    [torch.ones(3), -torch.ones(9), torch.full((9,), float("nan")), torch.zeros(9)],
)
def test_weights_that_cannot_be_drawn_from(weights: torch.Tensor) -> None:
    corpus = tiny_corpus(9)
    with pytest.raises(ValueError, match="'weights' must"):
        contrastive_warm_start(tiny_encoder(), corpus, weights=weights, steps=1, batch_size=4)


def test_the_graph_start_learns_from_unlabeled_documents(tmp_path: Path) -> None:
    """The same labels and seed: the second stage changes the encoder, and repeats bit for bit."""
    few = {"loss": "gloss", "max_steps": 0, "labels_per_class": 3, "warm_start_steps": 3}
    runs = {
        name: run(tmp_path / name, quick(**few, graph_start_steps=steps))
        for name, steps in (("labels", 0), ("corpus", 4), ("again", 4))
    }
    states = {name: copied_state(result.model) for name, result in runs.items()}
    same = [torch.equal(states["corpus"][key], states["again"][key]) for key in states["again"]]
    assert all(same)
    weight = "encoder.model.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(states["labels"][weight], states["corpus"][weight])
    assert runs["corpus"].metrics["steps"] == 7.0
    assert [row["step"] for row in runs["corpus"].history] == [*range(1, 8)]
    assert runs["corpus"].metrics["seconds.graph_start"] > 0
    # The bank holds the documents as the encoder sees them at the end.
    loaded = Run(tmp_path / "corpus")
    assert len(loaded.objective.memory) == 36
    texts = tiny_splits().train.texts[:5]
    rows = loaded.classifier.encoder.encode(texts)
    bank = loaded.objective.memory
    stored = bank.embeddings[bank.slots_of(torch.arange(5))][:, : rows.size(1)]
    torch.testing.assert_close(
        torch.nn.functional.normalize(stored, dim=1), torch.nn.functional.normalize(rows, dim=1)
    )


def test_no_unlabeled_document_no_graph_start(tmp_path: Path) -> None:
    result = run(tmp_path / "run", quick(loss="ce", graph_start_steps=3))
    assert "seconds.graph_start" not in result.metrics


@pytest.mark.parametrize("loss", ["ce", "gloss"])
def test_a_head_alone_leaves_the_encoder(tmp_path: Path, loss: str) -> None:
    """No steps at all: a logistic regression on the embeddings as they come."""
    result = run(tmp_path / "run", quick(loss=loss, max_steps=0))
    assert result.metrics["steps"] == 0
    assert result.metrics["head.C"] > 0
    before = copied_state(tiny_encoder())
    after = copied_state(result.model.encoder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    splits = tiny_splits()
    rows = result.model.encoder.encode(splits.train.texts)
    guess = result.model.head(rows).argmax(dim=1).numpy()
    scores = classification_scores(guess, torch.tensor(splits.train.labels).numpy())
    assert scores["macro_f1"] > 0.5


def test_stages_before_any_loss(tmp_path: Path) -> None:
    splits = tiny_splits()
    labels = [label if i < 9 else -1 for i, label in enumerate(splits.train.labels)]
    splits = replace(splits, train=replace(splits.train, labels=labels))
    config = quick(loss="ce", warm_start_steps=2, graph_start_steps=2, anchor=0.0)
    result = run(tmp_path / "run", config, splits)
    assert result.metrics["steps"] == 4
    assert result.metrics["seconds.graph_start"] > 0


@pytest.mark.parametrize("loss", ["ce", "xbm-scl", "pseudo-label", "gloss"])
def test_a_head_fitted_anew_leaves_the_trained_encoder(tmp_path: Path, loss: str) -> None:
    few = {"loss": loss, "labels_per_class": 3, "max_steps": 3, "select": "last"}
    plain, fitted = (
        run(tmp_path / name, quick(**few, refit_head=name == "fitted"))
        for name in ("plain", "fitted")
    )
    one, other = copied_state(plain.model), copied_state(fitted.model)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"head.weight", "head.bias"}
    assert fitted.metrics["head.C"] > 0
    assert "head.C" not in plain.metrics
    # It is the head that these embeddings are given where nothing is trained together.
    config = quick(**few, refit_head=True)
    train = with_few_labels(tiny_splits(), config).train
    views: Any = SimpleNamespace(frozen={"train": tiny_encoder().embed(train)})
    anew = TextClassifier(fitted.model.encoder, CLASSES, seed=1)
    fit_head(anew, train, fitted.model.encoder.embed(train), views, config)
    assert torch.allclose(anew.head.weight, fitted.model.head.weight, atol=1e-3)
    fit_head(anew, train, fitted.model.encoder.embed(train), views, quick(loss="ce"))
    assert not torch.allclose(anew.head.weight, fitted.model.head.weight, atol=1e-2)


def test_a_fitted_head_learns_what_the_graph_says_of_unlabeled_documents(tmp_path: Path) -> None:
    few = {"loss": "ce", "max_steps": 0, "labels_per_class": 3}
    labels, graph, again = (
        run(tmp_path / str(number), quick(**few, refit_head=wanted)).model.head.weight.detach()
        for number, wanted in enumerate((False, True, True))
    )
    assert torch.equal(graph, again)
    assert not torch.allclose(labels, graph, atol=1e-3)
