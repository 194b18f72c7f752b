"""One step of the trainer against a plain torch loop."""

from __future__ import annotations

import copy
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, snapshot
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from gloss_graph import GraphGuidedObjective
from gloss_graph.training import GraphGuidedTrainer, TextClassifier

from .tiny import (
    CLASSES,
    DIM,
    GradientRecorder,
    gradients,
    make_trainer,
    tiny_classifier,
    tiny_corpus,
    tiny_objective,
)

WEIGHT = 0.3
# The argument's name changes on the way to transformers 6.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(TrainingArguments)}
)


def plain_loss(
    model: TextClassifier, objective: GraphGuidedObjective, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, graph loss and cross-entropy of a batch, written out; the bank takes the batch."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "ids")}
    out = model(**inputs)
    graph_loss = objective(out.embeddings, batch["labels"], ids=batch["ids"])
    cross_entropy = F.cross_entropy(out.logits, batch["labels"])
    return WEIGHT * graph_loss + (1 - WEIGHT) * cross_entropy, graph_loss, cross_entropy


def logged(trainer: GraphGuidedTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def count_calls(module: nn.Module) -> list[int]:
    """A list that grows with every call of the module."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_compute_loss_has_the_signature_of_the_trainer_it_replaces() -> None:
    ours = inspect.signature(GraphGuidedTrainer.compute_loss).parameters
    theirs = inspect.signature(Trainer.compute_loss).parameters
    assert list(ours) == list(theirs)
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    for name in ("training_step", "prediction_step", "log", "save_model", "_load_from_checkpoint"):
        ours = inspect.signature(getattr(GraphGuidedTrainer, name)).parameters
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        assert list(ours) == list(theirs), name


@pytest.mark.parametrize("count", [None, 1, 4, torch.tensor(9)])
def test_number_of_items_does_not_scale_the_loss(tmp_path: Path, count: Any) -> None:
    """The loss is a mean over the batch; scaling it again would shrink the gradient."""
    model = tiny_classifier(dropout=False)
    trainer = make_trainer(tmp_path, model, tiny_objective(graph_weight=WEIGHT))
    batch = next(iter(trainer.get_train_dataloader()))
    expected, _, _ = plain_loss(model, tiny_objective(graph_weight=WEIGHT).train(), batch)
    model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
    torch.testing.assert_close(loss, expected)
    assert set(batch) >= {"labels", "ids"}, "the caller's batch must stay whole"


def test_training_is_the_plain_loop(tmp_path: Path) -> None:
    """Losses, their parts, the bank and the weights after ten steps of plain SGD."""
    model, objective = tiny_classifier(dropout=False), tiny_objective(10, graph_weight=WEIGHT)
    twin, twin_objective = copy.deepcopy(model).train(), copy.deepcopy(objective).train()
    trainer = make_trainer(tmp_path, model, objective, max_steps=10, sgd=True)
    trainer.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    rows = []
    for batch in trainer.data_collator.batches[:10]:
        loss, *parts = plain_loss(twin, twin_objective, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append([value.item() for value in (loss, *parts)])
    for name, values in zip(
        ("loss", "graph_loss", "cross_entropy"), np.array(rows).T.tolist(), strict=True
    ):
        assert logged(trainer, name) == pytest.approx(values, abs=2e-5), name
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert torch.equal(objective.memory.ids, twin_objective.memory.ids)
    torch.testing.assert_close(
        objective.memory.embeddings, twin_objective.memory.embeddings, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(objective.generator.get_state(), twin_objective.generator.get_state())


@pytest.mark.parametrize("capacity", [0, 24])
def test_gradients_of_one_step(tmp_path: Path, capacity: int) -> None:
    model, objective = tiny_classifier(dropout=False), tiny_objective(capacity)
    objective.graph_weight = WEIGHT
    twin, twin_objective = copy.deepcopy(model).train(), copy.deepcopy(objective).train()
    recorder = GradientRecorder()
    trainer = make_trainer(
        tmp_path,
        model,
        objective,
        max_steps=1,
        per_device_train_batch_size=12,
        callbacks=[recorder],
    )
    trainer.train()
    plain_loss(twin, twin_objective, trainer.data_collator.batches[0])[0].backward()
    expected = gradients(twin)
    assert recorder.steps[0].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(recorder.steps[0][name], value, rtol=1e-5, atol=1e-7)
    assert any(bool(value.abs().sum()) for name, value in expected.items() if "encoder" in name)


def test_one_encoder_pass_a_step(tmp_path: Path) -> None:
    model, objective = tiny_classifier(), tiny_objective()
    encoder_calls = count_calls(model.encoder)
    model_calls, objective_calls = count_calls(model.encoder.model), count_calls(objective)
    make_trainer(tmp_path, model, objective, max_steps=3).train()
    assert len(encoder_calls) == len(model_calls) == len(objective_calls) == 3


def test_accumulated_gradients_are_the_mean_over_micro_batches(tmp_path: Path) -> None:
    """2 x 4 documents a step; the bank grows by micro-batch."""
    model, objective = tiny_classifier(dropout=False), tiny_objective(graph_weight=WEIGHT)
    twin, twin_objective = copy.deepcopy(model).train(), copy.deepcopy(objective).train()
    recorder, sizes = GradientRecorder(), []
    objective.register_forward_pre_hook(lambda *_: sizes.append(len(objective.memory)))
    trainer = make_trainer(
        tmp_path,
        model,
        objective,
        max_steps=2,
        gradient_accumulation_steps=2,
        callbacks=[recorder],
        sgd=True,
    )
    trainer.train()
    assert sizes == [0, 4, 8, 12]
    assert len(objective.memory) == 16
    micro = [plain_loss(twin, twin_objective, b)[0] for b in trainer.data_collator.batches[:2]]
    ((micro[0] + micro[1]) / 2).backward()
    for name, value in gradients(twin).items():
        torch.testing.assert_close(recorder.steps[0][name], value, rtol=1e-5, atol=1e-7)
    assert logged(trainer, "loss")[0] == pytest.approx(
        sum(loss.item() for loss in micro) / 2, abs=2e-5
    )


def test_a_short_last_accumulation_counts_its_own_micro_batches(tmp_path: Path) -> None:
    """12 documents in micro-batches of 4, two a step: the second step has one only."""
    model, objective = tiny_classifier(dropout=False), tiny_objective(graph_weight=WEIGHT)
    recorder = GradientRecorder()
    trainer = make_trainer(
        tmp_path,
        model,
        objective,
        documents=tiny_corpus(12),
        max_steps=2,
        gradient_accumulation_steps=2,
        callbacks=[recorder],
        learning_rate=0.0,
    )
    twin, twin_objective = copy.deepcopy(model).train(), copy.deepcopy(objective).train()
    trainer.train()
    losses = [plain_loss(twin, twin_objective, b)[0] for b in trainer.data_collator.batches[:3]]
    losses[2].backward()
    for name, value in gradients(twin).items():
        torch.testing.assert_close(recorder.steps[1][name], value, rtol=1e-5, atol=1e-7)


def test_bfloat16_autocast_leaves_the_objective_in_float32(tmp_path: Path) -> None:
    model, objective = tiny_classifier(), tiny_objective()
    seen: dict[str, Any] = {}
    linear = model.encoder.model.encoder.layer[0].attention.self.query
    linear.register_forward_hook(lambda module, args, out: seen.update(inner=out.dtype))

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update(embeddings=args[0].dtype, autocast=torch.is_autocast_enabled("cpu"))

    objective.register_forward_pre_hook(keep, with_kwargs=True)
    before = snapshot(model)
    trainer = make_trainer(tmp_path, model, objective, max_steps=3, bf16=True)
    trainer.train()
    assert seen["inner"] == torch.bfloat16
    assert seen["embeddings"] == torch.float32
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert objective.memory.rows.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in model.parameters())
    assert not torch.equal(before["head.weight"], model.head.weight)
    assert all(0 < value < 10 for value in logged(trainer, "loss"))
    exact = tiny_classifier()
    exact_trainer = make_trainer(tmp_path, exact, tiny_objective(), max_steps=1)
    exact_trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(logged(exact_trainer, "loss")[0], rel=0.05)


def test_gradient_checkpointing_recomputes_and_changes_nothing(tmp_path: Path) -> None:
    results = []
    for on in (False, True):
        model, recorder = tiny_classifier(dropout=False), GradientRecorder()
        calls = count_calls(model.encoder.model.encoder.layer[0].attention.self)
        trainer = make_trainer(
            tmp_path,
            model,
            tiny_objective(),
            max_steps=2,
            **{CHECKPOINTING: on},
            callbacks=[recorder],
        )
        trainer.train()
        assert len(calls) == (4 if on else 2)
        results.append(recorder.steps)
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.keys() == checkpointed.keys()
        for name, value in plain.items():
            torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(
    not CHECKPOINTING.startswith("activation"), reason="transformers has no such option yet"
)
def test_checkpointing_of_every_other_layer(tmp_path: Path) -> None:
    model = tiny_classifier(dropout=False)
    calls = [count_calls(layer.attention.self) for layer in model.encoder.model.encoder.layer]
    options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"every_n_layers": 2}}
    make_trainer(tmp_path, model, tiny_objective(), max_steps=1, **options).train()
    assert sorted(map(len, calls)) == [1, 2]


def test_stage_seconds_name_every_stage(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_classifier(), tiny_objective(), max_steps=2)
    trainer.train()
    seconds = trainer.stage_seconds()
    assert {"encoder", "search", "graph", "propagation", "enqueue", "loss"} < set(seconds)
    assert {"backward", "optimizer"} < set(seconds)
    assert all(value >= 0 for value in seconds.values())
    plain = make_trainer(tmp_path, tiny_classifier(), None, max_steps=1)
    plain.train()
    assert set(plain.stage_seconds()) == {"encoder", "backward", "optimizer"}


def test_unlabeled_documents_train_without_a_score(tmp_path: Path) -> None:
    """A batch without a single label has no loss, and its rows still enter the bank."""
    corpus = tiny_corpus(8)
    blank = type(corpus)(corpus.texts, [-1] * 8, corpus.ids, corpus.label_names)
    for objective in (tiny_objective(), None):
        recorder = GradientRecorder()
        trainer = make_trainer(
            tmp_path,
            tiny_classifier(),
            objective,
            documents=blank,
            max_steps=2,
            callbacks=[recorder],
        )
        trainer.train()
        assert logged(trainer, "loss") == [0.0, 0.0]
        assert all(not value.any() for step in recorder.steps for value in step.values())
        if objective is not None:
            assert objective.memory.labels.tolist() == [-1] * 8


def test_the_model_is_untouched_by_a_batch_that_raises(tmp_path: Path) -> None:
    model, objective = tiny_classifier(), tiny_objective()
    trainer = make_trainer(tmp_path, model, objective)
    batch = next(iter(trainer.get_train_dataloader()))
    before = snapshot(objective)
    model.train()
    with pytest.raises(ValueError, match=f"must lie in 0..{len(CLASSES) - 1}"):
        trainer.compute_loss(model, {**batch, "labels": batch["labels"] + len(CLASSES)})
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
        model.encoder.model.embeddings.word_embeddings.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="'embeddings' must be finite"):
        trainer.compute_loss(model, batch)
    assert_same_state(objective.state_dict(), before)
    assert objective.memory.dim == DIM
