"""What a step does to the bank."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank, losses
from objective.documents import (
    CLASSES,
    DIM,
    SIZE,
    assert_same_state,
    filled,
    labels_of,
    rows,
    step,
)


def test_the_batch_is_stored_after_the_loss_with_what_was_found() -> None:
    bank = filled()
    before = snapshot(bank)
    objective = GraphGuidedObjective(CLASSES, memory=bank, k=4)
    x, ids = rows().requires_grad_(), torch.arange(SIZE) + 1010  # half of them are stored
    out = step(objective, x, labels_of(), ids=ids)
    assert set(out.graph.doc_id[SIZE:].tolist()) == set(range(1000, 1010))
    twin = filled()
    assert_same_state(before, snapshot(twin))
    twin.enqueue(x, labels_of(), ids)
    assert_same_state(snapshot(bank), snapshot(twin))
    for value in bank.state_dict().values():
        assert value.grad_fn is None
        assert not value.requires_grad


@pytest.mark.parametrize("stage", ["bandwidth", "kernel", "form", "search"])
def test_an_error_in_any_stage_leaves_the_bank_alone(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> Tensor:
        raise ArithmeticError(stage)

    settings: dict[str, Any] = {stage: fail} if stage in ("bandwidth", "kernel") else {}
    objective = GraphGuidedObjective(CLASSES, memory=filled(), **settings)
    if stage == "form":
        monkeypatch.setitem(losses.FORMS, "nll", fail)
    if stage == "search":
        monkeypatch.setattr(MemoryBank, "neighbors_of", fail)
    before = snapshot(objective.memory)
    with pytest.raises(ArithmeticError, match=stage):
        objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert_same_state(before, snapshot(objective.memory))


def test_in_eval_mode_the_step_is_the_same_but_nothing_is_stored() -> None:
    training = GraphGuidedObjective(CLASSES, memory=filled())
    evaluating = GraphGuidedObjective(CLASSES, memory=filled()).eval()
    before = snapshot(evaluating.memory)
    losses = [
        objective(rows(), labels_of(), ids=torch.arange(SIZE)).item()
        for objective in (training, evaluating)
    ]
    assert losses[0] == losses[1]
    assert_same_state(before, snapshot(evaluating.memory))
    assert len(training.memory) == 36


def test_without_ids_the_bank_warns_once() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    with pytest.warns(UserWarning, match="label leakage"):
        objective(rows(), labels_of())
    objective(rows(), labels_of())
    GraphGuidedObjective(CLASSES)(rows(), labels_of())  # no bank, nothing to warn of


def test_memory_does_not_grow_with_the_steps() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(capacity=30))
    encoder = nn.Linear(DIM, DIM)

    def run(count: int) -> int:
        for number in range(count):
            x = rows(SIZE, seed=number).float()
            objective(encoder(x), labels_of(), ids=torch.arange(SIZE) + number).backward()
            encoder.zero_grad()
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    run(3)
    assert run(5) == run(10)
