"""Banks of few bits a row: what is left of the rows, and that everything else works on it."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph
from gloss_graph.neighbors import IVFSettings, approximate
from gloss_graph.neighbors.quantized import QuantizedRows

BITS = pytest.mark.parametrize("bits", [8, 4, 2])
# Mean squared error of the best codebooks for a normal entry (Max, 1960, for one entry; the
# codewords of two and four entries do better than the 0.0095 and 0.117 that entries alone allow).
WORST_ERROR = {8: 2e-4, 4: 0.0092, 2: 0.112}


def draw(count: int, dim: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def clusters(count: int, dim: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = torch.randint(6, (count,), generator=torch.Generator().manual_seed(seed))
    return 3 * draw(6, dim, seed=99)[own] + draw(count, dim, seed), own % 3


def bank_of(bits: int | None, count: int = 200, **options: object) -> MemoryBank:
    x, y = clusters(count)
    bank = MemoryBank(count, 48, bits=bits, **{"k": 5, **options})
    bank.enqueue(x, y, torch.arange(count))
    return bank


@BITS
def test_error_is_that_of_the_best_codebooks_whatever_the_data(bits: int) -> None:
    # All of the variance in few entries, which codes of entries as they are would spoil.
    x = draw(2000, 64) * torch.logspace(0, -6, 64)
    bank = MemoryBank(2000, 64, bits=bits, k=0)
    bank.enqueue(x, ids=torch.arange(2000))
    cosine = F.cosine_similarity(x, bank.embeddings, dim=1)
    assert float((1 - cosine.square()).mean()) < WORST_ERROR[bits]
    assert float(cosine.min()) > 1 - 4 * WORST_ERROR[bits]


def decoded(x: Tensor, bits: int) -> Tensor:
    rows = QuantizedRows(x.size(0), x.size(1), bits)
    rows[torch.arange(x.size(0))] = x
    return rows[:]


@BITS
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 37), size=st.floats(1e-3, 1e3))
@settings(max_examples=15, deadline=None)
def test_lengths_are_kept_and_direction_does_not_depend_on_them(
    bits: int, seed: int, dim: int, size: float
) -> None:
    x = draw(20, dim, seed)
    found = decoded(size * x, bits)
    torch.testing.assert_close(found.norm(dim=1), size * x.norm(dim=1), rtol=1e-4, atol=0)
    torch.testing.assert_close(found / size, decoded(x, bits), rtol=1e-3, atol=1e-4)


def test_a_row_of_zeros_stays_one() -> None:
    assert not decoded(torch.zeros(3, 7), 4).any()


@BITS
def test_rows_are_read_alike_however_they_are_asked_for(bits: int) -> None:
    rows = QuantizedRows(30, 9, bits)
    rows[torch.arange(30)] = draw(30, 9)
    index = torch.tensor([[3, 4], [29, 3]])
    for part in (index, torch.tensor([5]), slice(2, 11), slice(None), slice(20, 99)):
        torch.testing.assert_close(rows[part], rows[:][part])
        torch.testing.assert_close(rows.turned[part], rows.turn(rows[:])[part])
    torch.testing.assert_close(rows.turned.first(7)[5:20], rows.turn(rows[:])[5:7])


@BITS
@pytest.mark.parametrize("backend", ["exact", "faiss", "matmul"])
def test_search_and_links_are_those_of_what_is_left_of_the_rows(bits: int, backend: str) -> None:
    bank = bank_of(bits, search=backend)
    left = bank.embeddings
    queries = F.normalize(clusters(20, seed=7)[0], dim=1)
    exact = torch.cdist(queries, left).topk(4, largest=False)
    found = bank.search(queries, 4)
    torch.testing.assert_close(found.distances, exact.values, rtol=1e-3, atol=1e-3)
    assert float((found.slots == exact.indices).float().mean()) > 0.95

    bank.enqueue(clusters(30, seed=3)[0], ids=torch.arange(15, 45))  # measured anew
    source, target, squared = bank.edges()
    left = bank.embeddings
    torch.testing.assert_close(
        squared, (left[source] - left[target]).square().sum(dim=1), atol=1e-4, rtol=1e-4
    )


def test_more_bits_find_more_of_the_neighbours() -> None:
    x, _ = clusters(800)
    x, queries = F.normalize(x, dim=1), F.normalize(clusters(60, seed=5)[0], dim=1)
    true = torch.cdist(queries, x).topk(10, largest=False).indices
    share = {}
    for bits in (2, 4, 8):
        bank = MemoryBank(800, 48, bits=bits, k=0)
        bank.enqueue(x, ids=torch.arange(800))
        found = bank.search(queries, 10).slots
        share[bits] = float((found.unsqueeze(2) == true.unsqueeze(1)).any(2).float().mean())
    assert share[2] < share[4] < share[8], share
    assert share[2] > 0.3  # by chance 0.08
    assert share[8] > 0.9


@pytest.mark.parametrize("search", [IVFSettings(cells=8, probes=8), "hnsw"], ids=["ivf", "hnsw"])
def test_an_index_follows_the_codes(
    search: IVFSettings | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "_MIN_ROWS", 200)
    bank = bank_of(4, 900, search=search)
    assert bank.recall(5, 200) > 0.9
    for step in range(4):
        bank.enqueue(clusters(60, seed=step + 10)[0], ids=torch.arange(60) + 400 * step)
        assert bank.recall(5, 200) > 0.9
    bank.load_state_dict(bank_of(4, 900).state_dict())
    assert bank.recall(5, 200) > 0.9


@BITS
def test_state_file_copy_and_pickle_hold_the_same_bank(bits: int, tmp_path: Path) -> None:
    bank = bank_of(bits, num_classes=None)
    new = MemoryBank(200, 48, k=5, bits=bits)
    new.load_state_dict(bank.state_dict())
    file = bank.save(tmp_path / "bank.safetensors")
    others = [
        new,
        copy.deepcopy(bank),
        pickle.loads(pickle.dumps(bank)),
        MemoryBank.load(file),
        MemoryBank.load(file, mmap=True),
    ]
    queries = clusters(9, seed=4)[0]
    for other in others:
        assert other.bits == bits
        assert f"bits={bits}" in repr(other)
        assert torch.equal(other.embeddings, bank.embeddings)
        assert torch.equal(other.search(queries, 3).slots, bank.search(queries, 3).slots)
        assert torch.equal(bank.embeddings, bank_of(bits).embeddings)
        other.enqueue(queries, ids=torch.arange(9))  # its own rows, not those of the first
        assert not torch.equal(other.embeddings, bank.embeddings)


def test_it_takes_the_memory_it_promises(tmp_path: Path) -> None:
    sizes = {}
    for bits in (None, 8, 4, 2):
        bank = MemoryBank(5000, 384, k=0, bits=bits)
        sizes[bits] = sum(
            value.numel() * value.element_size() for value in bank.state_dict().values()
        )
    fixed = 384 * 384 * 4 + 256 * 4 * 4  # the rotation, and at most so much of a codebook
    for bits in (8, 4, 2):
        saved = 5000 * (4 * 384 - bits * 384 // 8 - 4)
        assert sizes[None] - sizes[bits] >= saved - fixed


def test_everything_that_reads_a_bank_reads_this_one() -> None:
    bank = bank_of(4)
    x, y = clusters(16, seed=8)
    ids = torch.arange(190, 206)
    graph = build_document_graph(x, y, ids, memory=bank, k=5)
    exact = build_document_graph(x, y, ids, memory=bank_of(None), k=5)
    assert graph.num_nodes == exact.num_nodes
    assert float(graph.bandwidth) == pytest.approx(float(exact.bandwidth), rel=0.02)
    bank.stats()
    drift = bank.drift(lambda ids: clusters(200)[0][ids])
    assert 0.98 < drift.mean < 0.9999
    assert bank.refresh(lambda ids: clusters(200)[0][ids], 20) == 20
    bank.relink()
    bank.reset()
    assert len(bank) == 0
    assert bank.prefill([(clusters(50)[0], clusters(50)[1], torch.arange(50))], lambda x: x) == 50
    assert bank.edges()[0].numel() > 0


@pytest.mark.parametrize("restandardize", [False, True])
@pytest.mark.parametrize("count", [200, 1300])
def test_a_step_on_codes_is_the_step_on_what_they_hold(restandardize: bool, count: int) -> None:
    x, y = draw(32, seed=8), torch.arange(32) % 3
    coded, plain = bank_of(4, count), bank_of(None, count)
    plain.enqueue(coded.embeddings, coded.labels, coded.ids)
    results = []
    for bank in (coded, plain):
        bank.relink()
        objective = GraphGuidedObjective(3, memory=bank, k=5, restandardize=restandardize)
        answer = objective.predict(draw(20, seed=9))
        own = x.clone().requires_grad_()
        loss = objective(own, y, ids=torch.arange(32) + count)
        loss.backward()
        results.append((answer, loss.detach(), own.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_half_or_double_of_a_module_around_it_changes_no_row() -> None:
    bank = bank_of(4)
    before = bank.embeddings
    assert torch.equal(copy.deepcopy(bank).double().embeddings, before)
    half = copy.deepcopy(bank).half().embeddings
    torch.testing.assert_close(half, before, rtol=0, atol=2e-3)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bits", [0, 1, 3, 16, "4", True, 4.0])
def test_other_bits_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="'bits' must be 2, 4, 8 or None"):
        MemoryBank(10, 4, bits=bits)


@pytest.mark.parametrize(("saved", "here"), [(4, None), (None, 4), (8, 4), (2, 4)])
def test_a_state_of_other_bits_is_refused_by_name(saved: int | None, here: int | None) -> None:
    bank = bank_of(here)
    before = bank.embeddings.clone()
    with pytest.raises(
        ValueError, match=re.escape(f"'bits' must be that of the saved bank, {saved}")
    ):
        bank.load_state_dict(bank_of(saved).state_dict())
    assert torch.equal(bank.embeddings, before)


def test_a_state_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'capacity' must be that of the saved bank, 200"):
        MemoryBank(100, 48, k=5, bits=4).load_state_dict(bank_of(4).state_dict())


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
def test_a_batch_that_is_declined_whole_is_no_error(bits: int | None) -> None:
    bank = MemoryBank(20, 8, bits=bits, eviction="reservoir")
    for number in range(60):
        bank.enqueue(torch.randn(2, 8), ids=torch.arange(2 * number, 2 * number + 2))
    assert len(bank) == 20
    assert int(bank.step) == 60
    assert int(bank.eviction.declined) > 40
