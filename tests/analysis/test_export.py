from __future__ import annotations

import io
import json
import pickle
import re

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch_geometric.data import Data
from torch_geometric.utils import to_networkx as pyg_to_networkx

from gloss_graph.export import EDGE_KINDS, to_networkx
from gloss_graph.export.attributes import clean_text
from gloss_graph.graph import build_document_graph

TEXTS = [
    "plain",
    "naïve café",
    "🦊 fox 👩‍🔬",
    "nul\x00 bell\x07",
    "lone \ud800 end",
    "中文\r\nline",
]


def values(graph: nx.Graph) -> list[object]:
    found = [value for _, data in graph.nodes(data=True) for value in data.values()]
    return found + [value for _, _, data in graph.edges(data=True) for value in data.values()]


def path_graph(weight=(1.0, 1.0, 2.0, 2.0), **columns) -> Data:
    edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    return Data(edge_index=edge_index, edge_weight=torch.tensor(weight), num_nodes=3, **columns)


@st.composite
def symmetric_graphs(draw) -> Data:
    n = draw(st.integers(1, 12))
    matrix = draw(hnp.arrays(np.float32, (n, n), elements=st.sampled_from([0, 0, 0.25, 0.7, 3])))
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    row, column = matrix.nonzero()
    order = draw(st.permutations(range(len(row))))
    edge_index = torch.from_numpy(np.stack([row, column]))[:, list(order)]
    y = torch.tensor(draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    weight = torch.from_numpy(matrix[row, column])[list(order)]
    return Data(edge_index=edge_index, edge_weight=weight, y=y, doc_id=y + 7, num_nodes=n)


@settings(max_examples=60, deadline=None)
@given(symmetric_graphs())
def test_same_graph_as_pyg(data):
    ours = to_networkx(data)
    theirs = pyg_to_networkx(data, ["y", "doc_id"], ["edge_weight"], to_undirected=True)
    assert {n: (d["label"], d["doc_id"]) for n, d in ours.nodes(data=True)} == {
        n: (d["y"], d["doc_id"]) for n, d in theirs.nodes(data=True)
    }
    assert set(map(frozenset, ours.edges)) == set(map(frozenset, theirs.edges))
    assert all(
        d["weight"] == theirs.edges[i, j]["edge_weight"] for i, j, d in ours.edges(data=True)
    )


@settings(max_examples=30, deadline=None)
@given(symmetric_graphs(), st.randoms())
def test_order_of_the_edges_does_not_matter(data, random):
    order = list(range(data.edge_index.size(1)))
    random.shuffle(order)
    shuffled = data.clone()
    shuffled.edge_index = data.edge_index[:, order]
    shuffled.edge_weight = data.edge_weight[order]
    assert nx.utils.graphs_equal(to_networkx(data), to_networkx(shuffled))


def test_columns_and_types(document_graph):
    data = document_graph()
    n = data.num_nodes
    graph = to_networkx(
        data,
        [f"text {i}" for i in range(n)],
        label_names=["a", "b", "c", "d"],
        predicted=data.y.clamp(min=0),
        split=["train"] * n,
    )
    assert type(graph) is nx.Graph
    assert list(graph) == list(range(n))
    assert 2 * graph.number_of_edges() == data.edge_index.size(1)
    keys = ["doc_id", "text", "label", "predicted", "split", "age", "in_batch", "seed"]
    assert all(list(row) == keys for _, row in graph.nodes(data=True))
    assert {type(value) for value in values(graph)} == {str, int, float, bool}
    assert type(graph.nodes[0]["in_batch"]) is type(graph.nodes[0]["seed"]) is bool
    i, j = data.edge_index[:, 5].tolist()
    assert graph.edges[i, j] == {
        "weight": data.edge_weight[5].item(),
        "kind": EDGE_KINDS[data.edge_kind[5]],
    }
    for node, row in graph.nodes(data=True):
        label = int(data.y[node])
        assert row["label"] == ("" if label < 0 else "abcd"[label])
        assert row["doc_id"] == 1000 + node


def test_edges_are_dictionaries_of_their_own(document_graph):
    graph = to_networkx(document_graph())
    (first, second, *_) = [row for _, _, row in graph.edges(data=True)]
    before = dict(second)
    first["length"] = 3
    del first["kind"]
    assert type(first) is dict
    assert list(first) == ["weight", "length"]
    assert second == before
    i, j = next(iter(graph.edges))
    assert graph[j][i] is graph[i][j] is first
    nx.freeze(graph.copy())
    assert nx.utils.graphs_equal(pickle.loads(pickle.dumps(graph)), graph)


def test_labels_without_names_are_integers(document_graph):
    data = document_graph()
    labels = [label for _, label in to_networkx(data).nodes(data="label")]
    assert labels == data.y.tolist()
    assert set(map(type, labels)) == {int}


def test_plain_graph_needs_only_edges():
    graph = to_networkx(Data(edge_index=torch.tensor([[0, 3], [3, 0]])))
    assert dict(graph.nodes(data=True)) == {0: {}, 1: {}, 2: {}, 3: {}}
    assert list(graph.edges(data=True)) == [(0, 3, {})]
    assert to_networkx(Data(edge_index=torch.empty(2, 0, dtype=torch.long))).number_of_nodes() == 0
    kinds = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), edge_kind=torch.tensor([1, 1]))
    assert to_networkx(kinds).edges[0, 1] == {"kind": "batch-memory"}


def test_self_loops_and_isolated_nodes_stay():
    edge_index = torch.tensor([[0, 0, 1], [0, 1, 0]])
    data = Data(edge_index=edge_index, edge_weight=torch.tensor([3.0, 1.0, 1.0]), num_nodes=4)
    graph = to_networkx(data)
    assert sorted(graph.edges(data="weight")) == [(0, 0, 3.0), (0, 1, 1.0)]
    assert list(nx.isolates(graph)) == [2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_any_type_of_weight(dtype):
    data = path_graph()
    data.edge_weight = data.edge_weight.to(dtype)[:, None]
    assert to_networkx(data).edges[1, 2] == {"weight": 2.0}


@pytest.mark.parametrize(
    "predicted",
    [torch.tensor([1, 0, -1]), np.array([1, 0, -1]), [1, 0, -1], ["b", "a", ""]],
    ids=["tensor", "array", "list", "names"],
)
def test_forms_of_predictions(predicted):
    graph = to_networkx(path_graph(), predicted=predicted, label_names=["a", "b"])
    assert [name for _, name in graph.nodes(data="predicted")] == ["b", "a", ""]
    kept = to_networkx(path_graph(predicted=torch.tensor([1, 0, -1])), label_names=["a", "b"])
    assert nx.utils.graphs_equal(kept, graph)


def test_long_texts_are_shortened():
    texts = ["x" * 300, "short", "word " * 50]
    got = [text for _, text in to_networkx(path_graph(), texts, max_text=20).nodes(data="text")]
    assert got == ["x" * 19 + "…", "short", "word word word word…"]
    assert to_networkx(path_graph(), texts, max_text=None).nodes[0]["text"] == texts[0]


@given(st.text(st.characters(exclude_categories=()), max_size=30), st.integers(1, 12))
def test_clean_text_is_safe_and_stable(text, limit):
    clean = clean_text(text, limit)
    assert len(clean) <= limit
    assert clean_text(clean) == clean
    clean.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]", clean)
    assert clean_text(text, 1000) == clean_text(text)


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d"]])
def test_every_writer_takes_it(document_graph, names, tmp_path):
    data = document_graph(num_nodes=6, num_edges=20)
    graph = to_networkx(data, TEXTS, label_names=names, predicted=[0] * 6, split=["test"] * 6)
    nx.write_gexf(graph, tmp_path / "graph.gexf")
    back = nx.read_gexf(tmp_path / "graph.gexf", node_type=int)
    assert back.nodes[3]["text"] == graph.nodes[3]["text"] == "nul\ufffd bell\ufffd"
    assert {frozenset(e): back.edges[e]["weight"] for e in back.edges} == {
        frozenset(e): graph.edges[e]["weight"] for e in graph.edges
    }
    nx.write_gml(graph, tmp_path / "graph.gml")
    assert nx.read_gml(tmp_path / "graph.gml", destringizer=int).nodes[2]["text"] == TEXTS[2]
    text = json.dumps(nx.node_link_data(graph, edges="links"), allow_nan=False)
    assert nx.utils.graphs_equal(nx.node_link_graph(json.loads(text), edges="links"), graph)
    buffer = io.BytesIO()
    nx.write_graphml(graph, buffer)
    buffer.seek(0)
    assert dict(nx.read_graphml(buffer, node_type=int).nodes) == dict(graph.nodes)


def test_graph_of_the_package(generator):
    x = torch.randn(30, 8, generator=generator, requires_grad=True)
    data = build_document_graph(x, torch.arange(30) % 3, torch.arange(30) * 2, k=4)
    graph = to_networkx(data, [f"text {i}" for i in range(30)], label_names=["a", "b", "c"])
    assert graph.number_of_edges() == data.edge_index.size(1) // 2
    assert [doc_id for _, doc_id in graph.nodes(data="doc_id")] == list(range(0, 60, 2))
    assert {kind for *_, kind in graph.edges(data="kind")} == {"batch-batch"}


def test_the_input_is_left_alone(document_graph):
    data = document_graph()
    before = data.clone()
    to_networkx(data)
    assert data.edge_weight.requires_grad
    assert all(torch.equal(data[key], before[key]) for key in ("edge_index", "edge_weight", "y"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["a"]}, "'texts' must have 3 entries, one per node (got 1)"),
        ({"texts": "abc"}, "'texts' must have 3 entries, one per node (got a single string)"),
        ({"texts": ["a", None, "c"]}, "'texts' must hold strings (got NoneType at 1)"),
        ({"split": ["train"] * 4}, "'split' must have 3 entries, one per node (got 4)"),
        ({"predicted": [0, 1]}, "'predicted' must have 3 entries, one per node"),
        ({"predicted": torch.rand(3, 2)}, "'predicted' must have 3 entries, one per node"),
        ({"predicted": [0.5, 1.0, 1.0]}, "'predicted' must hold integers or booleans"),
        ({"predicted": [None, 1, 1]}, "'predicted' must hold integers"),
        ({"predicted": [0, 5, 1], "label_names": ["a"]}, "'label_names' must name every class"),
        ({"max_text": 0}, "'max_text' must be an integer of at least 1 (got 0)"),
        ({"tolerance": -1.0}, "'tolerance' must be at least 0 (got -1.0)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        to_networkx(path_graph(), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": None}, "'data' must have an 'edge_index'"),
        ({"edge_index": torch.rand(2, 4)}, "must be an integer tensor of the shape (2, E)"),
        (
            {"edge_index": torch.tensor([[0, 1, 1], [1, 0, 2]])},
            "only one direction between 1 and 2",
        ),
        ({"edge_index": torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]])}, "each edge once (got (0, 1)"),
        ({"edge_index": torch.tensor([[0, 7], [7, 0]])}, "must point at nodes 0..2 (got 0..7)"),
        ({"edge_weight": torch.tensor([1.0, 1.0, 2.0, 2.1])}, "'data.edge_weight' must agree"),
        ({"edge_weight": torch.ones(3)}, "'data.edge_weight' must have 4 entries"),
        (
            {"edge_weight": torch.tensor([1.0, 1.0, 2.0, np.nan])},
            "'data.edge_weight' must be finite",
        ),
        ({"edge_kind": torch.tensor([0, 0, 1, 2])}, "'data.edge_kind' must agree"),
        (
            {"edge_kind": torch.tensor([0, 0, 3, 3])},
            "'data.edge_kind' must be 0, 1 or 2 (got 0..3)",
        ),
        ({"y": torch.rand(3, 4)}, "'data.y' must have 3 entries"),
        ({"y": torch.rand(3)}, "'data.y' must hold integers or booleans"),
        ({"age": torch.zeros(2).long()}, "'data.age' must have 3 entries"),
    ],
)
def test_bad_graphs(changes, message):
    data = path_graph()
    for key, value in changes.items():
        data[key] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        to_networkx(data)


def test_tolerance_decides_what_is_symmetric():
    data = path_graph((1.0, 1.0 + 5e-6, 0.0, 0.0))
    assert to_networkx(data).edges[0, 1]["weight"] == 1.0
    with pytest.raises(ValueError, match="must agree in both directions"):
        to_networkx(data, tolerance=0.0)
