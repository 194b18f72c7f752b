"""Whole steps on awkward embeddings: loss and gradient against a dense float64 oracle."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gloss_graph import GraphGuidedObjective, LabelPropagation, MemoryBank
from gloss_graph.losses import FORMS

DIM, CLASSES = 8, 3
DAMPED = {"harmonic": {"eta": 0.2}, "spreading": {"alpha": 0.9}, "poisson": {"eta": 0.1}}


class Case(NamedTuple):
    """What a step is made from; `spread` of the clusters goes down to rows that are equal."""

    seed: int
    size: int
    stored: int
    spread: float
    outlier: bool
    repeats: int
    bandwidth: float | str
    dtype: torch.dtype
    rule: str
    normalization: str
    solver: str
    gradient: str


cases = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    size=st.integers(6, 16),
    stored=st.sampled_from([0, 0, 12, 30]),
    spread=st.sampled_from([0.0, 1e-6, 1e-3, 0.03, 0.3]),
    outlier=st.booleans(),
    repeats=st.integers(0, 4),
    bandwidth=st.sampled_from(["sqrt", "sqrt", 0.11, 0.15, 0.5]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rule=st.sampled_from(sorted(DAMPED)),
    normalization=st.sampled_from(["hub", "row", "symmetric", "column"]),
    solver=st.sampled_from(["dense", "cg", "iterate"]),
    gradient=st.sampled_from(["implicit", "unrolled"]),
)


def documents(case: Case, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clusters at right angles, the first larger than the others."""
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=g) ** 2 * CLASSES).long()
    noise = torch.randn(count, DIM, generator=g, dtype=torch.float64)
    rows = torch.eye(DIM, dtype=torch.float64)[labels] + case.spread * noise
    if count == 0:
        return rows, labels
    rows[1 : 1 + case.repeats] = rows[0]
    labels[1 : 1 + case.repeats] = labels[0]
    if case.outlier:
        rows[-1] = torch.eye(DIM, dtype=torch.float64)[-1]
    return rows.to(case.dtype).double(), labels


def oracle(case: Case, x: Tensor, past: Tensor, out: Any, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient (B, D) over the edges of the step, all else made anew in float64."""
    x = x.clone().requires_grad_()
    rows = torch.nn.functional.normalize(torch.cat([x, past]), dim=1)
    source, target = out.graph.edge_index
    squared = (rows[source] - rows[target]).square().sum(dim=1)
    weight = torch.exp(-squared / (2.0 * float(out.graph.bandwidth) ** 2))
    tied = weight > 1e-100  # less is no tie, as `weigh` says
    w = reference.dense_weights(out.graph.edge_index[:, tied], weight[tied], rows.size(0))
    labels = reference.one_hot(out.graph.y, CLASSES)
    settings = {"eta": 0.0, "alpha": 0.9} | DAMPED[case.rule]
    seeds = out.graph.seed_mask
    values = reference.propagate(case.rule, w, labels, seeds, case.normalization, **settings)
    hidden = out.hidden & reference.reach(w.detach(), seeds)[: x.size(0)]
    if case.rule == "spreading":
        hidden &= values[: x.size(0)].sum(dim=1) > 1e-12  # what underflows counts as not reached
    assert bool((out.hidden == ~visible).all())
    if not bool(hidden.any()):
        return x.sum() * 0.0, torch.zeros_like(x)
    form = FORMS["scores" if case.rule == "poisson" else "nll"]
    loss = form(values[: x.size(0)][hidden], out.graph.y[: x.size(0)][hidden], None)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def check(case: Case) -> None:
    x, labels = documents(case, case.size, case.seed)
    past, known = documents(case, case.stored, case.seed + 1)
    bank = None
    if case.stored:
        bank = MemoryBank(case.stored, DIM, k=4)
        bank.enqueue(past.to(case.dtype), known, torch.arange(case.stored))
        past = bank.embeddings.double()
    objective = GraphGuidedObjective(
        CLASSES,
        memory=bank,
        k=4,
        bandwidth=case.bandwidth,
        propagation=LabelPropagation(
            case.rule,
            case.normalization,
            solver=case.solver,
            gradient=case.gradient,
            tol=1e-6 if case.dtype == torch.float32 else 1e-12,
            max_iter=20_000,
            **DAMPED[case.rule],
        ),
    ).eval()
    visible = torch.arange(case.size) % 2 == 0
    given_rows = x.to(case.dtype).requires_grad_()
    ids = torch.arange(case.size) + 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        out = objective(given_rows, labels, ids=ids, visible=visible, return_output=True)
        (gradient,) = torch.autograd.grad(out.loss, given_rows)
    assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(out.loss))
    if not out.solver.converged:
        return
    iterated = case.rule == "poisson" and case.solver != "dense"
    if iterated and float(out.propagated.detach()[out.hidden].abs().amax()) > 1e6:
        return  # a loose group with a seed: its scores leave float64 no digits of the differences
    loss, expected = oracle(case, x, past, out, visible)
    # A distance is rounded at the size of its rows, which a narrow kernel magnifies.
    sigma = float(out.graph.bandwidth)
    # Scores have no bound, so that they show the rounding of a bank's rows, which are float32.
    scores = case.rule == "poisson"
    eps = torch.finfo(torch.float32 if scores and case.stored else case.dtype).eps
    rounding = min(1.0, 40.0 * eps / sigma**2) + (2e-4 if case.dtype == torch.float32 else 1e-7)
    if rounding > 0.2:
        return  # the rows of a cluster are equal to rounding: any answer is as good
    torch.testing.assert_close(out.loss.double(), loss, rtol=rounding, atol=rounding)
    # A solve to `tol` is relative to the largest score, which the hidden rows may be far below.
    scale = float(expected.abs().max()) + (0.1 if iterated else 1e-3)
    assert (
        float((gradient.double() - expected).abs().max())
        <= (6.0 if scores else 3.0) * rounding * scale
    )


@settings(max_examples=50, deadline=None)
@given(case=cases)
def test_a_step_is_that_of_the_oracle(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(case=cases)
def test_a_thousand_steps_are_those_of_the_oracle(case: Case) -> None:
    check(case)
