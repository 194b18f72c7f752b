"""Label sets: every class a binary problem of its own over one graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from label_sets import CLASSES, DIM, SIZE, filled, rows, sets_of
from reference import dense_weights
from torch import Tensor

from gloss_graph import (
    GraphGuidedObjective,
    LabelPropagation,
    MemoryBank,
    ObjectiveOutput,
)
from gloss_graph.losses import binary_nll, graph_nll, soft_binary_cross_entropy
from gloss_graph.propagation.alignment import arrival_shares, binary_confidence, with_mass


def step(objective: GraphGuidedObjective, x: Tensor, sets: Tensor, **call: Any) -> ObjectiveOutput:
    out = objective(x, sets, return_output=True, **call)
    assert isinstance(out, ObjectiveOutput)
    return out


def shown_first_half(sets: Tensor) -> Tensor:
    return (torch.arange(len(sets)) % 4 < 2) & ~sets[:, 0].isnan()


def binary_shares(
    rule: str, w: Tensor, column: Tensor, seeds: Tensor, normalization: str, damping: float
) -> Tensor:
    """q (N,) of one class by the two-class oracle, what leaks going to the class's mean."""
    prior = column[seeds].mean()
    prior = torch.stack([1.0 - prior, prior])
    two = torch.stack([1.0 - column, column], dim=1) * seeds.unsqueeze(1)
    if rule == "harmonic":
        values = reference.harmonic(w, two, seeds, normalization, damping, prior)
    else:
        values = reference.spreading(w, two, seeds, normalization, damping)
    mass = values.sum(dim=1)
    return torch.where(mass > 0, values[:, 1] / torch.where(mass > 0, mass, 1.0), prior[1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize(
    ("rule", "damping"), [("harmonic", 0.0), ("harmonic", 0.3), ("spreading", 0.8)]
)
def test_the_loss_equals_independent_binary_problems(
    rule: str, damping: float, normalization: str, with_bank: bool, weighted: bool
) -> None:
    weight = [1.0, 0.2, 3.0] if weighted else [1.0, 1.0, 1.0]
    objective = GraphGuidedObjective(
        CLASSES,
        multilabel=True,
        memory=filled() if with_bank else None,
        k=4,
        bandwidth=0.7,
        rule=rule,
        normalization=normalization,
        eta=damping if rule == "harmonic" else None,
        alpha=damping or 0.5,
        class_weight=torch.tensor(weight) if weighted else None,
    )
    x, sets = rows().requires_grad_(), sets_of(unlabeled=(9,))
    sets[0] = torch.tensor([0.25, 1.0, 0.5])  # a soft set, shown
    visible = shown_first_half(sets)
    out = step(objective, x, sets, ids=torch.arange(SIZE), visible=visible)

    data = out.graph
    w = dense_weights(data.edge_index, data.edge_weight, data.num_nodes)
    known = data.seed_mask
    assert known[:SIZE].tolist() == visible.tolist()
    assert known[SIZE:].tolist() == (~data.y[SIZE:, 0].isnan()).tolist()
    assert data.num_nodes == SIZE + (15 if with_bank else 0)
    hidden = [i for i in range(SIZE) if i not in visible.nonzero() and i != 9]
    assert out.hidden.nonzero().squeeze(1).tolist() == hidden
    expected = torch.zeros((), dtype=torch.float64)
    for c in range(CLASSES):
        column = torch.where(known, data.y[:, c], 0.0)
        q = binary_shares(rule, w, column, known, normalization, damping)
        torch.testing.assert_close(out.propagated[:, c], q[:SIZE], rtol=0.0, atol=1e-7)
        for i in hidden:
            p, y = 0.999 * q[i] + 0.0005, float(sets[i, c])
            loss = -(y * p.log() + (1.0 - y) * (1.0 - p).log())
            expected = expected + weight[c] * loss / (sum(weight) * len(hidden))
    torch.testing.assert_close(out.graph_loss, expected, rtol=0.0, atol=1e-7)
    (theirs,) = torch.autograd.grad(expected, x, retain_graph=True)
    (ours,) = torch.autograd.grad(out.loss, x)
    assert float(theirs.abs().max()) > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-7)


def test_numpy_recomputes_a_harmonic_step_from_the_definition() -> None:
    objective = GraphGuidedObjective(
        CLASSES, multilabel=True, bandwidth=0.7, normalization="row", eta=0.2
    )
    sets = sets_of()
    visible = shown_first_half(sets)
    out = step(objective, rows(), sets, visible=visible)
    x, y, seen = reference.unit(rows().numpy()), sets.numpy(), visible.numpy()
    w = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * 0.7**2))
    np.fill_diagonal(w, 0.0)
    t = w / w.sum(axis=1, keepdims=True)
    left = 1.2 * np.eye((~seen).sum()) - t[np.ix_(~seen, ~seen)]
    right = t[np.ix_(~seen, seen)] @ y[seen] + 0.2 * y[seen].mean(axis=0)
    q = np.linalg.solve(left, right)
    p, true = 0.999 * q + 0.0005, y[~seen]
    loss = -(true * np.log(p) + (1 - true) * np.log(1 - p)).mean()
    assert out.loss.item() == pytest.approx(loss, abs=1e-9)
    np.testing.assert_allclose(out.propagated.numpy()[~seen], q, atol=1e-9)


@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("rule", ["harmonic", "spreading"])
def test_seeds_that_all_say_p_give_p_everywhere(rule: str, normalization: str) -> None:
    graph = reference.awkward_graph()
    share = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    targets = share.expand(graph.num_nodes, 3) * graph.seeds.unsqueeze(1)
    layer = LabelPropagation(rule, normalization, num_classes=4)
    prior = torch.cat([share, share.new_ones(1)])
    y = with_mass(targets, graph.seeds)
    result = layer.propagate_labels(
        y, graph.edge_index, graph.edge_weight, graph.seeds, prior=prior
    )
    shares = arrival_shares(result.values, share)
    torch.testing.assert_close(shares, share.expand_as(shares), rtol=0.0, atol=1e-12)


def test_binary_nll_equals_two_class_nll_of_every_class() -> None:
    q = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0)).double()
    y = sets_of(6)
    parts = [
        graph_nll(torch.stack([1.0 - q[:, c], q[:, c]], dim=1), y[:, c].long())
        for c in range(CLASSES)
    ]
    torch.testing.assert_close(binary_nll(q, y), torch.stack(parts).mean())
    assert binary_nll(q[:0], y[:0]).item() == 0.0
    certain_and_wrong = binary_nll(torch.ones(1, 1), torch.zeros(1, 1))
    assert certain_and_wrong.item() == pytest.approx(-math.log(0.0005), rel=1e-3)


@pytest.mark.parametrize("rule", ["harmonic", "spreading"])
def test_gradcheck_of_the_whole_step_with_a_bank(rule: str) -> None:
    objective = GraphGuidedObjective(
        CLASSES,
        multilabel=True,
        memory=filled(),
        k=4,
        bandwidth=0.9,
        rule=rule,
        batch_edges="all",
        consistency_start=0,
        consistency_ramp=1,
        refresh_every=0,
    ).eval()
    sets = sets_of(unlabeled=(3, 8))
    visible = shown_first_half(sets)

    def loss(x: Tensor, logits: Tensor) -> Tensor:
        return objective(
            x,
            sets,
            ids=torch.arange(SIZE),
            logits=logits,
            visible=visible,
            target_embeddings=rows(),
        )

    x, logits = rows().requires_grad_(), rows(SIZE, 3)[:, :CLASSES].clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, logits), atol=1e-6)


def test_integrated_loss_is_bce_graph_loss_and_consistency() -> None:
    objective = GraphGuidedObjective(
        CLASSES,
        multilabel=True,
        memory=filled(),
        k=4,
        graph_weight=0.25,
        consistency_weight=2.0,
        consistency_start=0,
        consistency_ramp=1,
        refresh_every=0,
    )
    x, sets, logits = rows(), sets_of(unlabeled=(3, 8)), rows(SIZE, 3)[:, :CLASSES]
    out = step(objective, x, sets, ids=torch.arange(SIZE), logits=logits)
    known = ~sets[:, 0].isnan()
    p = logits.sigmoid()
    bce = -(sets * p.log() + (1 - sets) * (1 - p).log())[known].mean()
    torch.testing.assert_close(out.cross_entropy, bce)
    expected = 0.25 * out.graph_loss + 0.75 * bce + 2.0 * out.consistency
    torch.testing.assert_close(out.loss, expected)
    # All labels shown, hits without leak.
    data = out.graph
    w = dense_weights(data.edge_index, data.edge_weight, data.num_nodes)
    shown = ~data.y[:, 0].isnan()
    y = with_mass(data.y.nan_to_num(0.0), shown) * shown.unsqueeze(1)
    hits = reference.harmonic(w, y, shown, "hub", 0.2, torch.zeros(CLASSES + 1).double())
    total = 0.0
    for i in (3, 8):
        q = hits[i, :CLASSES] / hits[i, CLASSES]
        entropy = -(torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)) / math.log(2)
        soft = -(q * p[i].log() + (1 - q) * (1 - p[i]).log()).mean()
        total += float((1 - entropy).mean() * soft) / 2
    assert out.consistency.item() == pytest.approx(total, abs=1e-7)
    assert total > 1e-3


def test_targets_of_the_whole_bank_reach_unlabeled_rows() -> None:
    bank = filled(15, unlabeled=(0, 1, 2, 3))
    objective = GraphGuidedObjective(
        CLASSES,
        multilabel=True,
        memory=bank,
        k=4,
        consistency_start=0,
        consistency_ramp=1,
    )
    ids = torch.arange(100, 104)
    logits = torch.zeros(4, CLASSES, requires_grad=True)
    none = torch.full((4, CLASSES), torch.nan)
    loss = objective(rows(15, 9)[:4], none, ids=ids, logits=logits)
    loss.backward()
    table = objective.targets.table[:4]
    assert float(table.std()) > 0.01
    assert bool(((table >= 0) & (table <= 1)).all())
    confidence = binary_confidence(table)
    torch.testing.assert_close(objective.targets.confidence[:4], confidence)
    assert logits.grad is not None
    expected = confidence.unsqueeze(1) * (0.5 - table) / (4 * CLASSES)
    torch.testing.assert_close(logits.grad, expected)


def test_soft_bce_counts_every_row() -> None:
    logits, target = torch.tensor([[0.0, 0.0], [4.0, -4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = soft_binary_cross_entropy(logits, target, torch.tensor([1.0, 0.0]))
    assert found.item() == pytest.approx(math.log(2) / 2)
    assert soft_binary_cross_entropy(logits[:0], target[:0], torch.ones(0)).item() == 0.0


def test_confidence_of_certain_and_undecided_rows() -> None:
    found = binary_confidence(torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.5]]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.5]))


# ---------------------------------------------------------------- edges of a step


def test_unlabeled_or_fully_shown_batches_give_a_differentiable_zero() -> None:
    for sets in (sets_of(unlabeled=tuple(range(SIZE))), sets_of()):
        objective = GraphGuidedObjective(CLASSES, multilabel=True, visible_fraction=1.0)
        x = rows().requires_grad_()
        out = step(objective, x, sets)
        assert out.loss.item() == 0.0
        out.loss.backward()
        assert x.grad is not None
        assert not bool(x.grad.any())
        assert bool(torch.isfinite(out.propagated).all())


def test_a_bank_of_capacity_0_equals_none() -> None:
    x, sets = rows(), sets_of(unlabeled=(4,))
    losses = []
    for memory in (None, MemoryBank(0, DIM, num_classes=CLASSES)):
        objective = GraphGuidedObjective(CLASSES, multilabel=True, memory=memory)
        losses.append([objective(x, sets, ids=torch.arange(SIZE)) for _ in range(3)])
    assert losses[0] == losses[1]


def test_unreachable_rows_are_left_out_and_counted() -> None:
    # Two far clusters; only the first has a shown label.
    x = torch.cat([torch.eye(DIM)[:1].repeat(4, 1), torch.eye(DIM)[1:2].repeat(4, 1)]).double()
    x = x + 0.01 * rows(8)
    sets = sets_of(8)
    visible = torch.zeros(8, dtype=torch.bool)
    visible[0] = True
    objective = GraphGuidedObjective(CLASSES, multilabel=True, batch_edges="knn", k=2)
    out = step(objective, x, sets, visible=visible)
    assert out.solver.unreachable == 4
    p = 0.999 * sets[0] + 0.0005  # one seed: everything that arrives is its set
    expected = -(sets[1:4] * p.log() + (1 - sets[1:4]) * (1 - p).log()).mean()
    torch.testing.assert_close(out.loss, expected)


def test_the_split_shows_a_share_of_the_labeled_rows() -> None:
    objective = GraphGuidedObjective(CLASSES, multilabel=True, visible_fraction=0.25)
    sets = sets_of(unlabeled=(0, 1, 2, 3))
    for _ in range(5):
        out = step(objective, rows(), sets)
        assert int(out.hidden.sum()) == 6
        assert not bool(out.hidden[:4].any())


def test_one_class_is_enough_for_sets() -> None:
    objective = GraphGuidedObjective(1, multilabel=True)
    assert float(objective(rows(), sets_of()[:, :1])) > 0
