"""Stale rows: re-encoding them, measuring how far they are off, and what `stats` says of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import MemoryBank
from gloss_graph.memory import Drift, MomentumEncoder
from gloss_graph.memory.drift import OLDEST, age_decay
from gloss_graph.neighbors import IVFSettings

from .helpers import assert_unchanged, enqueue_nameless

DIM = 6


def world(seed: int = 0, size: int = 40) -> Tensor:
    """Raw rows of all documents, by id."""
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(seed))


def filled(capacity: int = 12, **settings: Any) -> MemoryBank:
    """Three batches of four documents, ids 0..11, the first one the oldest."""
    bank = MemoryBank(capacity, DIM, k=3, **settings)
    for part in torch.arange(12).split(4):
        bank.enqueue(world()[part], part % 3, part)
    return bank


# ------------------------------------------------------------------ refresh


@pytest.mark.parametrize("eviction", ["fifo", "stalest", "reservoir"])
def test_refresh_writes_the_stalest_in_place(eviction: str) -> None:
    bank, now, asked = filled(eviction=eviction), world(9), []

    def encode(ids: Tensor) -> Tensor:
        asked.extend(ids.tolist())
        return now[ids]

    before = snapshot(bank)
    assert bank.refresh(encode, 6) == 6
    assert asked == [0, 1, 2, 3, 4, 5]
    torch.testing.assert_close(bank.embeddings[:6], F.normalize(now[:6], dim=1))
    assert torch.equal(bank.embeddings[6:], before["rows"][6:])
    assert bank.age.tolist() == [0] * 6 + [1, 1] + [0] * 4
    for name in ("slot_ids", "slot_labels", "cursor", "count", "step", "links.stamps"):
        assert torch.equal(bank.state_dict()[name], before[name]), name


def test_refreshed_rows_have_new_neighbors_and_lengths() -> None:
    bank, now = filled(), world(9)
    bank.refresh(lambda ids: now[ids], 4)
    source, target, squared = bank.edges()
    rows = bank.embeddings
    exact = (rows[source] - rows[target]).square().sum(dim=1)
    torch.testing.assert_close(squared, exact)
    nearest = torch.cdist(rows, rows).fill_diagonal_(torch.inf).topk(3, largest=False).indices
    for slot in range(4):
        assert set(target[source == slot].tolist()) == set(nearest[slot].tolist())


def test_refresh_again_goes_on_with_the_next() -> None:
    bank, asked = filled(), []
    for _ in range(3):
        bank.refresh(lambda ids: asked.append(ids.tolist()) or world(3)[ids], 4)
    # All are of age 0 after the second, so the third starts over at the lowest slots.
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_refresh_keeps_label_sets_and_leaves_rows_without_identity() -> None:
    bank = MemoryBank(6, DIM, k=2, num_classes=2)
    sets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [torch.nan, torch.nan]])
    bank.enqueue(world()[:3], sets, torch.arange(3))
    enqueue_nameless(bank, world()[5:7])
    kept = bank.embeddings[3:].clone()
    assert bank.refresh(lambda ids: world(4)[ids], 100) == 3
    torch.testing.assert_close(bank.labels[:3], sets, equal_nan=True)
    assert torch.equal(bank.embeddings[3:], kept)


def test_refresh_of_nothing() -> None:
    def never(ids: Tensor) -> Tensor:
        raise AssertionError("nothing is to be encoded")

    assert MemoryBank(4, DIM).refresh(never, 3) == 0
    assert MemoryBank(0, DIM).refresh(never, 3) == 0
    assert filled().refresh(never, 0) == 0


class Noisy(nn.Module):
    """An encoder of ids with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.drop(world(2)[ids])


def test_a_module_runs_without_dropout_and_goes_back_to_training() -> None:
    bank, encoder = filled(), Noisy().train()
    bank.refresh(encoder, 12)
    torch.testing.assert_close(bank.embeddings, F.normalize(world(2)[:12], dim=1))
    assert encoder.training
    assert encoder.drop.training


BAD: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda ids: world()[ids][:, :3], "'encode' must have 6 columns"),
    (lambda ids: world()[ids][:-1], "'encode' must return a row for each of the 4 ids"),
    (lambda ids: world()[ids] * torch.nan, "'encode' must be finite"),
    (lambda ids: ids, "'encode' must have shape"),
    (lambda ids: [[1.0] * DIM] * len(ids), "'encode' must be a torch.Tensor"),
]


@pytest.mark.parametrize(("encode", "message"), BAD)
def test_bad_rows_change_nothing(encode: Callable[[Tensor], Any], message: str) -> None:
    bank = filled()
    before = snapshot(bank)
    for call in (lambda: bank.refresh(encode, 4), lambda: bank.drift(encode, 4)):
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    assert_unchanged(bank, before)
    assert bank.last_drift is None
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="'count' must be"):
            bank.refresh(lambda ids: world()[ids], wrong)


def test_rows_beyond_float16_change_nothing() -> None:
    bank = filled(dtype=torch.float16, normalize=False)
    before = snapshot(bank)
    with pytest.raises(ValueError, match="exceed float16"):
        bank.refresh(lambda ids: world()[ids] * 1e6, 4)
    assert_unchanged(bank, before)


# ------------------------------------------------------------------ drift


def test_drift_is_the_cosine_with_the_rows_of_now() -> None:
    bank, now = filled(), world()
    # The older, the farther: the first batch turned round, the second by a right angle or less.
    now[:4] = -now[:4]
    now[4:8] += world(5)[4:8]
    found = bank.drift(lambda ids: now[ids], sample=100)
    exact = F.cosine_similarity(now[:12], world()[:12], dim=1)
    assert isinstance(found, Drift)
    assert found.rows == 12
    assert found.mean == pytest.approx(float(exact.mean()), abs=1e-6)
    assert found.min == pytest.approx(-1.0, abs=1e-6)
    expected = exact.double().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    assert found.quartiles == pytest.approx(expected.tolist(), abs=1e-6)
    assert [(group.youngest, group.oldest, group.rows) for group in found.by_age] == [
        (0, 0, 4),
        (1, 1, 4),
        (2, 2, 4),
    ]
    means = [float(exact[part].mean()) for part in (slice(8, 12), slice(4, 8), slice(0, 4))]
    assert [group.mean for group in found.by_age] == pytest.approx(means, abs=1e-6)
    assert bank.stats().drift == found
    bank.reset()
    assert bank.stats().drift is None


def test_a_sample_is_drawn_by_its_seed() -> None:
    asked: list[list[int]] = []

    def encode(ids: Tensor) -> Tensor:
        asked.append(ids.tolist())
        return world()[ids]

    bank = filled()
    before = snapshot(bank)
    for settings in ({"seed": 1}, {"generator": torch.Generator().manual_seed(1)}, {"seed": 2}):
        found = bank.drift(encode, 5, **settings)
        assert found.rows == len(set(asked[-1])) == 5
        assert (found.mean, found.min) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert asked[0] == asked[1] != asked[2]
    assert_unchanged(bank, before)


def test_drift_of_nothing_and_of_no_sample() -> None:
    with pytest.raises(ValueError, match="holds no row with an id"):
        MemoryBank(4, DIM).drift(lambda ids: world()[ids])
    for wrong in (0, -1, 2.0):
        with pytest.raises(ValueError, match="'sample' must be"):
            filled().drift(lambda ids: world()[ids], wrong)


# ------------------------------------------------------------------ stats


def test_stats_of_ages_fill_and_duplicates() -> None:
    bank = filled(capacity=16)
    stats = bank.stats()
    assert stats.fill == 0.75
    ages = [2] * 4 + [1] * 4 + [0] * 4
    quartiles = torch.tensor(ages).double().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    assert stats.age_quartiles == tuple(quartiles.tolist())
    assert (stats.duplicates, stats.evicted, stats.declined) == (0, 0, None)
    # The same text under other ids: a copy of one that is stored, and two in one batch.
    twins = torch.cat([world()[3:4], world(8)[:1], world(8)[:1] * 2.0])
    bank.enqueue(twins, ids=torch.tensor([20, 21, 22]))
    assert bank.stats().duplicates == 4
    # Near is not equal.
    bank.enqueue(world()[5:6] + 0.01 * world(7)[:1], ids=torch.tensor([23]))
    assert bank.stats().duplicates == 4


def test_duplicates_of_rows_that_are_not_normalized() -> None:
    bank = MemoryBank(8, 2, k=2, normalize=False)
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 5.0], [0.0, 0.0]])
    bank.enqueue(x, ids=torch.arange(4))
    assert bank.stats().duplicates == 2


def test_evicted_documents_are_counted() -> None:
    bank = MemoryBank(5, DIM, k=2)
    for part in torch.arange(12).split(4):
        bank.enqueue(world()[part], ids=part)
    assert bank.stats().evicted == 7


# ------------------------------------------------------------------ rows in other coordinates


def test_age_decay_halves_and_has_a_floor() -> None:
    age = torch.tensor([0, 5, 10, 20, 10_000])
    expected = [1.0, 0.5**0.5, 0.5, 0.25, 2.0**-OLDEST]
    assert age_decay(age, 10.0).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_restandardized_rows_have_mean_and_spread_of_the_batch(dtype: torch.dtype) -> None:
    bank = filled(normalize=False, dtype=dtype)
    x = 3.0 * world(4)[:9] + 2.0
    before = snapshot(bank)
    view = bank.restandardized(x, DIM)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(view.embeddings.mean(dim=0), x.mean(dim=0), **tolerance)
    spread = view.embeddings.std(dim=0, correction=0)
    torch.testing.assert_close(spread, x.std(dim=0, correction=0), **tolerance)
    assert_unchanged(bank, before)
    # Search and neighbors see the new rows, under the ids of the old.
    found = view.search(view.embeddings[:3], 1, exclude_ids=torch.tensor([1]))
    assert found.slots.flatten().tolist()[::2] == [0, 2]
    assert float(found.distances[0]) == pytest.approx(0.0, abs=1e-3)
    assert torch.equal(view.ids, bank.ids)


def test_restandardizing_undoes_an_affine_drift() -> None:
    """Rows that an encoder shifted and stretched since they were stored come back to it."""
    bank = MemoryBank(40, DIM, k=0, normalize=False)
    bank.enqueue(world(), ids=torch.arange(40))
    now = world() * torch.linspace(0.5, 2.0, DIM) + torch.arange(DIM)
    view = bank.restandardized(now, DIM)
    torch.testing.assert_close(view.embeddings, now, rtol=1e-4, atol=1e-4)


def test_restandardized_unit_rows_stay_unit_and_frozen_columns_stay() -> None:
    bank = filled()
    view = bank.restandardized(world(4)[:9] + 1.0, 4)
    assert torch.equal(view.embeddings[:, 4:], bank.embeddings[:, 4:])
    torch.testing.assert_close(view.embeddings.norm(dim=1), torch.ones(12))
    assert not torch.allclose(view.embeddings[:, :4], bank.embeddings[:, :4], atol=1e-2)


def test_nothing_to_restandardize() -> None:
    bank = filled()
    assert bank.restandardized(world()[:1], DIM) is bank
    empty = MemoryBank(4, DIM)
    assert empty.restandardized(world()[:5], DIM) is empty
    flat = MemoryBank(4, 2, k=0, normalize=False)
    flat.enqueue(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), ids=torch.arange(2))
    view = flat.restandardized(torch.tensor([[5.0, 1.0], [7.0, 3.0]]), 2)
    torch.testing.assert_close(view.embeddings, torch.tensor([[6.0, 1.0], [6.0, 3.0]]))


# ------------------------------------------------------------------ momentum encoder


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def trained_step(module: nn.Module, seed: int) -> None:
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(world(seed)).square().sum().backward()
    optimizer.step()


def test_a_momentum_encoder_is_the_exponential_mean() -> None:
    source = net()
    slow = MomentumEncoder(source, momentum=0.9)
    mean = [value.detach().clone() for value in source.parameters()]
    for seed in range(4):
        trained_step(source, seed)
        slow.update()
        mean = [0.9 * m + 0.1 * v.detach() for m, v in zip(mean, source.parameters(), strict=True)]
    for own, expected in zip(slow.parameters(), mean, strict=True):
        torch.testing.assert_close(own, expected)
        assert not own.requires_grad
    # Buffers are those of the encoder, so its batch statistics.
    copied = dict(slow.average.module.named_buffers())
    for name, value in source.named_buffers():
        assert torch.equal(copied[name], value), name


def test_a_momentum_encoder_is_calm_and_apart() -> None:
    source = net().train()
    slow = MomentumEncoder(source).train()
    assert not any(part.training for part in slow.modules())
    assert source.training
    x = world().requires_grad_()
    assert torch.equal(slow(x), slow(x))
    assert not slow(x).requires_grad
    ours = {id(value) for value in slow.parameters()}
    assert not ours & {id(value) for value in source.parameters()}
    assert len(list(slow.state_dict())) == len(source.state_dict()) + 1
    trained_step(source, 1)
    before = slow(x).clone()
    assert torch.equal(slow(x), before), "only update() moves it"


def test_a_momentum_encoder_goes_on_from_its_state() -> None:
    whole, source = MomentumEncoder(net(), 0.5), net()
    first = MomentumEncoder(source, 0.5)
    trained_step(source, 1)
    first.update()
    second = MomentumEncoder(source, 0.5)
    second.load_state_dict(first.state_dict())
    trained_step(source, 2)
    second.update()
    first.update()
    for own, other in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(own, other)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(second)))
    assert torch.equal(twin(world()), second(world()))
    assert not torch.equal(whole(world()), second(world()))


def test_bad_settings_of_a_momentum_encoder() -> None:
    for wrong in (-0.1, 1.0, float("nan"), True):
        with pytest.raises(ValueError, match="'momentum' must be"):
            MomentumEncoder(net(), wrong)
    with pytest.raises(TypeError, match="'module' must be"):
        MomentumEncoder(lambda x: x)


def test_refreshed_and_restandardized_rows_of_an_indexed_bank() -> None:
    """An index follows a refresh; a view of other rows does not ask it."""
    search = IVFSettings(cells=2, probes=2)
    bank, plain = (filled(capacity=12, search=how) for how in (search, "exact"))
    for one in (bank, plain):
        one.search(world(3)[:2], 3)
        one.refresh(lambda ids: world(9)[ids], 5)
    assert torch.equal(bank.search(world(3)[:4], 3).slots, plain.search(world(3)[:4], 3).slots)
    views = [one.restandardized(world(4)[:9], DIM) for one in (bank, plain)]
    found = [view.search(world(3)[:4], 3) for view in views]
    assert torch.equal(found[0].slots, found[1].slots)
