"""Narrow kernels, empty documents, small batches and every precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank
from objective.documents import (
    CLASSES,
    DIM,
    SIZE,
    filled,
    half_visible,
    labels_of,
    rows,
    step,
)


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
