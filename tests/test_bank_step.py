"""The step over the rows a bank keeps gives what the step over listed edges gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.graph import KNNGraph, build
from gloss_graph.graph.bank_operator import ConstantRows
from gloss_graph.graph.build import connect
from gloss_graph.memory.batch import Batch, check_batch

CLASSES, DIM = 4, 12


def checked(objective: GraphGuidedObjective, x: Tensor, y: Tensor, ids: Tensor) -> Batch:
    return check_batch(x, y, ids, memory=objective.memory, normalize=objective.graph.normalize)


def documents(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, DIM, generator=generator)
    y = torch.randint(CLASSES, (count,), generator=generator)
    return centers[y] + torch.randn(count, DIM, generator=generator), y


def objective_with_bank(
    rows: int, dtype: torch.dtype = torch.float32, shown: float = 0.3, **settings: Any
) -> GraphGuidedObjective:
    x, y = documents(rows)
    known = torch.rand(rows, generator=torch.Generator().manual_seed(1)) < shown
    bank = MemoryBank(rows, DIM, k=6, dtype=dtype)
    bank.prefill([(x, torch.where(known, y, -1), torch.arange(rows))], lambda x: x)
    return GraphGuidedObjective(CLASSES, memory=bank, k=6, visible_fraction=0.25, **settings)


def step(
    objective: GraphGuidedObjective,
    ids: Tensor,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one step, by kept rows if the bank has `least` of them."""
    monkeypatch.setattr(build, "LEAST_ROWS", least)
    x, y = documents(2_000)
    generator = torch.Generator().manual_seed(int(ids.sum()))
    x = (x[ids] + 0.1 * torch.randn(ids.numel(), DIM, generator=generator)).to(dtype)
    x.requires_grad_()
    loss = objective(x, y[ids], ids=ids)
    loss.backward()
    return loss.detach(), x.grad


SETTINGS: list[dict[str, Any]] = [
    {},
    {"normalization": "row", "eta": 0.0},
    {"normalization": "column"},
    {"normalization": "symmetric", "bandwidth": 0.4},
    {"rule": "spreading"},
    {"memory_visible_fraction": 0.5},
    {"gradient": "unrolled"},
    {"gradient": "unrolled", "solver": "cg"},
    {"solver": "cg"},
    {"solver": "cg", "eta": 0.0},
    {"solver": "cg", "rule": "spreading"},
    {"solver": "iterate"},
    {"solver": "dense"},
    {"batch_edges": "all"},
    {"kernel": "cosine"},
    {"bandwidth": 0.05},
    {"hops": 1},
    {"hops": 2, "solver": "cg"},
    {"hops": 3, "rule": "spreading", "memory_visible_fraction": 0.5},
    {"hops": 2, "gradient": "unrolled", "batch_edges": "all"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_both_paths_agree(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over steps that refresh, evict and add documents, in float64."""
    fast = objective_with_bank(300, **{"tol": 1e-13, **settings})
    plain = copy.deepcopy(fast)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        ids = torch.randperm(400, generator=generator)[:24]
        loss, gradient = step(fast, ids, torch.float64, monkeypatch, least=1)
        expected, wanted = step(plain, ids, torch.float64, monkeypatch, least=10**9)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        scale = float(wanted.abs().max())
        assert scale > 0
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-9 * scale)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, fast.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_both_paths_agree_in_single_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = objective_with_bank(300, dtype)
    plain = copy.deepcopy(fast)
    ids = torch.arange(10, 40)
    loss, gradient = step(fast, ids, torch.float32, monkeypatch, least=1)
    expected, wanted = step(plain, ids, torch.float32, monkeypatch, least=10**9)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-3 * float(wanted.abs().max()))
    assert loss.dtype == torch.float32


def test_the_kept_rows_are_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_with_bank(300)
    step(objective, torch.arange(10), torch.float32, monkeypatch, least=1)
    assert objective.memory is not None
    assert objective.memory.links.kept_graph() is not None


def test_hops_touch_no_row_beyond_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within hops the step's edges are those near the batch, not the bank's."""
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    objective = objective_with_bank(1_000, hops=1)
    x, y = documents(5)
    batch = checked(objective, x, y, torch.arange(5))
    near = build.connect(batch, objective.graph, memory=objective.memory, listed=False)
    assert near.bank is not None
    assert 5 < near.slots.numel() <= 5 * objective.graph.k
    assert near.bank.memory.size == near.slots.numel()
    assert near.y.numel() == 5 + near.slots.numel()
    assert not bool(torch.isin(near.slots, torch.arange(5)).any())


def test_a_long_chain_is_reached_without_cutting_rows_out_at_every_hop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line of documents beside an island no seed reaches; only the line's first has a label."""
    line, island = 200, 8
    x = torch.zeros(line + island, 2)
    x[:line, 0] = 0.1 * torch.arange(line)
    x[line:, 1] = 50.0 + 0.1 * torch.arange(island)
    bank = MemoryBank(line + island, 2, k=2, normalize=False)
    bank.enqueue(x, ids=torch.arange(line + island))
    query, unlabeled = x[:1] - 0.1, torch.full((1,), -1)
    graph = KNNGraph(k=2, bandwidth=1.0, batch_edges="knn", normalize=False)
    batch = check_batch(query, unlabeled, None, memory=bank, normalize=False)
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    operator = connect(batch, graph, memory=bank, listed=False).bank
    assert operator is not None
    cuts = []
    take = ConstantRows.take
    monkeypatch.setattr(
        ConstantRows, "take", lambda self, where: cuts.append(where) or take(self, where)
    )
    seeds = torch.arange(1 + line + island) == 0
    reached = operator.reach(seeds)
    assert torch.equal(reached, torch.arange(1 + line + island) <= line)
    assert len(cuts) <= 3
    # A solve finds its rows cut out.
    free = (~seeds).nonzero().squeeze(1)
    assert operator.cut.rows is not None
    assert torch.equal(operator.cut.rows[0], free - 1)


def test_an_output_lists_every_edge_and_has_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    objective = objective_with_bank(300, tol=1e-12).eval()
    x, y = documents(20)
    ids = torch.arange(20)
    out = objective(x.double(), y, ids=ids, visible=torch.zeros(20).bool(), return_output=True)
    loss = objective(x.double(), y, ids=ids, visible=torch.zeros(20).bool())
    assert out.graph.num_nodes == 20 + 280
    assert int((out.graph.edge_kind == 2).sum()) > 500
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0.0)


def test_two_losses_before_one_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of a graph that still waits for its backward pass is not written by later steps."""
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    objective = objective_with_bank(300)
    apart = copy.deepcopy(objective)
    x, y = documents(2_000)
    parts = [torch.arange(start, start + 20) for start in (0, 310, 20, 15, 340)]
    rows = [x[ids].clone().requires_grad_() for ids in parts]
    together = [objective(r, y[ids], ids=ids) for r, ids in zip(rows, parts, strict=True)]
    torch.stack(together).sum().backward()
    for r, ids in zip(rows, parts, strict=True):
        own = x[ids].clone().requires_grad_()
        apart(own, y[ids], ids=ids).backward()
        assert torch.equal(own.grad, r.grad)


def restored_halfway(
    monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[GraphGuidedObjective, Tensor]:
    """Six steps, the last three also by a restored objective; the whole one, the first batch."""
    whole = objective_with_bank(300, **settings)
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randperm(400, generator=generator)[:24] for _ in range(6)]
    for ids in batches[:3]:
        step(whole, ids, torch.float32, monkeypatch, least=1)
    resumed = objective_with_bank(300, **settings)
    resumed.load_state_dict(whole.state_dict())
    for ids in batches[3:]:
        for ours, theirs in zip(
            step(whole, ids, torch.float32, monkeypatch, least=1),
            step(resumed, ids, torch.float32, monkeypatch, least=1),
            strict=True,
        ):
            assert torch.equal(ours, theirs)
    return whole, batches[0]


def test_a_restored_objective_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    restored_halfway(monkeypatch, memory_visible_fraction=0.8)


@pytest.mark.parametrize("rows", [0, 300])
def test_a_compiled_objective_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    plain = objective_with_bank(rows) if rows else GraphGuidedObjective(CLASSES)
    encoder = torch.nn.Linear(DIM, DIM)
    other, own = copy.deepcopy(plain), copy.deepcopy(encoder)
    together = torch.nn.ModuleDict({"encoder": own, "objective": other})

    def loss_of(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return together["objective"](together["encoder"](x), y, ids=ids)

    compiled = torch.compile(loss_of, backend="eager")
    x, y = documents(40)
    for start in (0, 15):
        ids = torch.arange(start, start + 20)
        expected = plain(encoder(x[ids]), y[ids], ids=ids)
        got = compiled(x[ids], y[ids], ids)
        expected.backward()
        got.backward()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.weight.grad, encoder.weight.grad, rtol=1e-4, atol=1e-6)
    alone = torch.compile(copy.deepcopy(plain), backend="eager")
    ids = torch.arange(20)
    torch.testing.assert_close(alone(x[:20], y[:20], ids=ids), plain(x[:20], y[:20], ids=ids))


@pytest.mark.parametrize(
    "settings",
    [{}, {"hops": 3}, {"gradient": "unrolled"}, {"eta": 0.0}],
    ids=str,
)
def test_a_warm_start_changes_the_work_not_the_result(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LEAST_ROWS", 1)
    cold = objective_with_bank(900, shown=0.05, solver="cg", tol=1e-10, **settings)
    warm = objective_with_bank(900, shown=0.05, solver="cg", tol=1e-10, warm_start=True, **settings)
    work: dict[GraphGuidedObjective, list[int]] = {cold: [], warm: []}
    generator = torch.Generator().manual_seed(3)
    x, y = documents(2_000)
    for _ in range(5):
        # Some are new and evict others, whose slots' values are then somebody else's.
        ids = torch.randperm(1_000, generator=generator)[:24]
        rows = x[ids].double() + 0.05 * torch.randn(24, DIM, generator=generator).double()
        results = []
        for objective, counts in work.items():
            points = rows.clone().requires_grad_()
            run = objective.propagation.propagate_operator

            def counted(
                *given: Any, _run: Any = run, _counts: list[int] = counts, **more: Any
            ) -> Any:
                found = _run(*given, **more)
                _counts.append(found.report.iterations)
                return found

            monkeypatch.setattr(objective.propagation, "propagate_operator", counted)
            loss = objective(points, y[ids], ids=ids)
            loss.backward()
            monkeypatch.setattr(objective.propagation, "propagate_operator", run)
            results.append((loss.detach(), points.grad))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-7, atol=0.0)
        scale = float(results[0][1].abs().max())
        torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6 * scale)
    assert len(work[warm]) == 5
    if settings.get("gradient") == "unrolled":
        # Steps that start close to the solution would leave next to none to differentiate.
        assert work[warm] == work[cold]
    else:
        assert sum(work[warm][1:]) < sum(work[cold][1:]), list(work.values())


def test_a_warm_started_objective_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, ids = restored_halfway(monkeypatch, warm_start=True, solver="cg")
    assert whole.warm is not None
    before = whole.warm.values.clone()
    step(whole.eval(), ids, torch.float32, monkeypatch, least=1)
    assert torch.equal(whole.warm.values, before), "evaluation changed where training goes on"


def test_a_warm_start_needs_a_bank() -> None:
    with pytest.raises(ValueError, match="'warm_start' must be False without 'memory'"):
        GraphGuidedObjective(CLASSES, warm_start=True)
    with pytest.raises(ValueError, match="got 'spreading'"):
        objective_with_bank(20, rule="spreading", warm_start=True)
    assert "warm_start=True" in repr(objective_with_bank(20, warm_start=True))
