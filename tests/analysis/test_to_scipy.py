"""`to_scipy`: distances and weights, and the libraries that take them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, SpectralClustering
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from torch_geometric.data import Data

import gloss_graph
from gloss_graph import KNNGraph, build_document_graph, to_scipy


def points(size: int = 120, seed: int = 0) -> torch.Tensor:
    """Three clouds, as float64."""
    generator = torch.Generator().manual_seed(seed)
    places = 6 * torch.eye(3).repeat(1, 2)[torch.arange(size) % 3]
    return places.double() + torch.randn(size, 6, generator=generator).double()


def graph(k: int = 10, **options) -> Data:
    return build_document_graph(points(), k=k, normalize_embeddings=False, **options)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 30),
    k=st.integers(1, 6),
    symmetrize=st.sampled_from(["union", "mutual"]),
    loop=st.booleans(),
    seed=st.integers(0, 999),
)
def test_distances_are_those_of_a_dense_reference(size, k, symmetrize, loop, seed):
    x = points(size, seed)
    data = KNNGraph(k=k, normalize=False, bandwidth=3.0, symmetrize=symmetrize)(Data(x=x))
    dense = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    weight = to_scipy(data, "weights").toarray()
    np.testing.assert_allclose(weight[weight > 0], np.exp(-(dense**2) / 18)[weight > 0], rtol=1e-5)
    for embeddings in (None, x):
        found = to_scipy(data, loop=loop, embeddings=embeddings)
        assert found.shape == (size, size)
        assert found.nnz == data.num_edges + loop * size
        for row in range(size):
            near, far = found[row].indices, found[row].data
            assert (np.diff(far) >= 0).all()
            np.testing.assert_allclose(far, dense[row, near], atol=1e-4)
            assert (row in near) == loop
            assert not loop or (near[0] == row and far[0] == 0)


def test_k_keeps_the_nearest_in_the_form_of_scikit_learn():
    x = points()
    found = to_scipy(graph(), k=10, loop=True)
    theirs = KNeighborsTransformer(n_neighbors=10, mode="distance").fit_transform(x.numpy())
    np.testing.assert_array_equal(found.indptr, theirs.indptr)
    np.testing.assert_array_equal(found.indices, theirs.indices)
    np.testing.assert_allclose(found.data, theirs.data, atol=1e-4)
    heaviest = to_scipy(graph(), "weights", k=3)
    np.testing.assert_array_equal(heaviest.indices, to_scipy(graph(), k=3).indices)
    assert gloss_graph.to_scipy is gloss_graph.export.to_scipy


def test_odd_graphs():
    edges = torch.tensor([[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]])
    data = Data(edge_index=edges, num_nodes=4)
    assert to_scipy(data, "weights").toarray().sum() == 4
    with pytest.raises(ValueError, match=r"'data\.edge_weight' must be there"):
        to_scipy(data)
    assert to_scipy(data, embeddings=torch.zeros(4, 2)).nnz == 4
    data.edge_weight = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0])
    assert to_scipy(data).nnz == 2
    assert to_scipy(data).data.tolist() == [0.0, 0.0]
    # Distances of a bandwidth per document are in units of it.
    local = graph(bandwidth="local")
    least = float(local.edge_weight.min())
    assert to_scipy(local).max() == pytest.approx(np.sqrt(-2 * np.log(least)))
    empty = Data(edge_index=torch.empty(2, 0, dtype=torch.long), edge_weight=torch.empty(0))
    assert to_scipy(empty, k=2, loop=True).shape == (0, 0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"values": "similarities"}, "'values' must be"),
        ({}, {"k": 0}, "'k'"),
        ({}, {"k": 11}, r"fewest edges of a document \(got 11 for 10\)"),
        ({}, {"embeddings": torch.zeros(3, 2)}, "'embeddings' must have 120 rows"),
        ({"edge_weight": torch.tensor([2.0])}, {}, r"must be in \[0, 1\] for distances"),
        ({"edge_index": torch.tensor([[0], [1]])}, {}, "must be undirected"),
    ],
)
def test_bad_input_is_named(change, options, message):
    data = graph()
    if "edge_weight" in change:
        data.edge_weight = change["edge_weight"].expand(data.num_edges)
    if "edge_index" in change:
        data = Data(**change, edge_weight=torch.ones(1), num_nodes=2)
    with pytest.raises(ValueError, match=message):
        to_scipy(data, **options)


def same_partition(one, other) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


def test_scikit_learn_takes_it():
    data, y = graph(), np.arange(120) % 3
    distances = to_scipy(data, k=10, loop=True)
    model = KNeighborsClassifier(5, metric="precomputed").fit(distances, y)
    np.testing.assert_array_equal(model.predict(distances), y)
    # A few weak ties: spectral clustering asks for a connected graph.
    weights = to_scipy(graph(k=60), "weights")
    model = SpectralClustering(3, affinity="precomputed", random_state=0).fit(weights)
    assert same_partition(model.labels_, y)
    model = TSNE(metric="precomputed", init="random", perplexity=3, max_iter=250, random_state=0)
    assert model.fit_transform(distances).shape == (120, 2)


@pytest.mark.filterwarnings("ignore:Precomputed sparse input was not sorted")  # by DBSCAN itself
def test_dbscan_takes_it():
    distances = to_scipy(graph(), loop=True)
    model = DBSCAN(eps=float(distances.max()), metric="precomputed").fit(distances)
    assert same_partition(model.labels_, np.arange(120) % 3)


@pytest.mark.filterwarnings("ignore")  # of its libraries
def test_cleanlab_takes_it():
    cleanlab = pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    pytest.importorskip("datasets", reason="cleanlab's Datalab needs datasets")
    distances = to_scipy(graph(), k=10)
    lab = cleanlab.Datalab({"row": list(range(120))}, verbosity=0)
    lab.find_issues(knn_graph=distances, issue_types={"outlier": {}, "near_duplicate": {}})
    scores = lab.get_issues()
    assert scores["outlier_score"].idxmin() == distances.sum(axis=1).argmax()
    assert scores["near_duplicate_score"].idxmin() in (distances == distances.data.min()).indices


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its libraries
def test_umap_takes_it():
    umap = pytest.importorskip("umap", reason="umap-learn is not installed")
    model = umap.UMAP(n_neighbors=10, metric="precomputed", random_state=0, n_epochs=50)
    places = model.fit_transform(to_scipy(graph(), loop=True))
    assert places.shape == (120, 2)
    assert np.isfinite(places).all()
