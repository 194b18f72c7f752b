"""Training that stops and goes on from its state is training that never stopped, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.neighbors import DescentSettings, IVFSettings, inverted_lists
from gloss_graph.neighbors import search as choice

DIM, CORPUS, BATCH, CLASSES = 12, 500, 24, 3
SEARCHES: dict[str, Any] = {
    "exact": "exact",
    "faiss": "faiss",
    "matmul": "matmul",
    "auto": "auto",
    "descent": DescentSettings(width=6),
    "ivf": "ivf",
    # Lists so short and so few that rows are missed, and cells that are often found again.
    "ivf cells": IVFSettings(cells=12, probes=2, retrain_every=0.4),
}


@pytest.fixture(autouse=True)
def _small_banks_have_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "_MIN_ROWS", 120)
    monkeypatch.setattr(choice, "AUTO_ROWS", 200)
    monkeypatch.setattr(choice, "DESCENT_ROWS", 150)


def documents() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CORPUS, DIM, generator=generator)
    # A third of the corpus is there several times: ties everywhere.
    x[: CORPUS // 3] = x[:20].repeat(CORPUS, 1)[: CORPUS // 3]
    return x


class Run:
    """An objective, an encoder and an optimizer that train step by step."""

    def __init__(self, seed: int, bank: dict[str, Any], **settings: Any) -> None:
        memory = MemoryBank(280, DIM, k=4, **bank)
        options = {"refresh_every": 3, "consistency_start": 2, "eta": 0.01, **settings}
        self.objective = GraphGuidedObjective(CLASSES, memory=memory, k=4, seed=seed, **options)
        torch.manual_seed(seed)
        self.encoder = nn.Linear(DIM, DIM + CLASSES)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=0.02)
        self.parts = (self.objective, self.encoder, self.optimizer)

    def fill(self) -> None:
        ids = torch.arange(260)
        self.objective.memory.prefill([(documents()[:260], ids % CLASSES, ids)], lambda x: x)

    def steps(self, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            ids = torch.randperm(CORPUS, generator=draw)[:BATCH]
            labels = torch.where(ids % 2 == 0, ids % CLASSES, -1)
            out = self.encoder(documents()[ids])
            loss = self.objective(out[:, :DIM], labels, ids=ids, logits=out[:, DIM:])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def restored(self, seed: int, bank: dict[str, Any], **settings: Any) -> Run:
        file, other = io.BytesIO(), Run(seed, bank, **settings)
        torch.save([part.state_dict() for part in self.parts], file)
        file.seek(0)
        for part, state in zip(other.parts, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        return other


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def check_resume(bank: dict[str, Any], **settings: Any) -> None:
    whole, first = Run(0, bank, **settings), Run(0, bank, **settings)
    whole.fill()
    first.fill()
    losses = whole.steps(range(12))
    before = first.steps(range(5))
    resumed = first.restored(1, bank, **settings)
    assert before + resumed.steps(range(5, 12)) == losses
    assert_same(whole.objective, resumed.objective)
    assert_same(whole.encoder, resumed.encoder)


def slowly(*values: Any) -> list[Any]:
    """Cases that only the slow run takes."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("warm_start", [True, *slowly(False)])
@pytest.mark.parametrize(
    "name", ["auto", "descent", "ivf cells", *slowly("exact", "faiss", "matmul", "ivf")]
)
def test_five_steps_and_seven_are_twelve(name: str, warm_start: bool) -> None:
    check_resume({"search": SEARCHES[name]}, warm_start=warm_start)


@pytest.mark.parametrize("name", ["ivf cells", *slowly("auto")])
@pytest.mark.parametrize("eviction", ["reservoir", *slowly("stalest", "class-balanced")])
def test_whoever_leaves(name: str, eviction: str) -> None:
    check_resume({"search": SEARCHES[name], "eviction": eviction})


@pytest.mark.parametrize("name", ["ivf cells", *slowly("auto")])
@pytest.mark.parametrize("stored", [{"dtype": torch.float16}])
def test_however_rows_are_kept(name: str, stored: dict[str, Any]) -> None:
    check_resume({"search": SEARCHES[name], **stored})


def by_file(bank: MemoryBank, folder: Path) -> MemoryBank:
    return MemoryBank.load(bank.save(folder / "bank.safetensors"))


COPIES: dict[str, Callable[[MemoryBank, Path], MemoryBank]] = {
    "deepcopy": lambda bank, _: copy.deepcopy(bank),
    "pickle": lambda bank, _: pickle.loads(pickle.dumps(bank)),
    "file": by_file,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["auto", "ivf cells", *slowly("exact", "descent", "ivf")])
def test_a_copy_goes_on_as_the_bank_itself(name: str, how: str, tmp_path: Path) -> None:
    run = Run(0, {"search": SEARCHES[name]})
    run.fill()
    run.steps(range(4))
    bank = run.objective.memory
    twin = COPIES[how](bank, tmp_path)
    x = documents()
    for number in range(6):
        ids = torch.randperm(CORPUS, generator=torch.Generator().manual_seed(number))[:BATCH]
        moved = x[ids] + 0.1 * number
        for each in (bank, twin):
            each.enqueue(moved, ids % CLASSES, ids)
        one, other = bank.neighbors(moved, ids), twin.neighbors(moved, ids)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.squared_distances, other.squared_distances)
        assert_same(bank, twin)


@pytest.mark.parametrize("name", SEARCHES)
def test_looking_changes_no_state(name: str) -> None:
    run = Run(0, {"search": SEARCHES[name]})
    run.fill()
    bank = run.objective.memory
    before = copy.deepcopy(bank)
    bank.search(documents()[:40], 5)
    bank.neighbors(documents()[:40])
    bank.recall()
    assert_same(bank, before)


def test_a_state_without_cells_is_restored_and_finds_its_own() -> None:
    run = Run(0, {"search": "ivf"})
    run.fill()
    state = {k: v for k, v in run.objective.memory.state_dict().items() if "cells." not in k}
    old = MemoryBank(280, DIM, k=4, search="ivf")
    old.enqueue(documents()[300:], ids=torch.arange(300, CORPUS))
    old.load_state_dict(state)
    assert old.recall() > 0.9
    # And cells are no hindrance to a bank that has no use for them.
    exact = MemoryBank(280, DIM, k=4, search="exact")
    exact.load_state_dict(run.objective.memory.state_dict())
    assert_same(exact, by_search(old, "exact"))


def by_search(bank: MemoryBank, search: str) -> MemoryBank:
    other = copy.deepcopy(bank)
    other.set_search(search)
    return other
