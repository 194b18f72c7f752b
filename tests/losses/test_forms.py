"""The forms of the graph loss, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gloss_graph.losses import (
    FORMS,
    graph_nll,
    published_nll,
    released_cross_entropy,
    score_cross_entropy,
)

EPSILON = 1e-3


def values(rows: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
    return value, torch.arange(rows) % classes


def row_loss(form: str, row: list[float], label: int, rows: int) -> float:
    if form == "nll":
        share = row[label] / sum(row)
        return -math.log((1.0 - EPSILON) * share + EPSILON / len(row))
    if form == "published":
        return -math.log(max(row[label], 1e-12))
    loss = math.log(sum(math.exp(v) for v in row)) - row[label]
    return loss / rows if form == "released" else loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", ["nll", "published", "released", "scores"])
def test_forms_row_by_row(form: str, weighted: bool) -> None:
    value, target = values()
    weight = torch.tensor([1.0, 3.0, 0.5, 0.0]) if weighted else None
    losses = [
        row_loss(form, row, label, 6)
        for row, label in zip(value.tolist(), target.tolist(), strict=True)
    ]
    factors = [1.0] * 6 if weight is None else [float(weight[c]) for c in target]
    mean = sum(f * loss for f, loss in zip(factors, losses, strict=True)) / sum(factors)
    assert float(FORMS[form](value, target, weight)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("form", ["nll", "published", "released", "scores"])
def test_forms_pass_gradcheck(form: str) -> None:
    value, target = values()
    value.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: FORMS[form](v, target, None), (value,))
    weight = torch.tensor([1.0, 3.0, 0.5, 0.0])
    assert torch.autograd.gradcheck(lambda v: FORMS[form](v, target, weight), (value,))


def test_registry_and_functions_are_the_same() -> None:
    assert {
        "nll": graph_nll,
        "published": published_nll,
        "released": released_cross_entropy,
        "scores": score_cross_entropy,
    } == FORMS


def test_the_unit_of_the_mass_does_not_matter_to_nll_only() -> None:
    value, target = values()
    assert float(graph_nll(7.0 * value, target)) == pytest.approx(float(graph_nll(value, target)))
    assert float(published_nll(7.0 * value, target)) != pytest.approx(
        float(published_nll(value, target))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_without_mass_has_a_finite_loss_and_a_gradient(dtype: torch.dtype) -> None:
    value = torch.tensor([[1.0, 0.0], [0.3, 0.7]], dtype=dtype, requires_grad=True)
    target = torch.tensor([1, 1])
    loss = graph_nll(value, target)
    loss.backward()
    assert math.isfinite(loss.item())
    assert value.grad is not None
    assert bool(torch.isfinite(value.grad).all())
    assert float(value.grad[0, 1]) < -1.0  # not cut: mass for the true class is asked for
    floor = -math.log(EPSILON / 2)
    assert float(graph_nll(value[:1].detach(), target[:1])) == pytest.approx(floor, rel=1e-5)


@pytest.mark.parametrize("form", ["nll", "published", "released", "scores"])
def test_rows_without_any_mass_are_finite(form: str) -> None:
    value = torch.zeros(3, 4, requires_grad=True)
    loss = FORMS[form](value, torch.tensor([0, 1, 2]), None)
    loss.backward()
    assert math.isfinite(loss.item())
    assert bool(torch.isfinite(value.grad).all())


@pytest.mark.parametrize("form", ["nll", "published", "released", "scores"])
def test_no_weight_at_all_among_the_rows_is_a_zero_not_nan(form: str) -> None:
    value, target = values()
    value.requires_grad_()
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    only_first = torch.zeros_like(target)
    loss = FORMS[form](value, only_first, weight)
    loss.backward()
    assert loss.item() == 0.0
    assert bool(torch.isfinite(value.grad).all())


def test_perfect_rows_have_no_loss_but_epsilon() -> None:
    value = torch.eye(3, dtype=torch.float64)
    target = torch.arange(3)
    assert float(published_nll(value, target)) == 0.0
    best = -math.log(1.0 - EPSILON + EPSILON / 3)
    assert float(graph_nll(value, target)) == pytest.approx(best)


def test_class_weight_of_another_dtype() -> None:
    value, target = values()
    weight = torch.tensor([1, 2, 3, 4])
    for form in FORMS.values():
        assert float(form(value, target, weight)) == pytest.approx(
            float(form(value, target, weight.double()))
        )
