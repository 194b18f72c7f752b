"""Graphs of a batch and a bank, against an oracle that only reads the bank's rows and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from reference import dense_weights, distance, median_distance, pairs_of, unit
from torch import Tensor

from gloss_graph import MemoryBank, build_document_graph

DIM = 4


def draw(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64)


def filled(k: int = 3, capacity: int = 14, **settings: Any) -> MemoryBank:
    """A bank with a past: three batches, evictions, one refreshed document, unlabeled rows."""
    bank = MemoryBank(capacity, DIM, k=k, **settings)
    bank.enqueue(draw(6, 1), torch.tensor([0, 1, 2, 0, 1, -1]), torch.arange(6))
    bank.enqueue(draw(6, 2), torch.tensor([2, 0, -1, 1, 2, 0]), torch.arange(4, 10))
    bank.enqueue(draw(5, 3), torch.tensor([1, 1, 0, 2, -1]), torch.arange(20, 25))
    return bank


BATCH_IDS = torch.tensor([4, 30, 21, 31, 32])
BATCH_LABELS = torch.tensor([0, 1, -1, 2, 1])


@dataclass
class Oracle:
    """The graph the docstring describes, from the bank's public views."""

    slots: list[int]
    pairs: set[tuple[int, int]]
    batch_lists: list[list[int]]
    memory_lists: list[list[int]]
    known: np.ndarray


def oracle(
    bank: MemoryBank,
    x: Tensor,
    ids: Tensor | None,
    *,
    k: int,
    batch_edges: str = "knn",
    symmetrize: str = "union",
    hops: int | None = None,
) -> Oracle:
    size = len(x)
    own = set() if ids is None else set(ids.tolist())
    slots = [slot for slot, id_ in enumerate(bank.ids.tolist()) if id_ not in own]
    batch = unit(x.detach().double().numpy()) if bank.normalize else x.detach().double().numpy()
    rows = bank.embeddings.double().numpy()
    stored = [
        (a, b)
        for a, b in zip(*(end.tolist() for end in bank.edges()[:2]), strict=True)
        if a in slots and b in slots
    ]

    def nearest_of(i: int) -> list[tuple[str, int]]:
        found = [(distance(batch[i], rows[slot]), ("slot", slot)) for slot in slots]
        found += [(distance(batch[i], batch[j]), ("row", j)) for j in range(size) if j != i]
        return [who for _, who in sorted(found)[:k]]

    chosen = [nearest_of(i) for i in range(size)]
    if hops is not None:
        near = {number for row in chosen for kind, number in row if kind == "slot"}
        for _ in range(hops - 1):
            near |= {b for a, b in stored if a in near} | {a for a, b in stored if b in near}
        slots = sorted(near)
        stored = [(a, b) for a, b in stored if a in near and b in near]
    node = {slot: size + position for position, slot in enumerate(slots)}
    known = np.concatenate([batch, rows[slots]]) if slots else batch
    batch_lists = [[node[n] if kind == "slot" else n for kind, n in row] for row in chosen]
    memory_lists = [[node[b] for a, b in stored if a == slot] for slot in slots]

    listed = {(i, j) for i, row in enumerate(batch_lists) for j in row}
    if batch_edges == "all":
        listed |= {(i, j) for i in range(size) for j in range(size) if i != j}
    listed |= {(size + p, j) for p, row in enumerate(memory_lists) for j in row}
    if symmetrize == "mutual":
        for i, j in list(listed):
            if i < size <= j:
                lengths = [distance(known[j], known[m]) for m in memory_lists[j - size]]
                if lengths and distance(known[i], known[j]) < max(lengths):
                    listed.add((j, i))
        listed = {(i, j) for i, j in listed if (j, i) in listed}
    pairs = {(min(i, j), max(i, j)) for i, j in listed}
    return Oracle(slots, pairs, batch_lists, memory_lists, known)


def weights(x: Tensor, bank: MemoryBank, plan: Oracle, sigma2: Any) -> Tensor:
    """Gaussian weights (N, N), differentiable in x only."""
    u = x / x.norm(dim=1, keepdim=True) if bank.normalize else x
    everyone = torch.cat([u, bank.embeddings[plan.slots].double()])
    w = torch.zeros(len(everyone), len(everyone), dtype=torch.float64)
    for i, j in plan.pairs:
        s2 = sigma2(i, j) if callable(sigma2) else sigma2
        value = torch.exp(-((everyone[i] - everyone[j]) ** 2).sum() / (2.0 * s2))
        for a, b in ((i, j), (j, i)):
            w = w.index_put((torch.tensor(a), torch.tensor(b)), value)
    return w


def compare(bank: MemoryBank, sigma2: Any, plan: Oracle, **settings: Any) -> None:
    x = draw(5, 7).requires_grad_()
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    data = build_document_graph(x, BATCH_LABELS, BATCH_IDS, memory=bank, **settings)
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} was written to"
    assert data.num_nodes == 5 + len(plan.slots)
    assert data.doc_id[5:].tolist() == bank.ids[plan.slots].tolist()
    assert pairs_of(data.edge_index) == plan.pairs
    assert data.edge_index.size(1) == 2 * len(plan.pairs)
    assert data.is_coalesced()
    assert data.is_undirected()
    actual = dense_weights(data.edge_index, data.edge_weight, data.num_nodes)
    expected = weights(x, bank, plan, sigma2)
    # Stored rows and lengths are float32.
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-6)
    generator = torch.Generator().manual_seed(9)
    pull = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    (ours,) = torch.autograd.grad((actual * pull).sum(), x)
    (theirs,) = torch.autograd.grad((expected * pull).sum(), x)
    assert float(theirs.abs().min()) > 0
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("batch_edges", ["knn", "all"])
@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
@pytest.mark.parametrize("k", [1, 3, 6, 40])
def test_edges_weights_and_gradients(k: int, symmetrize: str, batch_edges: str) -> None:
    bank = filled()
    settings = {"k": k, "symmetrize": symmetrize, "batch_edges": batch_edges}
    plan = oracle(bank, draw(5, 7), BATCH_IDS, **settings)
    compare(bank, 0.49, plan, bandwidth=0.7, **settings)


@pytest.mark.parametrize("hops", [1, 2, 3, 9])
def test_hops_keep_what_is_near_the_batch(hops: int) -> None:
    bank = filled(k=1)
    plan = oracle(bank, draw(5, 7), BATCH_IDS, k=1, hops=hops)
    everyone = oracle(bank, draw(5, 7), BATCH_IDS, k=1)
    # Some remembered rows are not tied to the batch at all, others only over several links.
    nearer = oracle(bank, draw(5, 7), BATCH_IDS, k=1, hops=max(hops - 1, 1))
    assert set(nearer.slots) <= set(plan.slots) < set(everyone.slots)
    assert hops != 2 or set(nearer.slots) < set(plan.slots)
    compare(bank, 0.49, plan, bandwidth=0.7, k=1, hops=hops)


def test_unnormalized_bank() -> None:
    bank = filled(normalize=False)
    plan = oracle(bank, draw(5, 7), BATCH_IDS, k=3)
    compare(bank, 4.0, plan, bandwidth=2.0, k=3, normalize_embeddings=False)


def test_half_precision_bank() -> None:
    bank = filled(dtype=torch.float16)
    plan = oracle(bank, draw(5, 7), BATCH_IDS, k=3)
    compare(bank, 0.49, plan, bandwidth=0.7, k=3)


@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
def test_local_bandwidth_knows_the_lists_of_both_sides(symmetrize: str) -> None:
    bank = filled()
    plan = oracle(bank, draw(5, 7), BATCH_IDS, k=4, symmetrize=symmetrize)

    def scale(i: int) -> float:
        row = plan.batch_lists[i] if i < 5 else plan.memory_lists[i - 5]
        return max((distance(plan.known[i], plan.known[j]) for j in row), default=1.0)

    compare(
        bank,
        lambda i, j: scale(i) * scale(j),
        plan,
        bandwidth="local",
        k=4,
        symmetrize=symmetrize,
    )


@pytest.mark.parametrize("rule", ["sqrt", "inflection", "interclass_min"])
def test_bandwidth_is_estimated_on_batch_and_bank_together(rule: str) -> None:
    bank = filled()
    plan = oracle(bank, draw(5, 7), BATCH_IDS, k=3)
    y = BATCH_LABELS.tolist() + bank.labels[plan.slots].tolist()
    if rule == "interclass_min":
        labeled = [i for i, label in enumerate(y) if label >= 0]
        sigma = (
            min(
                distance(plan.known[i], plan.known[j])
                for i in labeled
                for j in labeled
                if y[i] != y[j]
            )
            / 3.0
        )
    else:
        median = median_distance(plan.known)
        sigma = (median / 3.0) ** 0.5 if rule == "sqrt" else median / 3.0**0.5
    data = build_document_graph(
        draw(5, 7), BATCH_LABELS, BATCH_IDS, memory=bank, k=3, bandwidth=rule
    )
    assert float(data.bandwidth) == pytest.approx(sigma, rel=1e-6)
    compare(bank, sigma**2, plan, bandwidth=rule, k=3)


def test_own_copies_are_nowhere_in_the_graph() -> None:
    bank = filled()
    data = build_document_graph(draw(5, 7), BATCH_LABELS, BATCH_IDS, memory=bank, k=3)
    assert data.in_batch.tolist() == [True] * 5 + [False] * (data.num_nodes - 5)
    stored = set(bank.ids.tolist())
    assert {4, 21} <= stored
    assert set(data.doc_id[5:].tolist()) == stored - {4, 21}
    assert len(set(data.doc_id.tolist())) == data.num_nodes
    # Without ids nothing can be masked.
    blind = build_document_graph(draw(5, 7), BATCH_LABELS, memory=bank, k=3)
    assert blind.num_nodes == 5 + len(bank)
    assert blind.doc_id[:5].tolist() == [-1] * 5


def test_what_the_data_says_about_remembered_nodes() -> None:
    bank = filled()
    data = build_document_graph(draw(5, 7), BATCH_LABELS, BATCH_IDS, memory=bank, k=3)
    data.validate()
    keep = [i for i, id_ in enumerate(bank.ids.tolist()) if id_ not in (4, 21)]
    assert data.y.tolist() == BATCH_LABELS.tolist() + bank.labels[keep].tolist()
    assert data.age.tolist() == [0] * 5 + bank.age[keep].tolist()
    assert data.seed_mask.tolist() == [label >= 0 for label in data.y.tolist()]
    kinds = [(i >= 5) + (j >= 5) for i, j in data.edge_index.T.tolist()]
    assert data.edge_kind.tolist() == kinds
    assert set(kinds) == {0, 1, 2}


def test_edges_among_remembered_rows_are_inherited_not_searched() -> None:
    bank = filled()
    data = build_document_graph(draw(5, 7), BATCH_LABELS, BATCH_IDS, memory=bank, k=3)
    inside = {
        (int(data.doc_id[i]), int(data.doc_id[j]))
        for i, j in data.edge_index[:, data.edge_kind == 2].T.tolist()
    }
    ids = bank.ids.tolist()
    ends = list(zip(*(end.tolist() for end in bank.edges()[:2]), strict=True))
    expected = {(ids[a], ids[b]) for a, b in ends} | {(ids[b], ids[a]) for a, b in ends}
    assert inside == {pair for pair in expected if not {4, 21} & set(pair)}
    # Rows stored without links bring none.
    bare = MemoryBank(8, DIM, k=3)
    bare.enqueue(draw(6, 1), ids=torch.arange(6), link=False)
    data = build_document_graph(draw(2, 2), ids=torch.tensor([8, 9]), memory=bare, k=2)
    assert int((data.edge_kind == 2).sum()) == 0


def test_gradient_reaches_the_batch_only() -> None:
    bank = filled()
    x = draw(5, 7).requires_grad_()
    data = build_document_graph(x, BATCH_LABELS, BATCH_IDS, memory=bank, k=3, bandwidth=0.7)
    data.edge_weight.sum().backward()
    assert float(x.grad.abs().sum(dim=1).min()) > 0
    for value in bank.state_dict().values():
        assert not value.requires_grad
        assert value.grad_fn is None
    inner = data.edge_weight[data.edge_kind == 2]
    (gradient,) = torch.autograd.grad(
        build_document_graph(x, BATCH_LABELS, BATCH_IDS, memory=bank, k=3, bandwidth=0.7)
        .edge_weight[data.edge_kind == 2]
        .sum(),
        x,
        allow_unused=True,
    )
    assert inner.numel() > 0
    assert gradient is None or float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("capacity", [0, 8])
@pytest.mark.parametrize("batch_edges", ["auto", "knn", "all"])
@pytest.mark.parametrize("bandwidth", ["sqrt", "local", 0.6])
@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
def test_an_empty_bank_is_no_bank(
    capacity: int, batch_edges: str, bandwidth: str | float, symmetrize: str
) -> None:
    settings = {
        "k": 3,
        "batch_edges": batch_edges,
        "bandwidth": bandwidth,
        "symmetrize": symmetrize,
    }
    x, ids = draw(9, 4), torch.arange(9)
    alone = build_document_graph(x, ids=ids, **settings)
    empty = build_document_graph(x, ids=ids, memory=MemoryBank(capacity, DIM), **settings)
    assert torch.equal(alone.edge_index, empty.edge_index)
    torch.testing.assert_close(alone.edge_weight, empty.edge_weight, rtol=0.0, atol=1e-10)
    for name in ("y", "doc_id", "in_batch", "seed_mask", "age", "edge_kind"):
        assert torch.equal(alone[name], empty[name]), name


@pytest.mark.parametrize("batch_edges", ["knn", "all"])
@pytest.mark.parametrize("bandwidth", ["sqrt", "local", 0.6])
@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
def test_a_bank_of_the_batchs_own_documents_is_no_bank(
    batch_edges: str, bandwidth: str | float, symmetrize: str
) -> None:
    settings = {
        "k": 3,
        "batch_edges": batch_edges,
        "bandwidth": bandwidth,
        "symmetrize": symmetrize,
    }
    x, ids = draw(9, 4), torch.arange(9)
    bank = MemoryBank(20, DIM, k=3)
    bank.enqueue(draw(9, 5), torch.arange(9) % 2, ids)
    alone = build_document_graph(x, ids=ids, **settings)
    owned = build_document_graph(x, ids=ids, memory=bank, **settings)
    assert torch.equal(alone.edge_index, owned.edge_index)
    torch.testing.assert_close(alone.edge_weight, owned.edge_weight, rtol=0.0, atol=1e-10)


def test_batch_of_one_against_a_bank() -> None:
    bank = filled()
    data = build_document_graph(draw(1, 7), torch.tensor([0]), torch.tensor([99]), memory=bank, k=3)
    assert data.num_nodes == 1 + len(bank)
    assert int((data.edge_index[0] == 0).sum()) == 3


def test_repeated_ids_in_a_batch_are_two_nodes() -> None:
    bank = filled()
    x = draw(3, 7)
    data = build_document_graph(x, ids=torch.tensor([4, 4, 40]), memory=bank, k=3)
    assert data.doc_id[:3].tolist() == [4, 4, 40]
    assert 4 not in data.doc_id[3:].tolist()


def test_bank_that_does_not_fit() -> None:
    bank = filled()
    with pytest.raises(ValueError, match=re.escape("'embeddings' must have 4 columns (got 3)")):
        build_document_graph(torch.ones(2, 3), memory=bank)
    message = "'normalize_embeddings' is False but the bank was made with normalize=True"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_document_graph(draw(2, 0), memory=bank, normalize_embeddings=False)
