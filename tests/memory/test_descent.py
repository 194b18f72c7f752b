"""Search over the bank's own links: recall, what it may return, and when it must not be used."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.neighbors import DescentSettings
from gloss_graph.neighbors import search as choice

DIM = 24


def points(count: int, seed: int = 0, centers: int = 12) -> Tensor:
    middle = torch.randn(centers, DIM, generator=torch.Generator().manual_seed(77))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(centers, (count,), generator=generator)
    return middle[own] + 0.6 * torch.randn(count, DIM, generator=generator)


def bank_of(count: int = 1500, search: object = "descent", **options: object) -> MemoryBank:
    bank = MemoryBank(count, DIM, **{"k": 8, "search": search, **options})
    bank.enqueue(points(count), ids=torch.arange(count), link=False)
    bank.relink()
    return bank


class Watched:
    """A fallback that counts the queries it gets."""

    def __init__(self, bank: MemoryBank) -> None:
        self.asked, self.inner = 0, bank.searcher.fallback
        bank.searcher.fallback = self

    def allowed(self, queries: Tensor, *rest: object) -> object:
        self.asked += queries.size(0)
        return self.inner.allowed(queries, *rest)

    def wrote(self, *rest: object) -> None:
        self.inner.wrote(*rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recall_holds_while_all_rows_move(dtype: torch.dtype) -> None:
    bank = bank_of(dtype=dtype)
    watched = Watched(bank)
    x = F.normalize(points(1500), dim=1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        moved = F.normalize(x + 0.05 * torch.randn(x.shape, generator=generator), dim=1)
        assert 0.95 < float(F.cosine_similarity(x, moved, dim=1).mean()) < 0.98
        for ids in torch.randperm(1500, generator=generator).split(50):
            bank.enqueue(moved[ids], ids=ids)
        x = moved
        assert bank.recall(sample=400) > 0.93
    assert watched.asked < 60  # the rest of 6,000 walked


def test_more_width_and_rounds_find_more() -> None:
    found = [
        bank_of(search=DescentSettings(width=width, rounds=rounds, reach=reach))
        for width, rounds, reach in ((8, 1, 8), (16, 2, 64), (64, 3, 500))
    ]
    # Rows that moved away from where their lists were made.
    queries = F.normalize(
        F.normalize(points(1500), dim=1)
        + 0.15 * torch.randn(1500, DIM, generator=torch.Generator().manual_seed(1)),
        dim=1,
    )[:300]
    share = []
    for bank in found:
        ids = torch.arange(300)
        near = bank.neighbors(queries, ids, k=8).squared_distances
        bank.set_search("exact")
        exact = bank.neighbors(queries, ids, k=8).squared_distances[:, -1:]
        share.append(float((near <= exact * (1 + 1e-5)).float().mean()))
    assert share[0] < share[1] < share[2]
    assert share[1] > 0.9
    assert share[2] > 0.96


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 60),
    k=st.integers(1, 6),
    width=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_what_is_found_is_stored_allowed_once_and_at_its_true_distance(
    seed: int, count: int, k: int, width: int
) -> None:
    bank = MemoryBank(count, DIM, k=k, search=DescentSettings(width=width, rounds=1, reach=3))
    bank.enqueue(points(count, seed), ids=torch.arange(count))
    ids = torch.randperm(count + 12, generator=torch.Generator().manual_seed(seed))[:12]
    x = F.normalize(points(12, seed + 1), dim=1)
    lists = bank.neighbors(x, ids)
    exact = copy.deepcopy(bank)
    exact.set_search("exact")
    best = exact.neighbors(x, ids)
    for row, (squared, index) in enumerate(zip(*lists, strict=True)):
        stored = index[index >= 0]
        assert stored.unique().numel() == stored.numel()
        assert not set(bank.ids[stored].tolist()) & set(ids.tolist())
        true = (bank.rows[stored] - x[row]).square().sum(dim=1)
        torch.testing.assert_close(squared[index >= 0], true, rtol=1e-4, atol=1e-5)
        assert bool((squared.diff() >= -1e-6).nan_to_num(1.0).all() | squared.isinf().any())
        # Never fewer than there are, and never nearer than the nearest.
        assert int((index != -1).sum()) == int((best.indices[row] != -1).sum())
        assert bool((squared >= best.squared_distances[row] - 1e-5)[index != -1].all())


def test_documents_that_are_not_stored_are_searched_by_the_fallback() -> None:
    bank = bank_of()
    watched = Watched(bank)
    x, ids = points(30, seed=4), torch.arange(1490, 1520)
    lists = bank.neighbors(x, ids)
    assert watched.asked == 20
    bank.set_search("exact")
    exact = bank.neighbors(x, ids)
    assert torch.equal(lists.indices[10:], exact.indices[10:])


def test_documents_without_links_are_searched_by_the_fallback() -> None:
    bank = MemoryBank(300, DIM, k=4, search="descent")
    bank.enqueue(points(300), ids=torch.arange(300), link=False)
    watched = Watched(bank)
    assert bank.neighbors(points(9), torch.arange(9)).indices.shape == (9, 4)
    assert watched.asked == 9
    assert bank_of(300, k=0).neighbors(points(9), torch.arange(9), k=3).indices.shape == (9, 3)


def test_linking_does_not_go_by_the_links() -> None:
    bank = bank_of(400)
    bank.enqueue(points(400, seed=3), ids=torch.arange(400), link=False)
    bank.relink()
    assert bank.recall(sample=400) == 1.0
    exact = copy.deepcopy(bank)
    exact.set_search("exact")
    exact.relink()
    assert torch.equal(exact.links.slots, bank.links.slots)


def test_auto_walks_from_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(40)
    for least, walked in ((1501, 0), (1500, 40)):
        monkeypatch.setattr(choice, "DESCENT_ROWS", least)
        bank = bank_of(search="auto")
        watched = Watched(bank)
        bank.neighbors(points(1500)[:40], ids)
        assert watched.asked == 40 - walked


def test_copies_walk_over_their_own_links(tmp_path: Path) -> None:
    bank = bank_of(search=DescentSettings(width=20, rounds=3))
    file = bank.save(tmp_path / "bank.safetensors")
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank)), MemoryBank.load(file)):
        assert other.search_backend == bank.search_backend
        assert other.searcher.links is other.links
        x, ids = points(40, seed=9), torch.arange(40)
        assert torch.equal(other.neighbors(x, ids).indices, bank.neighbors(x, ids).indices)


def test_a_step_with_it_is_nearly_the_exact_step() -> None:
    x, y, ids = points(1500)[:64] + 0.05, torch.arange(64) % 3, torch.arange(64)
    losses = []
    for search in ("exact", "descent"):
        bank = bank_of(search=search)
        bank.enqueue(bank.embeddings, torch.arange(1500) % 3, bank.ids)
        objective = GraphGuidedObjective(3, memory=bank, k=8)
        losses.append(float(objective(x, y, ids=ids)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["width", "rounds", "reach"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' must be an integer of at least 1"):
        DescentSettings(**{name: 0})


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="'ids'"):
        bank_of(300).neighbors(points(9), torch.arange(8))


def test_empty_banks_and_no_queries() -> None:
    empty = MemoryBank(9, DIM, search="descent")
    assert (empty.neighbors(points(2), torch.arange(2)).indices < 0).all()
    full = bank_of(300)
    assert full.neighbors(torch.empty(0, DIM), torch.empty(0, dtype=torch.long)).indices.shape == (
        0,
        8,
    )
    # All of the bank is the batch itself.
    lists = full.neighbors(points(300), torch.arange(300))
    assert (lists.indices <= -2).all()
