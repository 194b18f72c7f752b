"""The objective as a whole: its value, its gradient, its memory, its state.

`test_contract.py` states the promises of one step; here the numbers are recomputed independently
and the long runs, copies and numerical traps are followed.
"""

from __future__ import annotations

import copy
import gc
import inspect
import io
import math
import pickle
import re
import warnings
from typing import Any

import pytest
import reference
import torch
from helpers import snapshot
from reference import dense_weights, one_hot
from torch import Tensor, nn

from gloss_graph import (
    GraphGuidedObjective,
    LabelPropagation,
    MemoryBank,
    ObjectiveOutput,
    graph_skill,
    losses,
)
from gloss_graph.graph import KNNGraph, build
from gloss_graph.graph.bandwidth import ScaledBandwidth
from gloss_graph.step import Consistency, Staleness

CLASSES, DIM, SIZE = 3, 5, 16


def rows(count: int = SIZE, seed: int = 0, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def labels_of(count: int = SIZE) -> Tensor:
    return torch.arange(count) % CLASSES


def filled(count: int = 20, capacity: int = 60, unlabeled: int = 0, **settings: Any) -> MemoryBank:
    bank = MemoryBank(capacity, DIM, k=4, **settings)
    labels = labels_of(count)
    labels[:unlabeled] = -1
    for part in torch.arange(count).split(7):
        bank.enqueue(rows(count, seed=9)[part], labels[part], part + 1000)
    return bank


def half_visible(count: int = SIZE) -> Tensor:
    return torch.arange(count) % 4 < 2


def step(
    objective: GraphGuidedObjective, x: Tensor, labels: Tensor, **call: Any
) -> ObjectiveOutput:
    out = objective(x, labels, return_output=True, **call)
    assert isinstance(out, ObjectiveOutput)
    return out


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---------------------------------------------------------------- value and gradient


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


# ---------------------------------------------------------------- memory


def test_the_batch_is_stored_after_the_loss_with_what_was_found() -> None:
    bank = filled()
    before = snapshot(bank)
    objective = GraphGuidedObjective(CLASSES, memory=bank, k=4)
    x, ids = rows().requires_grad_(), torch.arange(SIZE) + 1010  # half of them are stored
    out = step(objective, x, labels_of(), ids=ids)
    assert set(out.graph.doc_id[SIZE:].tolist()) == set(range(1000, 1010))
    twin = filled()
    assert_same_state(before, snapshot(twin))
    twin.enqueue(x, labels_of(), ids)
    assert_same_state(snapshot(bank), snapshot(twin))
    for value in bank.state_dict().values():
        assert value.grad_fn is None
        assert not value.requires_grad


@pytest.mark.parametrize("stage", ["bandwidth", "kernel", "form", "search"])
def test_an_error_in_any_stage_leaves_the_bank_alone(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> Tensor:
        raise ArithmeticError(stage)

    settings: dict[str, Any] = {stage: fail} if stage in ("bandwidth", "kernel") else {}
    objective = GraphGuidedObjective(CLASSES, memory=filled(), **settings)
    if stage == "form":
        monkeypatch.setitem(losses.FORMS, "nll", fail)
    if stage == "search":
        monkeypatch.setattr(MemoryBank, "neighbors", fail)
    before = snapshot(objective.memory)
    with pytest.raises(ArithmeticError, match=stage):
        objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert_same_state(before, snapshot(objective.memory))


def test_in_eval_mode_the_step_is_the_same_but_nothing_is_stored() -> None:
    training = GraphGuidedObjective(CLASSES, memory=filled())
    evaluating = GraphGuidedObjective(CLASSES, memory=filled()).eval()
    before = snapshot(evaluating.memory)
    losses = [
        objective(rows(), labels_of(), ids=torch.arange(SIZE)).item()
        for objective in (training, evaluating)
    ]
    assert losses[0] == losses[1]
    assert_same_state(before, snapshot(evaluating.memory))
    assert len(training.memory) == 36


def test_without_ids_the_bank_warns_once() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    with pytest.warns(UserWarning, match="label leakage"):
        objective(rows(), labels_of())
    objective(rows(), labels_of())
    GraphGuidedObjective(CLASSES)(rows(), labels_of())  # no bank, nothing to warn of


@pytest.mark.parametrize("fraction", [0.0, 0.3])
@pytest.mark.parametrize("named", [True, False])
def test_hidden_labels_leak_through_old_copies_without_ids_only(
    named: bool, fraction: float
) -> None:
    """Random embeddings, random labels: whoever predicts them better than chance has seen them."""
    documents, classes = 300, 5
    g = torch.Generator().manual_seed(0)
    x = torch.randn(documents, 24, generator=g)
    labels = torch.randint(0, classes, (documents,), generator=g)
    objective = GraphGuidedObjective(
        classes,
        memory=MemoryBank(3 * documents, 24),
        bandwidth=0.25,
        visible_fraction=fraction,
        memory_visible_fraction=0.7,  # hidden copies would still leak over two hops
    )
    right, hidden, losses = 0, 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("error" if named else "ignore")
        for epoch in range(3):
            for batch in torch.randperm(documents, generator=g).split(50):
                ids = batch if named else None
                out = step(objective, x[batch], labels[batch], ids=ids)
                if epoch == 0:
                    continue
                guess = out.propagated.argmax(dim=1)
                right += int((guess == labels[batch])[out.hidden].sum())
                hidden += int(out.hidden.sum())
                losses.append(out.graph_loss.item())
    chance = 1.0 / classes
    if named:
        assert right / hidden < chance + 4.0 * math.sqrt(chance * (1 - chance) / hidden)
        assert sum(losses) / len(losses) > 0.97 * math.log(classes)
    else:
        assert right / hidden > 0.8
        assert sum(losses) / len(losses) < 0.5 * math.log(classes)


def test_memory_does_not_grow_with_the_steps() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(capacity=30))
    encoder = nn.Linear(DIM, DIM)

    def run(count: int) -> int:
        for number in range(count):
            x = rows(SIZE, seed=number).float()
            objective(encoder(x), labels_of(), ids=torch.arange(SIZE) + number).backward()
            encoder.zero_grad()
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    run(3)
    assert run(5) == run(10)


# ---------------------------------------------------------------- numerical traps


@pytest.mark.parametrize("with_bank", [False, True])
def test_a_zero_vector_neither_breaks_nor_dominates_the_gradient(with_bank: bool) -> None:
    x = rows().float()
    x[3] = 0.0
    x.requires_grad_()
    objective = GraphGuidedObjective(CLASSES, memory=filled() if with_bank else None, bandwidth=0.6)
    objective(x, labels_of(), ids=torch.arange(SIZE), visible=half_visible()).backward()
    size = x.grad.norm(dim=1)
    others = torch.cat([size[:3], size[4:]])
    assert bool(torch.isfinite(size).all())
    assert float(size[3]) <= 100.0 * float(others.max()), "one empty document outweighs all others"


@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
@pytest.mark.parametrize(
    ("rule", "damping", "count", "bandwidth"),
    [
        ("harmonic", {}, 120, 0.05),
        ("spreading", {"alpha": 0.8}, 120, 0.05),
        ("spreading", {"alpha": 0.7}, 60, 0.02),
        ("spreading", {"alpha": 0.9}, 60, 0.05),
    ],
)
def test_rows_far_from_every_seed_have_moderate_gradients(
    rule: str, damping: dict[str, float], count: int, bandwidth: float, solver: str
) -> None:
    # Documents along an arc, two seeds at one end: the label mass of the other end is smaller
    # than what the solver's tolerance can tell from nothing.
    angle = torch.linspace(0.0, 3.0, count)
    angle = angle + 0.01 * torch.rand(count, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], dim=1).requires_grad_()
    objective = GraphGuidedObjective(
        2, rule=rule, k=3, batch_edges="knn", bandwidth=bandwidth, solver=solver, **damping
    )
    visible = torch.arange(count) < 2
    out = step(objective, x, torch.arange(count) % 2, visible=visible)
    out.loss.backward()
    assert out.solver.converged
    assert bool(torch.isfinite(out.loss))
    assert bool(torch.isfinite(x.grad).all())
    assert float(x.grad.abs().max()) < 1e4  # the closed form's is below 1e2


@pytest.mark.parametrize("with_logits", [False, True])
def test_hidden_rows_of_classes_without_weight_give_a_zero(with_logits: bool) -> None:
    objective = GraphGuidedObjective(2, class_weight=torch.tensor([0.0, 1.0]))
    x = rows(6).requires_grad_()
    labels = torch.tensor([0, 0, 0, 0, 0, 0])
    logits = rows(6, 3, 2).requires_grad_() if with_logits else None
    visible = torch.tensor([True, True, False, False, False, False])
    loss = objective(x, labels, logits=logits, visible=visible)
    loss.backward()
    assert loss.item() == 0.0
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("bandwidth", [0.01, 0.05, "sqrt", "interclass_min", "local", 10.0])
@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
def test_narrow_and_wide_kernels(rule: str, bandwidth: str | float) -> None:
    memory = None if bandwidth == "interclass_min" else filled()
    objective = GraphGuidedObjective(CLASSES, memory=memory, bandwidth=bandwidth, rule=rule)
    x = rows().float()
    x[5] = x[4]  # a repeated point
    x.requires_grad_()
    out = step(objective, x, labels_of(), ids=torch.arange(SIZE), visible=half_visible())
    out.loss.backward()
    # Poisson scores are not bounded, but next to no tie must not blow them up.
    assert 0 <= out.loss < 1e5
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("sigma", [0.03, 0.035, 0.04, 0.1, 0.12])
def test_narrow_kernels_in_the_dimension_of_a_real_encoder(
    sigma: float, normalization: str, solver: str
) -> None:
    # Unrelated documents are at distance 1.4: weights down to exp(-100), next to one of 1 for a
    # near duplicate, more than float32 can hold the ratio of.
    x = rows(32, dim=384).float()
    x[1] = x[0] + 1e-3
    x.requires_grad_()
    objective = GraphGuidedObjective(4, bandwidth=sigma, normalization=normalization, solver=solver)
    out = step(objective, x, torch.arange(32) % 4)
    out.loss.backward()
    assert bool(torch.isfinite(out.loss))
    assert bool(torch.isfinite(x.grad).all())


def test_a_class_no_visible_row_has_is_finite_and_asks_for_mass() -> None:
    x = rows(6).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    visible = torch.tensor([True, False, True, False, False, False])
    objective = GraphGuidedObjective(CLASSES, eta=0.0)
    loss = objective(x, labels, visible=visible)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(x.grad).all())


# ---------------------------------------------------------------- a row's own label


def nearest_other_class(sample: Tensor, labels: Tensor | None) -> Tensor:
    """A bandwidth that depends on every label it is shown."""
    if labels is None:
        return sample.new_ones(())
    known = labels >= 0
    distance = torch.cdist(sample[known], sample[known])
    between = labels[known].unsqueeze(1) != labels[known]
    return distance[between].min() / 3.0


@pytest.mark.parametrize(
    ("bandwidth", "stored"),
    [("interclass_min", 0), *((nearest_other_class, stored) for stored in (0, 20, 1100))],
)
def test_a_bandwidth_is_made_from_shown_labels_only(bandwidth: Any, stored: int) -> None:
    x, visible = rows(12), torch.arange(12) < 8
    x[11] = x[0] + 0.05  # so near that the labels of both would decide
    answers = []
    for own in range(CLASSES):
        labels = labels_of(12)
        labels[11] = own
        memory = filled(stored, 1200) if stored else None
        objective = GraphGuidedObjective(CLASSES, memory=memory, bandwidth=bandwidth).eval()
        ids = torch.arange(12)
        out = step(objective, x, labels, ids=ids, visible=visible)
        # The same graph where the edges of the bank are not listed.
        assert float(objective(x, labels, ids=ids, visible=visible)) == pytest.approx(
            float(out.loss), rel=1e-3
        )
        answers.append((out.graph.bandwidth, out.propagated[11]))
    for sigma, propagated in answers[1:]:
        assert torch.equal(sigma, answers[0][0])
        assert torch.equal(propagated, answers[0][1])


def test_a_bandwidth_sees_no_hidden_label_of_the_bank() -> None:
    seen: list[Tensor] = []

    def rule(sample: Tensor, labels: Tensor | None) -> float:
        seen.append(labels)
        return 1.0

    settings = {"bandwidth": rule, "memory_visible_fraction": 0.5, "visible_fraction": 0.5}
    objective = GraphGuidedObjective(CLASSES, memory=filled(), **settings)
    out = step(objective, rows(), labels_of(), ids=torch.arange(SIZE))
    (labels,) = seen
    assert torch.equal(labels >= 0, out.graph.seed_mask)
    assert 0 < int((labels[SIZE:] >= 0).sum()) < 20
    assert torch.equal(labels[labels >= 0], out.graph.y[labels >= 0])


@pytest.mark.parametrize("bandwidth", ["interclass_min", ScaledBandwidth("interclass_min", 2.0)])
def test_a_bandwidth_made_from_labels_is_refused_beside_a_bank(bandwidth: Any) -> None:
    with pytest.raises(ValueError, match=r"'bandwidth' must not be .*interclass_min"):
        GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=bandwidth)
    with pytest.raises(ValueError, match=r"'bandwidth' must not be .*interclass_min"):
        graph_skill(rows().float(), labels_of(), bandwidth=bandwidth)
    # Without a bank, or with one that stores nothing, there is no answer from the whole corpus.
    for memory in (None, MemoryBank(0, DIM)):
        objective = GraphGuidedObjective(CLASSES, memory=memory, bandwidth=bandwidth)
        assert torch.isfinite(objective(rows(), labels_of(), ids=torch.arange(SIZE)))


def test_targets_do_not_depend_on_which_labels_a_step_shows() -> None:
    # The bandwidth of the graph targets come from is made from all labels, as they are.
    x, labels = rows(), labels_of()
    labels[-2:] = -1
    found = []
    for visible in (half_visible() & (labels >= 0), (torch.arange(SIZE) % 4 > 0) & (labels >= 0)):
        objective = GraphGuidedObjective(
            CLASSES, bandwidth="interclass_min", consistency_start=0, consistency_ramp=0
        )
        objective(x, labels, logits=rows(dim=CLASSES), visible=visible)
        found.append(float(objective.parts["consistency"]))
    assert found[0] == found[1] > 0.0


def test_rows_of_one_document_are_shown_or_hidden_together() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    before = snapshot(objective)
    x, labels, ids = rows(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([5, 5, 6, 7, 8, 9])
    x[1] = x[0]
    told = torch.tensor([True, False, True, False, True, False])
    message = r"'visible' must agree for rows with the same id, .* \(id 5 has visible 0 and 1\)"
    with pytest.raises(ValueError, match=message):
        objective(x, labels, ids=ids, visible=told)
    # Two labels of one document would tell each other, whatever is propagated.
    unlike = torch.tensor([0, 1, 1, 1, 2, 2])
    for labels_now in (unlike, torch.tensor([0, -1, 1, 1, 2, 2])):
        for call in ({}, {"visible": torch.zeros(6, dtype=torch.bool)}):
            with pytest.raises(ValueError, match="'labels' must agree for rows with the same id"):
                objective(x, labels_now, ids=ids, **call)
    alone = GraphGuidedObjective(CLASSES, memory=filled(), graph_weight=0.0)
    with pytest.raises(ValueError, match="'labels' must agree for rows with the same id"):
        alone(x, unlike, ids=ids, logits=rows(6, dim=CLASSES))
    assert_same_state(before, snapshot(objective))
    # Both hidden: nothing tells the label, so another one changes nothing.
    hidden = torch.tensor([False, False, True, False, True, False])
    objective.eval()
    first = step(objective, x, labels, ids=ids, visible=hidden).propagated[:2]
    other = torch.tensor([2, 2, 1, 1, 2, 2])
    assert torch.equal(step(objective, x, other, ids=ids, visible=hidden).propagated[:2], first)


SMALL: dict[str, dict[str, Any]] = {
    "one row": {"x": rows(1), "labels": torch.tensor([1])},
    "one class": {"x": rows(6), "labels": torch.zeros(6, dtype=torch.long)},
    "all unlabeled": {"x": rows(6), "labels": torch.full((6,), -1)},
    "one labeled": {"x": rows(6), "labels": torch.tensor([-1, -1, 2, -1, -1, -1])},
    "twins": {"x": rows(1).repeat(6, 1), "labels": labels_of(6)},
    "zeros": {"x": torch.zeros(6, DIM), "labels": labels_of(6)},
    "two rows": {"x": rows(2), "labels": torch.tensor([0, 1])},
}


@pytest.mark.parametrize("bank", ["none", "capacity 0", "empty", "one row", "filled"])
@pytest.mark.parametrize("case", SMALL)
def test_small_batches(case: str, bank: str) -> None:
    memory = {
        "none": None,
        "capacity 0": MemoryBank(0, DIM),
        "empty": MemoryBank(9, DIM),
        "one row": filled(count=1),
        "filled": filled(),
    }[bank]
    x = SMALL[case]["x"].clone().requires_grad_()
    labels = SMALL[case]["labels"]
    logits = torch.zeros(len(x), CLASSES, requires_grad=True)
    for fraction in (0.0, 0.5, 1.0):
        for k in (1, 100):
            objective = GraphGuidedObjective(
                CLASSES, memory=copy.deepcopy(memory), k=k, visible_fraction=fraction
            )
            ids = torch.arange(len(x))
            out = step(objective, x, labels, ids=ids, logits=logits)
            x.grad = logits.grad = None
            out.loss.backward()
            assert math.isfinite(out.loss.item())
            assert bool(torch.isfinite(x.grad).all())
            assert bool(torch.isfinite(out.propagated).all())
            scored = int(out.hidden.sum()) - out.solver.unreachable
            assert scored >= 0
            assert scored > 0 or out.graph_loss.item() == 0.0
            if bank not in ("none", "capacity 0"):
                assert len(objective.memory) == len(memory) + len(x) or len(memory) + len(x) > 9


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_of_input_loss_and_gradient(dtype: torch.dtype) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=0.6)
    x = rows().to(dtype).requires_grad_()
    call = {"ids": torch.arange(SIZE), "visible": half_visible()}
    loss = objective.eval()(x, labels_of(), **call)
    loss.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert x.grad.dtype == dtype
    exact = objective(x.detach().double(), labels_of(), **call)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_mixed_precision_training_step(solver: str) -> None:
    def run(backward_inside: bool) -> tuple[float, Tensor]:
        torch.manual_seed(0)
        encoder = nn.Linear(DIM, DIM)
        objective = GraphGuidedObjective(CLASSES, memory=filled(), solver=solver)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = encoder(rows().float())
            assert embeddings.dtype == torch.bfloat16
            loss = objective(
                embeddings,
                labels_of(),
                ids=torch.arange(SIZE),
                visible=half_visible(),
                logits=embeddings[:, :CLASSES],
            )
            assert loss.dtype == torch.float32
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return loss.item(), encoder.weight.grad

    loss, gradient = run(backward_inside=False)
    same_loss, same_gradient = run(backward_inside=True)
    assert loss == same_loss
    # The encoder's own backward is in half precision either way.
    tolerance = 0.05 * float(gradient.abs().max())
    torch.testing.assert_close(gradient, same_gradient, rtol=0.0, atol=tolerance)


# ---------------------------------------------------------------- state


def losses_of(objective: GraphGuidedObjective, encoder: nn.Module, optimizer: Any, steps: range):
    """Losses of some training steps; batch and ids depend on the number of the step only."""
    out = []
    for number in steps:
        index = torch.randperm(40, generator=torch.Generator().manual_seed(number))[:12]
        x = rows(40, seed=77).float()[index]
        optimizer.zero_grad()
        loss = objective(encoder(x), index % CLASSES, ids=index)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def training(seed: int) -> tuple[GraphGuidedObjective, nn.Module, torch.optim.Optimizer]:
    objective = GraphGuidedObjective(
        CLASSES, memory=MemoryBank(30, DIM, k=3), k=3, memory_visible_fraction=0.8, seed=seed
    )
    torch.manual_seed(seed)
    encoder = nn.Linear(DIM, DIM)
    return objective, encoder, torch.optim.Adam(encoder.parameters(), lr=0.05)


def test_five_steps_and_a_resume_equal_ten_steps_bit_for_bit() -> None:
    whole = losses_of(*training(0), range(10))
    assert len(set(whole)) == 10
    first = training(0)
    losses = losses_of(*first, range(5))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = training(1)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    losses += losses_of(*second, range(5, 10))
    assert losses == whole


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_go_on_alike_and_apart(how: str) -> None:
    objective, encoder, optimizer = training(0)
    losses_of(objective, encoder, optimizer, range(3))
    if how == "deepcopy":
        twin = copy.deepcopy(objective)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(objective))
    else:
        file = io.BytesIO()
        torch.save(objective, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(objective)
    before = snapshot(objective)
    x, ids = rows(12, seed=5), torch.arange(100, 112)
    twins = [twin(x, labels_of(12), ids=ids).item() for _ in range(2)]
    assert_same_state(before, snapshot(objective))
    assert [objective(x, labels_of(12), ids=ids).item() for _ in range(2)] == twins


def test_same_seed_same_splits() -> None:
    def splits(**settings: Any) -> list[list[bool]]:
        objective = GraphGuidedObjective(CLASSES, **settings)
        return [step(objective, rows(), labels_of()).hidden.tolist() for _ in range(4)]

    assert splits(seed=3) == splits(seed=3)
    assert splits(seed=3) != splits(seed=4)
    assert splits(seed=3) == splits(generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    splits()
    assert torch.equal(torch.rand(2), expected), "the global random state was used"


def test_a_pinned_split_draws_nothing() -> None:
    objective = GraphGuidedObjective(CLASSES)
    before = objective.generator.get_state()
    out = step(objective, rows(), labels_of(), visible=half_visible())
    assert torch.equal(objective.generator.get_state(), before)
    assert out.hidden.tolist() == (~half_visible()).tolist()


def test_state_is_made_of_tensors_only() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), class_weight=torch.ones(CLASSES))
    state = objective.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    rooms = {name.split(".")[0] for name in state}
    assert rooms == {"memory", "targets", "class_weight", "_extra_state"}
    assert state["_extra_state"].dtype == torch.uint8


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"weight": torch.zeros(3)},
        nn.Linear(2, 2).state_dict(),
        GraphGuidedObjective(CLASSES).state_dict(),
        GraphGuidedObjective(CLASSES, memory=MemoryBank(5, DIM)).state_dict(),
    ],
    ids=["nothing", "a tensor", "a layer", "no bank", "another bank"],
)
def test_foreign_state_is_refused(foreign: dict[str, Any]) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    refusal = r"Error.* in loading state_dict for GraphGuidedObjective|'capacity' must be that"
    with pytest.raises((RuntimeError, ValueError), match=refusal):
        objective.load_state_dict(foreign)


@pytest.mark.parametrize(
    "state", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), "text", {"seed": 0}, None]
)
def test_a_foreign_generator_state_is_refused(state: object) -> None:
    objective = GraphGuidedObjective(CLASSES)
    before = objective.generator.get_state()
    full = {**objective.state_dict(), "_extra_state": state}
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"generator|state"):
        objective.load_state_dict(full)
    assert torch.equal(objective.generator.get_state(), before)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["embeddings", "labels", "ids", "logits", "visible"])
def test_values_that_are_no_tensors(name: str) -> None:
    call: dict[str, Any] = {
        "embeddings": rows(4),
        "labels": labels_of(4),
        "ids": torch.arange(4),
        "logits": torch.zeros(4, CLASSES),
        "visible": half_visible(4),
    }
    call[name] = call[name].tolist()
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    before = snapshot(objective)
    with pytest.raises(TypeError, match=f"'{name}' must be a torch.Tensor"):
        objective(**call)
    assert_same_state(before, snapshot(objective))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    logits = torch.zeros(4, CLASSES)
    logits[2, 1] = value
    before = snapshot(objective.memory)
    with pytest.raises(ValueError, match="'logits' must be finite"):
        objective(rows(4), labels_of(4), ids=torch.arange(4), logits=logits)
    assert_same_state(before, snapshot(objective.memory))


def test_a_memory_and_a_generator_of_another_kind() -> None:
    with pytest.raises(TypeError, match="'memory' must be a MemoryBank"):
        GraphGuidedObjective(CLASSES, memory=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=re.escape("loss='nll' needs probabilities")):
        GraphGuidedObjective(CLASSES, rule="poisson", loss="nll")


@pytest.mark.parametrize(
    "weight", [torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3), torch.tensor([1.0, 1.0, math.nan])]
)
def test_bad_class_weights(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="'class_weight' must have shape"):
        GraphGuidedObjective(CLASSES, class_weight=weight)


def test_labels_and_ids_of_any_integer_dtype() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled()).eval()
    call: dict[str, Any] = {"visible": half_visible()}
    expected = objective(rows(), labels_of(), ids=torch.arange(SIZE), **call)
    for dtype in (torch.int8, torch.int16, torch.int32):
        ids = torch.arange(SIZE, dtype=dtype)
        assert torch.equal(objective(rows(), labels_of().to(dtype), ids=ids, **call), expected)


def test_the_callers_tensors_are_left_alone() -> None:
    call = [rows(), labels_of(), torch.arange(SIZE), half_visible(), rows(SIZE, 3, CLASSES)]
    before = [value.clone() for value in call]
    x, labels, ids, visible, logits = call
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    objective(x, labels, ids=ids, visible=visible, logits=logits)
    for value, copied in zip(call, before, strict=True):
        assert torch.equal(value, copied)


def test_unnormalised_embeddings() -> None:
    bank = filled(normalize=False)
    objective = GraphGuidedObjective(
        CLASSES, memory=bank, normalize_embeddings=False, bandwidth="inflection"
    )
    x = rows().requires_grad_()
    out = step(objective, x, labels_of(), ids=torch.arange(SIZE))
    out.loss.backward()
    assert bool(torch.isfinite(x.grad).all())
    # Lengths matter: radial parts of the gradient are not zero.
    assert float((x.grad * x.detach()).sum(dim=1).abs().max()) > 1e-6
    stored = bank.embeddings[bank.slots_of(torch.arange(SIZE))]
    assert torch.equal(stored, x.detach().float())


# ---------------------------------------------------------------- the object


def test_settings_are_keyword_only_and_shared_with_the_parts() -> None:
    objective = inspect.signature(GraphGuidedObjective.__init__).parameters
    positional = [n for n, p in objective.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "num_classes"]
    assert not [n for n, p in objective.items() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    parts: dict[str, inspect.Parameter] = {}
    for part in (LabelPropagation.__init__, build.build_document_graph):
        parts |= inspect.signature(part).parameters
    shared = set(objective) & set(parts) - {"self", "num_classes", "memory"}
    assert {"rule", "normalization", "eta", "alpha", "solver", "k", "bandwidth"} <= shared
    # A short form that is not given leaves the part as it is.
    assert all(objective[name].default is None for name in shared)


def test_short_forms_set_their_part_and_must_not_contradict_it() -> None:
    short = GraphGuidedObjective(
        CLASSES, k=7, rule="spreading", alpha=0.8, consistency_start=3, half_life=9.0
    )
    parts = GraphGuidedObjective(
        CLASSES,
        graph=KNNGraph(k=7),
        propagation=LabelPropagation("spreading", alpha=0.8),
        consistency=Consistency(start=3),
        staleness=Staleness(half_life=9.0),
    )
    assert repr(short) == repr(parts)
    assert repr(GraphGuidedObjective(CLASSES, propagation="spreading", alpha=0.8, k=7)) != ""
    # Said twice is fine, said differently is not.
    GraphGuidedObjective(CLASSES, graph=KNNGraph(k=7), k=7)
    for name, value, part in (
        ("k", 8, {"graph": KNNGraph(k=7)}),
        ("eta", 0.5, {"propagation": LabelPropagation(eta=0.1)}),
        ("align", 0.1, {"consistency": Consistency(align=0.2)}),
        ("half_life", 1.0, {"staleness": Staleness()}),
    ):
        with pytest.raises(
            ValueError, match=f"'{name}' is {value}, but .* in '{next(iter(part))}'"
        ):
            GraphGuidedObjective(CLASSES, **{name: value}, **part)
    for name in ("graph", "propagation", "consistency", "staleness"):
        with pytest.raises(TypeError, match=f"'{name}' must be a "):
            GraphGuidedObjective(CLASSES, **{name: 3})


def test_former_names_work_and_warn() -> None:
    former = {"form": "nll", "anchor": 0.3, "memory_start": 2, "memory_ramp": 4}
    with pytest.warns(DeprecationWarning, match="is now") as seen:
        old = GraphGuidedObjective(CLASSES, **former)
    assert {str(one.message) for one in seen} == {
        "'form' is now 'loss'.",
        "'anchor' is now 'frozen_weight'.",
        "'memory_start' is now 'warmup_steps'.",
        "'memory_ramp' is now 'ramp_steps'.",
    }
    now = {"loss": "nll", "frozen_weight": 0.3, "warmup_steps": 2, "ramp_steps": 4}
    assert repr(old) == repr(GraphGuidedObjective(CLASSES, **now))
    with pytest.raises(TypeError, match="'anchor' is the former name of 'frozen_weight'"):
        GraphGuidedObjective(CLASSES, anchor=0.3, frozen_weight=0.3)
    x = rows()
    with pytest.warns(DeprecationWarning, match="'reference' is now 'target_embeddings'"):
        old(x, labels_of(), reference=x)


@pytest.mark.parametrize("make", [GraphGuidedObjective.published, GraphGuidedObjective.released])
def test_paper_forms_take_no_other_settings(make: Any) -> None:
    objective = make(CLASSES, 0.4, graph_weight=0.9, visible_fraction=0.3, seed=5)
    assert (objective.graph_weight, objective.visible_fraction) == (0.9, 0.3)
    assert objective.memory is None
    with pytest.raises(TypeError, match="eta"):
        make(CLASSES, 0.4, eta=0.2)
    with pytest.raises(ValueError, match="'bandwidth'"):
        make(CLASSES, 0.0)


def test_repr_shows_settings_and_parts() -> None:
    text = repr(GraphGuidedObjective(4, memory=filled(), k=7, hops=2, graph_weight=0.25))
    for part in ("num_classes=4", "k=7", "bandwidth='sqrt'", "loss='nll'", "graph_weight=0.25"):
        assert part in text
    assert "(memory): MemoryBank(20/60 rows" in text
    assert "(propagation): LabelPropagation(rule='harmonic'" in text

    def wide(x: Tensor, labels: Tensor | None) -> float:
        return 1.0

    assert "bandwidth=wide" in repr(GraphGuidedObjective(4, bandwidth=wide))


def test_repr_shows_every_setting() -> None:
    values = {
        "multilabel": False, "k": 5, "kernel": "cosine", "bandwidth": 0.7, "symmetrize": "mutual",
        "batch_edges": "knn", "hops": 3, "visible_fraction": 0.4, "memory_visible_fraction": 0.6,
        "graph_weight": 0.3, "loss": "nll", "rule": "harmonic", "normalization": "row",
        "eta": 0.15, "alpha": 0.55, "solver": "cg", "tol": 1e-5, "max_iter": 77,
        "gradient": "unrolled", "warm_start": True, "normalize_embeddings": True,
        "consistency_weight": 0.12, "consistency_start": 71, "consistency_ramp": 72,
        "refresh_every": 73, "frozen_weight": 0.77, "align": 0.33, "half_life": 74.0,
        "restandardize": True, "warmup_steps": 75, "ramp_steps": 76,
        "class_weight": torch.tensor([0.5, 0.25, 0.75]), "generator": None, "seed": 78,
    }  # fmt: skip
    names = inspect.signature(GraphGuidedObjective.__init__).parameters.keys()
    parts = {"graph", "propagation", "consistency", "staleness"}
    assert names - {"self", "num_classes", "memory"} - parts == values.keys()
    text = repr(GraphGuidedObjective(CLASSES, memory=filled(), **values)).split("\n  (memory")[0]
    for name, value in values.items():
        shown = str(value.tolist()) if isinstance(value, Tensor) else repr(value)
        assert f"{name}={shown}" in text
    for paper in (GraphGuidedObjective.published, GraphGuidedObjective.released):
        text = repr(paper(CLASSES, sigma=1.0))
        assert all(f"{name}=" in text for name in values.keys() | parts)


@pytest.mark.parametrize("settings", [{"symmetrize": "mutual"}, {"bandwidth": "local"}])
def test_a_bank_without_links_serves_every_graph(settings: dict[str, Any]) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=MemoryBank(60, DIM, k=0), k=3, **settings)
    for number in range(3):
        x, ids = rows(seed=number).requires_grad_(), torch.arange(SIZE) + SIZE * number
        out = step(objective, x, labels_of(), ids=ids, visible=half_visible())
        out.loss.backward()
        assert bool(torch.isfinite(x.grad).all())
        # Both ends must list each other, and the bank's rows list none.
        if "symmetrize" in settings:
            assert int((out.graph.edge_kind > 0).sum()) == 0


@pytest.mark.parametrize("seed", [1.5, "x", None, True, -1])
def test_a_seed_is_a_number(seed: Any) -> None:
    with pytest.raises(ValueError, match="'seed' must be an integer"):
        GraphGuidedObjective(CLASSES, seed=seed)


def test_seconds_by_stage() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    assert not objective.seconds
    objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert len(objective.seconds) >= 3
    assert all(value >= 0 for value in objective.seconds.values())
    objective.seconds.clear()
    assert not objective.seconds


def test_the_objective_follows_a_module_it_is_part_of() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(DIM, DIM)
            self.objective = GraphGuidedObjective(CLASSES, memory=filled())

    model = Model()
    names = {name for name, _ in model.named_parameters()}
    assert names == {"encoder.weight", "encoder.bias"}
    assert any(name.startswith("objective.memory.") for name in model.state_dict())
    model.eval()
    before = len(model.objective.memory)
    model.objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert len(model.objective.memory) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_objective_survives_the_conversion_of_a_whole_model(dtype: torch.dtype) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=0.6)
    exact = GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=0.6)
    objective.to(dtype)
    for number in range(2):
        call = {"ids": torch.arange(SIZE) + 5 * number, "visible": half_visible()}
        loss = objective(rows(seed=number).to(dtype), labels_of(), **call)
        expected = exact(rows(seed=number), labels_of(), **call)
        assert loss.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_encoder_trains_the_same(backend: str) -> None:
    def run(compiled: bool) -> tuple[list[float], Tensor]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, DIM))
        call = torch.compile(encoder, backend=backend) if compiled else encoder
        objective = GraphGuidedObjective(CLASSES, memory=filled())
        losses = []
        for _ in range(2):
            loss = objective(call(rows().float()), labels_of(), ids=torch.arange(SIZE))
            loss.backward()
            losses.append(loss.item())
        return losses, encoder[0].weight.grad

    losses, gradient = run(compiled=False)
    same_losses, same_gradient = run(compiled=True)
    assert losses == pytest.approx(same_losses, rel=1e-5)
    torch.testing.assert_close(gradient, same_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        objective = GraphGuidedObjective(CLASSES, memory=filled()).to(device)
        x = rows().to(device).requires_grad_()
        out = step(
            objective,
            x,
            labels_of().to(device),
            ids=torch.arange(SIZE, device=device),
            visible=half_visible().to(device),
        )
        (gradient,) = torch.autograd.grad(out.loss, x)
        assert out.propagated.device.type == device
        results.append((out.loss.detach().cpu(), gradient.cpu(), objective.memory.rows.cpu()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
