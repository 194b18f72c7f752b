from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph import build_document_graph
from gloss_graph.analysis import louvain_communities
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.visualization import (
    plot_adjacency,
    plot_communities,
    plot_degrees,
    plot_reach,
    reach_curves,
)
from gloss_graph.visualization.layout import _grid_repulsion, _repulsion, place_nodes

PICTURES = (plot_communities, plot_adjacency, plot_degrees, plot_reach)
NAMES = ["_hidden", "$x$", "a class with quite a long name"]


def blobs(size: int = 90, k: int = 6) -> Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(size) % 3
    x = 3 * torch.eye(8)[y] + torch.randn(size, 8, generator=generator)
    return build_document_graph(x, y, torch.arange(size), k=k)


def test_grid_repulsion_is_that_of_all_pairs():
    x = np.random.default_rng(0).normal(scale=12, size=(800, 2)).astype(np.float32)
    exact, grid = _repulsion(x), _grid_repulsion(x)
    assert np.linalg.norm(grid - exact) < 0.08 * np.linalg.norm(exact)
    # Forces of a pair cancel, also on the grid.
    assert np.abs(grid.sum(axis=0)).max() < 1e-3 * np.abs(grid).sum()


def test_places_of_a_large_graph_keep_communities_apart():
    graph = nx.planted_partition_graph(5, 400, 0.03, 0.0003, seed=1)
    places = place_nodes(nx.to_scipy_sparse_array(graph, format="csr"), iterations=200)
    assert np.isfinite(places).all()
    groups = places.reshape(5, 400, 2)
    centers = np.median(groups, axis=1)
    spread = np.median(np.linalg.norm(groups - centers[:, None], axis=2))
    gaps = np.linalg.norm(centers[:, None] - centers, axis=2)[np.triu_indices(5, 1)]
    assert gaps.min() > 2 * spread


def test_communities_come_largest_first_and_leave_out_isolated():
    graph = nx.disjoint_union_all([nx.complete_graph(3), nx.complete_graph(5), nx.empty_graph(1)])
    found = louvain_communities(nx.to_scipy_sparse_array(graph, format="csr"))
    assert found.tolist() == [1] * 3 + [0] * 5 + [-1]


@pytest.mark.parametrize("draw", PICTURES)
def test_pictures_are_written_with_names_matplotlib_would_interpret(draw, tmp_path):
    graph = blobs()
    graph.label_names = NAMES
    draw(graph, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    graph.y[::4] = -1
    graph.seed_mask = graph.y >= 0
    draw(graph, tmp_path / "b.svg", label_names=["x", "y", "z"])


def test_map_draws_a_share_of_the_edges_and_says_so():
    graph = blobs()
    figure = plot_communities(graph, max_edges=50)
    lines = [c for c in figure.axes[0].collections if hasattr(c, "get_segments")]
    assert sum(len(part.get_segments()) for part in lines) == 50
    edges = graph.edge_index.size(1) // 2
    assert f"50 of {edges} edges drawn" in figure.axes[0].get_title(loc="left")
    own = plot_communities(graph, communities=np.zeros(90, dtype=int), places=np.eye(2)[[0] * 90])
    assert "1 communities" in own.axes[1].get_title(loc="left")


def test_communities_without_a_label_promise_no_names() -> None:
    graph = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([-1, -1]))
    heads = [axes.get_title(loc="left") for axes in plot_communities(graph).figure.axes]
    assert heads[1] == "by community\n1 communities (Louvain)"
    named = Data(edge_index=graph.edge_index, y=torch.tensor([0, -1]))
    heads = [axes.get_title(loc="left") for axes in plot_communities(named).figure.axes]
    assert heads[1].endswith(", each with its most frequent label")


@pytest.mark.parametrize("draw", PICTURES)
def test_small_and_flat_graphs(draw):
    one = Data(edge_index=torch.empty(2, 0, dtype=torch.long), y=torch.tensor([0]))
    draw(one)
    same = build_document_graph(torch.ones(12, 4), torch.arange(12) % 2, k=50)
    draw(same)
    nothing = Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=0)
    with pytest.raises(ValueError, match="at least one document"):
        draw(nothing)


@pytest.mark.parametrize("draw", PICTURES[:3])
def test_unlabeled_graphs(draw):
    draw(Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=3))


def test_reach_equals_shortest_paths():
    graph = blobs(60, k=3)
    graph.seed_mask = torch.zeros(60, dtype=torch.bool)
    graph.seed_mask[:7] = True
    curves = reach_curves(graph)
    links = nx.from_scipy_sparse_array(read_arrays(graph).links)
    far = np.full((60, 3), np.inf)
    for seed in range(7):
        for node, steps in nx.single_source_shortest_path_length(links, seed).items():
            far[node, seed % 3] = min(far[node, seed % 3], steps)
    for hop in range(len(curves.any_label)):
        near = far <= hop
        assert curves.any_label[hop] == pytest.approx(near.any(axis=1).mean())
        assert curves.every_class[hop] == pytest.approx(near.all(axis=1).mean())
        assert curves.by_class[1][hop] == pytest.approx(near[:, 1].mean())
    assert curves.any_label[0] == pytest.approx(7 / 60)


def test_bad_input():
    graph = blobs(12, k=3)
    with pytest.raises(TypeError, match=r"must be a torch_geometric\.data\.Data"):
        plot_degrees(nx.path_graph(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'label_names' must name every class"):
        plot_degrees(graph, label_names=["a"])
    with pytest.raises(ValueError, match="'within' must be one of"):
        plot_adjacency(graph, within="size")
    with pytest.raises(ValueError, match="'places' must be finite"):
        plot_communities(graph, places=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="'communities' must have shape"):
        plot_communities(graph, communities=np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="a visible label"):
        plot_reach(Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2))
    graph.edge_weight = -graph.edge_weight
    with pytest.raises(ValueError, match=r"'graph\.edge_weight' must be finite and >= 0"):
        plot_degrees(graph)
    with pytest.raises(ValueError, match=r"'graph\.edge_index' must point at nodes"):
        read_arrays(Data(edge_index=torch.tensor([[0], [5]]), num_nodes=2))
    for edges in (torch.tensor([[0.6], [1.2]]), torch.tensor([[0], [1], [1]]), torch.tensor([0])):
        with pytest.raises(ValueError, match=r"edge_index' must be an integer tensor of .*2, E"):
            read_arrays(Data(edge_index=edges, num_nodes=2))


def test_arrays_have_no_loops_and_links_have_weight():
    edges = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 0, 2, 1]])
    found = read_arrays(Data(edge_index=edges, edge_weight=torch.tensor([9.0, 2, 2, 0, 0])))
    assert sparse.issparse(found.adjacency)
    assert found.adjacency.toarray().tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert (found.adjacency.nnz, found.links.nnz) == (4, 2)
