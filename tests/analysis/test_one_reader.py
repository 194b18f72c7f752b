"""Every public function reads a document graph alike: directed and damaged ones are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from gloss_graph.analysis import audit, explain, measures
from gloss_graph.export import (
    edge_homophily,
    to_networkx,
    write_csr,
    write_graph,
    write_tables,
)
from gloss_graph.reports import compare_measures, edge_churn, measures_summary
from gloss_graph.visualization import (
    plot_adjacency,
    plot_communities,
    plot_degrees,
    plot_graph,
    plot_reach,
    reach_curves,
    write_html,
)

EDGES = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
LABELS = torch.tensor([0, 0, -1, 1])
Ask = Callable[[Data, Path], object]

EVERY: dict[str, Ask] = {
    "audit": lambda graph, _: audit(graph),
    "explain": lambda graph, _: explain(graph, 2),
    "measures": lambda graph, _: measures(graph),
    "edge_homophily": lambda graph, _: edge_homophily(graph),
    "to_networkx": lambda graph, _: to_networkx(graph),
    "write_csr": lambda graph, folder: write_csr(graph, folder / "graph.npz"),
    "write_tables": lambda graph, folder: write_tables(graph, folder / "graph.csv"),
    "compare_measures": lambda graph, _: compare_measures(graph, graph),
    "edge_churn": lambda graph, _: edge_churn([graph, graph]),
    "measures_summary": lambda graph, _: measures_summary(graph),
    "plot_adjacency": lambda graph, _: plot_adjacency(graph),
    "plot_communities": lambda graph, _: plot_communities(graph),
    "plot_degrees": lambda graph, _: plot_degrees(graph),
    "plot_graph": lambda graph, _: plot_graph(graph),
    "plot_reach": lambda graph, _: plot_reach(graph),
    "reach_curves": lambda graph, _: reach_curves(graph),
    "write_html": lambda graph, folder: write_html(graph, folder / "graph.html"),
} | {
    f"write_graph{suffix}": lambda graph, folder, suffix=suffix: write_graph(
        graph, folder / f"graph{suffix}"
    )
    for suffix in (".csv", ".gexf", ".graphml", ".json", ".npz", ".parquet")
}


@pytest.fixture(params=EVERY.values(), ids=list(EVERY))
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param


def refused(ask: Ask, graph: Data, folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match="'(graph|data)" + message):
        ask(graph, folder)
    assert list(folder.iterdir()) == []


def test_a_directed_graph_gets_one_answer(ask: Ask, tmp_path: Path) -> None:
    graph = Data(edge_index=EDGES[:, :-1], y=LABELS)
    message = re.escape("' must be undirected (got only one direction between 2 and 3). Use ")
    refused(ask, graph, tmp_path, message)


def test_edges_are_stored_once(ask: Ask, tmp_path: Path) -> None:
    graph = Data(edge_index=torch.cat([EDGES, EDGES], dim=1), y=LABELS)
    refused(ask, graph, tmp_path, re.escape(".edge_index' must hold each edge once (got (0, 1)"))


def test_edges_stay_in_the_graph(ask: Ask, tmp_path: Path) -> None:
    refused(
        ask,
        Data(edge_index=EDGES + 1, y=LABELS),
        tmp_path,
        re.escape(".edge_index' must point at nodes 0..3 (got 1..4)"),
    )


@pytest.mark.parametrize("others", [[1.0, 1.0 + 5e-6], [1.0, 2.0], [1.0, float("nan")]])
def test_weights_of_the_two_directions(ask: Ask, tmp_path: Path, others: list[float]) -> None:
    graph = Data(edge_index=EDGES, edge_weight=torch.tensor([*others, 2, 2, 3, 3]), y=LABELS)
    if others[1] < 1.5:  # equal up to rounding
        ask(graph, tmp_path)
    elif ask is EVERY["edge_homophily"]:
        assert ask(graph, tmp_path) == 1.0  # unweighted
    elif others[1] == 2.0:
        message = re.escape("' must be undirected: '") + "(graph|data)" + re.escape(".edge_weight'")
        refused(ask, graph, tmp_path, message)
    else:
        refused(ask, graph, tmp_path, re.escape(".edge_weight' must be finite"))


def test_directed_exports_ask_for_it(tmp_path: Path) -> None:
    graph = Data(edge_index=EDGES[:, :-1], num_nodes=4)
    assert to_networkx(graph, directed=True).number_of_edges() == 5
    assert write_graph(graph, tmp_path / "graph.json", directed=True)
