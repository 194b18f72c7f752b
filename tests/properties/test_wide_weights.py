"""Weights of any size: values, gradients and reports against an oracle in many digits."""

from __future__ import annotations

import warnings
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gloss_graph import LabelPropagation
from tests import wide

RULES = ("harmonic", "spreading", "poisson")
NORMALIZATIONS = ("hub", "row", "symmetric", "column")
# Digits of the oracle: products of several weights of 1e-38 beside 1e30, and differences of them.
mpmath.mp.dps = 700

exponents = st.one_of(st.floats(-38.0, 30.0), st.sampled_from([-38.0, -20.0, 0.0, 0.0, 30.0]))


@st.composite
def graphs(draw: st.DrawFn) -> wide.Graph:
    """Up to seven nodes: strong groups, weak ties between them, isolated nodes, any weights."""
    n = draw(st.integers(2, 7))
    every = [(i, j) for i in range(n) for j in range(i + 1, n)]
    pairs = tuple(draw(st.lists(st.sampled_from(every), min_size=1, max_size=9, unique=True)))
    weights = tuple(float(torch.tensor(10.0 ** draw(exponents))) for _ in pairs)
    classes = draw(st.integers(1, 3))
    labels = tuple(draw(st.integers(0, classes - 1)) for _ in range(n))
    seeds = tuple(draw(st.booleans()) for _ in range(n))
    assume(any(seeds))
    return wide.Graph(n, pairs, weights, labels, seeds, classes)


def tensors(graph: wide.Graph, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs = torch.tensor(graph.pairs).T
    y = torch.where(torch.tensor(graph.seeds), torch.tensor(graph.labels), -1)
    weight = torch.tensor(graph.weights, dtype=torch.float64).to(dtype).requires_grad_()
    return torch.cat([pairs, pairs.flip(0)], dim=1), weight, y, torch.tensor(graph.seeds)


def check(
    graph: wide.Graph, rule: str, normalization: str, solver: str, dtype: torch.dtype, eta: float
) -> None:
    edge_index, weight, y, seeds = tensors(graph, dtype)
    damping = {"alpha": 0.9} if rule == "spreading" else {"eta": eta}
    layer = LabelPropagation(
        rule, normalization, solver=solver, num_classes=graph.classes, tol=1e-8, **damping
    )
    with warnings.catch_warnings():
        # A solve that says so by its report is an answer.
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = layer.propagate_labels(y, edge_index, torch.cat([weight, weight]), seeds)
        except ValueError as error:
            found, message = None, str(error)
    exact = wide.propagate(
        graph, list(map(mpmath.mpf, graph.weights)), rule, normalization, **damping
    )
    columns = range(graph.classes)
    rows = [[float(exact[i, c]) for c in columns] for i in range(graph.size)]
    expected = torch.tensor(rows, dtype=torch.float64)
    if found is None:
        # Scores of poisson that the dtype cannot hold, and iterations that nothing damps.
        assert "NaN or inf" in message
        too_large = rule == "poisson" and float(expected.abs().max()) > 1e37
        assert too_large or (rule == "harmonic" and eta == 0 and solver != "dense")
        return
    joined = torch.tensor(wide.reached(graph))
    if rule != "poisson":
        lost = joined & ~found.reached
        # Only what underflows is left out.
        assert not bool(lost.any()) or (rule == "spreading" and float(expected[lost].max()) < 1e-11)
    rounding = 4e-5 if dtype == torch.float32 else 1e-9
    claimed = max(found.report.residual * 20.0, rounding)
    size = float(expected.abs().max().clamp(min=1.0))
    # Where rows of T do not sum to 1 a residual, however small, bounds nothing.
    unbounded = found.report.solver != "dense" or rule == "poisson"
    unbounded = unbounded and normalization in ("symmetric", "column")
    if found.report.converged and not unbounded:
        error = float((found.values.detach().double() - expected).abs().max())
        assert error <= claimed * size, (found.values, expected, found.report)

    toward = torch.randn(
        graph.size, graph.classes, generator=torch.Generator().manual_seed(graph.size)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (gradient,) = torch.autograd.grad((found.values * toward).sum(), weight, allow_unused=True)
    if gradient is None:
        return
    assert bool(torch.isfinite(gradient).all())
    if unbounded or said or not found.report.converged:
        return
    theirs = wide.log_gradient(graph, toward, rule, normalization, **damping)
    largest = torch.finfo(dtype).max / 2**16
    for k, true in enumerate(theirs):
        size_of_weight = float(weight[k].detach())
        if abs(float(true)) >= largest * size_of_weight:
            continue  # a derivative by the weight that its dtype cannot hold
        mine = float(gradient[k]) * size_of_weight
        assert abs(float(true) - mine) <= 50.0 * claimed * size, (
            k,
            float(true),
            mine,
            found.report,
        )


CASES = st.tuples(
    st.sampled_from(RULES),
    st.sampled_from(NORMALIZATIONS),
    st.sampled_from(("dense", "cg", "iterate")),
    st.sampled_from((torch.float32, torch.float64)),
    st.sampled_from((0.0, 0.2, 2.0)),
)


@settings(max_examples=50)
@given(graphs(), CASES)
def test_any_weight_is_solved_or_said_not_to_be(graph: wide.Graph, case: Any) -> None:
    check(graph, *case)


@pytest.mark.slow
@settings(max_examples=1000)
@given(graphs(), CASES)
def test_any_weight_is_solved_or_said_not_to_be_at_length(graph: wide.Graph, case: Any) -> None:
    check(graph, *case)
