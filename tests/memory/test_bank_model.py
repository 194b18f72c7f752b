"""The bank against a plain Python model, under random histories."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gloss_graph import MemoryBank

from .helpers import enqueue_nameless

DIM = 5
# So few identities that documents come back all the time.
IDS = st.integers(0, 11)
LABELS = st.integers(-1, 3)


@dataclass
class Document:
    """One stored document; `tenancy` is a name no other stay in the bank ever has."""

    vector: np.ndarray
    label: int
    id: int
    written: int
    tenancy: int
    neighbors: list[int] = field(default_factory=list)


class BankModel:
    """What the docstrings promise, in lists and dictionaries."""

    def __init__(self, capacity: int, k: int, dtype: type) -> None:
        self.capacity, self.k, self.dtype = capacity, k, dtype
        self.tenancies = itertools.count()
        self.reset()

    def reset(self) -> None:
        self.slots: list[Document | None] = [None] * self.capacity
        self.cursor = self.step = self.anonymous = 0

    @property
    def stored(self) -> list[tuple[int, Document]]:
        return [(slot, doc) for slot, doc in enumerate(self.slots) if doc is not None]

    def find(self, id_: int) -> int | None:
        return next((slot for slot, doc in self.stored if doc.id == id_), None)

    def lists(self, x: np.ndarray, ids: list[int], k: int) -> list[list[tuple[str, int]]]:
        """k nearest of stored rows (without the batch's own) and the other batch rows."""
        banned = {self.find(id_) for id_ in ids}
        out = []
        for i in range(len(x)):
            found = [
                (float(((x[i] - doc.vector) ** 2).sum()), ("stored", doc.tenancy))
                for slot, doc in self.stored
                if slot not in banned
            ]
            found += [
                (float(((x[i] - x[j]) ** 2).sum()), ("mate", j)) for j in range(len(x)) if j != i
            ]
            out.append([who for _, who in sorted(found)[:k]])
        return out

    def enqueue(
        self, x: np.ndarray, labels: list[int], ids: list[int] | None, link: bool = True
    ) -> None:
        if self.capacity == 0 or len(x) == 0:
            return
        if ids is None:
            ids = [-2 - self.anonymous - i for i in range(len(x))]
            self.anonymous += len(x)
        lists = self.lists(x, ids, self.k if link else 0)
        last = {id_: i for i, id_ in enumerate(ids)}
        place = self.place(sorted(last.values()), ids, labels)
        tenancy = {}
        for i, slot in place.items():
            old = self.slots[slot]
            stays = old is not None and old.id == ids[i]
            tenancy[i] = old.tenancy if stays else next(self.tenancies)
        for i, slot in place.items():
            vector = x[i].astype(self.dtype).astype(np.float64)
            doc = Document(vector, labels[i], ids[i], self.step, tenancy[i])
            for kind, who in lists[i]:
                if kind == "stored":
                    doc.neighbors.append(who)
                elif who in tenancy:
                    doc.neighbors.append(tenancy[who])
            self.slots[slot] = doc
        self.step += 1

    def place(self, kept: list[int], ids: list[int], labels: list[int]) -> dict[int, int]:
        """Slot of every batch row that is stored."""
        kept = kept[-self.capacity :]
        place = {i: slot for i in kept if (slot := self.find(ids[i])) is not None}
        refreshed = set(place.values())
        for i in kept:
            if i in place:
                continue
            while self.cursor in refreshed:
                self.cursor = (self.cursor + 1) % self.capacity
            place[i] = self.cursor
            self.cursor = (self.cursor + 1) % self.capacity
        return place

    def relink(self) -> None:
        if len(self.stored) < 2:
            return
        for slot, doc in self.stored:
            others = sorted(
                (float(((doc.vector - other.vector) ** 2).sum()), other.tenancy)
                for place, other in self.stored
                if place != slot
            )
            doc.neighbors = [tenancy for _, tenancy in others[: self.k]]

    def edges(self) -> dict[tuple[int, int], float]:
        place = {doc.tenancy: slot for slot, doc in self.stored}
        return {
            (slot, place[who]): float(((doc.vector - self.slots[place[who]].vector) ** 2).sum())
            for slot, doc in self.stored
            for who in doc.neighbors
            if who in place
        }


class BankMachine(RuleBasedStateMachine):
    dtype = torch.float32
    backend = "matmul"
    eviction = "fifo"
    model_type = BankModel

    def make(self, capacity: int, k: int) -> MemoryBank:
        settings = {"dtype": self.dtype, "search": self.backend, "eviction": self.eviction}
        return MemoryBank(capacity, DIM, k=k, **settings)

    @initialize(capacity=st.integers(0, 7), k=st.integers(1, 4), seed=st.integers(0, 2**16))
    def start(self, capacity: int, k: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.bank = self.make(capacity, k)
        numpy_dtype = np.float32 if self.dtype == torch.float32 else np.float16
        self.model = self.model_type(capacity, k, numpy_dtype)
        self.tolerance = 1e-5 if self.dtype == torch.float32 else 1e-2

    def vectors(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        """Raw rows for the bank, unit rows for the model."""
        raw = self.rng.normal(size=(count, DIM)) * self.rng.uniform(0.1, 10.0, size=(count, 1))
        return torch.from_numpy(raw), raw / np.linalg.norm(raw, axis=1, keepdims=True)

    @rule(documents=st.lists(st.tuples(IDS, LABELS), max_size=10), link=st.sampled_from([1, 1, 0]))
    def enqueue(self, documents: list[tuple[int, int]], link: int) -> None:
        ids, labels = [id_ for id_, _ in documents], [label for _, label in documents]
        raw, unit = self.vectors(len(documents))
        self.bank.enqueue(
            raw, torch.tensor(labels).long(), torch.tensor(ids).long(), link=bool(link)
        )
        self.model.enqueue(unit, labels, ids, bool(link))

    @rule(labels=st.lists(LABELS, min_size=1, max_size=4))
    def enqueue_without_ids(self, labels: list[int]) -> None:
        raw, unit = self.vectors(len(labels))
        enqueue_nameless(self.bank, raw, torch.tensor(labels))
        self.model.enqueue(unit, labels, None)

    @rule(documents=st.lists(st.tuples(IDS, LABELS), min_size=1, max_size=6))
    def enqueue_with_lists_searched_before(self, documents: list[tuple[int, int]]) -> None:
        ids, labels = [id_ for id_, _ in documents], [label for _, label in documents]
        raw, unit = self.vectors(len(documents))
        neighbors = self.bank.neighbors(raw, torch.tensor(ids))
        self.bank.enqueue(raw, torch.tensor(labels), torch.tensor(ids), neighbors=neighbors)
        self.model.enqueue(unit, labels, ids)

    @rule()
    def relink(self) -> None:
        self.bank.relink()
        self.model.relink()

    @rule(often=st.integers(0, 3))
    def reset(self, often: int) -> None:
        if often == 0:
            self.bank.reset()
            self.model.reset()

    @rule(how=st.sampled_from(["state_dict", "file", "deepcopy", "pickle"]))
    def continue_with_a_copy(self, how: str) -> None:
        before = {name: value.clone() for name, value in self.bank.state_dict().items()}
        if how == "deepcopy":
            self.bank = copy.deepcopy(self.bank)
        elif how == "pickle":
            self.bank = pickle.loads(pickle.dumps(self.bank))
        else:
            state = self.bank.state_dict()
            if how == "file":
                file = io.BytesIO()
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
            fresh = self.make(self.bank.capacity, self.bank.k)
            # The target held other documents: none of them may shine through.
            fresh.enqueue(torch.ones(3, DIM), ids=torch.tensor([0, 100, 101]))
            fresh.load_state_dict(state)
            self.bank = fresh
        after = self.bank.state_dict()
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert value.dtype == after[name].dtype
            assert torch.equal(value, after[name]), name

    @precondition(lambda self: self.model.capacity > 0)
    @rule(k=st.integers(1, 9), exclude=st.lists(st.integers(0, 14), max_size=6))
    def search(self, k: int, exclude: list[int]) -> None:
        raw, unit = self.vectors(3)
        found = self.bank.search(raw, k, exclude_ids=torch.tensor(exclude).long())
        assert found.distances.shape == found.slots.shape == (3, k)
        allowed = [(slot, doc) for slot, doc in self.model.stored if doc.id not in exclude]
        for i in range(3):
            best = sorted((float(np.linalg.norm(unit[i] - d.vector)), s) for s, d in allowed)[:k]
            padding = k - len(best)
            assert found.slots[i].tolist() == [slot for _, slot in best] + [-1] * padding
            expected = [distance for distance, _ in best] + [float("inf")] * padding
            assert found.distances[i].tolist() == pytest.approx(expected, abs=self.tolerance)

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        if not hasattr(self, "bank"):
            return
        stored = self.model.stored
        assert [slot for slot, _ in stored] == list(range(len(stored)))
        assert len(self.bank) == len(stored)
        assert self.bank.ids.tolist() == [doc.id for _, doc in stored]
        assert self.bank.labels.tolist() == [doc.label for _, doc in stored]
        assert self.bank.age.tolist() == [self.model.step - doc.written - 1 for _, doc in stored]
        expected = np.array([doc.vector for _, doc in stored]).reshape(-1, DIM)
        np.testing.assert_allclose(
            self.bank.embeddings.double().numpy(), expected, atol=self.tolerance
        )
        assert self.bank.slots_of(torch.arange(15)).tolist() == [
            -1 if (slot := self.model.find(id_)) is None else slot for id_ in range(15)
        ]

    @invariant()
    def links_are_those_of_the_model(self) -> None:
        if not hasattr(self, "bank"):
            return
        source, target, squared = self.bank.edges()
        pairs = list(zip(source.tolist(), target.tolist(), strict=True))
        expected = self.model.edges()
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == set(expected)
        assert source.tolist() == sorted(source.tolist())
        assert bool((source != target).all())
        rows = self.bank.embeddings.double()
        exact = (rows[source] - rows[target]).square().sum(dim=1)
        torch.testing.assert_close(squared.double(), exact, rtol=1e-5, atol=1e-6)

    @invariant()
    def statistics_are_those_of_the_model(self) -> None:
        if not hasattr(self, "bank"):
            return
        stats = self.bank.stats()
        docs = [doc for _, doc in self.model.stored]
        assert (stats.size, stats.capacity) == (len(docs), self.model.capacity)
        assert sum(stats.class_counts.values()) == len(docs)
        for label, count in stats.class_counts.items():
            assert count == sum(doc.label == label for doc in docs)
        ages = [self.model.step - doc.written - 1 for doc in docs] or [0]
        assert stats.max_age == max(ages)
        assert stats.mean_age == pytest.approx(sum(ages) / len(ages))
        assert stats.anonymous == sum(doc.id < 0 for doc in docs)
        assert stats.mean_degree == pytest.approx(len(self.model.edges()) / max(len(docs), 1))

    @invariant()
    def buffers_stay_plain(self) -> None:
        if hasattr(self, "bank"):
            for value in self.bank.state_dict().values():
                assert value.grad_fn is None
                assert not value.requires_grad


class FaissMachine(BankMachine):
    backend = "faiss"


class HalfMachine(BankMachine):
    dtype = torch.float16


TestBank = BankMachine.TestCase
TestBank.settings = settings(max_examples=40, stateful_step_count=12)
TestFaissBank = FaissMachine.TestCase
TestFaissBank.settings = settings(max_examples=15, stateful_step_count=12)
TestHalfBank = HalfMachine.TestCase
TestHalfBank.settings = settings(max_examples=15, stateful_step_count=12)
