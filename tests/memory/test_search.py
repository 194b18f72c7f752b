"""Nearest-neighbor search against brute force."""

from __future__ import annotations

import re

import faiss
import numpy as np
import pytest
import torch
from helpers import rows
from reference import distance
from torch import Tensor

from gloss_graph import MemoryBank
from gloss_graph.neighbors import exact as search
from gloss_graph.neighbors import nearest, nearest_others

BACKENDS = ("faiss", "matmul", "auto", "exact")


def brute_force(queries: Tensor, stored: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    squared, index = [], []
    for query in queries.double().numpy():
        found = sorted(
            (distance(query, row) ** 2, j) for j, row in enumerate(stored.double().numpy())
        )[:k]
        squared.append([value for value, _ in found])
        index.append([j for _, j in found])
    return np.array(squared), np.array(index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 5, 40, 60])
def test_nearest(backend: str, dtype: torch.dtype, k: int) -> None:
    stored, queries = rows(40).to(dtype), rows(7, seed=1)
    found = nearest(queries, stored, k, backend=backend)
    squared, index = brute_force(queries, stored, k)
    assert found.indices.shape == (7, min(k, 40))
    np.testing.assert_array_equal(found.indices.numpy(), index)
    np.testing.assert_allclose(found.squared_distances.numpy(), squared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_over_several_tiles(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_TILE_ROWS", 16)
    stored, queries = rows(100).half(), rows(5, seed=1)
    found = nearest(queries, stored, 20, backend=backend)
    squared, index = brute_force(queries, stored, 20)
    np.testing.assert_array_equal(found.indices.numpy(), index)
    np.testing.assert_allclose(found.squared_distances.numpy(), squared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("queries", "stored", "k"), [(0, 5, 2), (3, 0, 2), (3, 5, 0), (0, 0, 0)])
def test_nothing_to_search_or_to_search_in(backend: str, queries: int, stored: int, k: int) -> None:
    found = nearest(rows(queries), rows(stored), k, backend=backend)
    assert found.indices.shape == found.squared_distances.shape == (queries, min(k, stored))
    assert found.indices.dtype == torch.long


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_duplicates_are_told_apart(backend: str) -> None:
    # |q|² + |r|² - 2qr loses these distances to cancellation in float32.
    base = 30.0 + rows(1, 64)
    stored = torch.cat([base + 1e-3 * step for step in range(5)])
    found = nearest(base, stored, 5, backend=backend)
    exact = (base - stored).square().sum(dim=1)
    torch.testing.assert_close(found.squared_distances[0], exact[found.indices[0]])
    assert float(found.squared_distances[0, 0]) == 0.0
    assert bool((found.squared_distances[0].diff() >= 0).all())
    assert sorted(found.indices[0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_others_never_returns_the_row_itself(backend: str) -> None:
    stored = rows(30)
    stored[10:20] = stored[3]  # more copies than neighbors asked for
    own = torch.arange(30)
    found = nearest_others(stored, stored, own, 4, backend=backend)
    assert found.indices.shape == (30, 4)
    assert bool((found.indices != own.unsqueeze(1)).all())
    for i in range(30):
        assert len(set(found.indices[i].tolist())) == 4
        others = [j for j in range(30) if j != i]
        best = sorted(float((stored[i] - stored[j]).square().sum()) for j in others)[:4]
        np.testing.assert_allclose(found.squared_distances[i].numpy(), best, rtol=1e-5, atol=1e-6)


def test_faiss_and_matmul_agree_on_a_large_bank() -> None:
    stored, queries = rows(3000, 16), rows(50, 16, seed=1)
    by_faiss = nearest(queries, stored, 10, backend="faiss")
    by_matmul = nearest(queries, stored, 10, backend="matmul")
    assert torch.equal(by_faiss.indices, by_matmul.indices)
    assert torch.equal(by_faiss.squared_distances, by_matmul.squared_distances)


def test_the_callers_faiss_threshold_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    seen = []
    real = faiss.knn

    def watch(*args: object, **kwargs: object) -> object:
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        return real(*args, **kwargs)

    monkeypatch.setattr(faiss, "knn", watch)
    try:
        faiss.cvar.distance_compute_blas_threshold = 77
        nearest(rows(3), rows(40), 2, backend="faiss")
        assert seen == [1]
        assert faiss.cvar.distance_compute_blas_threshold == 77

        def fail(*args: object, **kwargs: object) -> object:
            raise RuntimeError("inside FAISS")

        monkeypatch.setattr(faiss, "knn", fail)
        with pytest.raises(RuntimeError, match="inside FAISS"):
            nearest(rows(3), rows(40), 2, backend="faiss")
        assert faiss.cvar.distance_compute_blas_threshold == 77
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def test_auto_takes_faiss_for_many_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = faiss.knn

    def watch(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(faiss, "knn", watch)
    nearest(rows(2), rows(1023), 3)
    assert len(calls) == 0
    nearest(rows(2), rows(1024), 3)
    assert len(calls) == 1


def test_unknown_backend() -> None:
    message = "'search' must be one of ['auto', 'exact', 'faiss', 'matmul'] (got 'ivf')"
    with pytest.raises(ValueError, match=re.escape(message)):
        nearest(rows(1), rows(2), 1, backend="ivf")
    with pytest.raises(ValueError, match=r"'faiss', 'ivf', 'matmul'\] .got 'annoy'"):
        MemoryBank(2, 3, search="annoy")


def test_bank_is_not_searched_while_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> object:
        raise AssertionError("an empty bank was searched")

    monkeypatch.setattr(search, "_candidates", fail)
    bank = MemoryBank(8, 6)
    found = bank.search(rows(3), 4)
    assert bool(torch.isinf(found.distances).all())
    assert found.slots.tolist() == [[-1] * 4] * 3
    bank.neighbors(rows(3))


@pytest.mark.parametrize("backend", ["faiss", "matmul"])
@pytest.mark.parametrize("banned", [0, 1, 5, 30, 59, 60])
def test_exclusion_is_exact_however_many_rows_it_takes(backend: str, banned: int) -> None:
    # The excluded rows are the very nearest ones: over-fetching a little is not enough.
    bank = MemoryBank(60, 6, search=backend, normalize=False)
    query = torch.zeros(2, 6)
    stored = torch.eye(6).repeat(10, 1) * torch.linspace(1.0, 2.0, 60).unsqueeze(1)
    bank.enqueue(stored, ids=torch.arange(60))
    found = bank.search(query, 3, exclude_ids=torch.arange(banned))
    left = list(range(banned, min(banned + 3, 60)))
    expected = left + [-1] * (3 - len(left))
    assert found.slots.tolist() == [expected] * 2
    distances = [float(stored[i].norm()) if i >= 0 else float("inf") for i in expected]
    torch.testing.assert_close(found.distances[0], torch.tensor(distances))


def test_unnormalized_bank_keeps_lengths() -> None:
    bank = MemoryBank(4, 2, normalize=False)
    bank.enqueue(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), ids=torch.tensor([0, 1]))
    assert bank.embeddings.tolist() == [[3.0, 4.0], [0.0, 1.0]]
    found = bank.search(torch.tensor([[0.0, 0.0]]), 2)
    assert found.distances.tolist() == [[1.0, 5.0]]
    assert found.slots.tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_queries_of_any_float_dtype(dtype: torch.dtype) -> None:
    bank = MemoryBank(20, 6)
    bank.enqueue(rows(20), ids=torch.arange(20))
    exact = bank.search(rows(5, seed=1).to(dtype).double(), 1).slots
    assert torch.equal(bank.search(rows(5, seed=1).to(dtype), 1).slots, exact)


def test_neighbors_of_a_batch_are_stored_rows_and_mates() -> None:
    bank = MemoryBank(8, 2, k=3)
    angle = torch.deg2rad(torch.tensor([0.0, 40.0, 80.0]))
    bank.enqueue(torch.stack([angle.cos(), angle.sin()], dim=1), ids=torch.tensor([7, 8, 9]))
    turn = torch.deg2rad(torch.tensor([1.0, 11.0]))
    batch = torch.stack([turn.cos(), turn.sin()], dim=1)
    # Document 7 is the batch's own first row: its stored copy is not a neighbor of anyone.
    lists = bank.neighbors(batch, ids=torch.tensor([7, 20]))
    assert lists.indices.tolist() == [[-3, 1, 2], [-2, 1, 2]]
    expected = [
        [2 - 2 * np.cos(np.deg2rad(d)) for d in row] for row in ([10, 39, 79], [10, 29, 69])
    ]
    np.testing.assert_allclose(lists.squared_distances.numpy(), expected, atol=1e-6)
    wide = bank.neighbors(batch, ids=torch.tensor([7, 20]), k=6)
    assert wide.indices[0].tolist() == [-3, 1, 2, -1, -1, -1]
    assert wide.squared_distances[0, 3:].tolist() == [float("inf")] * 3
