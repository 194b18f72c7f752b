"""Laws of propagation on random multigraphs: symmetries, bounds, and the dense oracle."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NORMALIZATIONS, dense_weights, one_hot
from torch import Tensor

from gloss_graph import LabelPropagation

CLASSES = 3
RULES = ("harmonic", "spreading", "poisson")


class Multigraph(NamedTuple):
    """Edges in both directions, in any order, repeated, with self-loops; and labels."""

    edge_index: Tensor
    edge_weight: Tensor
    y: Tensor
    num_nodes: int


@st.composite
def multigraphs(draw: st.DrawFn) -> Multigraph:
    n = draw(st.integers(2, 9))
    node = st.integers(0, n - 1)
    # Eighths: sums are exact, so both directions of a pair are equal however they are added up.
    weight = st.integers(1, 16).map(lambda w: w / 8.0)
    pairs = draw(st.lists(st.tuples(node, node, weight), max_size=16))
    edges = [(i, j, w) for i, j, w in pairs] + [(j, i, w) for i, j, w in pairs]
    edges = draw(st.permutations(edges))
    y = draw(st.lists(st.integers(-1, CLASSES - 1), min_size=n, max_size=n))
    return Multigraph(
        torch.tensor([[i for i, _, _ in edges], [j for _, j, _ in edges]], dtype=torch.long),
        torch.tensor([w for _, _, w in edges], dtype=torch.float64),
        torch.tensor(y),
        n,
    )


@cache
def layer(rule: str, normalization: str, **extra: object) -> LabelPropagation:
    # A solve to rounding error, so that laws can be stated exactly.
    defaults = {"num_classes": CLASSES, "solver": "dense", "alpha": 0.8}
    return LabelPropagation(rule, normalization, **{**defaults, **extra})


def run(graph: Multigraph, module: LabelPropagation) -> Tensor:
    return module(graph.y, graph.edge_index, graph.edge_weight)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance)


@settings(max_examples=15)
@given(graph=multigraphs(), eta=st.sampled_from([0.0, 0.25]))
def test_equals_the_dense_oracle(graph: Multigraph, eta: float) -> None:
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    labels, seeds = one_hot(graph.y, CLASSES), graph.y >= 0
    for normalization in NORMALIZATIONS:
        expected = reference.harmonic(w, labels, seeds, normalization, eta)
        close(run(graph, layer("harmonic", normalization, eta=eta)), expected)
        expected = reference.spreading(w, labels, seeds, normalization, 0.8)
        close(run(graph, layer("spreading", normalization)), expected)
        # What an isolated node contributes to the mean degree, the unit of `poisson`, is left
        # open; and rounding noise of a balanced component must not be scaled to 1.
        pair = (
            run(graph, layer("poisson", normalization)),
            reference.poisson(w, labels, seeds, normalization),
        )
        pair = tuple(torch.where(x.abs() > 1e-12, x, 0.0) for x in pair)
        close(*(x / (x.abs().max() + 1e-300) for x in pair), 1e-8)


@settings(max_examples=12)
@given(graph=multigraphs(), data=st.data())
def test_renaming_the_nodes_renames_the_rows(graph: Multigraph, data: st.DataObject) -> None:
    new = torch.tensor(data.draw(st.permutations(range(graph.num_nodes))))
    y = torch.empty_like(graph.y)
    y[new] = graph.y
    renamed = graph._replace(edge_index=new[graph.edge_index], y=y)
    for rule in RULES:
        module = layer(rule, "hub")
        close(run(renamed, module)[new], run(graph, module))


@settings(max_examples=12)
@given(graph=multigraphs(), seed=st.integers(0, 2**16))
def test_order_and_splitting_of_edges_and_self_loops_do_not_matter(
    graph: Multigraph, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(graph.edge_weight.numel(), generator=g)
    i = torch.arange(graph.num_nodes)
    split = graph._replace(
        edge_index=torch.cat(
            [graph.edge_index[:, order], torch.stack([i, i]), graph.edge_index], dim=1
        ),
        edge_weight=torch.cat(
            [0.25 * graph.edge_weight[order], 3.0 + i.double(), 0.75 * graph.edge_weight]
        ),
    )
    for rule in RULES:
        module = layer(rule, "hub")
        close(run(split, module), run(graph, module))


@settings(max_examples=12)
@given(graph=multigraphs(), exponent=st.integers(-60, 60))
def test_the_unit_of_the_weights_does_not_matter(graph: Multigraph, exponent: int) -> None:
    scaled = graph._replace(edge_weight=graph.edge_weight * 2.0**exponent)
    for rule in RULES:
        for normalization in NORMALIZATIONS:
            module = layer(rule, normalization)
            close(run(scaled, module), run(graph, module))


@settings(max_examples=12)
@given(
    graph=multigraphs(),
    normalization=st.sampled_from(["row", "hub"]),
    eta=st.sampled_from([0.0, 0.5]),
)
def test_harmonic_rows_are_distributions_and_seeds_are_untouched(
    graph: Multigraph, normalization: str, eta: float
) -> None:
    result = layer("harmonic", normalization, eta=eta).propagate_labels(
        graph.y, graph.edge_index, graph.edge_weight
    )
    sums = result.values.sum(dim=1)
    expected = torch.ones_like(sums) if eta > 0 else result.reached.double()
    close(sums, expected)
    assert float(result.values.min()) >= -1e-12
    seeds = graph.y >= 0
    assert torch.equal(result.values[seeds], one_hot(graph.y, CLASSES)[seeds])
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    assert torch.equal(result.reached, reference.reach(w, seeds))


@settings(max_examples=12)
@given(graph=multigraphs())
def test_harmonic_values_are_the_mean_of_their_neighbors(graph: Multigraph) -> None:
    result = layer("harmonic", "row", eta=0.0).propagate_labels(
        graph.y, graph.edge_index, graph.edge_weight
    )
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    for i in range(graph.num_nodes):
        if bool(result.reached[i]) and int(graph.y[i]) < 0:
            mean = sum(w[i, j] * result.values[j] for j in range(graph.num_nodes)) / w[i].sum()
            close(result.values[i], mean)


@settings(max_examples=15)
@given(graph=multigraphs())
def test_poisson_scores_are_balanced(graph: Multigraph) -> None:
    values = run(graph, layer("poisson", "row"))
    close(values.sum(dim=1), torch.zeros(graph.num_nodes, dtype=torch.float64), 1e-8)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    for part in reference.components(w):
        degree = w[part].sum(dim=1, keepdim=True)
        close((degree * values[part]).sum(dim=0), torch.zeros(CLASSES, dtype=torch.float64), 1e-7)


@settings(max_examples=15)
@given(graph=multigraphs())
def test_solvers_agree(graph: Multigraph) -> None:
    for rule in ("harmonic", "spreading"):
        expected = run(graph, layer(rule, "hub", eta=0.25))
        for solver in ("cg", "iterate"):
            for fused in (True, False):
                module = layer(rule, "hub", eta=0.25, solver=solver, fused=fused, tol=1e-12)
                close(run(graph, module), expected)


@settings(max_examples=12)
@given(graph=multigraphs(), data=st.data())
def test_a_directed_edge_is_refused(graph: Multigraph, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, graph.num_nodes - 2))
    one_way = graph._replace(
        edge_index=torch.cat([graph.edge_index, torch.tensor([[i], [i + 1]])], dim=1),
        edge_weight=torch.cat([graph.edge_weight, torch.ones(1, dtype=torch.float64)]),
    )
    with pytest.raises(ValueError, match="'edge_index' must be undirected"):
        run(one_way, layer("harmonic", "hub"))
