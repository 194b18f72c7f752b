"""Gradients by finite differences, and gradients restricted to some edges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference import NORMALIZATIONS, awkward_graph, both_ways, one_hot
from torch import Tensor

from gloss_graph import LabelPropagation
from gloss_graph.propagation import rules

SOLVERS = ("dense", "cg", "iterate")
PATHS = ("full", "sparse", "messages")


def problem(path: str, rule: str) -> tuple[Tensor, Tensor, Callable[[LabelPropagation], Callable]]:
    """Pair weights and labels, and how to make them a function of both."""
    graph = awkward_graph(seed=5, isolated=rule != "poisson", sparse=path == "sparse")
    weight = graph.pair_weight.clone().requires_grad_()
    g = torch.Generator().manual_seed(6)
    noise = torch.rand(graph.num_nodes, 4, generator=g, dtype=torch.float64)
    labels = (0.7 * one_hot(graph.y, 4) + 0.3 * noise).requires_grad_()

    def of(layer: LabelPropagation) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda w, y: layer(y, graph.edge_index, both_ways(w), graph.seeds)

    return weight, labels, of


@pytest.mark.parametrize(("solver", "path"), [("dense", "full"), ("cg", "full"), ("cg", "sparse")])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
def test_gradcheck(rule: str, normalization: str, solver: str, path: str) -> None:
    weight, labels, of = problem(path, rule)
    layer = LabelPropagation(
        rule,
        normalization,
        solver=solver,
        alpha=0.7,
        # A singular system does not get quite as far.
        tol=1e-12 if rule == "poisson" else 1e-14,
    )
    assert torch.autograd.gradcheck(of(layer), (weight, labels), fast_mode=True, atol=1e-6)


def test_gradcheck_entry_by_entry() -> None:
    weight, labels, of = problem("full", "harmonic")
    some = labels.detach()
    layer = LabelPropagation(solver="iterate", tol=1e-13)
    assert torch.autograd.gradcheck(lambda w: of(layer)(w, some), (weight,))


def test_class_mass_is_differentiable() -> None:
    weight, labels, of = problem("full", "harmonic")
    layer = LabelPropagation(class_mass="uniform")
    assert torch.autograd.gradcheck(of(layer), (weight, labels), fast_mode=True)


def test_one_weight_moves_the_result_and_has_a_gradient() -> None:
    graph = awkward_graph()
    layer = LabelPropagation(eta=0.0)
    weight = graph.pair_weight.clone().requires_grad_()
    before = layer(graph.y, graph.edge_index, both_ways(weight), graph.seeds)
    (gradient,) = torch.autograd.grad(before[1, 0], weight)
    changed = graph.pair_weight.clone()
    changed[0] *= 1.5
    after = layer(graph.y, graph.edge_index, both_ways(changed), graph.seeds)
    assert abs(float(gradient[0])) > 1e-3
    assert abs(float(after[1, 0] - before[1, 0].detach())) > 1e-3


def restricted_gradients(
    rule: str, solver: str, gradient: str, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient for all edges, the one asked for on some edges only, and which those are."""
    graph = awkward_graph(isolated=False, sparse=path == "sparse")
    layer = LabelPropagation(
        rule,
        solver=solver,
        gradient=gradient,
        tol=1e-12,
        max_iter=3000,
        fused=path != "messages",
    )
    # Both directions of some pairs, in an edge list without order.
    g = torch.Generator().manual_seed(0)
    shuffle = torch.randperm(graph.edge_index.size(1), generator=g)
    pair = torch.arange(graph.pair_weight.numel()).repeat(2)[shuffle]
    chosen = pair % 3 == 0
    pull = torch.randn(graph.num_nodes, 4, generator=g, dtype=torch.float64)

    def run(trainable: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = graph.edge_weight[shuffle].requires_grad_()
        result = layer.propagate_labels(
            graph.y, graph.edge_index[:, shuffle], weight, graph.seeds, trainable_edges=trainable
        )
        (out,) = torch.autograd.grad((result.values * pull).sum(), weight)
        return result.values.detach(), out

    values, full = run(None)
    same, restricted = run(chosen.nonzero().squeeze(1))
    assert torch.equal(values, same)
    return full, restricted, chosen


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("solver", "gradient"), [("dense", "implicit"), ("dense", "unrolled"), ("cg", "implicit")]
)
@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
def test_trainable_edges_get_the_full_gradient(
    rule: str, solver: str, gradient: str, path: str
) -> None:
    full, restricted, chosen = restricted_gradients(rule, solver, gradient, path)
    assert float(full[chosen].abs().max()) > 1e-3
    torch.testing.assert_close(restricted[chosen], full[chosen], rtol=0.0, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "gradient", "path"),
    [
        ("cg", "implicit", "full"),
        ("cg", "implicit", "sparse"),
        ("dense", "implicit", "sparse"),
        ("dense", "unrolled", "sparse"),
        ("iterate", "unrolled", "sparse"),
        ("iterate", "unrolled", "messages"),
    ],
)
def test_other_than_trainable_edges_get_no_gradient(solver: str, gradient: str, path: str) -> None:
    full, restricted, chosen = restricted_gradients("harmonic", solver, gradient, path)
    assert float(full[~chosen].abs().max()) > 1e-3
    assert torch.equal(restricted[~chosen], torch.zeros_like(restricted[~chosen]))


def test_labels_of_unseeded_rows_are_not_read_and_get_no_gradient() -> None:
    graph = awkward_graph()
    layer = LabelPropagation()
    labels = one_hot(graph.y, 4).requires_grad_()
    out = layer(labels, graph.edge_index, graph.edge_weight, graph.seeds)
    (gradient,) = torch.autograd.grad(out.square().sum(), labels)
    assert torch.equal(gradient[~graph.seeds], torch.zeros_like(gradient[~graph.seeds]))
    assert bool(gradient.isfinite().all())
    assert float(gradient[graph.seeds].abs().sum()) > 1e-3
    other = labels.detach().clone()
    other[~graph.seeds] = 7.0
    assert torch.equal(layer(other, graph.edge_index, graph.edge_weight, graph.seeds), out)


@pytest.mark.parametrize("solver", SOLVERS)
def test_second_derivatives_are_refused_instead_of_wrong(solver: str) -> None:
    graph = awkward_graph(sparse=True)
    weight = graph.pair_weight.clone().requires_grad_()
    layer = LabelPropagation(solver=solver)
    out = layer(graph.y, graph.edge_index, both_ways(weight), graph.seeds)
    (first,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        first.sum().backward()


def test_the_result_keeps_no_graph_when_nothing_needs_a_gradient() -> None:
    graph = awkward_graph()
    for gradient in ("implicit", "unrolled"):
        layer = LabelPropagation(gradient=gradient)
        out = layer(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
        assert out.grad_fn is None
        assert not out.requires_grad


@pytest.mark.parametrize("options", [{}, {"gradient": "unrolled"}, {"fused": False}, {"eta": 0.0}])
def test_solving_around_few_known_nodes_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    """The same values and gradients as on the matrix cut down to the unknown nodes."""
    generator = torch.Generator().manual_seed(3)
    n = 700
    pairs = torch.randint(n - 20, (2, 4 * n), generator=generator)
    # The last twenty are a part of their own that no seed reaches.
    pairs = torch.cat([pairs, torch.randint(n - 20, n, (2, 60), generator=generator)], dim=1)
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
    own = torch.rand(pairs.size(1), generator=generator, dtype=torch.float64)
    y = torch.full((n,), -1)
    y[:30] = torch.arange(30) % 3
    toward = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    seen: list[str] = []
    found = []
    for ratio in (4, n):
        monkeypatch.setattr(rules, "_KNOWN_RATIO", ratio)
        built = rules.harmonic

        def spy(*parts: object, built: Callable[..., rules.Problem] = built) -> rules.Problem:
            problem = built(*parts)
            seen.append(type(problem.system.operator).__name__)
            return problem

        monkeypatch.setitem(rules.RULES, "harmonic", spy)
        weight = torch.cat([own, own]).requires_grad_()
        layer = LabelPropagation(num_classes=3, tol=1e-10, solver="cg", **options)  # type: ignore[arg-type]
        values = layer(y, edge_index, weight)
        (gradient,) = torch.autograd.grad((values * toward).sum(), weight)
        found.append((values.detach(), gradient))
    assert seen == ["MaskedOperator", "SparseOperator"]
    for around, cut in zip(*found, strict=True):
        torch.testing.assert_close(around, cut, rtol=1e-6, atol=1e-7)
    assert torch.equal(found[0][0][:30], torch.eye(3, dtype=torch.float64)[y[:30]])
