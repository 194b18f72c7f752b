"""Resuming, copies, and states that do not fit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank
from objective.documents import (
    CLASSES,
    DIM,
    assert_same_state,
    filled,
    half_visible,
    labels_of,
    rows,
    step,
)


def losses_of(objective: GraphGuidedObjective, encoder: nn.Module, optimizer: Any, steps: range):
    """Losses of some training steps; batch and ids depend on the number of the step only."""
    out = []
    for number in steps:
        index = torch.randperm(40, generator=torch.Generator().manual_seed(number))[:12]
        x = rows(40, seed=77).float()[index]
        optimizer.zero_grad()
        loss = objective(encoder(x), index % CLASSES, ids=index)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def training(seed: int) -> tuple[GraphGuidedObjective, nn.Module, torch.optim.Optimizer]:
    objective = GraphGuidedObjective(
        CLASSES, memory=MemoryBank(30, DIM, k=3), k=3, memory_visible_fraction=0.8, seed=seed
    )
    torch.manual_seed(seed)
    encoder = nn.Linear(DIM, DIM)
    return objective, encoder, torch.optim.Adam(encoder.parameters(), lr=0.05)


def test_five_steps_and_a_resume_equal_ten_steps_bit_for_bit() -> None:
    whole = losses_of(*training(0), range(10))
    assert len(set(whole)) == 10
    first = training(0)
    losses = losses_of(*first, range(5))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = training(1)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    losses += losses_of(*second, range(5, 10))
    assert losses == whole


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_go_on_alike_and_apart(how: str) -> None:
    objective, encoder, optimizer = training(0)
    losses_of(objective, encoder, optimizer, range(3))
    if how == "deepcopy":
        twin = copy.deepcopy(objective)
    else:
        file = io.BytesIO()
        torch.save(objective, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(objective)
    before = snapshot(objective)
    x, ids = rows(12, seed=5), torch.arange(100, 112)
    twins = [twin(x, labels_of(12), ids=ids).item() for _ in range(2)]
    assert_same_state(before, snapshot(objective))
    assert [objective(x, labels_of(12), ids=ids).item() for _ in range(2)] == twins


def test_same_seed_same_splits() -> None:
    def splits(**settings: Any) -> list[list[bool]]:
        objective = GraphGuidedObjective(CLASSES, **settings)
        return [step(objective, rows(), labels_of()).hidden.tolist() for _ in range(4)]

    assert splits(seed=3) == splits(seed=3)
    assert splits(seed=3) != splits(seed=4)
    assert splits(seed=3) == splits(generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    splits()
    assert torch.equal(torch.rand(2), expected), "the global random state was used"


def test_a_pinned_split_draws_nothing() -> None:
    objective = GraphGuidedObjective(CLASSES)
    before = objective.generator.get_state()
    out = step(objective, rows(), labels_of(), visible=half_visible())
    assert torch.equal(objective.generator.get_state(), before)
    assert out.hidden.tolist() == (~half_visible()).tolist()


def test_state_is_made_of_tensors_only() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), class_weight=torch.ones(CLASSES))
    state = objective.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    rooms = {name.split(".")[0] for name in state}
    assert rooms == {"memory", "targets", "class_weight", "_extra_state"}
    assert state["_extra_state"].dtype == torch.uint8


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"weight": torch.zeros(3)},
        nn.Linear(2, 2).state_dict(),
        GraphGuidedObjective(CLASSES).state_dict(),
        GraphGuidedObjective(CLASSES, memory=MemoryBank(5, DIM)).state_dict(),
    ],
    ids=["nothing", "a tensor", "a layer", "no bank", "another bank"],
)
def test_foreign_state_is_refused(foreign: dict[str, Any]) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    refusal = r"Error.* in loading state_dict for GraphGuidedObjective|'capacity' must be that"
    with pytest.raises((RuntimeError, ValueError), match=refusal):
        objective.load_state_dict(foreign)


@pytest.mark.parametrize(
    "state", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), "text", {"seed": 0}, None]
)
def test_a_foreign_generator_state_is_refused(state: object) -> None:
    objective = GraphGuidedObjective(CLASSES)
    before = objective.generator.get_state()
    full = {**objective.state_dict(), "_extra_state": state}
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"generator|state"):
        objective.load_state_dict(full)
    assert torch.equal(objective.generator.get_state(), before)
