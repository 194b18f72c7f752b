from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from gloss_graph.visualization.layout import place_nodes, sample_nodes


def test_sample_is_repeatable_and_keeps_neighborhoods():
    graph = nx.connected_caveman_graph(200, 10)
    sample = sample_nodes(graph, 300, seed=3)
    assert sample == sample_nodes(graph, 300, seed=3)
    assert sample != sample_nodes(graph, 300, seed=4)
    assert len(set(sample)) == 300
    assert sample == sorted(sample)
    uniform = np.random.default_rng(0).choice(2000, 300, replace=False).tolist()
    edges = graph.subgraph(sample).number_of_edges()
    assert edges > 3 * graph.subgraph(uniform).number_of_edges()


def test_sample_of_disconnected_graphs():
    graph = nx.disjoint_union(nx.complete_graph(3), nx.empty_graph(500))
    assert len(sample_nodes(graph, 400)) == 400
    assert sample_nodes(graph, 503) == list(graph)
    with pytest.raises(ValueError, match="'size' must be at least 1"):
        sample_nodes(graph, 0)


def test_places_separate_clusters():
    blocks = nx.stochastic_block_model([60, 60, 60], 0.3 * np.eye(3) + 0.002, seed=0)
    places = place_nodes(blocks, seed=0)
    assert np.array_equal(places, place_nodes(blocks, seed=0))
    groups = [places[60 * i : 60 * (i + 1)] for i in range(3)]
    centers = np.array([np.median(group, axis=0) for group in groups])
    spread = max(
        np.median(np.linalg.norm(g - c, axis=1)) for g, c in zip(groups, centers, strict=True)
    )
    gaps = [np.linalg.norm(centers[i] - centers[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 2 * spread


def test_places_depend_on_weights_not_on_loops_or_negative_weights():
    graph = nx.cycle_graph(12)
    changed = graph.copy()
    changed.add_edge(0, 0)
    changed.add_edge(0, 6, weight=-1.0)
    assert np.array_equal(place_nodes(graph), place_nodes(changed))
    changed.edges[0, 6]["weight"] = 5.0
    assert not np.array_equal(place_nodes(graph), place_nodes(changed))


@pytest.mark.parametrize(
    "graph",
    [
        nx.empty_graph(0),
        nx.empty_graph(7),
        nx.path_graph(2),
        nx.star_graph(30),
        nx.disjoint_union_all([nx.path_graph(2)] * 40 + [nx.empty_graph(100)]),
    ],
    ids=["none", "no edges", "pair", "star", "pieces"],
)
def test_degenerate_graphs(graph):
    places = place_nodes(graph, iterations=60)
    assert places.shape == (len(graph), 2)
    assert np.isfinite(places).all()
    alone = [i for i, node in enumerate(graph) if graph.degree[node] == 0]
    assert len(np.unique(places[alone], axis=0)) == len(alone)
    if 0 < len(alone) < len(graph):
        linked = np.setdiff1d(np.arange(len(graph)), alone)
        assert places[alone, 1].max() < -1 <= places[linked, 1].min()
