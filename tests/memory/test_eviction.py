"""Every eviction policy against a plain Python model, and what it promises of a stream."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.memory import EVICTIONS, FirstInFirstOut, Reservoir, Stalest

from .test_bank_model import BankMachine, BankModel

NAMES = sorted(EVICTIONS)
_WORD = (1 << 64) - 1


def splitmix(x: int) -> int:
    """SplitMix64 on Python's unbounded integers, the result as a signed word."""
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


class StalestModel(BankModel):
    def place(self, kept: list[int], ids: list[int], labels: list[int]) -> dict[int, int]:
        kept = kept[-self.capacity :]
        place = {i: slot for i in kept if (slot := self.find(ids[i])) is not None}
        for i in kept:
            if i not in place:
                taken = set(place.values())
                free = [slot for slot in range(self.capacity) if self.slots[slot] is None]
                stored = [(d.written, slot) for slot, d in self.stored if slot not in taken]
                unused = [slot for slot in free if slot not in taken]
                place[i] = unused[0] if unused else min(stored)[1]
        return place


class ClassBalancedModel(BankModel):
    def place(self, kept: list[int], ids: list[int], labels: list[int]) -> dict[int, int]:
        """One document at a time: slot -> (class, when, batch row or None)."""
        held: dict[int, tuple[int, tuple[int, int], int | None]] = {}
        for slot, doc in self.stored:
            held[slot] = (doc.label, (doc.written, slot), None)
        for i in kept:
            slot = self.find(ids[i])
            if slot is not None:
                held[slot] = (self.slots[slot].label, (self.step, slot), i)
        for i in kept:
            if self.find(ids[i]) is not None:
                continue
            if len(held) < self.capacity:
                slot = len(held)
            else:
                counts = Counter([label for label, _, _ in held.values()] + [labels[i]])
                most = max(counts.values())
                slot = min(
                    (when, place)
                    for place, (label, when, _) in held.items()
                    if counts[label] == most
                )[1]
            held[slot] = (labels[i], (self.step + 1, i), i)
        return {i: slot for slot, (_, _, i) in held.items() if i is not None}


class ReservoirModel(BankModel):
    def place(self, kept: list[int], ids: list[int], labels: list[int]) -> dict[int, int]:
        place = {i: slot for i in kept if (slot := self.find(ids[i])) is not None}
        owner = {slot: i for i, slot in place.items()}
        everyone = {doc.id for _, doc in self.stored} | {ids[i] for i in kept}
        best = sorted(everyone, key=lambda id_: splitmix(id_ + splitmix(0)))[: self.capacity]
        leaving = [slot for slot, doc in self.stored if doc.id not in best]
        free = list(range(len(self.stored), self.capacity)) + leaving
        coming = [i for i in kept if i not in place and ids[i] in best]
        for slot in leaving:
            if slot in owner:
                del place[owner[slot]]
        return place | dict(zip(coming, free, strict=False))


class StalestMachine(BankMachine):
    eviction, model_type = "stalest", StalestModel


class ClassBalancedMachine(BankMachine):
    eviction, model_type = "class-balanced", ClassBalancedModel


class ReservoirMachine(BankMachine):
    eviction, model_type = "reservoir", ReservoirModel


_SETTINGS = settings(max_examples=25, stateful_step_count=12)
TestStalest = StalestMachine.TestCase
TestStalest.settings = _SETTINGS
TestClassBalanced = ClassBalancedMachine.TestCase
TestClassBalanced.settings = _SETTINGS
TestReservoir = ReservoirMachine.TestCase
TestReservoir.settings = _SETTINGS


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def stream(bank: MemoryBank, ids: Tensor, labels: Tensor | None = None, batch: int = 16) -> None:
    labels = torch.zeros_like(ids) if labels is None else labels
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        bank.enqueue(rows(len(ids[part]), start), labels[part], ids[part], link=False)


# ------------------------------------------------------------------ promises about a stream


def test_a_reservoir_is_a_uniform_sample_of_distinct_documents() -> None:
    """Also of documents that come more often than others; chi-square over 400 seeds."""
    size, capacity, draws = 40, 10, 400
    often = torch.cat([torch.arange(size), torch.arange(8).repeat(5), torch.arange(size)])
    hits, pairs = torch.zeros(size), 0
    for seed in range(draws):
        bank = MemoryBank(capacity, 3, k=0, eviction=Reservoir(seed))
        order = torch.randperm(len(often), generator=torch.Generator().manual_seed(seed))
        stream(bank, often[order], batch=60)
        assert len(bank) == capacity
        hits[bank.ids] += 1
        pairs += int(0 in bank.ids and 1 in bank.ids)
    expected = draws * capacity / size
    chi = float(((hits - expected) ** 2 / (expected * (1 - capacity / size))).sum())
    # Under uniformity about chi-square with size - 1 degrees of freedom: 39 +- 9.
    assert 39 - 4 * 9 < chi < 39 + 4 * 9
    # Neighboring ids are drawn independently: 400 * (10 * 9) / (40 * 39) = 23 +- 5.
    assert abs(pairs - 23) < 20


def test_a_reservoir_does_not_depend_on_order_or_batches() -> None:
    ids = torch.arange(200)
    found = []
    for seed, batch in ((0, 1), (1, 7), (2, 200)):
        bank = MemoryBank(20, 3, k=0, eviction="reservoir")
        stream(
            bank,
            ids[torch.randperm(200, generator=torch.Generator().manual_seed(seed))],
            None,
            batch,
        )
        found.append(sorted(bank.ids.tolist()))
        assert bank.stats().declined + bank.stats().evicted == 180
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("share", [0.95, 0.5])
def test_class_balanced_evens_a_stream_out(share: float) -> None:
    source = torch.Generator().manual_seed(1)
    labels = (torch.rand(4000, generator=source) >= share).long()
    bank = MemoryBank(64, 3, k=0, eviction="class-balanced")
    stream(bank, torch.arange(4000), labels)
    counts = bank.stats().class_counts
    assert counts == {0: 32, 1: 32}
    # The oldest of a class leave: the last 32 of each class are what is left.
    for label in (0, 1):
        mine = bank.ids[bank.labels == label]
        assert sorted(mine.tolist()) == (labels == label).nonzero().squeeze(1)[-32:].tolist()
    plain = MemoryBank(64, 3, k=0)
    stream(plain, torch.arange(4000), labels)
    assert share == 0.5 or plain.stats().class_counts.get(1, 0) < 12


def test_class_balanced_counts_the_unlabeled_as_a_class() -> None:
    bank = MemoryBank(9, 3, k=0, eviction="class-balanced")
    stream(bank, torch.arange(90), torch.where(torch.arange(90) % 30 < 2, torch.arange(90) % 2, -1))
    assert bank.stats().class_counts == {-1: 3, 0: 3, 1: 3}


def test_stalest_spares_what_was_refreshed_and_fifo_does_not() -> None:
    left = {}
    for name in ("fifo", "stalest"):
        bank = MemoryBank(4, 3, k=1, eviction=name)
        bank.enqueue(rows(4), ids=torch.arange(4))
        bank.enqueue(rows(2, 1), ids=torch.tensor([0, 1]))
        bank.enqueue(rows(2, 2), ids=torch.tensor([8, 9]))
        left[name] = sorted(bank.ids.tolist())
    assert left == {"fifo": [2, 3, 8, 9], "stalest": [0, 1, 8, 9]}


# ------------------------------------------------------------------ bookkeeping


@pytest.mark.parametrize("name", NAMES)
def test_an_evicted_row_is_in_no_neighbor_list(name: str) -> None:
    """Every link names a document that is stored, and one that was near when it was made."""
    bank = MemoryBank(12, 3, k=4, eviction=name)
    for step in range(20):
        ids = torch.arange(step * 7, step * 7 + 9)
        bank.enqueue(rows(9, step), ids % 3, ids)
        source, target, squared = bank.edges()
        assert len(bank) <= 12
        exact = (bank.embeddings[source] - bank.embeddings[target]).square().sum(dim=1)
        torch.testing.assert_close(squared, exact)
        assert bank.ids.unique().numel() == len(bank)
    stats = bank.stats()
    assert stats.evicted == int(bank.links.stamps.sum()) - 12
    assert (stats.declined is None) == (name != "reservoir")


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_bank_goes_on_bit_for_bit(name: str) -> None:
    ids = torch.randint(0, 60, (240,), generator=torch.Generator().manual_seed(3))
    whole = MemoryBank(16, 3, k=2, eviction=name)
    stream(whole, ids, ids % 3)
    first = MemoryBank(16, 3, k=2, eviction=name)
    stream(first, ids[:96], ids[:96] % 3)
    # The seed is part of the state: another one that the target was made with does not matter.
    policy: Any = Reservoir(99) if name == "reservoir" else name
    second = MemoryBank(16, 3, k=2, eviction=policy)
    second.load_state_dict(first.state_dict())
    for start in range(96, 240, 16):
        part = ids[start : start + 16]
        second.enqueue(rows(len(part), start), part % 3, part, link=False)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_the_default_has_the_state_of_old_checkpoints() -> None:
    names = set(MemoryBank(4, 3).state_dict())
    assert not any("eviction" in name for name in names)
    assert set(MemoryBank(4, 3, eviction="reservoir").state_dict()) - names == {
        "eviction.seed",
        "eviction.declined",
    }


def test_reset_forgets_the_counts() -> None:
    bank = MemoryBank(4, 3, k=1, eviction="reservoir")
    stream(bank, torch.arange(40))
    assert bank.stats().declined > 0
    bank.reset()
    assert (bank.stats().declined, bank.stats().evicted, bank.stats().fill) == (0, 0, 0.0)
    stream(bank, torch.arange(40))
    assert len(bank) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_in_which_nothing_is_new(name: str) -> None:
    bank = MemoryBank(4, 3, k=1, eviction=name)
    bank.enqueue(rows(4), ids=torch.arange(4))
    bank.enqueue(rows(4, 1), ids=torch.arange(4))
    assert bank.age.tolist() == [0] * 4
    assert bank.stats().evicted == 0


def test_a_batch_that_is_declined_whole_ages_the_rest() -> None:
    policy = Reservoir()
    order = policy.priority(torch.arange(100)).argsort()
    bank = MemoryBank(4, 3, k=2, eviction=policy)
    bank.enqueue(rows(4), ids=order[:4])
    bank.enqueue(rows(90, 1), ids=order[10:])
    assert bank.ids.tolist() == order[:4].tolist()
    assert bank.age.tolist() == [1] * 4
    assert bank.slots_of(order[10:]).eq(-1).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_trains_over_any_policy(name: str) -> None:
    bank = MemoryBank(10, 3, k=3, eviction=name)
    objective = GraphGuidedObjective(2, memory=bank, k=3)
    for step in range(6):
        x = rows(8, step).requires_grad_()
        ids = torch.arange(8) + 5 * step
        loss = objective(x, ids % 2, ids=ids)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert bool(torch.isfinite(x.grad).all())


# ------------------------------------------------------------------ settings


def test_repr_names_what_is_not_the_default() -> None:
    assert "eviction" not in repr(MemoryBank(4, 3))
    assert repr(MemoryBank(4, 3, eviction="stalest")).endswith(", eviction='stalest')")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"'eviction' must be one of \['class-balanced', 'fifo'"):
        MemoryBank(4, 3, eviction="lru")
    for wrong in (3, None, FirstInFirstOut, object()):
        with pytest.raises(TypeError, match="'eviction' must be one of"):
            MemoryBank(4, 3, eviction=wrong)
    with pytest.raises(ValueError, match="label sets"):
        MemoryBank(4, 3, num_classes=2, eviction="class-balanced")
    for seed in (-1, 0.5, True):
        with pytest.raises(ValueError, match="'seed' must be"):
            Reservoir(seed)


class NewestSlot(nn.Module):
    """A policy of one's own: every new document takes the last slot."""

    name = "newest"
    whole_batch = False

    def __init__(self, answer: list[int] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def choose(self, bank: Any, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        self.calls += 1
        if self.answer is not None:
            return torch.tensor(self.answer)
        slots = torch.full_like(ids, -1)
        free = min(bank.capacity - len(bank), ids.numel())
        slots[:free] = torch.arange(len(bank), len(bank) + free)
        if not free:
            slots[-1] = bank.capacity - 1
        return slots


def test_a_policy_of_ones_own_and_its_state() -> None:
    bank = MemoryBank(4, 3, k=1, eviction=NewestSlot())
    stream(bank, torch.arange(12), batch=4)
    assert bank.ids.tolist() == [0, 1, 2, 11]
    assert int(bank.state_dict()["eviction.calls"]) == 3
    assert "eviction='newest'" in repr(bank)


@pytest.mark.parametrize("answer", [[0], [0, 0], [4, 3], [3, 1], [-2, 0], [9, 2]])
def test_slots_that_do_not_fit_change_nothing(answer: list[int]) -> None:
    bank = MemoryBank(4, 3, k=1, eviction=NewestSlot())
    bank.enqueue(rows(2), ids=torch.arange(2))
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    bank.eviction.answer = answer
    with pytest.raises(ValueError, match="'eviction' 'newest' must give 2 documents"):
        bank.enqueue(rows(2, 1), ids=torch.tensor([7, 8]))
    for name, value in bank.state_dict().items():
        assert name == "eviction.calls" or torch.equal(value, before[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_bank_goes_on_under_its_policy(name: str, tmp_path: Path) -> None:
    policy: Any = Reservoir(7) if name == "reservoir" else name
    bank = MemoryBank(6, 3, k=1, eviction=policy)
    stream(bank, torch.arange(40), torch.arange(40) % 5)
    again = MemoryBank.load(bank.save(tmp_path / "bank.safetensors"))
    assert repr(again) == repr(bank)
    for one in (bank, again):
        stream(one, torch.arange(40, 90), torch.arange(50) % 2)
    assert again.ids.tolist() == bank.ids.tolist()
    assert again.stats() == bank.stats()


class Mine(Stalest):
    """A known policy that decides in another way: its name makes the parent."""


@pytest.mark.parametrize("policy", [NewestSlot, Mine])
def test_a_policy_of_ones_own_is_not_saved(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'eviction' must be one of .* for a bank that is saved"):
        MemoryBank(4, 3, eviction=policy()).save(tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())
