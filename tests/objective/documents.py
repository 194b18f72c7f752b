"""Batches, banks and steps that the tests of the objective share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, ObjectiveOutput

CLASSES, DIM, SIZE = 3, 5, 16


def rows(count: int = SIZE, seed: int = 0, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def labels_of(count: int = SIZE) -> Tensor:
    return torch.arange(count) % CLASSES


def filled(count: int = 20, capacity: int = 60, unlabeled: int = 0, **settings: Any) -> MemoryBank:
    bank = MemoryBank(capacity, DIM, k=4, **settings)
    labels = labels_of(count)
    labels[:unlabeled] = -1
    for part in torch.arange(count).split(7):
        bank.enqueue(rows(count, seed=9)[part], labels[part], part + 1000)
    return bank


def half_visible(count: int = SIZE) -> Tensor:
    return torch.arange(count) % 4 < 2


def step(
    objective: GraphGuidedObjective, x: Tensor, labels: Tensor, **call: Any
) -> ObjectiveOutput:
    out = objective(x, labels, return_output=True, **call)
    assert isinstance(out, ObjectiveOutput)
    return out


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
