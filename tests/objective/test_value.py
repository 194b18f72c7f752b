"""The value and gradient of a step, recomputed independently."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
from reference import dense_weights, one_hot
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from objective.documents import (
    CLASSES,
    SIZE,
    filled,
    half_visible,
    labels_of,
    rows,
    step,
)


def expected_nll(values: Tensor, target: list[int], weight: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(values, target, strict=True):
        share = 0.999 * row[label] / row.sum() + 0.001 / CLASSES
        total = total - weight[label] * share.log()
    return total / sum(weight[label] for label in target)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize(
    ("rule", "damping"), [("harmonic", 0.0), ("harmonic", 0.3), ("spreading", 0.8)]
)
def test_graph_loss_equals_the_dense_definition(
    rule: str, damping: float, with_bank: bool, weighted: bool
) -> None:
    weight = [1.0, 0.2, 3.0] if weighted else [1.0, 1.0, 1.0]
    objective = GraphGuidedObjective(
        CLASSES,
        memory=filled(unlabeled=4) if with_bank else None,
        k=4,
        bandwidth=0.6,
        rule=rule,
        eta=damping if rule == "harmonic" else None,
        alpha=damping or 0.5,
        class_weight=torch.tensor(weight) if weighted else None,
    )
    x, labels = rows().requires_grad_(), labels_of()
    labels[14:] = -1
    visible = half_visible() & (labels >= 0)
    out = step(objective, x, labels, ids=torch.arange(SIZE), visible=visible)

    data = out.graph
    w = dense_weights(data.edge_index, data.edge_weight, data.num_nodes)
    assert data.num_nodes == SIZE + (20 if with_bank else 0)
    assert data.seed_mask.tolist() == visible.tolist() + [y >= 0 for y in data.y[SIZE:].tolist()]
    values = reference.propagate(
        rule, w, one_hot(data.y, CLASSES), data.seed_mask, "hub", eta=damping, alpha=damping
    )
    hidden = [i for i in range(SIZE) if labels[i] >= 0 and not visible[i]]
    assert out.hidden.nonzero().squeeze(1).tolist() == hidden
    expected = expected_nll(values[hidden], labels[hidden].tolist(), weight)
    torch.testing.assert_close(out.propagated, values[:SIZE], rtol=0.0, atol=1e-7)
    torch.testing.assert_close(out.graph_loss, expected, rtol=0.0, atol=1e-7)
    (theirs,) = torch.autograd.grad(expected, x, retain_graph=True)
    (ours,) = torch.autograd.grad(out.loss, x)
    assert float(theirs.abs().max()) > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_integrated_loss_is_the_weighted_sum_of_both_terms(share: float) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5])
    objective = GraphGuidedObjective(CLASSES, graph_weight=share, class_weight=weight)
    x, logits = rows().requires_grad_(), rows(SIZE, 3, CLASSES).requires_grad_()
    labels = labels_of()
    labels[3] = labels[7] = -1
    visible = half_visible() & (labels >= 0)
    out = step(objective, x, labels, logits=logits, visible=visible)
    alone = step(objective, x, labels, visible=visible)
    labeled = [i for i in range(SIZE) if labels[i] >= 0]
    log_p = [float(logits[i].detach().log_softmax(0)[labels[i]]) for i in labeled]
    factor = [float(weight[labels[i]]) for i in labeled]
    entropy = -sum(f * p for f, p in zip(factor, log_p, strict=True)) / sum(factor)
    assert out.cross_entropy.item() == pytest.approx(entropy)
    assert out.graph_loss.item() == pytest.approx(alone.graph_loss.item())
    assert out.loss.item() == pytest.approx(
        share * alone.graph_loss.item() + (1.0 - share) * entropy
    )
    assert alone.loss.item() == alone.graph_loss.item()
    assert alone.cross_entropy.item() == alone.consistency.item() == 0.0
    plain = objective(x, labels, logits=logits, visible=visible)
    assert isinstance(plain, Tensor)
    assert plain.shape == ()
    assert plain.item() == out.loss.item()
    gradient_x, gradient_logits = torch.autograd.grad(out.loss, (x, logits))
    assert (float(gradient_x.abs().max()) > 0) == (share > 0)
    assert (float(gradient_logits.abs().max()) > 0) == (share < 1)


def test_unlabeled_rows_conduct_in_batch_and_bank_but_are_not_scored() -> None:
    # 0 - 1 - 2 - 3 on an arc: only the unlabeled middle joins the hidden end to the seed.
    angle = torch.deg2rad(torch.tensor([0.0, 21.0, 40.0, 60.0]))
    arc = torch.stack([angle.cos(), angle.sin()], dim=1)
    settings: dict[str, Any] = {
        "k": 1,
        "bandwidth": 0.1,
        "batch_edges": "knn",
        "eta": 0.0,
        "symmetrize": "union",
    }
    labels, visible = torch.tensor([0, -1, -1, 0]), torch.tensor([True, False, False, False])
    objective = GraphGuidedObjective(2, **settings)
    out = step(objective, arc, labels, visible=visible)
    assert out.hidden.tolist() == [False, False, False, True]
    joined = out.solver.unreachable == 0
    bank = MemoryBank(4, 2, k=1)
    bank.enqueue(arc[1:3], torch.tensor([-1, -1]), torch.tensor([1, 2]))
    remembered = GraphGuidedObjective(2, memory=bank, **settings)
    ends = torch.tensor([0, 3])
    out = step(remembered, arc[ends], labels[ends], ids=ends, visible=visible[ends])
    assert joined
    assert out.solver.unreachable == 0
    assert out.graph.y.tolist() == [0, 0, -1, -1]
    without = GraphGuidedObjective(2, **settings | {"kernel": "gaussian", "bandwidth": 0.02})
    alone = step(without, arc[ends], labels[ends], visible=visible[ends])
    assert alone.solver.unreachable == 1  # exp(-1250) is no tie


def test_rows_no_seed_reaches_are_counted_and_left_out_of_the_mean() -> None:
    # Orthogonal clusters under the cosine kernel; the second one has no visible label.
    x = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0], [0.0, 0.1, 0.9]])
    x[1, 1] = x[3, 1] = 0.0
    x = torch.cat([x, torch.tensor([[0.8, 0.0, 0.0]])]).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1])
    visible = torch.tensor([True, False, False, False, False])
    objective = GraphGuidedObjective(2, kernel="cosine", eta=0.0)
    out = step(objective, x, labels, visible=visible)
    assert out.hidden.tolist() == [False, True, True, True, True]
    assert out.solver.unreachable == 2
    assert out.propagated[2:4].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    floor = -math.log(0.001 / 2)
    # The first hidden row is right, the last one wrong; the others do not count.
    assert out.graph_loss.item() == pytest.approx((floor - math.log(0.999 + 0.0005)) / 2, rel=1e-5)
    out.loss.backward()
    assert bool(torch.isfinite(x.grad).all())


def test_with_a_bank_every_row_can_be_hidden() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), visible_fraction=0.0)
    out = step(objective, rows(), labels_of(), ids=torch.arange(SIZE))
    assert bool(out.hidden.all())
    assert out.solver.unreachable == 0
    assert out.graph_loss.item() > 0
    alone = GraphGuidedObjective(CLASSES, visible_fraction=0.0)
    out = step(alone, rows(), labels_of())
    assert out.graph_loss.item() == 0.0
    assert out.solver.unreachable == SIZE


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_share_of_the_banks_labels_can_be_hidden(fraction: float) -> None:
    bank = filled(count=30)
    objective = GraphGuidedObjective(CLASSES, memory=bank, memory_visible_fraction=fraction)
    out = step(objective, rows(), labels_of(), ids=torch.arange(SIZE), visible=half_visible())
    assert int(out.graph.seed_mask[SIZE:].sum()) == round(30 * fraction)
    assert out.graph.y[SIZE:].min() >= 0


def test_hidden_labels_do_not_reach_the_propagated_values() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    objective.eval()
    visible, ids = half_visible(), torch.arange(SIZE)
    out = step(objective, rows(), labels_of(), ids=ids, visible=visible)
    other = torch.where(visible, labels_of(), (labels_of() + 1) % CLASSES)
    lied = step(objective, rows(), other, ids=ids, visible=visible)
    assert torch.equal(out.propagated, lied.propagated)
    assert out.loss.item() != lied.loss.item()


@pytest.mark.parametrize(
    ("form", "rule"),
    [
        ("nll", "harmonic"),
        ("published", "harmonic"),
        ("released", "harmonic"),
        ("scores", "poisson"),
    ],
)
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_gradient_of_the_step_by_finite_differences(form: str, rule: str, solver: str) -> None:
    objective = GraphGuidedObjective(
        CLASSES, memory=filled(), k=4, bandwidth=0.6, loss=form, rule=rule, solver=solver, tol=1e-13
    ).eval()
    if rule == "poisson":
        objective.propagation.tol = 1e-11
    x, logits = rows(8).requires_grad_(), rows(8, 3, CLASSES).requires_grad_()

    def loss(x: Tensor, logits: Tensor) -> Tensor:
        return objective(
            x, labels_of(8), ids=torch.arange(8), logits=logits, visible=half_visible(8)
        )

    assert torch.autograd.gradcheck(loss, (x, logits), fast_mode=True, atol=1e-6)


def test_order_of_the_batch_does_not_matter() -> None:
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(1))
    outs = []
    for index in (torch.arange(SIZE), order):
        objective = GraphGuidedObjective(CLASSES, memory=filled(), k=4)
        x = rows()[index].requires_grad_()
        out = step(
            objective, x, labels_of()[index], ids=index.clone(), visible=half_visible()[index]
        )
        (gradient,) = torch.autograd.grad(out.loss, x)
        outs.append((out.loss.detach(), out.propagated.detach(), gradient))
    (loss, values, gradient), (other_loss, other_values, other_gradient) = outs
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(values[order], other_values)
    torch.testing.assert_close(gradient[order], other_gradient)
