"""Every rule, normalization, solver and gradient against the dense closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from reference import NORMALIZATIONS, Graph, awkward_graph, both_ways, dense_weights, one_hot
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor

from gloss_graph import LabelPropagation, build_document_graph

RULES = ("harmonic", "spreading", "poisson")
SETTINGS = {"harmonic": {"eta": 0.3}, "spreading": {"alpha": 0.8}, "poisson": {"eta": 0.0}}
# Three ways to multiply by W: a full matrix, sparse rows, and explicit messages.
PATHS = ("full", "sparse", "messages")
ETA = {"harmonic": 0.3, "spreading": 0.0, "poisson": 0.0}


def build(rule: str, normalization: str, **settings: object) -> LabelPropagation:
    defaults = {"tol": 1e-13, "max_iter": 20_000, **SETTINGS[rule]}
    return LabelPropagation(rule, normalization, **{**defaults, **settings})


def oracle(rule: str, graph: Graph, weight: Tensor, labels: Tensor, normalization: str) -> Tensor:
    w = dense_weights(graph.edge_index, both_ways(weight), graph.num_nodes)
    return reference.propagate(
        rule, w, labels, graph.seeds, normalization, eta=ETA[rule], alpha=0.8
    )


def graph_for(rule: str, *, sparse: bool = False) -> Graph:
    # What an isolated node contributes to the mean degree of `poisson` is left open.
    return awkward_graph(isolated=rule != "poisson", sparse=sparse)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_oracle_symmetric_form_gives_the_walk(normalization: str) -> None:
    graph = awkward_graph(isolated=False)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    s, d = reference.symmetric_form(w, normalization)
    torch.testing.assert_close(s, s.T)
    torch.testing.assert_close(s / d.unsqueeze(1), reference.walk(w, normalization))


def compare(
    rule: str,
    normalization: str,
    path: str,
    tolerance: float,
    classes: slice = slice(None),
    **settings: object,
) -> None:
    """Values to 1e-8 and gradients for weights and labels of `classes` to `tolerance`, relative."""
    graph = graph_for(rule, sparse=path == "sparse")
    settings["fused"] = path != "messages"
    weight = graph.pair_weight.clone().requires_grad_()
    # No seed has class 3: a right side that is zero throughout, whose gradient is not.
    labels = one_hot(graph.y, 4).requires_grad_()
    pull = torch.randn(
        graph.num_nodes, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )

    expected = oracle(rule, graph, weight, labels, normalization)
    expected_gradients = torch.autograd.grad((expected * pull).sum(), (weight, labels))

    layer = build(rule, normalization, **settings)
    actual = layer(labels, graph.edge_index, both_ways(weight), graph.seeds)
    gradients = torch.autograd.grad((actual * pull).sum(), (weight, labels))

    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-8)
    for name, ours, theirs in zip("wy", gradients, expected_gradients, strict=True):
        if name == "y":
            ours, theirs = ours[:, classes], theirs[:, classes]
        scale = float(theirs.abs().max())
        assert scale > 1e-2, f"the oracle's gradient for {name} is void"
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=tolerance * scale)


# The iteration is slow on the spun-out graph: there, one normalization stands for all.
COMBINATIONS = [
    (normalization, solver, gradient, path)
    for normalization in NORMALIZATIONS
    for solver, gradient in (
        ("dense", "implicit"),
        ("dense", "unrolled"),
        ("cg", "implicit"),
        ("iterate", "implicit"),
        ("iterate", "unrolled"),
    )
    for path in PATHS
    if solver != "iterate" or path != "sparse" or normalization == "hub"
]


@pytest.mark.parametrize(("normalization", "solver", "gradient", "path"), COMBINATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients_equal_the_dense_closed_form(
    rule: str, normalization: str, solver: str, gradient: str, path: str
) -> None:
    compare(rule, normalization, path, 1e-8, solver=solver, gradient=gradient)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rule", RULES)
def test_unrolled_conjugate_gradients_equal_the_dense_closed_form(rule: str, path: str) -> None:
    # The derivative of an iterate converges later than the iterate: a looser tolerance. Class 3 has
    # no seed, so its iterates are zero and say nothing about the gradient of its labels.
    seeded = slice(0, 3)
    compare(rule, "hub", path, 1e-3, seeded, solver="cg", gradient="unrolled")


def test_poisson_balances_every_component_by_itself() -> None:
    """Two paths of three nodes; the labels of the first are all of one class."""
    ends = torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5]])
    edges = torch.cat([ends, ends.flip(0)], dim=1)
    labels = torch.tensor([0, -1, 0, 0, -1, 1])
    alone = LabelPropagation("poisson", eta=0.0)(labels, edges)
    assert torch.equal(alone[:3], torch.zeros(3, 2))
    scores = torch.tensor([2.0, 0.0, -2.0]) / 3.0
    torch.testing.assert_close(alone[3:], torch.stack([scores, -scores], dim=1))
    # Screened, the labels of both are balanced together.
    assert bool((LabelPropagation("poisson", eta=0.02)(labels, edges)[:3, 0] > 1).all())


@pytest.mark.parametrize("eta", [0.0, 0.05, 1.0, 20.0])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_harmonic_leak(normalization: str, eta: float) -> None:
    graph = awkward_graph()
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    labels = one_hot(graph.y, 4)
    expected = reference.harmonic(w, labels, graph.seeds, normalization, eta, prior)
    # The prior is given unscaled: it is made to sum to 1.
    layer = LabelPropagation("harmonic", normalization, eta=eta, prior=10.0 * prior)
    actual = layer(labels, graph.edge_index, graph.edge_weight, graph.seeds)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.1, 2.0])
@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_screened_poisson(normalization: str, solver: str, eta: float) -> None:
    graph = awkward_graph(isolated=False)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    labels = one_hot(graph.y, 4)
    expected = reference.poisson(w, labels, graph.seeds, normalization, eta)
    layer = build("poisson", normalization, eta=eta, solver=solver)
    actual = layer(labels, graph.edge_index, graph.edge_weight, graph.seeds)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.25])
@pytest.mark.parametrize("normalization", ["row", "hub"])
def test_harmonic_is_where_a_random_walker_ends(normalization: str, eta: float) -> None:
    graph = awkward_graph()
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    labels, prior = one_hot(graph.y, 4), torch.full((4,), 0.25, dtype=torch.float64)
    ends = reference.absorbing_chain(
        reference.walk(w, normalization), labels, graph.seeds, eta / (1.0 + eta), prior
    )
    layer = LabelPropagation("harmonic", normalization, eta=eta)
    actual = layer(labels, graph.edge_index, graph.edge_weight, graph.seeds)
    reached = reference.reach(w, graph.seeds)
    torch.testing.assert_close(actual[reached], ends[reached], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_symmetric_spreading_equals_scikit_learn(alpha: float) -> None:
    graph = awkward_graph(isolated=False)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    # Scikit-learn wants a label for every class: class 3 is relabelled away.
    y = torch.where(graph.y == 3, 0, graph.y)
    peer = LabelSpreading(kernel=lambda a, b: w.numpy(), alpha=alpha, tol=1e-14, max_iter=20_000)
    target = torch.where(graph.seeds, y, -1)
    peer.fit(np.zeros((graph.num_nodes, 1)), target.numpy())
    layer = LabelPropagation("spreading", "symmetric", alpha=alpha, num_classes=3)
    actual = layer(target, graph.edge_index, graph.edge_weight)
    reached = reference.reach(w, graph.seeds)
    shares = actual[reached] / actual[reached].sum(dim=1, keepdim=True)
    expected = torch.from_numpy(peer.label_distributions_)[reached]
    torch.testing.assert_close(shares, expected, rtol=0.0, atol=1e-9)


def calder(w: Tensor, labels: Tensor, seeds: Tensor, steps: int) -> Tensor:
    """Poisson learning as published: u <- u + D^(-1) (b - L u) from u = 0."""
    n, classes = labels.shape
    degree = w.sum(dim=1)
    mean = labels[seeds].mean(dim=0)
    u = torch.zeros(n, classes, dtype=torch.float64)
    for _ in range(steps):
        following = torch.zeros_like(u)
        for i in range(n):
            source = labels[i] - mean if bool(seeds[i]) else torch.zeros(classes)
            following[i] = u[i] + (source - (degree[i] * u[i] - w[i] @ u)) / degree[i]
        u = following
    return u


@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
def test_poisson_equals_the_published_iteration(solver: str) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(14, 2, generator=g, dtype=torch.float64)
    w = torch.exp(-torch.cdist(x, x).square()).fill_diagonal_(0.0)
    w = torch.where(w > 0.2, w, 0.0)
    w[0, 1:] = w[1:, 0] = 0.3  # one component
    labels = one_hot(torch.arange(14) % 3, 3)
    seeds = torch.arange(14) < 4
    expected = calder(w, labels, seeds, steps=600)
    edge_index = w.nonzero().T.contiguous()
    layer = build("poisson", "row", solver=solver)
    actual = layer(labels, edge_index, w[edge_index[0], edge_index[1]], seeds)
    assert torch.equal(actual.argmax(dim=1), expected.argmax(dim=1))
    ratio = actual / expected
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-8, atol=0.0)
    assert float(ratio.mean()) == pytest.approx(float(w.sum(dim=1).mean()), rel=1e-8)
    torch.testing.assert_close(actual.sum(dim=1), torch.zeros(14, dtype=torch.float64))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_float32_equals_float64(rule: str, normalization: str) -> None:
    graph = graph_for(rule)
    labels = one_hot(graph.y, 4)
    for solver in ("dense", "cg"):
        double = build(rule, normalization, solver=solver)
        exact = double(labels, graph.edge_index, graph.edge_weight, graph.seeds)
        single = LabelPropagation(rule, normalization, solver=solver, **SETTINGS[rule])
        weight = graph.edge_weight.float().requires_grad_()
        coarse = single(labels.float(), graph.edge_index, weight, graph.seeds)
        assert coarse.dtype == torch.float32
        assert exact.dtype == torch.float64
        scale = float(exact.abs().max())
        torch.testing.assert_close(coarse.double(), exact, rtol=0.0, atol=5e-5 * scale)
        (gradient,) = torch.autograd.grad(coarse[graph.seeds.logical_not(), 0].sum(), weight)
        assert gradient.dtype == torch.float32
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
def test_autocast_changes_nothing(solver: str, path: str, backward: bool) -> None:
    graph = awkward_graph(sparse=path == "sparse")
    layer = LabelPropagation(solver=solver, fused=path != "messages")

    def step(autocast: bool) -> tuple[Tensor, Tensor]:
        weight = graph.edge_weight.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = layer(graph.y, graph.edge_index, weight, graph.seeds)
        # Some training loops call backward() inside the autocast block.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and backward):
            (gradient,) = torch.autograd.grad(out[~graph.seeds, 1].sum(), weight)
        return out.detach(), gradient

    plain, plain_gradient = step(False)
    mixed, mixed_gradient = step(True)
    assert torch.equal(plain, mixed)
    # Torch itself multiplies in half precision when backward() runs inside the block.
    tolerance = 0.02 * float(plain_gradient.abs().max()) if backward else 0.0
    torch.testing.assert_close(mixed_gradient, plain_gradient, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_default_solver_converges_in_float32_beyond_the_dense_limit(
    rule: str, normalization: str
) -> None:
    # Narrow kernel, many classes, few seeds, several components: where a singular system drifts.
    g = torch.Generator().manual_seed(1)
    n, classes = 700, 5
    x = torch.randn(n, 16, generator=g)
    x = x + 2.0 * torch.randn(classes, 16, generator=g)[torch.arange(n) % classes]
    data = build_document_graph(x, k=10, bandwidth=0.25)
    y = torch.full((n,), -1)
    y[:25] = torch.arange(25) % classes
    layer = LabelPropagation(rule, normalization)
    result = layer.propagate_labels(y, data.edge_index, data.edge_weight)
    assert result.report.solver == "cg"
    assert result.report.converged
    exact = LabelPropagation(rule, normalization, solver="dense")
    expected = exact(y, data.edge_index, data.edge_weight.double())
    scale = float(expected.abs().max())
    torch.testing.assert_close(result.values.double(), expected, rtol=0.0, atol=1e-2 * scale)


@pytest.mark.parametrize("solver", ["cg", "iterate"])
@pytest.mark.parametrize("normalization", ["row", "hub"])
def test_weakly_tied_nodes_are_solved_as_well_as_the_others(
    normalization: str, solver: str
) -> None:
    # A strong pair of seeds, and a chain of ten hidden nodes whose ties are 1e-6 as strong.
    strong = torch.tensor([[0, 1], [1, 2]])
    i = torch.arange(3, 14)
    pairs = torch.cat([strong, torch.stack([i, i + 1])], dim=1)
    weight = torch.cat([torch.ones(2), torch.full((11,), 1e-6)]).double()
    y = torch.full((15,), -1)
    y[[0, 2, 3, 14]] = torch.tensor([0, 1, 0, 1])
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
    layer = LabelPropagation("harmonic", normalization, eta=0.0, solver=solver)
    result = layer.propagate_labels(y, edge_index, both_ways(weight))
    assert result.report.converged
    torch.testing.assert_close(
        result.values.sum(dim=1), torch.ones(15, dtype=torch.float64), rtol=0.0, atol=1e-2
    )


def test_half_precision_weights_are_solved_in_float32() -> None:
    graph = awkward_graph()
    weight = graph.edge_weight.bfloat16()
    out = LabelPropagation(eta=0.0)(graph.y, graph.edge_index, weight, graph.seeds)
    same = LabelPropagation(eta=0.0)(graph.y, graph.edge_index, weight.float(), graph.seeds)
    assert out.dtype == torch.float32
    assert torch.equal(out, same)


def test_a_solve_of_a_large_graph_never_builds_a_square_matrix() -> None:
    # 150,000 nodes: a dense matrix of float32 would need 84 GiB.
    n = 150_000
    i = torch.arange(n)
    edge_index = torch.stack([torch.cat([i, (i + 1) % n]), torch.cat([(i + 1) % n, i])])
    weight = torch.ones(2 * n, requires_grad=True)
    y = torch.where(i % 10 == 0, (i // 10) % 2, -1)
    out = LabelPropagation(eta=0.5)(y, edge_index, weight)
    out[y < 0, 0].sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0
    # Five steps from the seeds on either side: the two classes balance.
    torch.testing.assert_close(out[5], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0.0)
