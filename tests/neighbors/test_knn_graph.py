"""`knn_graph` has the meaning of PyG's, checked against a search through all pairs."""

from __future__ import annotations

import pytest
import torch
import torch_geometric
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gloss_graph
from gloss_graph.neighbors import knn_graph


def all_pairs(
    x: Tensor, k: int, batch: Tensor | None, loop: bool, cosine: bool
) -> list[tuple[int, int]]:
    """Edges (neighbor, center) by center, then by distance, found one row at a time."""
    x = x.double()
    edges = []
    for center in range(x.size(0)):
        if cosine:
            distance = 1.0 - torch.cosine_similarity(x[center : center + 1], x, dim=1)
        else:
            distance = (x - x[center]).norm(dim=1)
        distance[center] = -1.0 if loop else torch.inf
        if batch is not None:
            distance[batch != batch[center]] = torch.inf
        found = [i for i in distance.argsort().tolist() if distance[i] < torch.inf]
        edges += [(neighbor, center) for neighbor in found[:k]]
    return edges


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    dim=st.integers(1, 5),
    k=st.integers(1, 8),
    graphs=st.integers(0, 4),
    loop=st.booleans(),
    cosine=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_search_through_all_pairs(
    size: int, dim: int, k: int, graphs: int, loop: bool, cosine: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A row of one dimension has only two directions: cosine would tie.
    x = torch.randn(size, dim + cosine, generator=generator, dtype=torch.float64)
    batch = torch.randint(graphs, (size,), generator=generator) if graphs else None
    found = knn_graph(x, k, batch, loop, cosine)
    assert found.dtype == torch.long
    assert list(map(tuple, found.t().tolist())) == all_pairs(x, k, batch, loop, cosine)


def test_large_sets_are_searched_in_blocks() -> None:
    x = torch.randn(2500, 8, generator=torch.Generator().manual_seed(0))
    found = knn_graph(x, 5)
    exact = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    expected = exact.topk(5, largest=False).indices
    assert torch.equal(found[0].view(2500, 5), expected)
    assert torch.equal(found[1], torch.arange(2500).repeat_interleave(5))


def test_equal_points_are_neighbors_of_each_other_and_not_of_themselves() -> None:
    x = torch.ones(6, 3)
    found = knn_graph(x, 2)
    assert found.shape == (2, 12)
    assert bool((found[0] != found[1]).all())
    with_loops = knn_graph(x, 2, loop=True)
    assert torch.equal(with_loops[0].view(6, 2)[:, 0], torch.arange(6))


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
def test_edges_are_those_of_pyg(loop: bool, cosine: bool) -> None:
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    batch = torch.arange(30) // 10
    try:
        theirs = torch_geometric.nn.knn_graph(x, 3, batch, loop, cosine=cosine)
    except ImportError as error:
        pytest.skip(f"PyG's own needs a compiled library: {error}")
    ours = knn_graph(x, 3, batch, loop, cosine)
    # The order of the neighbors of a center is not promised by PyG.
    assert set(map(tuple, ours.t().tolist())) == set(map(tuple, theirs.t().tolist()))


def test_empty_input_and_graphs_of_one_row() -> None:
    assert knn_graph(torch.empty(0, 3), 2).shape == (2, 0)
    assert knn_graph(torch.empty(0, 3), 2, torch.empty(0, dtype=torch.long)).shape == (2, 0)
    assert knn_graph(torch.ones(3, 3), 2, torch.arange(3)).shape == (2, 0)
    assert knn_graph(torch.ones(3, 3), 2, torch.arange(3), loop=True).tolist() == [[0, 1, 2]] * 2


def test_gradients_and_half_precision_are_no_hindrance() -> None:
    x = torch.randn(9, 3).half().requires_grad_()
    assert torch.equal(knn_graph(x, 2), knn_graph(x.detach().float(), 2))
    assert gloss_graph.knn_graph is knn_graph


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(3), {}, "'x' must"),
        (torch.tensor([[float("nan")]]), {}, "'x'"),
        (torch.ones(3, 2), {"k": 0}, "'k' must be an integer of at least 1"),
        (torch.ones(3, 2), {"batch": torch.zeros(2, dtype=torch.long)}, "'batch' must"),
        (torch.ones(3, 2), {"batch": torch.zeros(3)}, "'batch' must"),
    ],
)
def test_bad_input_is_named(x: Tensor, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_graph(x, **{"k": 1, **options})
    with pytest.raises(TypeError, match="'x' must be a torch"):
        knn_graph([[1.0]], 1)  # type: ignore[arg-type]
