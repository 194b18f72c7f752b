"""What a run records for its pictures, and that recording changes nothing else."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_state
from torch import Tensor
from torch.nn.functional import normalize
from transformers import TrainerControl, TrainerState

from gloss_graph._internal.labels import stratified_sample
from gloss_graph.text import Corpus, Splits
from gloss_graph.training import FixedBatch, RunResult, load_snapshots, train_text

from .tiny import (
    CLASSES,
    StopAt,
    make_trainer,
    quick,
    run,
    tiny_classifier,
    tiny_corpus,
    tiny_encoder,
    tiny_splits,
)


def timeless(result: RunResult) -> dict[str, float]:
    return {k: v for k, v in result.metrics.items() if not k.startswith("seconds.")}


def unlabeled(corpus: Corpus) -> Corpus:
    return replace(corpus, labels=[-1] * len(corpus))


# ------------------------------------------------------------------ draws


def test_a_sample_keeps_shares_and_every_class() -> None:
    labels = np.array([0] * 600 + [1] * 300 + [2] * 99 + [3])
    drawn = stratified_sample(labels, 100)
    assert drawn.size == np.unique(drawn).size == 100
    counts = Counter(labels[drawn].tolist())
    assert counts[3] == 1
    assert (counts[0], counts[1]) in {(60, 30), (59, 30), (60, 29)}
    assert np.array_equal(drawn, stratified_sample(labels, 100))
    assert not np.array_equal(drawn, stratified_sample(labels, 100, seed=1))


def test_a_balanced_sample_takes_what_small_classes_have() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    counts = Counter(labels[stratified_sample(labels, 21, balanced=True)].tolist())
    assert counts == {0: 9, 1: 9, 2: 3}


def test_samples_at_the_edge() -> None:
    assert stratified_sample([], 3).tolist() == []
    assert stratified_sample([2, 0, -1], 3).tolist() == [0, 1, 2]
    labels = np.repeat(np.arange(10), np.arange(1, 11))
    drawn = labels[stratified_sample(labels, 4)]
    assert drawn.tolist() == [6, 7, 8, 9]  # the largest, one each
    with pytest.raises(ValueError, match="'size' must be an integer of at least 1"):
        stratified_sample([0, 1], 0)


# ------------------------------------------------------------------ the fixed batch


def random_states() -> tuple[Any, ...]:
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), legacy, torch.get_rng_state().tolist()


def test_a_pass_leaves_modes_and_random_states_alone() -> None:
    encoder = tiny_encoder()
    encoder.train()
    part = next(module for module in encoder.modules() if isinstance(module, torch.nn.Dropout))
    part.eval()  # one part is frozen by the user
    before = random_states()
    batch = FixedBatch(encoder, tiny_corpus(30), size=13)
    batch.take("start")
    batch.take("again")
    assert random_states() == before
    assert encoder.training
    assert not part.training
    assert torch.equal(*batch.passes.values())  # no dropout
    assert not batch.passes["start"].requires_grad
    assert batch.passes["start"].shape == (13, encoder.dim)
    assert sorted(Counter(batch.labels.tolist()).values()) == [4, 4, 5]
    assert batch.seconds > 0


def test_documents_are_labeled_ones_and_hang_on_the_seed_alone() -> None:
    corpus = tiny_corpus(90, first_id=500)
    labels = [label if place % 2 else -1 for place, label in enumerate(corpus.labels)]
    corpus = replace(corpus, labels=labels)
    one, same, other = (FixedBatch(tiny_encoder(), corpus, size=12, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.ids, same.ids)
    assert not torch.equal(one.ids, other.ids)
    assert (one.labels >= 0).all()
    assert [labels[i - 500] for i in one.ids.tolist()] == one.labels.tolist()
    few = FixedBatch(tiny_encoder(), corpus, size=8)
    assert sorted(Counter(few.labels.tolist()).values()) == [4, 4]  # of three classes, two
    alone = FixedBatch(tiny_encoder(), replace(corpus, labels=[0] * 90), size=200)
    assert alone.labels.tolist() == [0] * 90


@pytest.mark.parametrize(
    ("steps", "moments", "expected"),
    [(100, 4, [9, 25, 46, 72]), (2, 4, [1]), (1, 4, []), (40, 1, [14]), (40, 0, [])],
)
def test_moments_of_a_training(steps: int, moments: int, expected: list[int]) -> None:
    batch = FixedBatch(tiny_encoder(), tiny_corpus(6), moments=moments)
    state = TrainerState(max_steps=steps)
    batch.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        state.global_step = step
        batch.on_step_end(None, state, TrainerControl())  # type: ignore[arg-type]
    assert list(batch.passes) == [f"step {step}" for step in expected]
    with pytest.raises(ValueError, match="'moments' must be"):
        FixedBatch(tiny_encoder(), tiny_corpus(6), moments=-1)


def test_the_batch_follows_the_training(tmp_path: Path) -> None:
    model = tiny_classifier()
    batch = FixedBatch(model.encoder, tiny_corpus(12), warm_start=True, moments=3)
    batch.take("start")
    make_trainer(tmp_path, model, None, callbacks=[batch], max_steps=6).train()
    assert list(batch.passes) == ["start", "warm start", "step 1", "step 3"]
    start, warm, first, third = batch.passes.values()
    assert torch.equal(start, warm)
    assert not torch.allclose(warm, first, atol=1e-4)
    assert not torch.allclose(first, third, atol=1e-4)


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("select", ["last", "best"])
def test_every_epoch_is_recorded(tmp_path: Path, select: str) -> None:
    """Those of the weights in training, whichever are kept in the end."""
    config = quick(epochs=3, max_steps=None, select=select)
    model = run(tmp_path / "run", config, tiny_splits(train=36)).model
    data = load_snapshots(tmp_path / "run")
    assert data is not None
    assert list(data.epochs) == [0.0, 1.0, 2.0, 3.0]
    passes = list(data.epochs.values())
    assert torch.equal(passes[0], data.moments["start"])
    assert all(not torch.equal(one, two) for one, two in pairwise(passes))
    if select == "last":
        assert torch.equal(passes[-1], data.moments["end"])
        texts = tiny_splits(train=36).val.texts
        torch.testing.assert_close(passes[-1], halved(model.encoder.encode(texts)))


def test_of_many_epochs_some_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gloss_graph.training.snapshots._EPOCHS", 2)
    batch = FixedBatch(tiny_encoder(), tiny_corpus(6), moments=0)
    batch.take("start")
    make_trainer(
        tmp_path, tiny_classifier(), None, callbacks=[batch], max_steps=-1, num_train_epochs=5
    ).train()
    batch.finish("end")
    assert list(batch.epochs) == [0.0, 3.0, 5.0]
    assert list(batch.passes) == ["start", "end"]
    # One that stops early ends with the epoch it broke off in.
    batch = FixedBatch(tiny_encoder(), tiny_corpus(6), moments=0)
    batch.take("start")
    make_trainer(
        tmp_path,
        tiny_classifier(),
        None,
        callbacks=[batch, StopAt(9)],
        max_steps=-1,
        num_train_epochs=5,
    ).train()
    batch.finish("end")
    start, *_, end = batch.epochs
    assert start == 0.0
    assert 1 < end < 3
    # One broken off has no whole epoch.
    batch = FixedBatch(tiny_encoder(), tiny_corpus(6), moments=0)
    batch.take("start")
    make_trainer(tmp_path, tiny_classifier(), None, callbacks=[batch], max_steps=1).train()
    batch.finish("end")
    start, end = batch.epochs
    assert start == 0.0
    assert 0 < end < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ce"},
        {"loss": "gloss", "labels_per_class": 3, "warm_start_steps": 2, "class_balance": True},
        {"loss": "setfit", "labels_per_class": 3},
        {"loss": "pseudo-label", "labels_per_class": 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_run_is_the_same_with_and_without(tmp_path: Path, settings: dict[str, Any]) -> None:
    on, off = (
        run(tmp_path / str(pictures), quick(pictures=pictures, **settings))
        for pictures in (True, False)
    )
    assert timeless(on) == timeless(off)
    assert on.history == off.history
    assert_same_state(on.model.state_dict(), off.model.state_dict())
    assert_same_state(on.objective.state_dict(), off.objective.state_dict())
    assert not (tmp_path / "False" / "pictures").exists()
    assert load_snapshots(tmp_path / "False") is None
    data = load_snapshots(tmp_path / "True")
    assert data is not None
    names = list(data.moments)
    assert (names[0], names[-1].split(",")[0]) == ("start", "end")
    stages = [settings.get(name, 0) for name in ("warm_start_steps", "graph_start_steps")]
    assert ("warm start" in names) == (sum(stages) > 0)
    assert len(names) == {"setfit": 2}.get(settings["loss"], len(names))


def halved(rows: Tensor) -> Tensor:
    return normalize(rows.float(), dim=1).half().float()


def test_a_record_holds_rows_before_and_after(tmp_path: Path) -> None:
    splits = tiny_splits(train=36, val=12, test=15)
    result = run(tmp_path / "run", splits=splits)
    data = load_snapshots(tmp_path / "run")
    assert data is not None
    assert (data.split, data.split_size, data.batch_split) == ("test", 15, "val")
    assert data.label_names == CLASSES
    assert data.ids.tolist() == splits.test.ids
    assert data.labels.tolist() == splits.test.labels
    torch.testing.assert_close(data.before, halved(tiny_encoder().encode(splits.test.texts)))
    torch.testing.assert_close(data.after, halved(result.embeddings["test"]))
    assert sorted(data.batch_labels.tolist()) == sorted(splits.val.labels)
    last = list(data.moments.values())[-1]
    torch.testing.assert_close(last, halved(result.model.encoder.encode(splits.val.texts)))
    assert data.class_counts == {
        "train": [12, 12, 12, 0],
        "val": [4, 4, 4, 0],
        "test": [5, 5, 5, 0],
    }
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {
        "data.safetensors",
        "data.json",
    }


def test_documents_come_from_the_part_that_has_labels(tmp_path: Path) -> None:
    splits = tiny_splits()
    cases = {
        "no-test": (replace(splits, test=None), "val", "val"),
        "blank-test": (replace(splits, test=unlabeled(splits.test)), "val", "val"),
        "train-only": (Splits(splits.train), "train", "train"),
    }
    for name, (parts, split, batch) in cases.items():
        run(tmp_path / name, quick(max_steps=3, select="last"), splits=parts)
        data = load_snapshots(tmp_path / name)
        assert data is not None
        assert (data.split, data.batch_split) == (split, batch)
        assert data.after.shape == data.before.shape
        assert not torch.equal(data.after, data.before)


def test_rows_at_hand_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, encoder = tiny_splits(), tiny_encoder()
    frozen = {
        name: encoder.encode(getattr(splits, name).texts) for name in ("train", "val", "test")
    }
    seen: list[int] = []
    plain = type(encoder).encode

    def counted(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(len(texts))
        return plain(self, texts, *args, **kwargs)

    monkeypatch.setattr(type(encoder), "encode", counted)
    config = quick(labels_per_class=3, max_steps=1)
    train_text(splits, encoder, config, tmp_path / "run", frozen=frozen)
    # The batch of 12 at start and end, and what the run encodes at its end anyway.
    assert seen == [12, 12, 15, 12]


def test_a_large_part_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gloss_graph.training.snapshots._DOCUMENTS", 9)
    result = run(tmp_path / "run", quick(max_steps=1), tiny_splits(test=30))
    data = load_snapshots(tmp_path / "run")
    assert data is not None
    assert data.split_size == 30
    assert Counter(data.labels.tolist()) == {0: 3, 1: 3, 2: 3}
    places = [tiny_splits(test=30).test.ids.index(i) for i in data.ids.tolist()]
    torch.testing.assert_close(data.after, halved(result.embeddings["test"][places]))


# ------------------------------------------------------------------ damage


def test_damaged_records_are_named(tmp_path: Path) -> None:
    run(tmp_path / "run", quick(max_steps=1))
    names = tmp_path / "run" / "pictures" / "data.json"
    rows = names.with_name("data.safetensors")
    written, content = names.read_text(), rows.read_bytes()
    good = json.loads(written)
    damages = [
        (names, "{"),
        (names, "[]"),
        (names, json.dumps({**good, "format": "other"})),
        (names, json.dumps({**good, "moments": ["start"]})),
        (names, json.dumps({**good, "epochs": [0.0]})),
        (names, json.dumps({**good, "label_names": ["one"]})),
        (names, json.dumps({k: v for k, v in good.items() if k != "split"})),
        (rows, content[:100]),
        (rows, b""),
    ]
    for file, damage in damages:
        file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
        with pytest.raises(ValueError, match="'pictures' of a run must be what training wrote"):
            load_snapshots(tmp_path / "run")
        names.write_text(written)
        rows.write_bytes(content)
    assert load_snapshots(tmp_path / "run") is not None
    rows.unlink()
    with pytest.raises(ValueError, match="Remove it to do without"):
        load_snapshots(tmp_path / "run")
