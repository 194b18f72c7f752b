"""Graphs of a whole corpus, without a bank, against a dense oracle."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from reference import dense_weights, distance, nearest, pairs_of, undirected, unit
from torch import Tensor

from gloss_graph import MemoryBank, build_document_graph
from gloss_graph.graph import links


def points(count: int = 20, dim: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def normalized(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def oracle_weights(
    x: Tensor, pairs: set[tuple[int, int]], squared_sigma: dict[tuple[int, int], float] | float
) -> Tensor:
    """Gaussian weights (N, N) of the pairs, pair by pair, differentiable in x."""
    w = torch.zeros(len(x), len(x), dtype=x.dtype)
    for i, j in pairs:
        s2 = squared_sigma if isinstance(squared_sigma, float) else squared_sigma[i, j]
        value = torch.exp(-((x[i] - x[j]) ** 2).sum() / (2.0 * s2))
        for a, b in ((i, j), (j, i)):
            w = w.index_put((torch.tensor(a), torch.tensor(b)), value)
    return w


def compare(x: Tensor, pairs: set[tuple[int, int]], sigma: object, **settings: object) -> None:
    """Edges, weights and gradient of a graph against the oracle's."""
    x = x.clone().requires_grad_()
    data = build_document_graph(x, **settings)
    assert pairs_of(data.edge_index) == pairs
    assert data.edge_index.size(1) == 2 * len(pairs)
    actual = dense_weights(data.edge_index, data.edge_weight, len(x))
    normalize = settings.get("normalize_embeddings", True)
    expected = oracle_weights(normalized(x) if normalize else x, pairs, sigma)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-10)
    pull = torch.randn(len(x), len(x), generator=torch.Generator().manual_seed(9)).double()
    (ours,) = torch.autograd.grad((actual * pull).sum(), x)
    (theirs,) = torch.autograd.grad((expected * pull).sum(), x)
    assert float(theirs.abs().max()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["union", "mutual"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_nearest_neighbor_graph(k: int, mode: str, normalize: bool) -> None:
    x = points()
    known = unit(x.numpy()) if normalize else x.numpy()
    compare(
        x,
        undirected(nearest(known, k), mode),
        0.25,
        k=k,
        symmetrize=mode,
        bandwidth=0.5,
        normalize_embeddings=normalize,
    )


@pytest.mark.parametrize("settings", [{"batch_edges": "all"}, {"k": 19}, {"k": 500}])
def test_complete_graph(settings: dict[str, object]) -> None:
    pairs = {(i, j) for i in range(20) for j in range(i + 1, 20)}
    compare(points(), pairs, 1.0, bandwidth=1.0, **settings)


@pytest.mark.parametrize("mode", ["union", "mutual"])
@pytest.mark.parametrize("batch_edges", ["knn", "all"])
def test_local_bandwidth(batch_edges: str, mode: str) -> None:
    x, k = points(), 4
    known = unit(x.numpy())
    lists = nearest(known, k)
    scale = [distance(known[i], known[lists[i][-1]]) for i in range(20)]
    squared = {(i, j): scale[i] * scale[j] for i in range(20) for j in range(20)}
    if batch_edges == "all":
        pairs = {(i, j) for i in range(20) for j in range(i + 1, 20)}
    else:
        pairs = undirected(lists, mode)
    x = x.clone()
    data = build_document_graph(x, k=k, bandwidth="local", symmetrize=mode, batch_edges=batch_edges)
    assert pairs_of(data.edge_index) == pairs
    expected = oracle_weights(normalized(x), pairs, squared)
    actual = dense_weights(data.edge_index, data.edge_weight, 20)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-7)
    assert math.isnan(float(data.bandwidth))


def test_no_gradient_flows_through_a_bandwidth_rule() -> None:
    x = points().requires_grad_()
    data = build_document_graph(x, k=4, bandwidth="inflection")
    sigma = float(data.bandwidth)
    assert not data.bandwidth.requires_grad
    (by_rule,) = torch.autograd.grad(data.edge_weight.sum(), x)
    fixed = build_document_graph(x, k=4, bandwidth=sigma)
    (by_number,) = torch.autograd.grad(fixed.edge_weight.sum(), x)
    torch.testing.assert_close(by_rule, by_number)


def test_cosine_kernel() -> None:
    x = points().requires_grad_()
    data = build_document_graph(x, k=5, kernel="cosine")
    row, column = data.edge_index
    u = normalized(x)
    cosine = (u[row] * u[column]).sum(dim=1)
    expected = cosine.clamp(min=0.0) ** 3
    torch.testing.assert_close(data.edge_weight, expected)
    assert bool((build_document_graph(x, k=19, kernel="cosine").edge_weight == 0).any())
    (ours,) = torch.autograd.grad(data.edge_weight.sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=re.escape("kernel='cosine' needs normalize_embeddings")):
        build_document_graph(x, kernel="cosine", normalize_embeddings=False)


def test_a_kernel_of_ones_own() -> None:
    def student(squared: Tensor, squared_bandwidth: Tensor) -> Tensor:
        return 1.0 / (1.0 + squared / squared_bandwidth)

    x = points()
    data = build_document_graph(x, k=3, kernel=student, bandwidth=0.5)
    row, column = data.edge_index
    u = normalized(x)
    squared = (u[row] - u[column]).square().sum(dim=1)
    torch.testing.assert_close(data.edge_weight, 1.0 / (1.0 + squared / 0.25))


def test_what_the_data_says_about_nodes_and_edges() -> None:
    x, y = points(6), torch.tensor([0, -1, 2, 1, -1, 0])
    data = build_document_graph(x, y, torch.tensor([5, 3, 9, 8, 7, 1]), k=2, bandwidth=0.5)
    data.validate()
    assert data.num_nodes == 6
    assert torch.equal(data.y, y)
    assert data.doc_id.tolist() == [5, 3, 9, 8, 7, 1]
    assert data.seed_mask.tolist() == [True, False, True, True, False, True]
    assert data.in_batch.all()
    assert data.age.tolist() == [0] * 6
    assert data.edge_kind.tolist() == [0] * data.num_edges
    assert data.is_undirected()
    assert data.is_coalesced()
    assert not data.has_self_loops()
    assert float(data.bandwidth) == 0.5
    default = build_document_graph(x)
    assert default.doc_id.tolist() == list(range(6))
    assert default.y.tolist() == [-1] * 6
    assert not default.seed_mask.any()


def test_repeated_documents_are_nodes_of_their_own() -> None:
    x = points(8)
    x[5:] = x[0]
    data = build_document_graph(x, k=2, bandwidth=0.3)
    twins = {0, 5, 6, 7}
    for i in twins:
        mates = [j for a, j in data.edge_index.T.tolist() if a == i and j in twins]
        assert len(mates) >= 2
    weight = dense_weights(data.edge_index, data.edge_weight, 8)
    for i, j in pairs_of(data.edge_index):
        if i in twins and j in twins:
            assert float(weight[i, j]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bandwidth", ["sqrt", "inflection", "local", 0.5])
@pytest.mark.parametrize("batch_edges", ["knn", "all"])
def test_degenerate_corpora(batch_edges: str, bandwidth: str | float) -> None:
    build = {"bandwidth": bandwidth, "batch_edges": batch_edges}
    one = build_document_graph(points(1), **build)
    assert (one.num_nodes, one.num_edges) == (1, 0)
    two = build_document_graph(points(2), **build)
    assert two.edge_index.tolist() == [[0, 1], [1, 0]]
    zeros = build_document_graph(torch.zeros(5, 3), **build)
    assert bool(torch.isfinite(zeros.edge_weight).all())
    x = points(6).requires_grad_()
    with torch.no_grad():
        x[2] = 0.0
    mixed = build_document_graph(x, **build)
    mixed.edge_weight.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("batch_edges", ["auto", "all"])
@pytest.mark.parametrize("bandwidth", ["sqrt", "inflection", "local", 1.0])
def test_no_rows_are_refused_by_name(batch_edges: str, bandwidth: str | float) -> None:
    bank = MemoryBank(4, 3, k=2)
    none = torch.empty(0, 3)
    options = {"batch_edges": batch_edges, "bandwidth": bandwidth}
    for memory in (None, bank):
        with pytest.raises(ValueError, match=r"'embeddings' must hold at least one .*none"):
            build_document_graph(none, memory=memory, **options)
    bank.enqueue(torch.eye(3), torch.tensor([0, 1, 1]), torch.arange(3))
    assert build_document_graph(none, memory=bank, **options).num_nodes == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_float32_at_least(dtype: torch.dtype) -> None:
    x = points(10).to(dtype)
    data = build_document_graph(x, k=3, bandwidth=0.5)
    assert data.edge_weight.dtype == torch.promote_types(dtype, torch.float32)
    exact = build_document_graph(x.double(), k=3, bandwidth=0.5)
    assert torch.equal(data.edge_index, exact.edge_index)
    torch.testing.assert_close(data.edge_weight.double(), exact.edge_weight, rtol=1e-5, atol=1e-6)


def test_a_corpus_is_searched_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(30)
    whole = build_document_graph(x, k=4, bandwidth=0.5)
    monkeypatch.setattr(links, "_CHUNK", 7)
    chunked = build_document_graph(x, k=4, bandwidth=0.5)
    assert torch.equal(whole.edge_index, chunked.edge_index)
    assert torch.equal(whole.edge_weight, chunked.edge_weight)


def test_large_corpora_never_hold_links_times_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(40).requires_grad_()
    pull = torch.linspace(-1.0, 1.0, 2 * 40 * 40)

    def step() -> tuple[Tensor, Tensor]:
        data = build_document_graph(x, k=6, bandwidth=0.5)
        (gradient,) = torch.autograd.grad((data.edge_weight * pull[: data.num_edges]).sum(), x)
        return data.edge_weight.detach(), gradient

    weight, gradient = step()
    monkeypatch.setattr(links, "_CHUNK_ENTRIES", 13)
    same_weight, same_gradient = step()
    assert torch.equal(weight, same_weight)
    torch.testing.assert_close(gradient, same_gradient, rtol=0.0, atol=1e-12)


def test_weights_pass_gradcheck() -> None:
    for settings in ({"k": 3}, {"batch_edges": "all"}, {"k": 3, "symmetrize": "mutual"}):
        x = points(7, 3, seed=2).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, s=settings: build_document_graph(x, bandwidth=0.7, **s).edge_weight, (x,)
        )


def test_the_callers_embeddings_are_left_alone() -> None:
    x = points()
    before = x.clone()
    build_document_graph(x, k=3)
    assert torch.equal(x, before)


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        (([[1.0]],), {}, TypeError, "'embeddings' must be a torch.Tensor (got list)"),
        ((torch.ones(3),), {}, ValueError, "'embeddings' must have shape (N, D) (got (3,))"),
        ((torch.ones(3, 0),), {}, ValueError, "'embeddings' must have shape (N, D) (got (3, 0))"),
        ((torch.ones(3, 2).long(),), {}, ValueError, "'embeddings' must be a floating point"),
        ((torch.tensor([[1.0, NAN]]),), {}, ValueError, "'embeddings' must be finite"),
        ((torch.ones(3, 2), [0, 1, 2]), {}, TypeError, "'labels' must be a torch.Tensor"),
        ((torch.ones(3, 2), torch.arange(2)), {}, ValueError, "'labels' must have shape (3,)"),
        ((torch.ones(3, 2), torch.ones(3)), {}, ValueError, "'labels' must be an integer tensor"),
        ((torch.ones(3, 2), None, torch.arange(2)), {}, ValueError, "'ids' must have shape (3,)"),
        (
            (torch.ones(3, 2), None, torch.tensor([0, -1, 2])),
            {},
            ValueError,
            "'ids' must be >= 0 (got -1)",
        ),
        ((torch.ones(3, 2),), {"k": 0}, ValueError, "'k' must be an integer of at least 1 (got 0)"),
        ((torch.ones(3, 2),), {"hops": 0}, ValueError, "'hops' must be an integer of at least 1"),
        (
            (torch.ones(3, 2),),
            {"kernel": "rbf"},
            ValueError,
            "'kernel' must be one of ['cosine', 'gaussian'] (got 'rbf')",
        ),
        (
            (torch.ones(3, 2),),
            {"symmetrize": "or"},
            ValueError,
            "'symmetrize' must be one of ['mutual', 'union'] (got 'or')",
        ),
        (
            (torch.ones(3, 2),),
            {"batch_edges": "none"},
            ValueError,
            "'batch_edges' must be one of ['all', 'auto', 'knn'] (got 'none')",
        ),
        (
            (torch.ones(3, 2),),
            {"bandwidth": "median"},
            ValueError,
            "one of ['inflection', 'interclass_min', 'local', 'sqrt'] (got 'median')",
        ),
        ((torch.ones(3, 2),), {"bandwidth": 0.0}, ValueError, "'bandwidth' must be in (0.0, inf)"),
        ((torch.ones(3, 2),), {"bandwidth": -1}, ValueError, "'bandwidth' must be in (0.0, inf)"),
        ((torch.ones(3, 2),), {"bandwidth": NAN}, ValueError, "'bandwidth' must be in (0.0, inf)"),
        (
            (torch.ones(3, 2),),
            {"bandwidth": "interclass_min"},
            ValueError,
            "bandwidth='interclass_min' needs labels of at least two classes",
        ),
        ((torch.ones(3, 2),), {"memory": "bank"}, TypeError, "'memory' must be a MemoryBank"),
    ],
)
def test_bad_input(
    arguments: tuple[object, ...],
    settings: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build_document_graph(*arguments, **settings)


def test_neighbors_of_the_oracle_are_sorted() -> None:
    # Guards the guard: the oracle's lists are by distance, themselves left out.
    x = np.array([[0.0], [1.0], [3.0], [3.5]])
    assert nearest(x, 2) == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert undirected(nearest(x, 1), "union") == {(0, 1), (2, 3)}
    assert undirected([[1], [2], [1]], "mutual") == {(1, 2)}
