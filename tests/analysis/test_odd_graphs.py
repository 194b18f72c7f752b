"""Graphs at the edge of what a graph is: measured, written, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data

from gloss_graph.analysis import audit, explain, measures
from gloss_graph.export import edge_homophily, read_networkx, to_networkx, write_graph

PAIRS = torch.tensor([[0, 0, 1, 2, 3, 3, 4], [1, 2, 2, 3, 4, 5, 5]])  # two triangles, one bridge
EDGES = torch.cat([PAIRS, PAIRS.flip(0)], dim=1)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def weighted(value: float, dtype: torch.dtype = torch.float64) -> Data:
    weight = torch.full((EDGES.size(1),), value, dtype=dtype)
    return Data(edge_index=EDGES, edge_weight=weight, y=LABELS, num_nodes=6)


def measured(graph: Data) -> dict[tuple[str, str], float]:
    table = measures(graph)
    return table.set_index(["scope", "measure"])["value"].to_dict()


@pytest.mark.parametrize("unit", [1e-300, 1e-160, 1e200])
def test_measures_do_not_depend_on_the_unit_of_the_weights(unit: float) -> None:
    assert measured(weighted(unit)) == pytest.approx(measured(weighted(1.0)), nan_ok=True)


def test_edges_that_weigh_nothing_join_no_community() -> None:
    found = measured(weighted(0.0))
    assert found["graph", "louvain_communities"] == 6.0
    assert found["graph", "components"] == 6.0
    assert found["graph", "edge_homophily"] == pytest.approx(6 / 7)  # unweighted
    assert found["graph", "smoothness"] != found["graph", "smoothness"]
    assert found["0", "largest_community"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_graphs_without_edges_are_measured(size: int) -> None:
    graph = Data(
        edge_index=torch.empty(2, 0, dtype=torch.long),
        y=torch.zeros(size, dtype=torch.long),
        num_nodes=size,
    )
    found = measured(graph)
    assert found["graph", "nodes"] == found["graph", "components"] == float(size)
    assert found["graph", "edges"] == 0.0


@pytest.mark.parametrize("suffix", [".graphml", ".json", ".csv", ".parquet", ".gexf"])
@pytest.mark.parametrize("label", ["a\x00b", "\ud800", "<&>", "", "-1"])
def test_every_format_takes_every_class_name(tmp_path: Path, suffix: str, label: str) -> None:
    graph = nx.Graph(label_names="words of another program")
    graph.add_node(0, label=label)
    graph.add_node(1, label="c")
    graph.add_edge(0, 1, weight=0.5)
    files = write_graph(graph, tmp_path / f"graph{suffix}")
    written = label.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    assert read_networkx(files[0]).nodes[0].get("label", "") == written


def test_labels_that_differ_in_writing_only_share_a_color(tmp_path: Path) -> None:
    graph = nx.Graph()
    for node, label in enumerate(["a\x00", "a\x01", "b"]):
        graph.add_node(node, label=label)
    content = write_graph(graph, tmp_path / "graph.gexf")[0].read_text(encoding="utf-8")
    colors = [line.split("/>")[0] for line in content.split("<viz:color")[1:]]
    assert colors[0] == colors[1] != colors[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_index": torch.tensor([[0, 99], [99, 0]])}, r"nodes 0\.\.5 \(got 0\.\.99\)"),
        ({"edge_index": torch.tensor([[0, -1], [-1, 0]])}, r"nodes 0\.\.5 \(got -1\.\.0\)"),
        ({"edge_index": [[0, 1], [1, 0]]}, "'data.edge_index' must be a torch.Tensor"),
        ({"y": None}, "'data.y' must hold a class number for every node"),
        ({"y": torch.rand(6, 3)}, "'data.y' must have 6 entries"),
    ],
)
def test_homophily_of_a_damaged_graph_is_refused(change: dict, message: str) -> None:
    graph = Data(**({"edge_index": EDGES, "y": LABELS, "num_nodes": 6} | change))
    with pytest.raises((ValueError, TypeError), match=message):
        edge_homophily(graph)


@pytest.mark.parametrize("ask", [audit, measures, lambda graph: explain(graph, 0)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_weight": [1.0] * 14}, "edge_weight' must be a torch.Tensor"),
        ({"y": LABELS * 10**8}, r"class numbers below 100,000 \(got 100000000\)"),
        ({"y": LABELS * 2**62}, "class numbers below 100,000"),
        ({"label_names": 3}, r"'label_names' must be a list of names.*\(got 3\)"),
        ({"label_names": "ab"}, r"'label_names' must be a list of names.*\(got 'ab'\)"),
        ({"text": 5}, r"text' must h.* \(got int\)"),
    ],
)
def test_damaged_columns_are_refused_by_name(
    ask: Callable[[Data], object], change: dict, message: str
) -> None:
    graph = Data(**({"edge_index": EDGES, "y": LABELS, "num_nodes": 6} | change))
    with pytest.raises((ValueError, TypeError), match=message):
        ask(graph)


@pytest.mark.parametrize("ask", [edge_homophily, measures, audit, to_networkx])
def test_what_is_no_graph_is_refused(ask: Callable[[object], object]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"must be a .*Data \(got int\)"):
        ask(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"texts": 5}, r"'texts' must have 6 entries, one per node \(got int\)"),
        ({"split": 1.5}, r"'split' must have 6 entries, one per node \(got float\)"),
        ({"predicted": 5}, r"'predicted' must have 6 entries, one per node \(got int\)"),
        ({"label_names": 5}, "'label_names' must be a list of names"),
        ({"max_text": "x"}, "'max_text' must be an integer of at least 1"),
        ({"tolerance": [1.0]}, "'tolerance' must be at least 0"),
    ],
)
def test_options_of_an_export_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_networkx(weighted(1.0), **settings)


def test_the_only_label_of_a_far_part_is_not_told_itself() -> None:
    """What others say weighs 1e-12 of what a label sends back to itself: no label speaks for it."""
    pairs = torch.tensor([[0, 1, 2], [1, 2, 3]])
    weight = torch.tensor([1.0, 1e-12, 1.0], dtype=torch.float64)
    suggested = []
    for label in (0, 1):
        graph = Data(
            edge_index=torch.cat([pairs, pairs.flip(0)], dim=1),
            edge_weight=weight.repeat(2),
            y=torch.tensor([label, -1, 0, 1]),
        )
        table = audit(graph).table.set_index("node")
        suggested.append((table.loc[0, "suggested"], table.loc[0, "note"]))
    assert suggested == [("", "isolated")] * 2
