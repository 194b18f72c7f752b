"""Approximate search: recall, writes that are followed, what happens to derived state."""

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gloss_graph import MemoryBank
from gloss_graph.neighbors import IVFSettings, Search, inverted_lists, nearest
from gloss_graph.neighbors import search as choice

DIM = 16
IVF = IVFSettings(cells=16, probes=8)


@pytest.fixture(autouse=True)
def _small_banks_have_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "_MIN_ROWS", 200)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an entry whenever FAISS makes inverted lists, to train cells or to fill them."""
    found: list[int] = []
    make = faiss.IndexIVFScalarQuantizer

    def counted(*arguments: object) -> object:
        found.append(1)
        return make(*arguments)

    monkeypatch.setattr(faiss, "IndexIVFScalarQuantizer", counted)
    return found


def clustered(count: int, seed: int, centers: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    center = 0.7 * torch.randn(centers, DIM, generator=torch.Generator().manual_seed(99))
    own = torch.randint(centers, (count,), generator=generator)
    return center[own] + torch.randn(count, DIM, generator=generator)


def bank_of(search: Search, size: int = 1500, **options: object) -> MemoryBank:
    bank = MemoryBank(size, DIM, k=4, search=search, **options)
    bank.enqueue(clustered(size, 0), ids=torch.arange(size), link=False)
    return bank


def overwrite(bank: MemoryBank, steps: int, start: int = 0, ids: int = 3000) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        own = torch.randperm(ids, generator=generator)[:64]
        bank.enqueue(clustered(64, 1000 + step), ids=own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recall_holds_while_thousands_of_rows_are_overwritten(dtype: torch.dtype) -> None:
    bank = bank_of(IVF, dtype=dtype)
    assert 0.9 < bank.recall(10) <= 1.0
    overwrite(bank, 60)
    assert 0.9 < bank.recall(10) <= 1.0
    assert bank.searcher.indexed == 1500


def test_too_little_search_lowers_the_measured_recall(made: list[int]) -> None:
    bank = bank_of(IVF)
    good, before = bank.recall(10), len(made)
    bank.set_search(replace(IVF, probes=1))
    assert bank.recall(10) < good - 0.004
    assert len(made) == before, "the index was not kept"
    bank.set_search("exact")
    assert bank.recall(10) == 1.0
    assert bank.recall(10, sample=10**6) == 1.0


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_what_is_found_is_stored_allowed_and_at_its_true_distance(data: st.DataObject) -> None:
    bank = bank_of(IVF, size=data.draw(st.sampled_from([250, 400])))
    bank.search(clustered(2, 5), 3)
    for seed in data.draw(st.lists(st.integers(0, 50), max_size=4)):
        overwrite(bank, 1, start=seed, ids=data.draw(st.sampled_from([300, 900])))
        stored = bank.ids.tolist()
        banned = data.draw(st.lists(st.sampled_from(stored), max_size=len(stored)))
        k = data.draw(st.integers(1, 30))
        queries = F.normalize(clustered(5, seed + 7), dim=1)
        found = bank.search(queries, k, exclude_ids=torch.tensor(banned).long())
        assert found.slots.shape == found.distances.shape == (5, k)
        allowed = set(stored) - set(banned)
        for row in range(5):
            slots = found.slots[row][found.slots[row] >= 0]
            ids = bank.ids[slots].tolist()
            assert len(set(ids)) == len(ids)
            assert set(ids) <= allowed
            true = (queries[row] - bank.rows[slots]).norm(dim=1)
            distance = found.distances[row][: len(ids)]
            torch.testing.assert_close(distance, true, rtol=1e-5, atol=1e-6)
            assert bool((distance.diff() >= 0).all())
            assert bool(found.distances[row][len(ids) :].isinf().all())


def test_a_document_is_found_where_it_was_moved_to(made: list[int]) -> None:
    bank = bank_of(IVF)
    bank.search(clustered(1, 1), 1)
    before, moved = len(made), clustered(64, 77)
    bank.enqueue(moved, ids=torch.arange(64))
    found = bank.search(moved, 1)
    assert len(made) == before
    assert (bank.ids[found.slots[:, 0]] == torch.arange(64)).float().mean() > 0.95


def test_unreported_changes_are_noticed(made: list[int]) -> None:
    bank = bank_of(IVF)
    bank.search(clustered(1, 1), 1)
    before = len(made)
    bank.rows.copy_(bank.rows.flip(0))
    assert bank.recall(5) > 0.9
    assert len(made) > before
    before = len(made)
    bank.rows = bank.rows.clone()
    bank.search(clustered(1, 1), 1)
    assert len(made) > before
    bank.reset()
    assert bank.search(clustered(2, 1), 3).slots.tolist() == [[-1] * 3] * 2


def test_same_calls_same_results() -> None:
    banks = [bank_of(IVF), bank_of(IVF)]
    for bank in banks:
        overwrite(bank, 30)
    one, other = (bank.search(clustered(100, 3), 12) for bank in banks)
    assert torch.equal(one.slots, other.slots)
    assert torch.equal(one.distances, other.distances)


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_the_index_is_derived_state(how: str) -> None:
    bank = bank_of(IVF)
    overwrite(bank, 3)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    if how == "state_dict":
        other = MemoryBank(1500, DIM, k=4, search=IVF)
        other.enqueue(clustered(1500, 8), link=False, ids=torch.arange(1500))
        other.search(clustered(1, 1), 1)
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        other = copy.deepcopy(bank) if how == "deepcopy" else pickle.loads(pickle.dumps(bank))
    assert other.searcher.indexed == 0
    assert other.recall(8) > 0.9
    queries = F.normalize(clustered(50, 4), dim=1)
    exact = nearest(queries, bank.embeddings, 8).indices
    hit = (other.search(queries, 8).slots.unsqueeze(2) == exact.unsqueeze(1)).any(dim=2)
    assert hit.float().mean() > 0.9
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in bank.state_dict().items())


def test_ivf_retrains_after_a_share_of_overwrites() -> None:
    bank = bank_of(IVFSettings(cells=16, probes=6, retrain_every=0.5))

    def trained() -> int:
        """Number of different cells in 24 steps, which overwrite 1.02 · 1,500 rows."""
        found = set()
        for step in range(24):
            overwrite(bank, 1, start=step)
            found.add(float(bank.cells.centers.sum()))
        return len(found)

    assert 3 <= trained() <= 4  # half of the rows are overwritten two to three times
    bank.set_search(IVFSettings(cells=16, probes=6, retrain_every=100))
    assert trained() == 1


def test_ivf_follows_a_bank_that_grows() -> None:
    bank = MemoryBank(4000, DIM, k=2, search="ivf")
    cells = set()
    for start in range(0, 4000, 100):
        bank.enqueue(clustered(100, start), ids=torch.arange(start, start + 100))
        cells.add(int(bank.cells.count))
    assert cells == {0, 16, 32, 64}  # trained at 200, 800 and 3,200 rows
    assert bank.searcher.indexed == 3900  # the next search carries the last batch over
    bank.set_search(IVFSettings(probes=8))
    assert bank.recall(5) > 0.9


def test_drift_away_from_the_cells_is_repaired() -> None:
    bank = bank_of(IVFSettings(cells=16, probes=2, retrain_every=1.0))
    stale = bank_of(IVFSettings(cells=16, probes=2, retrain_every=1e6))
    for moved in (bank, stale):
        moved.search(clustered(1, 1), 1)
        for start in range(0, 6000, 250):  # the whole bank four times, into a corner
            x = clustered(250, start, centers=3) * 0.3 + 3
            moved.enqueue(x, ids=torch.arange(start, start + 250) % 1500)
            moved.search(x[:2], 1)
    sizes = [bank.cells.cell_of.bincount(minlength=16).double() for bank in (bank, stale)]
    fresh_imbalance, stale_imbalance = (16 * (size / size.sum()).square().sum() for size in sizes)
    assert fresh_imbalance < stale_imbalance


def test_few_rows_are_searched_exactly_and_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    bank = MemoryBank(1500, DIM, k=4, search=IVF)
    bank.enqueue(clustered(150, 0), ids=torch.arange(150))
    found = bank.search(clustered(5, 1), 4).slots
    assert torch.equal(found, nearest(F.normalize(clustered(5, 1)), bank.embeddings, 4).indices)
    assert bank.searcher.indexed == 0
    # FAISS would warn on stderr of too few points a cell, and of degenerate ones.
    bank.enqueue(torch.ones(1500, DIM), ids=torch.arange(1500))
    same = bank.search(torch.ones(2, DIM), 5)
    assert same.distances.abs().max() < 1e-6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["ivf", "auto"])
def test_empty_banks_and_no_queries(name: str) -> None:
    for bank in (MemoryBank(0, DIM, search=name), MemoryBank(9, DIM, search=name)):
        assert bank.search(clustered(2, 0), 3).slots.tolist() == [[-1] * 3] * 2
        with pytest.raises(ValueError, match=r"'recall' needs a bank of at least 2 rows.*got 0"):
            bank.recall()
    full = bank_of(name, size=300)
    assert full.search(torch.empty(0, DIM), 3).slots.shape == (0, 3)
    assert full.search(clustered(2, 0), 3, exclude_ids=full.ids).slots.tolist() == [[-1] * 3] * 2
    with pytest.raises(ValueError, match="'sample' must be"):
        full.recall(sample=0)


def test_linking_goes_by_the_index() -> None:
    bank, exact = bank_of(IVF), bank_of("exact")
    bank.relink()
    exact.relink()
    ours, theirs = (
        {*zip(*(p.tolist() for p in b.edges()[:2]), strict=True)} for b in (bank, exact)
    )
    assert len(ours & theirs) > 0.95 * len(theirs)
    assert ours != theirs
    assert all(source != target for source, target in ours)


def test_auto_is_exact_until_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "AUTO_ROWS", 600)
    small = bank_of("auto", size=599)
    small.search(clustered(2, 0), 3)
    assert small.cells is None
    bank = bank_of("auto", size=600)
    bank.search(clustered(2, 0), 3)
    assert bank.searcher.fallback.indexed == 600
    overwrite(bank, 2)
    assert bank.recall(5) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryBank(10, 4, search=IVFSettings(cells=11)), "'cells' must be at most the ca"),
        (lambda: MemoryBank(10, 4, search="annoy"), "'search' must be one of"),
        (lambda: MemoryBank(10, 4, search="hnsw"), "'hnsw', which version 0.2 removed. Use 'ivf'"),
        (lambda: IVFSettings(cells=0), "'cells' must be an integer of at least 1"),
        (lambda: IVFSettings(probes=0), "'probes' must be"),
        (lambda: IVFSettings(retrain_every=0), "'retrain_every' must be"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()  # type: ignore[operator]
    with pytest.raises(TypeError, match="'search' must be one of auto, exact"):
        MemoryBank(10, 4, search=3)  # type: ignore[arg-type]


def test_queries_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = bank_of(IVF)
    whole = bank.search(clustered(130, 2), 6)
    monkeypatch.setattr(inverted_lists, "_QUERIES", 50)
    parts = bank.search(clustered(130, 2), 6)
    assert torch.equal(whole.slots, parts.slots)
    assert np.isfinite(whole.distances.numpy()).all()
