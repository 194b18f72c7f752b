"""The bank's contract: order, identities, errors, state, warnings, repr."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import MemoryBank
from gloss_graph.neighbors import NeighborLists

from .helpers import assert_unchanged, rows

NAN, INF = float("nan"), float("inf")


def filled(capacity: int = 6, count: int = 4, **settings: object) -> MemoryBank:
    bank = MemoryBank(capacity, 3, k=2, **settings)
    bank.enqueue(rows(count), torch.arange(count) % 2, torch.arange(count) + 10)
    return bank


# ---------------------------------------------------------------- order


def test_oldest_documents_leave_first() -> None:
    bank = MemoryBank(3, 3)
    for step in range(5):
        bank.enqueue(rows(1, seed=step), ids=torch.tensor([step]))
    assert sorted(bank.ids.tolist()) == [2, 3, 4]
    assert bank.ids.tolist() == [3, 4, 2]  # a ring: slot 0 was overwritten by document 3
    assert bank.age.tolist() == [1, 0, 2]


def test_a_known_document_is_refreshed_in_place() -> None:
    bank = MemoryBank(3, 3)
    bank.enqueue(rows(3), torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]))
    bank.enqueue(rows(1, seed=1), torch.tensor([9]), torch.tensor([6]))
    assert len(bank) == 3
    assert bank.ids.tolist() == [5, 6, 7]
    assert bank.labels.tolist() == [0, 9, 2]
    assert bank.age.tolist() == [1, 0, 1]
    expected = nn.functional.normalize(rows(1, seed=1), dim=1)[0]
    assert torch.equal(bank.embeddings[1], expected)


def test_a_document_in_the_batch_is_not_evicted_by_its_own_batch() -> None:
    bank = MemoryBank(3, 3)
    bank.enqueue(rows(3), ids=torch.tensor([0, 1, 2]))
    bank.enqueue(rows(2, seed=1), ids=torch.tensor([0, 3]))
    assert sorted(bank.ids.tolist()) == [0, 2, 3]
    assert bank.slots_of(torch.tensor([0, 1, 3])).tolist() == [0, -1, 1]


def test_of_a_large_batch_the_last_documents_are_kept() -> None:
    bank = MemoryBank(3, 3)
    bank.enqueue(rows(8), ids=torch.arange(8))
    assert sorted(bank.ids.tolist()) == [5, 6, 7]
    source, target, squared = bank.edges()
    assert source.numel() > 0
    exact = (bank.embeddings[source] - bank.embeddings[target]).square().sum(dim=1)
    torch.testing.assert_close(squared, exact)


def test_of_a_repeated_id_the_last_row_counts() -> None:
    bank = MemoryBank(5, 3)
    bank.enqueue(rows(4), torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 1, 1]))
    assert bank.ids.tolist() == [2, 1]
    assert bank.labels.tolist() == [1, 3]


def test_one_row_per_document_when_the_bank_is_as_large_as_the_corpus() -> None:
    bank = MemoryBank(12, 3)
    for epoch in range(3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(5):
            bank.enqueue(rows(len(batch), seed=epoch), batch % 4, batch)
    assert sorted(bank.ids.tolist()) == list(range(12))
    assert bank.labels.tolist() == [id_ % 4 for id_ in bank.ids.tolist()]


def test_empty_batches_and_a_bank_without_capacity_store_nothing() -> None:
    bank = filled()
    before = snapshot(bank)
    bank.enqueue(torch.empty(0, 3), torch.empty(0).long(), torch.empty(0).long())
    assert_unchanged(bank, before)
    nothing = MemoryBank(0, 3)
    nothing.enqueue(rows(4), ids=torch.arange(4))
    assert len(nothing) == 0
    assert nothing.search(rows(2), 3).slots.tolist() == [[-1] * 3] * 2
    assert nothing.stats().size == 0
    assert nothing.edges()[0].numel() == 0
    nothing.relink()
    nothing.reset()


def test_rows_are_detached_copies() -> None:
    x = rows(2).requires_grad_()
    bank = MemoryBank(4, 3, normalize=False)
    bank.enqueue(x * 1.0, ids=torch.arange(2))
    assert not bank.embeddings.requires_grad
    kept = bank.embeddings.clone()
    with torch.no_grad():
        x.zero_()
    assert torch.equal(bank.embeddings, kept)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_and_ids_of_any_integer_dtype(dtype: torch.dtype) -> None:
    bank = MemoryBank(4, 3)
    bank.enqueue(rows(2), torch.tensor([3, -1], dtype=dtype), torch.tensor([7, 9], dtype=dtype))
    assert bank.labels.tolist() == [3, -1]
    assert bank.ids.tolist() == [7, 9]
    assert bank.labels.dtype == bank.ids.dtype == torch.int64


# ---------------------------------------------------------------- links


def test_links_die_with_either_end_and_do_not_come_back() -> None:
    bank = MemoryBank(3, 2, k=2)
    bank.enqueue(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ids=torch.tensor([0, 1, 2]))
    everyone = {(i, j) for i in range(3) for j in range(3) if i != j}
    assert set(zip(*(end.tolist() for end in bank.edges()[:2]), strict=True)) == everyone
    # A stranger without links takes slot 0.
    bank.enqueue(torch.tensor([[1.0, 0.1]]), ids=torch.tensor([3]), link=False)
    assert set(zip(*(end.tolist() for end in bank.edges()[:2]), strict=True)) == {(1, 2), (2, 1)}
    # The first document comes back, elsewhere: its old links stay dead.
    bank.enqueue(torch.tensor([[1.0, 0.0]]), ids=torch.tensor([0]), link=False)
    assert bank.slots_of(torch.tensor([0])).tolist() == [1]
    assert bank.edges()[0].numel() == 0


def test_link_lengths_follow_a_refreshed_document() -> None:
    bank = filled()
    source, target, _ = bank.edges()
    bank.enqueue(rows(1, seed=5), ids=torch.tensor([11]), link=False)
    kept = bank.edges()
    assert (source != 1).sum() == kept[0].numel()
    exact = (bank.embeddings[kept[0]] - bank.embeddings[kept[1]]).square().sum(dim=1)
    torch.testing.assert_close(kept[2], exact)
    assert bool((target == 1).any())


def test_wider_and_narrower_lists_than_the_bank_keeps() -> None:
    for k, expected in ((1, 1), (2, 2), (5, 2)):
        bank = filled()
        x = rows(2, seed=7)
        ids = torch.tensor([50, 51])
        bank.enqueue(x, ids=ids, neighbors=bank.neighbors(x, ids, k=k))
        slots = bank.slots_of(ids)
        source = bank.edges()[0]
        assert [(source == slot).sum().item() for slot in slots] == [expected] * 2


# ---------------------------------------------------------------- errors


BAD_ENQUEUE: dict[str, tuple[Callable[[MemoryBank], object], type[Exception], str]] = {
    "list": (lambda b: b.enqueue([[1.0, 2.0, 3.0]]), TypeError, "'embeddings' must be a torch"),
    "vector": (lambda b: b.enqueue(rows(2)[0]), ValueError, "'embeddings' must have shape (N, D)"),
    "dim": (
        lambda b: b.enqueue(rows(2, 4)),
        ValueError,
        "'embeddings' must have 3 columns (got 4)",
    ),
    "integers": (
        lambda b: b.enqueue(torch.ones(2, 3, dtype=torch.long)),
        ValueError,
        "'embeddings' must be a floating point tensor (got torch.int64)",
    ),
    "nan": (
        lambda b: b.enqueue(torch.tensor([[1.0, 2.0, 3.0], [1.0, NAN, 1.0]])),
        ValueError,
        "'embeddings' must be finite (got NaN or inf in 1 of 2 rows, the first is row 1)",
    ),
    "inf": (
        lambda b: b.enqueue(torch.tensor([[INF, 2.0, 3.0], [-INF, NAN, 1.0]])),
        ValueError,
        "'embeddings' must be finite (got NaN or inf in 2 of 2 rows, the first is row 0)",
    ),
    "labels list": (
        lambda b: b.enqueue(rows(2), [0, 1], torch.arange(2)),
        TypeError,
        "'labels' must be a torch.Tensor (got list)",
    ),
    "labels length": (
        lambda b: b.enqueue(rows(2), torch.arange(3), torch.arange(2)),
        ValueError,
        "'labels' must have shape (2,)",
    ),
    "labels float": (
        lambda b: b.enqueue(rows(2), torch.rand(2), torch.arange(2)),
        ValueError,
        "'labels' must be an integer tensor (got torch.float32)",
    ),
    "labels bool": (
        lambda b: b.enqueue(rows(2), torch.tensor([True, False]), torch.arange(2)),
        ValueError,
        "'labels' must be an integer tensor (got torch.bool)",
    ),
    "labels low": (
        lambda b: b.enqueue(rows(2), torch.tensor([0, -2]), torch.arange(2)),
        ValueError,
        "'labels' must be >= -1, -1 = unlabeled (got -2)",
    ),
    "ids list": (
        lambda b: b.enqueue(rows(2), None, [0, 1]),
        TypeError,
        "'ids' must be a torch.Tensor (got list)",
    ),
    "ids length": (
        lambda b: b.enqueue(rows(2), None, torch.arange(1)),
        ValueError,
        "'ids' must have shape (2,)",
    ),
    "ids matrix": (
        lambda b: b.enqueue(rows(2), None, torch.zeros(2, 1).long()),
        ValueError,
        "'ids' must have shape (2,)",
    ),
    "ids float": (
        lambda b: b.enqueue(rows(2), None, torch.rand(2)),
        ValueError,
        "'ids' must be an integer tensor (got torch.float32)",
    ),
    "ids negative": (
        lambda b: b.enqueue(rows(2), None, torch.tensor([3, -1])),
        ValueError,
        "'ids' must be >= 0 (got -1)",
    ),
}
BAD_SEARCH: dict[str, tuple[Callable[[MemoryBank], object], type[Exception], str]] = {
    "k zero": (lambda b: b.search(rows(1), 0), ValueError, "'k' must be an integer of at least 1"),
    "k float": (lambda b: b.search(rows(1), 2.0), ValueError, "'k' must be an integer of at least"),
    "list": (lambda b: b.search([[1.0]], 1), TypeError, "'queries' must be a torch.Tensor"),
    "dim": (lambda b: b.search(rows(1, 2), 1), ValueError, "'queries' must have 3 columns (got 2)"),
    "nan": (
        lambda b: b.search(torch.full((1, 3), NAN), 1),
        ValueError,
        "'queries' must be finite",
    ),
    "sparse": (
        lambda b: b.search(rows(1).to_sparse(), 1),
        ValueError,
        "'queries' must be dense (got torch.sparse_coo)",
    ),
    "excluded list": (
        lambda b: b.search(rows(1), 1, [10]),
        TypeError,
        "'exclude_ids' must be a torch.Tensor (got list)",
    ),
    "excluded floats": (
        lambda b: b.search(rows(1), 1, torch.rand(2)),
        ValueError,
        "'exclude_ids' must be an integer tensor",
    ),
    "neighbors k": (
        lambda b: b.neighbors(rows(1), k=-1),
        ValueError,
        "'k' must be an integer of at least 0 (got -1)",
    ),
    "neighbors nan": (
        lambda b: b.neighbors(torch.full((1, 3), NAN)),
        ValueError,
        "'embeddings' must be finite",
    ),
}


@pytest.mark.parametrize("case", [*BAD_ENQUEUE, *(f"search {name}" for name in BAD_SEARCH)])
def test_errors_leave_the_bank_bit_identical(case: str) -> None:
    if case.startswith("search "):
        call, error, message = BAD_SEARCH[case.removeprefix("search ")]
    else:
        call, error, message = BAD_ENQUEUE[case]
    bank = filled()
    before = snapshot(bank)
    with pytest.raises(error, match=re.escape(message)):
        call(bank)
    assert_unchanged(bank, before)
    # And it goes on as if nothing had happened.
    twin = filled()
    for each in (bank, twin):
        each.enqueue(rows(3, seed=3), ids=torch.tensor([10, 30, 31]))
    assert_unchanged(bank, snapshot(twin))


@pytest.mark.parametrize(
    "indices",
    [
        torch.zeros(2, 2).long(),
        torch.zeros(4, 2).long(),
        torch.full((3, 2), 99),
        torch.full((3, 2), 5),
        torch.full((3, 2), -5),
        torch.zeros(3).long(),
    ],
    ids=["too few", "too many", "no such slot", "empty slot", "no such mate", "vector"],
)
def test_lists_that_do_not_fit_are_refused_before_anything_is_changed(indices: Tensor) -> None:
    bank = filled()  # 4 rows in 6 slots
    before = snapshot(bank)
    lists = NeighborLists(torch.ones(indices.shape), indices)
    with pytest.raises(ValueError, match="'neighbors'"):
        bank.enqueue(rows(3, seed=3), ids=torch.tensor([30, 31, 32]), neighbors=lists)
    assert_unchanged(bank, before)


def test_rows_beyond_the_range_of_half_precision_are_refused() -> None:
    bank = filled(dtype=torch.float16, normalize=False)
    before = snapshot(bank)
    with pytest.raises(ValueError, match="'embeddings'"):
        bank.enqueue(torch.full((1, 3), 1e5), ids=torch.tensor([30]))
    assert_unchanged(bank, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": -1}, "'capacity' must be an integer of at least 0 (got -1)"),
        ({"capacity": 2.0}, "'capacity' must be an integer of at least 0 (got 2.0)"),
        ({"dim": 0}, "'dim' must be an integer of at least 1 (got 0)"),
        ({"k": -1}, "'k' must be an integer of at least 0 (got -1)"),
        ({"k": True}, "'k' must be an integer of at least 0 (got True)"),
        ({"dtype": torch.float64}, "'dtype' must be torch.float32 or torch.float16"),
        ({"dtype": torch.bfloat16}, "'dtype' must be torch.float32 or torch.float16"),
    ],
)
def test_bad_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MemoryBank(**{"capacity": 4, "dim": 3, **arguments})


def test_finite_rows_whose_sum_overflows_are_no_error() -> None:
    bank = MemoryBank(4, 3, normalize=False)
    big = torch.tensor([[3e38, 3e38, 3e38]])
    bank.enqueue(big, ids=torch.tensor([0]))
    assert torch.equal(bank.embeddings, big)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e9, 1e18])
def test_rows_of_any_length_are_normalized(scale: float) -> None:
    bank = MemoryBank(4, 3)
    bank.enqueue(torch.tensor([[3.0, 4.0, 0.0]]) * scale, ids=torch.tensor([0]))
    torch.testing.assert_close(bank.embeddings, torch.tensor([[0.6, 0.8, 0.0]]))


# ---------------------------------------------------------------- without ids


def test_enqueueing_without_ids_warns_once_and_names_the_risk() -> None:
    bank = MemoryBank(4, 3)
    with pytest.warns(UserWarning, match="without 'ids'") as caught:
        bank.enqueue(rows(2))
    (warning,) = caught
    assert "label leakage" in str(warning.message)
    assert "reset() before every epoch" in str(warning.message)
    assert warning.filename == __file__
    bank.enqueue(rows(2))  # warnings are errors here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = MemoryBank(4, 3)
        other.enqueue(rows(1))
    assert (bank.stats().anonymous, other.stats().anonymous) == (4, 1)


@pytest.mark.filterwarnings("ignore:MemoryBank.enqueue was called without")
def test_rows_without_ids_are_different_documents() -> None:
    bank = MemoryBank(5, 3)
    for _ in range(2):
        bank.enqueue(rows(2))
    assert len(bank) == 4
    assert len(set(bank.ids.tolist())) == 4
    assert max(bank.ids.tolist()) < 0
    bank.enqueue(rows(1), ids=torch.tensor([0]))
    assert bank.stats().anonymous == 4
    # The identities go on after a state was loaded.
    twin = MemoryBank(5, 3)
    twin.load_state_dict(bank.state_dict())
    twin.enqueue(rows(3))
    assert len(set(twin.ids.tolist())) == 5


# ---------------------------------------------------------------- state


def test_every_buffer_is_persistent() -> None:
    bank = filled()
    names = {name for name, _ in bank.named_buffers()}
    assert names == set(bank.state_dict())
    assert not list(bank.parameters())


def test_state_of_another_shape_is_refused() -> None:
    bank = filled()
    for name, other in {"capacity": (7, 3, 2), "dim": (6, 4, 2), "k": (6, 3, 3)}.items():
        capacity, dim, k = other
        with pytest.raises(ValueError, match=f"'{name}' must be that of the saved bank"):
            MemoryBank(capacity, dim, k=k).load_state_dict(bank.state_dict())
    state = bank.state_dict()
    del state["rows"]
    with pytest.raises(RuntimeError, match="Missing key"):
        filled().load_state_dict(state)


def test_reset_forgets_everything() -> None:
    bank = filled(capacity=3)
    bank.reset()
    assert_unchanged(bank, snapshot(MemoryBank(3, 3, k=2)))
    assert len(bank) == 0
    assert bank.slots_of(torch.tensor([10, 11])).tolist() == [-1, -1]
    twin = MemoryBank(3, 3, k=2)
    for each in (bank, twin):
        each.enqueue(rows(5, seed=2), ids=torch.arange(5))
    assert_unchanged(bank, snapshot(twin))


def test_a_deep_copy_is_independent() -> None:
    bank = filled()
    before = snapshot(bank)
    twin = copy.deepcopy(bank)
    twin.enqueue(rows(4, seed=4), ids=torch.tensor([10, 40, 41, 42]))
    assert_unchanged(bank, before)
    assert bank.slots_of(torch.tensor([40])).tolist() == [-1]


def test_views_show_only_what_is_stored() -> None:
    bank = filled(capacity=9)
    assert bank.embeddings.shape == (4, 3)
    assert bank.labels.tolist() == [0, 1, 0, 1]
    assert bank.ids.tolist() == [10, 11, 12, 13]
    assert bank.age.tolist() == [0] * 4
    torch.testing.assert_close(bank.embeddings.norm(dim=1), torch.ones(4))


def test_half_precision_storage_halves_the_rows() -> None:
    half, single = filled(dtype=torch.float16), filled()
    assert half.rows.dtype == torch.float16
    assert half.rows.element_size() * 2 == single.rows.element_size()
    torch.testing.assert_close(half.embeddings.float(), single.embeddings, atol=1e-3, rtol=0.0)
    for ours, theirs in zip(half.edges()[:2], single.edges()[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_repr_shows_the_settings() -> None:
    assert repr(filled(dtype=torch.float16, search="matmul", normalize=False)) == (
        "MemoryBank(4/6 rows, dim=3, k=2, dtype=float16, search='matmul', normalize=False)"
    )


def test_settings_are_keyword_only() -> None:
    parameters = inspect.signature(MemoryBank.__init__).parameters
    positional = [
        name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["self", "capacity", "dim"]


def test_stats() -> None:
    bank = MemoryBank(6, 3, k=2)
    bank.enqueue(rows(3), torch.tensor([0, -1, 0]), torch.arange(3))
    bank.enqueue(rows(2, seed=1), torch.tensor([4, 4]), torch.tensor([2, 3]))
    stats = bank.stats()
    assert stats.class_counts == {-1: 1, 0: 1, 4: 2}
    assert (stats.size, stats.capacity, stats.anonymous) == (4, 6, 0)
    assert (stats.mean_age, stats.max_age) == (0.5, 1)
    assert stats.mean_degree == bank.edges()[0].numel() / 4
