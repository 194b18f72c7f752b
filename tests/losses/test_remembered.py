"""How much remembered rows count: decay with age, late start, ramp, other coordinates."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.inference.head import PropagationHead
from gloss_graph.step import Staleness

DIM, CLASSES, SIZE = 5, 3, 8


def rows(seed: int, count: int = SIZE) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=source, dtype=torch.float64)


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = (torch.arange(SIZE) + 5 * step) % 30
    return rows(step), ids % CLASSES, ids


def made(capacity: int | None = 20, **settings: Any) -> GraphGuidedObjective:
    memory = None if capacity is None else MemoryBank(capacity, DIM, k=4)
    return GraphGuidedObjective(CLASSES, memory=memory, k=4, **settings)


def trained(objective: GraphGuidedObjective, steps: range) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradient of every step."""
    out = []
    for step in steps:
        x, labels, ids = batch(step)
        x.requires_grad_()
        loss = objective(x, labels, ids=ids)
        loss.backward()
        out.append((loss.detach(), x.grad))
    return out


def graph_of(objective: GraphGuidedObjective, step: int) -> Any:
    objective.eval()
    x, labels, ids = batch(step)
    found = objective(x, labels, ids=ids, return_output=True)
    objective.train()
    return found.graph


def dense(graph: Any) -> Tensor:
    weight = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    weight[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight.detach().double()
    return weight


def warmed(**settings: Any) -> GraphGuidedObjective:
    objective = made(**settings)
    trained(objective, range(6))
    return objective


# ------------------------------------------------------------------ decay


@pytest.mark.parametrize("half_life", [0.5, 2.0, 50.0])
def test_decay_is_a_diagonal_scaling(half_life: float) -> None:
    plain = graph_of(warmed(consistency_weight=0.0), 6)
    aged = graph_of(warmed(consistency_weight=0.0, half_life=half_life), 6)
    assert int(plain.age.max()) > 2
    factor = torch.where(plain.in_batch, 1.0, 0.5 ** (plain.age.double() / half_life))
    expected = factor.unsqueeze(1) * dense(plain) * factor
    torch.testing.assert_close(dense(aged), expected, rtol=1e-5, atol=1e-12)
    assert torch.equal(dense(aged), dense(aged).T)


def test_the_loss_and_its_gradient_are_those_of_the_decayed_dense_graph() -> None:
    """Against a closed form in float64 over the graph of the step, differentiable to the batch."""
    half_life = 3.0
    objective = warmed(half_life=half_life, bandwidth=0.8, normalization="row", eta=0.2)
    memory, objective = objective.memory, objective.eval()
    x, labels, ids = batch(6)
    visible = torch.arange(SIZE) % 2 == 0
    x.requires_grad_()
    out = objective(x, labels, ids=ids, visible=visible, return_output=True)
    (grad,) = torch.autograd.grad(out.loss, x)

    nodes = torch.cat([torch.nn.functional.normalize(x, dim=1), _stored(memory, out.graph)])
    source, target = out.graph.edge_index
    squared = (nodes[source] - nodes[target]).square().sum(dim=1)
    factor = torch.where(out.graph.in_batch, 1.0, 0.5 ** (out.graph.age.double() / half_life))
    weight = torch.exp(-squared / (2 * 0.8**2)) * factor[source] * factor[target]
    count = nodes.size(0)
    dense_weight = torch.zeros(count, count, dtype=torch.float64).index_put(
        (source, target), weight
    )
    seeds = out.graph.seed_mask
    degree = dense_weight.sum(dim=1)
    hidden, shown = (~seeds).nonzero().squeeze(1), seeds.nonzero().squeeze(1)
    system = torch.diag(1.2 * degree[hidden]) - dense_weight[hidden][:, hidden]
    known = torch.nn.functional.one_hot(out.graph.y[shown], CLASSES).double()
    leak = 0.2 * degree[hidden].unsqueeze(1) / CLASSES
    solved = torch.linalg.solve(system, dense_weight[hidden][:, shown] @ known + leak)
    scored = (hidden < SIZE).nonzero().squeeze(1)
    chance = solved[scored].gather(1, labels[hidden[scored]].unsqueeze(1))
    loss = -((1 - 1e-3) * chance + 1e-3 / CLASSES).log().mean()
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-4, atol=1e-5)
    (expected,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)


def _stored(memory: MemoryBank, graph: Any) -> Tensor:
    return memory.rows[memory.slots_of(graph.doc_id[~graph.in_batch])].double()


def test_very_old_rows_neither_break_nor_count() -> None:
    """Age 10,000 half-lives: finite, and next to the in-batch loss on the same graph."""
    objective = warmed(half_life=1e-4)
    out = trained(objective, range(6, 8))
    for loss, grad in out:
        assert math.isfinite(float(loss))
        assert bool(torch.isfinite(grad).all())
    graph = graph_of(objective, 8)
    old = (~graph.in_batch) & (graph.age > 0)
    ends = old[graph.edge_index].any(dim=0)
    assert bool(ends.any())
    assert float(graph.edge_weight[ends].max()) <= 2.0**-30


def test_solves_over_the_whole_bank_decay_too() -> None:
    objective = warmed(
        half_life=2.0, consistency_start=0, consistency_ramp=1, refresh_every=1, graph_weight=0.0
    )
    x, labels, ids = batch(6)
    labels = torch.full_like(labels, -1)
    logits = torch.zeros(SIZE, CLASSES)
    memory, targets = objective.memory, objective.targets
    memory.slot_labels[::2] = -1
    trust = 0.5 ** (memory.age.float() / 2.0)
    head = PropagationHead(memory.embeddings, memory.labels, targets.classifier, trust)
    plain = PropagationHead(memory.embeddings, memory.labels, targets.classifier)
    assert not torch.allclose(head.hits, plain.hits, atol=1e-3)
    edges = plain.graph.edge_index
    torch.testing.assert_close(
        head.graph.edge_weight, plain.graph.edge_weight * trust[edges[0]] * trust[edges[1]]
    )
    expected = head.probabilities(head.hits)
    objective(x, labels, ids=ids, logits=logits)
    torch.testing.assert_close(targets.table[: expected.size(0)], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ start and ramp


def test_before_the_start_a_step_is_in_batch_and_the_bank_fills() -> None:
    late, alone, full = made(staleness=Staleness(warmup_steps=4)), made(None), made()
    for (a, grad), (b, other) in zip(
        trained(late, range(4)), trained(alone, range(4)), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(grad, other)
    trained(full, range(4))
    # Stored as ever, but for the lists, whose search the steps did not share.
    for name in ("rows", "slot_ids", "slot_labels", "written_at"):
        assert torch.equal(late.memory.state_dict()[name], full.memory.state_dict()[name])
    for a, b in zip(late.memory.edges(), full.memory.edges(), strict=True):
        torch.testing.assert_close(a, b)
    # From the start on remembered rows take part, in eval mode too.
    assert not bool(graph_of(late, 4).in_batch.all())
    assert bool(graph_of(made(staleness=Staleness(warmup_steps=4)), 0).in_batch.all())


def test_after_the_ramp_a_step_is_that_of_the_whole_memory() -> None:
    ramped, full = made(staleness=Staleness(warmup_steps=2, ramp_steps=3)), made()
    first, second = trained(ramped, range(8)), trained(full, range(8))
    differ = [not torch.allclose(a[0], b[0], atol=1e-6) for a, b in zip(first, second, strict=True)]
    assert differ[1:4] == [True] * 3
    assert differ[4:] == [False] * 4


def test_a_ramp_weighs_every_edge_that_touches_the_memory() -> None:
    plain = graph_of(warmed(), 6)
    # Steps are counted from 0: the seventh one has 3 of 10 behind it, with the start.
    half = graph_of(warmed(staleness=Staleness(warmup_steps=2, ramp_steps=10)), 6)
    touches = ~(plain.in_batch.unsqueeze(1) & plain.in_batch)
    expected = torch.where(touches, 0.5, 1.0) * dense(plain)
    torch.testing.assert_close(dense(half), expected, rtol=1e-6, atol=0)


SETTINGS: dict[str, Any] = {
    "staleness": Staleness(half_life=4.0, restandardize=True, warmup_steps=2, ramp_steps=6),
}


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_training_on_from_a_state_is_bit_for_bit(stop: int) -> None:
    whole = made(**SETTINGS)
    expected = trained(whole, range(10))
    first = made(**SETTINGS)
    trained(first, range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = made(**SETTINGS, seed=7)
    second.load_state_dict(torch.load(file, weights_only=True))
    for (a, grad), (b, other) in zip(
        trained(second, range(stop, 10)), expected[stop:], strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(grad, other)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# ------------------------------------------------------------------ other coordinates


def test_restandardized_rows_make_the_graph_of_a_bank_that_holds_them() -> None:
    objective = warmed(restandardize=True, bandwidth=0.7)
    x, _, ids = batch(6)
    view = objective.memory.restandardized(x, DIM)
    graph = graph_of(objective, 6)
    unit = torch.nn.functional.normalize(x, dim=1)
    nodes = torch.cat([unit, _stored(view, graph)])
    source, target = graph.edge_index
    cross = graph.edge_kind == 1
    squared = (nodes[source] - nodes[target]).square().sum(dim=1)[cross]
    expected = torch.exp(-squared / (2 * 0.7**2))
    torch.testing.assert_close(graph.edge_weight[cross].double(), expected, rtol=1e-4, atol=1e-6)
    # Inherited lengths are those of the rows as stored.
    nodes = torch.cat([unit, _stored(objective.memory, graph)])
    inner = graph.edge_kind == 2
    squared = (nodes[source] - nodes[target]).square().sum(dim=1)[inner]
    expected = torch.exp(-squared / (2 * 0.7**2))
    torch.testing.assert_close(graph.edge_weight[inner].double(), expected, rtol=1e-4, atol=1e-6)
    assert not bool(torch.isin(ids, graph.doc_id[~graph.in_batch]).any())


def test_frozen_features_are_not_restandardized(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = MemoryBank(20, DIM + 2, k=4)
    objective = GraphGuidedObjective(CLASSES, memory=bank, k=4, restandardize=True)
    frozen = torch.randn(30, 2, generator=torch.Generator().manual_seed(1)).double()
    seen = []
    original = MemoryBank.restandardized

    def watched(self: MemoryBank, x: Tensor, learned: int) -> MemoryBank:
        seen.append((learned, original(self, x, learned)))
        return seen[-1][1]

    monkeypatch.setattr(MemoryBank, "restandardized", watched)
    for step in range(3):
        x, labels, ids = batch(step)
        objective(x, labels, ids=ids, frozen=frozen[ids])
    learned, view = seen[-1]
    assert learned == DIM
    norm = view.embeddings.norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    half = view.embeddings[:, DIM:].norm(dim=1)
    torch.testing.assert_close(half, torch.full_like(half, math.sqrt(0.5)))


# ------------------------------------------------------------------ settings


def test_settings_are_shown_where_they_are_set() -> None:
    shown = repr(made(**SETTINGS))
    assert "half_life=4.0, restandardize=True, warmup_steps=2, ramp_steps=6" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("half_life", value) for value in (0.0, -1.0, math.inf, math.nan, True)),
        *(("restandardize", value) for value in (1, "yes")),
        *((name, v) for name in ("warmup_steps", "ramp_steps") for v in (-1, 1.5, True, None)),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' must be"):
        made(staleness=Staleness(**{name: value}))


def test_nothing_changes_without_a_bank() -> None:
    plain, settled = made(None), made(None, **SETTINGS)
    for a, b in zip(trained(plain, range(3)), trained(settled, range(3)), strict=True):
        assert torch.equal(a[0], b[0])
