"""The objective's state as a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_state, snapshot
from safetensors.torch import load_file, save_file
from torch import Tensor

from gloss_graph import GraphGuidedObjective
from gloss_graph.training import load_objective, save_objective
from gloss_graph.training.checkpoints import check_model

from .tiny import DIM, tiny_objective


def batch(seed: int, size: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(40, generator=generator)[:size]
    return torch.randn(size, DIM, generator=generator), ids % 3, ids


def used_objective(
    capacity: int = 12, seed: int = 0, steps: int = 5, **settings: Any
) -> GraphGuidedObjective:
    objective = tiny_objective(capacity, seed=seed, **settings)
    for step in range(steps):
        x, labels, ids = batch(step)
        objective(x, labels, ids=ids)
    return objective


@pytest.mark.parametrize("capacity", [0, 12, 100])
def test_a_restored_objective_goes_on_in_the_same_way(tmp_path: Path, capacity: int) -> None:
    one, other = used_objective(capacity), used_objective(capacity, seed=7, steps=1)
    file = save_objective(one, tmp_path / "objective.safetensors")
    load_objective(other, file)
    assert_same_state(other.state_dict(), one.state_dict())
    for step in range(5, 9):
        x, labels, ids = batch(step)
        results = [o(x, labels, ids=ids, return_output=True) for o in (one, other)]
        assert torch.equal(results[0].loss, results[1].loss)
        assert torch.equal(results[0].hidden, results[1].hidden)
        assert torch.equal(results[0].graph.edge_index, results[1].graph.edge_index)
    assert_same_state(other.state_dict(), one.state_dict())


def test_the_file_has_the_rights_of_the_users_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    file = save_objective(used_objective(), tmp_path / "objective.safetensors")
    assert file.stat().st_mode == plain.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [file, plain]


def test_forms_without_a_bank_hold_their_generator(tmp_path: Path) -> None:
    one, other = (GraphGuidedObjective.released(3, 0.5, seed=seed) for seed in (0, 1))
    load_objective(other, save_objective(one, tmp_path / "state"))
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


def test_class_weights_travel_too(tmp_path: Path) -> None:
    one = tiny_objective(4, class_weight=torch.tensor([1.0, 2.0, 3.0]))
    other = tiny_objective(4, class_weight=torch.ones(3))
    load_objective(other, save_objective(one, tmp_path / "state"))
    assert other.class_weight.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"class_weight: \(3,\) float32 in the file, absent here"):
        load_objective(tiny_objective(4), tmp_path / "state")


def test_saving_replaces_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "objective.safetensors"
    assert save_objective(used_objective(), str(file)) == file
    save_objective(used_objective(steps=2), file)
    assert int(load_file(file)["memory.step"]) == 2
    content = file.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_objective(used_objective(), file)
    assert file.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing", "folder"])
def test_a_damaged_file_is_named_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    file = save_objective(used_objective(), tmp_path / "objective.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(
            {"truncated": content[: len(content) // 2], "garbage": b"{" * 99, "empty": b""}[damage]
        )
    objective = used_objective(seed=3, steps=2)
    before = snapshot(objective)
    with pytest.raises(ValueError, match="no readable objective state") as caught:
        load_objective(objective, file)
    assert str(file) in str(caught.value)
    assert_same_state(objective.state_dict(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: used_objective(13), r"\(13,.* in the file, \(12,.* here"),
        (lambda: GraphGuidedObjective.released(3, 0.5), "absent in the file"),
        (lambda: torch.nn.Linear(2, 2), "bias: .* in the file, absent here"),
    ],
    ids=["capacity", "no-bank", "foreign"],
)
def test_a_foreign_file_changes_nothing(tmp_path: Path, make: object, message: str) -> None:
    file = save_objective(make(), tmp_path / "objective.safetensors")
    objective = used_objective(12, steps=2)
    before = snapshot(objective)
    with pytest.raises(ValueError, match="is of other settings") as caught:
        load_objective(objective, file)
    assert str(file) in str(caught.value)
    caught.match(message)
    assert_same_state(objective.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("memory.rows", Tensor.half, "float16 in the file, .* float32 here"),
        ("_extra_state", torch.zeros_like, "is damaged"),
    ],
)
def test_a_file_with_one_wrong_tensor_changes_nothing(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    """A bank stored in half precision; a state the generator refuses."""
    settings = {"class_weight": torch.tensor([1.0, 2.0, 3.0])}
    file = save_objective(used_objective(**settings), tmp_path / "objective.safetensors")
    state = load_file(file)
    save_file({**state, name: change(state[name])}, file)
    objective = used_objective(steps=2, class_weight=torch.ones(3))
    before = snapshot(objective)
    with pytest.raises(ValueError, match=message) as caught:
        load_objective(objective, file)
    assert str(file) in str(caught.value)
    assert_same_state(objective.state_dict(), before)


def test_a_bank_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    file = save_objective(used_objective(), tmp_path / "objective.safetensors", model=model)
    with pytest.raises(ValueError, match=r"objective\.safetensors belongs to a model of other"):
        check_model(other, file)
    other.load_state_dict(model.state_dict())
    check_model(other, file)
    objective = used_objective(seed=7, steps=1)
    load_objective(objective, file)
    assert_same_state(objective.state_dict(), used_objective().state_dict())
    check_model(model, save_objective(objective, tmp_path / "plain.safetensors"))
    with pytest.raises(ValueError, match=r"no readable objective state .*absent"):
        check_model(model, tmp_path / "absent")
