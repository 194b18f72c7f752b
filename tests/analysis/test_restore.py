"""From NetworkX back to a document graph."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch_geometric.data import Data

from analysis.conftest import MakeGraph
from analysis.test_formats import equal
from gloss_graph.export import from_networkx, to_networkx
from gloss_graph.graph import build_document_graph


@pytest.mark.parametrize("bandwidth", [0.5, "local", 0.02])
@pytest.mark.parametrize("directed", [False, True])
def test_nothing_is_lost(bandwidth: float | str, directed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator)
    labels = torch.arange(30) % 4 - 1
    data = build_document_graph(x, labels, torch.arange(30) * 7, k=5, bandwidth=bandwidth)
    data.text = [f"text {i}" for i in range(30)]
    data.label_names = ["b", "a", "never", "c"]
    data.predicted = labels.roll(1)
    data.edge_length = torch.rand(30, 30, generator=generator)[tuple(data.edge_index)]
    if not directed:
        data.edge_length = (data.edge_weight * 2).float()
    graph = to_networkx(data, max_text=None, directed=directed)
    assert type(graph) is (nx.DiGraph if directed else nx.Graph)
    assert graph.number_of_edges() == data.edge_index.size(1) // (1 if directed else 2)
    back = from_networkx(graph)
    if bandwidth == 0.02:  # so narrow that weights are in float64
        assert data.edge_weight.dtype == back.edge_weight.dtype == torch.float64
    equal(data, back)


def test_a_subgraph_keeps_its_names(document_graph: MakeGraph) -> None:
    data = document_graph()
    graph = to_networkx(data)
    part = graph.subgraph(range(10, 30))
    back = from_networkx(part)
    assert back.node.tolist() == list(part)
    assert back.doc_id.tolist() == [graph.nodes[n]["doc_id"] for n in part]
    assert back.edge_index.size(1) == 2 * part.number_of_edges()
    for (i, j), weight in zip(back.edge_index.T.tolist(), back.edge_weight, strict=True):
        names = back.node[i].item(), back.node[j].item()
        assert graph.edges[names]["weight"] == weight.item()


def test_nodes_in_another_order() -> None:
    graph = nx.Graph()
    graph.add_nodes_from([(2, {"text": "c"}), (0, {"text": "a"}), (1, {"text": "b"})])
    graph.add_edge(2, 0, weight=0.5)
    back = from_networkx(graph)
    assert back.text == ["a", "b", "c"]
    assert back.edge_index.tolist() == [[0, 2], [2, 0]]
    assert "node" not in back


def test_what_is_missing_has_a_meaning_or_is_an_error() -> None:
    graph = nx.path_graph(3)
    graph.nodes[0].update(label="x", text="t")
    back = from_networkx(graph)
    assert back.y.tolist() == [0, -1, -1]
    assert back.text == ["t", "", ""]
    assert "edge_weight" not in back
    graph.nodes[1]["rank"] = 3
    with pytest.raises(ValueError, match="'rank' must be on every node"):
        from_networkx(graph)
    del graph.nodes[1]["rank"]
    graph.edges[0, 1]["weight"] = 0.5
    with pytest.raises(ValueError, match="'weight' must be on every edge"):
        from_networkx(graph)


def test_new_labels_join_the_names() -> None:
    graph = to_networkx(
        Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([1, -1]), num_nodes=2),
        label_names=["z", "y"],
    )
    graph.nodes[1]["label"] = "new"
    back = from_networkx(graph)
    assert back.label_names == ["z", "y", "new"]
    assert back.y.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.nodes[0].update(x=1.0), "'x' of node must have a name"),
        (lambda g: g.nodes[0].update(text=3), "'text' of nodes must hold strings .got int"),
        (lambda g: g.nodes[0].update(label=[1]), "'label' of nodes must be of one type"),
        (
            lambda g: nx.set_node_attributes(g, {0: 1, 1: "a", 2: 3}, "mix"),
            "'mix' of nodes must be",
        ),
        (lambda g: nx.set_edge_attributes(g, "near", "how"), "'how' of edges must hold numbers"),
        (lambda g: nx.set_edge_attributes(g, "odd", "kind"), "'kind' of edges must be one of"),
        (lambda g: nx.set_edge_attributes(g, 1, "index"), "'index' of edge must have a name"),
        (lambda g: g.graph.update(edge_index=1), "'edge_index' of graph must have a name"),
        (lambda g: g.graph.update(a=[1]), "'a' of graph must be a string"),
        (lambda g: g.graph.update(label_names="{}"), "'label_names' must be a JSON list"),
    ],
)
def test_what_cannot_be_converted(change, message: str) -> None:
    graph = nx.path_graph(3)
    change(graph)
    with pytest.raises(ValueError, match=message):
        from_networkx(graph)
    with pytest.raises(ValueError, match="must not be a multigraph"):
        from_networkx(nx.MultiGraph())


@pytest.mark.parametrize(
    ("node", "edge", "whole", "names", "message"),
    [
        ("name", "weight", "name", (0, 1), "'name' of graph must have a name that no other"),
        ("text", "weight", "text", (0, 1), "'text' of graph must have"),
        ("edge_length", "length", "title", (0, 1), "'edge_length' of node must have"),
        ("rank", "length", "edge_length", (0, 1), "'edge_length' of graph must have"),
        ("node", "weight", "title", ("a", "b"), "'node' of node must have"),
        ("rank", "weight", "node", ("a", "b"), "'node' of graph must have"),
    ],
)
def test_attributes_of_one_name_do_not_replace_each_other(
    node: str, edge: str, whole: str, names: tuple[object, object], message: str
) -> None:
    graph = nx.Graph(**{whole: "club"})
    graph.add_edge(*names, **{edge: 1.0})
    nx.set_node_attributes(graph, "member", node)
    with pytest.raises(ValueError, match=message):
        from_networkx(graph)
    del graph.graph[whole]
    if whole in ("name", "text"):
        assert from_networkx(graph)[node] == ["member", "member"]


def test_texts_of_the_graph_are_exported() -> None:
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2, text=["a", "b\x00"])
    data.x = torch.ones(2, 3)
    assert to_networkx(data).nodes[1] == {"text": "b\ufffd"}
    data.text = ["a", 3]
    with pytest.raises(ValueError, match="'texts' must hold strings"):
        to_networkx(data)
