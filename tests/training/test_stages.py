"""The contrastive stages before training, and heads fitted without training."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import snapshot

from gloss_graph.analysis import classification_scores
from gloss_graph.inference.agreement import agreed_labels, view_votes
from gloss_graph.text import Corpus, lexical_rows
from gloss_graph.training import Run, TextClassifier, TrainConfig, stages
from gloss_graph.training.config import recipe_settings
from gloss_graph.training.data import MixedSampler, with_few_labels
from gloss_graph.training.stages import (
    drawn_batches,
    fit_head,
    head_settings,
    shared_words,
)
from training.tiny import CLASSES, quick, run, tiny_encoder, tiny_splits

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")


def corpus_of(labels: list[int]) -> Corpus:
    return Corpus([f"text {i}" for i in range(len(labels))], labels, [*range(len(labels))], CLASSES)


def test_agreed_labels_keep_the_known_ones() -> None:
    """Two tight groups of four, one document far away that no label reaches."""
    torch.manual_seed(0)
    centers = torch.eye(5).repeat_interleave(torch.tensor([4, 4, 0, 0, 0]), dim=0)
    rows = torch.cat([centers + 0.01 * torch.randn(8, 5), torch.eye(5)[4:]])
    labels = torch.tensor([0, -1, -1, -1, 1, -1, -1, -1, -1])
    settings = head_settings(TrainConfig(k=3, bandwidth=0.05), 2)
    found, trust = agreed_labels(rows, labels, settings)
    assert found[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert trust[[0, 4]].tolist() == [1.0, 1.0]
    assert (trust[:8] > 0.9).all()
    assert float(trust[8]) < 0.01


def found_labels(
    rows: torch.Tensor, corpus: Corpus, config: TrainConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    words, labels = shared_words(corpus, config), torch.tensor(corpus.labels)
    settings = head_settings(config, corpus.num_classes)
    views = [] if words is None else [view_votes(words, labels, settings)]
    return agreed_labels(rows, labels, settings, views)


def spoken(own: torch.Tensor, labels: torch.Tensor, seed: int, silent: int = 0) -> Corpus:
    """Documents of ten words, three of four from those of their class; the last say nothing."""
    rng = np.random.default_rng(seed)
    texts = [
        " ".join(
            f"w{(c if rng.random() < 0.75 else 1 - c) * 20 + rng.integers(20)}" for _ in range(10)
        )
        for c in own.tolist()
    ]
    texts[len(texts) - silent :] = [""] * silent
    return Corpus(texts, labels.tolist(), [*range(len(texts))], ["one", "other"])


def test_words_teach_what_embeddings_do_not_know() -> None:
    """Two views of two classes, either of them weak: together they are right more often."""
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(200) % 2
    rows = torch.eye(4)[own] + 0.9 * torch.randn(200, 4, generator=generator)
    labels = torch.where(torch.arange(200) < 16, own, -1)
    corpus = spoken(own, labels, 0, silent=3)
    found = {
        name: found_labels(rows, corpus, TrainConfig(k=10, graph_start_classes=name))
        for name in ("auto", "co-training", "agreed")
    }
    share = {name: float((classes == own).float().mean()) for name, (classes, _) in found.items()}
    assert torch.equal(found["auto"][1], found["co-training"][1])
    assert share["co-training"] > share["agreed"] + 0.03
    classes, trust = found["co-training"]
    assert torch.equal(classes[:16], labels[:16])
    assert (trust[:16] == 1.0).all()


def test_documents_without_words_are_told_nothing_by_words() -> None:
    """They are all alike there, and would follow the one of them that is labeled."""
    own = torch.arange(60) % 2
    rows = torch.eye(4)[own] + 0.1 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(60) < 12, own, -1)
    labels[-1] = own[-1]
    settings = head_settings(TrainConfig(k=6), 2)
    words = lexical_rows(spoken(own, labels, 1, silent=8), 16)
    assert words is not None
    silent, trust = (
        part[-8:-1]
        for part in agreed_labels(rows, labels, settings, [view_votes(words, labels, settings)])
    )
    assert torch.equal(silent, own[-8:-1])
    assert (trust > 0.5).all()
    # What they are told without words, less sure as some views say nothing.
    alone = agreed_labels(rows, labels, settings)[1][-8:-1]
    assert (trust < alone).all()


def test_names_of_features_are_no_words() -> None:
    own = torch.arange(200) % 2
    labels = torch.where(torch.arange(200) < 16, own, -1)
    corpus = spoken(own, labels, 0)
    corpus = replace(corpus, features=np.zeros((200, 2), dtype=np.float32))
    rows = torch.eye(4)[own] + 0.5 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    auto, agreed = (
        found_labels(rows, corpus, TrainConfig(k=6, graph_start_classes=name))
        for name in ("auto", "agreed")
    )
    assert torch.equal(auto[1], agreed[1])


def test_co_training_without_words_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(stages, "contrastive_warm_start", lambda *_, **__: steps.append("step"))
    splits = tiny_splits()
    names = [f"name{i}" for i in range(len(splits.train))]
    splits = replace(splits, train=replace(splits.train, texts=names))
    config = quick(
        loss="gloss",
        max_steps=0,
        labels_per_class=3,
        warm_start_steps=2,
        graph_start_steps=2,
        graph_start_classes="co-training",
    )
    with pytest.raises(ValueError, match="'graph_start_classes' is \"co-training\", which needs"):
        run(tmp_path / "run", config, splits)
    assert steps == []


def test_the_stage_on_the_corpus_has_a_rate_of_its_own(tmp_path: Path) -> None:
    few = {"loss": "gloss", "max_steps": 0, "labels_per_class": 3, "graph_start_steps": 2}
    plain, doubled, other = (
        snapshot(run(tmp_path / name, quick(**few, warm_start_rate=1e-3, **rate)).model)
        for name, rate in (
            ("plain", {}),
            ("doubled", {"graph_start_rate": 2e-3}),
            ("other", {"graph_start_rate": 1e-3}),
        )
    )
    weight = "encoder.model.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(plain[weight], doubled[weight])
    assert not torch.equal(plain[weight], other[weight])
    with pytest.raises(ValueError, match="'graph_start_rate'"):
        TrainConfig(graph_start_rate=0.0)


@pytest.mark.parametrize(("labeled", "steps"), [(8, 80), (640, 200), (5000, 400)])
def test_more_labels_make_the_stage_on_the_corpus_longer(labeled: int, steps: int) -> None:
    corpus = corpus_of([i % 3 for i in range(labeled)] + [-1] * 9)
    recipe = recipe_settings("few-labels", few_labels=True)
    assert stages.corpus_steps(corpus, TrainConfig(**recipe)) == steps
    assert stages.corpus_steps(corpus, TrainConfig(**recipe | {"graph_start_steps": 7})) == 7
    with pytest.raises(ValueError, match="'graph_start_steps'"):
        TrainConfig(graph_start_steps=-1)


def test_labels_of_one_class_leave_out_the_regression() -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(20) < 8, 1, -1)
    found, trust = agreed_labels(rows, labels, head_settings(TrainConfig(k=4), 3))
    assert (found == 1).all()
    assert bool(torch.isfinite(trust).all())


def test_other_classes_of_the_corpus_stage_are_refused() -> None:
    with pytest.raises(ValueError, match="'graph_start_classes' must be one of"):
        TrainConfig(graph_start_classes="graph")


def test_turns_balance_classes() -> None:
    corpus = corpus_of([0] * 5 + [1] * 2 + [-1] * 3)
    sampler = MixedSampler(corpus.labels, labeled=1, unlabeled=0, balanced=True, seed=0)
    batches = drawn_batches(sampler, 8, 5)
    assert [len(batch) for batch in batches] == [8] * 5
    counts = Counter(place for batch in batches for place in batch)
    assert sum(counts[place] for place in range(5)) == pytest.approx(20, abs=4)
    assert set(counts) == set(range(7))


def test_the_graph_start_learns_from_unlabeled_documents(tmp_path: Path) -> None:
    """The same labels and seed: the second stage changes the encoder, and repeats bit for bit."""
    few = {"loss": "gloss", "max_steps": 0, "labels_per_class": 3, "warm_start_steps": 3}
    runs = {
        name: run(tmp_path / name, quick(**few, graph_start_steps=steps))
        for name, steps in (("labels", 0), ("corpus", 4), ("again", 4))
    }
    states = {name: snapshot(result.model) for name, result in runs.items()}
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
    before = snapshot(tiny_encoder())
    after = snapshot(result.model.encoder)
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


@pytest.mark.parametrize("loss", ["pseudo-label", "gloss"])
def test_a_refitted_head_leaves_the_trained_encoder(tmp_path: Path, loss: str) -> None:
    few = {"loss": loss, "labels_per_class": 3, "max_steps": 3, "select": "last"}
    plain, fitted = (
        run(tmp_path / name, quick(**few, refit_head=name == "fitted"))
        for name in ("plain", "fitted")
    )
    one, other = snapshot(plain.model), snapshot(fitted.model)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"head.weight", "head.bias"}
    assert fitted.metrics["head.C"] > 0
    assert "head.C" not in plain.metrics
    # It is the head that these embeddings are given where nothing is trained together.
    config = quick(**few, refit_head=True)
    train = with_few_labels(
        tiny_splits(),
        fraction=config.label_fraction,
        per_class=config.labels_per_class,
        seed=config.seed,
    ).train
    frozen = {"train": tiny_encoder().embed(train)}
    views: Any = SimpleNamespace(frozen=frozen, train=train, config=config)
    refitted = TextClassifier(fitted.model.encoder, CLASSES, seed=1)
    fit_head(refitted, views, fitted.model.encoder.embed(train))
    assert torch.allclose(refitted.head.weight, fitted.model.head.weight, atol=1e-3)
    views.config = quick(loss="ce")
    fit_head(refitted, views, fitted.model.encoder.embed(train))
    assert not torch.allclose(refitted.head.weight, fitted.model.head.weight, atol=1e-2)


def test_a_fitted_head_learns_what_the_graph_says_of_unlabeled_documents(tmp_path: Path) -> None:
    few = {"loss": "ce", "max_steps": 0, "labels_per_class": 3}
    labels, graph, again = (
        run(tmp_path / str(number), quick(**few, refit_head=wanted)).model.head.weight.detach()
        for number, wanted in enumerate((False, True, True))
    )
    assert torch.equal(graph, again)
    assert not torch.allclose(labels, graph, atol=1e-3)
