"""Two processes, gloo: the objective's whole state stays bit-equal, whatever the batches hold."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import different, snapshot
from processes import WORLD, together
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph._internal.processes import (
    any_process,
    gather_rows,
    is_main,
    launched,
    mean_over_processes,
    share_state,
    step_generator,
    world_size,
)
from gloss_graph.losses import PseudoLabelLoss, labeled_binary_cross_entropy, labeled_cross_entropy
from gloss_graph.memory import EVICTIONS
from gloss_graph.step import Staleness

from .helpers import built_graph

CLASSES, DIM = 3, 8
# Batch sizes of the two processes, and labels by process (-1 = none labeled), step by step.
SIZES = ((5, 6), (4, 4), (7, 1), (3, 5), (6, 2))
UNLABELED: tuple[tuple[str, str], ...] = (
    ("none", "none"),
    ("none", "all"),
    ("some", "none"),
    ("all", "all"),
    ("none", "some"),
)


def make_objective(capacity: int = 16, **settings: Any) -> GraphGuidedObjective:
    """A bank of 16 rows evicts from the second step on."""
    bank = MemoryBank(capacity, DIM, k=4)
    return GraphGuidedObjective(CLASSES, memory=bank, k=4, seed=5, **settings)


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, labels, ids, logits; the two processes share their last document."""
    size, kind = SIZES[step][rank], UNLABELED[step][rank]
    generator = torch.Generator().manual_seed(10 * step + rank)
    ids = torch.arange(size) + 100 * rank + 10 * step
    ids[-1] = 1000 + step
    labels = ids % CLASSES
    if kind == "all":
        labels = torch.full_like(ids, -1)
    elif kind == "some":
        labels[: size // 2 + 1] = -1
        labels[-1] = ids[-1] % CLASSES if size > 1 else -1
    x = torch.randn(size, DIM, generator=generator, requires_grad=True)
    logits = torch.randn(size, CLASSES, generator=generator, requires_grad=True)
    return x, labels, ids, logits


def objective_states(rank: int, **settings: Any) -> list[dict[str, Tensor]]:
    """State after every step of a training with batches of different size and kind."""
    objective, states = make_objective(**settings), []
    for step in range(len(SIZES)):
        x, labels, ids, logits = batch_of(step, rank)
        objective(x, labels, ids=ids, logits=logits).backward()
        if x.grad is None or x.grad.shape != x.shape or not bool(x.grad.isfinite().all()):
            raise RuntimeError("the gradient must stay local and finite")
        states.append(snapshot(objective))
    return states


def pseudo_states(rank: int) -> list[dict[str, Tensor]]:
    loss, states = PseudoLabelLoss(CLASSES, start=0, ramp=1), []
    for step in range(len(SIZES)):
        _, labels, _, logits = batch_of(step, rank)
        loss(logits, labels, logits.detach()).backward()
        states.append(snapshot(loss))
    return states


def shared(rank: int) -> dict[str, Any]:
    """Banks filled differently, with generators of different seeds, made the same."""
    bank = MemoryBank(8, DIM, k=2)
    objective = GraphGuidedObjective(CLASSES, memory=bank, seed=rank)
    rows = torch.eye(DIM)[: 3 + rank]
    bank.enqueue(rows, torch.zeros(3 + rank, dtype=torch.long), torch.arange(3 + rank) + 50 * rank)
    share_state(objective)
    return {"state": snapshot(objective), "slots": bank.slots_of(torch.tensor([0, 2, 50])).tolist()}


def shared_links(rank: int) -> list[list[Tensor]]:
    """The graph a bank keeps, as it was, as it is after sharing, and built anew from the lists."""
    bank = MemoryBank(12, DIM, k=2)
    x = torch.randn(12, DIM, generator=torch.Generator().manual_seed(rank))
    bank.enqueue(x, ids=torch.arange(12))
    graphs = [bank.links.symmetric(12)]
    share_state(GraphGuidedObjective(CLASSES, memory=bank))
    graphs += [bank.links.symmetric(12), built_graph(bank)]
    return [[graph.pointer, graph.column, graph.squared] for graph in graphs]


def looked(rank: int) -> dict[str, Any]:
    """Process 0 alone evaluates, with unlabeled rows and targets due."""
    kinds = []
    for refresh in (0, 1):
        objective = make_objective(consistency_start=0, refresh_every=refresh)
        x, labels, ids, logits = batch_of(0, rank)
        objective(x, labels, ids=ids, logits=logits)
        before = snapshot(objective)
        if is_main():
            x, labels, ids, logits = batch_of(2, rank)
            objective.eval()(x, labels, ids=ids, logits=logits)
        kinds.append(different(before, snapshot(objective)))
    return {"changed": kinds}


def split_of_equal_batches() -> list[Tensor]:
    objective, hidden = make_objective(64), []
    for step in range(3):
        x = torch.randn(24, DIM, generator=torch.Generator().manual_seed(step))
        ids = torch.arange(24) + 24 * step
        out = objective(x, ids % CLASSES, ids=ids, return_output=True)
        hidden.append(out.hidden)
    return hidden


def regions(apart: bool) -> tuple[GraphGuidedObjective, list[tuple[Tensor, Tensor, Tensor]]]:
    """A bank of two regions and a batch in each; every batch row is pinned hidden or visible."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.eye(DIM)[:2] if apart else torch.eye(DIM)[[0, 0]]

    def near(center: Tensor, count: int) -> Tensor:
        return center + 0.2 * torch.randn(count, DIM, generator=generator)

    bank = MemoryBank(64, DIM, k=4)
    objective = GraphGuidedObjective(
        CLASSES, memory=bank, k=4, bandwidth=0.5, tol=1e-7, max_iter=5000
    )
    stored = torch.cat([near(center, 12) for center in centers])
    labels = torch.randint(0, CLASSES, (24,), generator=generator)
    bank.prefill([(stored, labels, torch.arange(24) + 500)], lambda rows: rows)
    batches = [
        (near(center, 6), torch.arange(6) % CLASSES, torch.arange(6) + 6 * place)
        for place, center in enumerate(centers)
    ]
    return objective, batches


VISIBLE = torch.tensor([True, False, False, True, False, False])


def local_gradient(rank: int, apart: bool) -> Tensor:
    objective, batches = regions(apart)
    x, labels, ids = batches[rank]
    x.requires_grad_()
    objective(x, labels, ids=ids, visible=VISIBLE).backward()
    return x.grad / WORLD  # what averaging over the processes makes of it


def joined_gradient(apart: bool) -> Tensor:
    objective, batches = regions(apart)
    x, labels, ids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    x.requires_grad_()
    objective(x, labels, ids=ids, visible=VISIBLE.repeat(WORLD)).backward()
    return x.grad


UNLABELED_TERMS: dict[str, dict[str, Any]] = {
    "table": {"refresh_every": 2},
    "each step": {"refresh_every": 0},
    "sets": {"refresh_every": 0, "multilabel": True},
    "no bank": {"memory": None},
    "pseudo": {},
}


def unlabeled_term(name: str, rank: int | None) -> list[Tensor]:
    """Gradients of the logits in four steps: of one process, or (None) of the joined batches."""
    settings = dict(UNLABELED_TERMS[name])
    sets = CLASSES if settings.get("multilabel") else None
    pseudo = PseudoLabelLoss(CLASSES, start=0, ramp=1, threshold=0.3)
    memory = MemoryBank(64, DIM, k=4, num_classes=sets)
    plain = {"memory": memory, "k": 4, "consistency_start": 1, "consistency_ramp": 1}
    objective = GraphGuidedObjective(CLASSES, graph_weight=0.0, **(plain | settings))
    generator, found = torch.Generator().manual_seed(7), []
    for step in range(4):
        # Some have no target yet: a bank that is empty at first, and other counts on each process.
        counts = (torch.tensor([7, 4]) + step).tolist()
        x = torch.randn(sum(counts), DIM, generator=generator).split(counts)
        logits = torch.randn(sum(counts), CLASSES, generator=generator).split(counts)
        ids = torch.randperm(30, generator=generator)[: sum(counts)].split(counts)
        parts = range(WORLD) if rank is None else [rank]
        z, own = (torch.cat([rows[r] for r in parts]) for rows in (x, logits))
        known = torch.cat([ids[r] for r in parts])
        labels = torch.where(known % 3 > 0, known % CLASSES, -1)
        given = labels
        if sets:
            given = torch.eye(CLASSES)[labels.clamp(min=0)]
            given[labels < 0] = torch.nan
        own.requires_grad_()
        if name == "pseudo":
            # Cross-entropy is a mean over each process's labeled rows, which differ in number.
            pseudo(own, labels, own.detach())
            loss = pseudo(own, labels, own.detach()) - labeled_cross_entropy(own, labels)
        else:
            objective(z, given, ids=known, logits=own)
            loss = objective(z, given, ids=known, logits=own)
            if sets:
                loss = loss - labeled_binary_cross_entropy(own, labels, given.nan_to_num())
            else:
                loss = loss - labeled_cross_entropy(own, labels)
        loss.backward()
        found.append(own.grad)
    return found


def refreshed_states(rank: int, eviction: str) -> list[dict[str, Tensor]]:
    """State after every step; batches of different documents and sizes, and refreshed rows."""
    bank = MemoryBank(12, DIM, k=3, eviction=eviction)
    staleness = Staleness(half_life=3.0, warmup_steps=1, ramp_steps=3)
    objective = GraphGuidedObjective(CLASSES, memory=bank, k=3, staleness=staleness)
    found = []
    for step in range(5):
        ids = torch.arange(4 + rank) + 7 * step + 100 * rank
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(len(ids), DIM, generator=generator, requires_grad=True)
        objective(x, ids % CLASSES, ids=ids).backward()

        def encode(ids: Tensor, step: int = step) -> Tensor:
            part = ids.tensor_split(WORLD)[rank]
            base = torch.arange(DIM).float() + step
            return gather_rows(torch.sin(part.unsqueeze(1) * (1.0 + base)))

        bank.refresh(encode, 3)
        found.append(snapshot(objective))
    return found


def work(rank: int, folder: Path) -> dict[str, Any]:
    before = (world_size(), launched(), is_main())
    dist.init_process_group("gloo")
    sizes = ((3, 5), (0, 2), (0, 0))
    return {
        "world": [before, (world_size(), launched(), is_main())],
        "gathered": [
            gather_rows(torch.arange(pair[rank] * 2).view(-1, 2) + 100 * rank) for pair in sizes
        ],
        "any": [any_process(flags[rank]) for flags in ((True, False), (False, True), (False,) * 2)],
        "mean": mean_over_processes(torch.tensor([0.1, 1.0 + rank])),
        "plain": objective_states(rank, memory_visible_fraction=0.7, consistency_weight=0.0),
        "table": objective_states(rank, consistency_start=1, consistency_ramp=2, refresh_every=2),
        "each": objective_states(rank, consistency_start=1, consistency_ramp=2, refresh_every=0),
        "pseudo": pseudo_states(rank),
        "shared": shared(rank),
        "links": shared_links(rank),
        "looked": looked(rank),
        "hidden": split_of_equal_batches(),
        "unlabeled": {name: unlabeled_term(name, rank) for name in UNLABELED_TERMS},
        "apart": local_gradient(rank, True),
        "mixed": local_gradient(rank, False),
        "policies": {name: refreshed_states(rank, name) for name in sorted(EVICTIONS)},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(work, tmp_path_factory.mktemp("processes"))


def test_processes_know_of_each_other(results: list[dict[str, Any]]) -> None:
    assert [result["world"] for result in results] == [
        [(1, 2, True), (2, 2, True)],
        [(1, 2, False), (2, 2, False)],
    ]
    for result in results:
        assert result["any"] == [True, True, False]
        torch.testing.assert_close(result["mean"], torch.tensor([0.1, 1.5]))


def test_rows_of_any_number_come_in_rank_order(results: list[dict[str, Any]]) -> None:
    for result in results:
        first, second, none = result["gathered"]
        assert first[:, 0].tolist() == [0, 2, 4, 100, 102, 104, 106, 108]
        assert second.tolist() == [[100, 101], [102, 103]]
        assert none.shape == (0, 2)


@pytest.mark.parametrize("kind", ["plain", "table", "each", "pseudo"])
def test_state_is_equal_after_every_step(results: list[dict[str, Any]], kind: str) -> None:
    """Bank, targets, running means and generator; also where a process has no labeled row."""
    first, second = (result[kind] for result in results)
    assert len(first) == len(second) == len(SIZES)
    for step, (mine, other) in enumerate(zip(first, second, strict=True)):
        assert different(mine, other) == [], f"step {step}"
    assert different(first[0], first[-1]) != []


def test_banks_hold_the_rows_of_both(results: list[dict[str, Any]]) -> None:
    """In rank order; the document that both hold once, as the last of them gives it."""
    state = results[0]["plain"][0]
    rows = [batch_of(0, rank) for rank in range(WORLD)]
    expected = [*rows[0][2].tolist()[:-1], *rows[1][2].tolist()]
    assert state["memory.slot_ids"][: len(expected)].tolist() == expected
    last = torch.nn.functional.normalize(rows[1][0].detach(), dim=1)[-1]
    torch.testing.assert_close(state["memory.rows"][len(expected) - 1], last)
    assert int(results[0]["plain"][-1]["memory.links.stamps"].max()) > 1, "nothing was evicted"


def test_all_solve_in_the_step_in_which_one_needs_it(results: list[dict[str, Any]]) -> None:
    """In step 1 only process 1 holds unlabeled rows, in steps 2 and 4 one of them."""
    for result in results:
        solved = [int(state["targets.solved_at"]) for state in result["table"]]
        assert solved == [-1, 1, 1, 3, 3]
        means = [state["targets.mass"] for state in result["each"]]
        assert [bool(mean[0] >= 0) for mean in means] == [False, True, True, True, True]
        assert all(not torch.equal(a, b) for a, b in pairwise(means[1:]))


def test_splits_are_independent(results: list[dict[str, Any]]) -> None:
    """Equal batches are split differently on the processes, though the generator is the same."""
    for mine, other in zip(*(result["hidden"] for result in results), strict=True):
        assert mine.sum() == other.sum() == 12
        assert not torch.equal(mine, other)


def test_one_process_may_evaluate_alone(results: list[dict[str, Any]]) -> None:
    assert [result["looked"]["changed"] for result in results] == [[[], []], [[], []]]


def test_process_0_gives_its_state_to_all(results: list[dict[str, Any]]) -> None:
    first, second = (result["shared"] for result in results)
    assert different(first["state"], second["state"]) == []
    assert first["slots"] == second["slots"] == [0, 2, -1]


def test_a_graph_kept_from_before_is_not_used_after_sharing(results: list[dict[str, Any]]) -> None:
    """A broadcast does not count as a write of the tensors it fills."""
    (own, _, _), (other, _, _) = (result["links"] for result in results)
    assert not torch.equal(own[2], other[2])
    for result in results:
        _, kept, anew = result["links"]
        assert all(torch.equal(a, b) for a, b in zip(kept, anew, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(kept, own, strict=True))


def test_graph_loss_of_regions_apart_is_that_of_the_joined_batch(
    results: list[dict[str, Any]],
) -> None:
    """Where no row of one batch is a neighbor of the other's, the graph falls into two."""
    joined = joined_gradient(apart=True)
    parts = torch.cat([result["apart"] for result in results])
    assert float(joined.abs().max()) > 1e-3
    torch.testing.assert_close(parts, joined, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", UNLABELED_TERMS)
def test_the_unlabeled_term_is_that_of_the_joined_batch(
    results: list[dict[str, Any]], name: str
) -> None:
    """Whatever the numbers of rows with a target, and wherever targets come from."""
    joined = unlabeled_term(name, None)
    assert all(float(grad.abs().max()) > 1e-4 for grad in joined[2:])
    for step, expected in enumerate(joined):
        parts = torch.cat([result["unlabeled"][name][step] for result in results]) / WORLD
        torch.testing.assert_close(parts, expected, rtol=1e-3, atol=1e-6)


def test_graph_loss_of_mixed_batches_is_not(results: list[dict[str, Any]]) -> None:
    """What the documentation says: a process does not see the batch of the other."""
    joined = joined_gradient(apart=False)
    parts = torch.cat([result["mixed"] for result in results])
    assert float((parts - joined).norm()) > 0.05 * float(joined.norm())


def test_banks_stay_bit_equal_under_every_policy(results: list[dict[str, Any]]) -> None:
    """Refreshed rows included."""
    first, second = (result["policies"] for result in results)
    last = set()
    for name in EVICTIONS:
        for step, (one, other) in enumerate(zip(first[name], second[name], strict=True)):
            assert different(one, other) == [], (name, step)
        assert int(first[name][-1]["memory.links.stamps"].sum()) > 12 or name == "reservoir"
        last.add(tuple(first[name][-1]["memory.slot_ids"].sort().values.tolist()))
    assert len(last) > 1, "the policies differ"


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, generator = torch.randn(3, 2), torch.Generator()
    assert gather_rows(rows) is rows
    assert mean_over_processes(rows) is rows
    assert step_generator(generator, True) is generator
    assert any_process(True)
    assert not any_process(False)
    share_state(make_objective())
    # A rank without a launch of several is no rank.
    monkeypatch.setenv("RANK", "1")
    assert is_main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main()
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert launched() == 1
