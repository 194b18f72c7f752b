"""Every format gives back what was written, and refuses what it cannot carry."""

from __future__ import annotations

import gzip
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch_geometric.data import Data

from analysis.conftest import MakeGraph, document_graph
from gloss_graph.export import (
    FORMATS,
    from_networkx,
    read_graph,
    read_networkx,
    to_networkx,
    write_graph,
)
from gloss_graph.export.attributes import clean_text

WHOLE = (".csv", ".gexf", ".graphml", ".json", ".parquet", ".gexf.gz", ".graphml.gz", ".json.gz")
TRICKY = ['"', "''", "a,b;\t\n\r\n", "<&>]]>", "🦊👩‍🔬", "nul\x00", "\x1b\x7f", "\ud800", "", " x "]
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(TRICKY)


def equal(one: Data, other: Data) -> None:
    """The same attributes of the same types."""
    assert sorted(one.keys()) == sorted(other.keys())
    for key, value in one:
        found = other[key]
        if isinstance(value, torch.Tensor):
            assert found.dtype == value.dtype, key
            torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)
        else:
            assert type(found) is type(value), key
            assert found == value, key


def described(texts: list[str], names: list[str], num_edges: int = 12) -> Data:
    data = document_graph(num_nodes=len(texts), num_edges=num_edges, num_classes=len(names))
    data.edge_weight = data.edge_weight.detach()
    data.text, data.label_names = texts, names
    data.bandwidth, data.k = torch.tensor(0.3), 5
    data.split = ["train"] * len(texts)
    data.community = torch.arange(len(texts)) % 2
    data.score = torch.linspace(0, 1, len(texts))
    return data


@pytest.mark.parametrize("suffix", WHOLE)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=7),
    names=st.lists(
        TEXTS.filter(lambda t: clean_text(t)), min_size=2, max_size=4, unique_by=clean_text
    ),
)
@example(texts=TRICKY, names=["1", "0"])
def test_round_trip(tmp_path: Path, suffix: str, texts: list[str], names: list[str]) -> None:
    data = described(texts, names)
    path = tmp_path / f"graph{suffix}"
    files = write_graph(data, path, overwrite=True)
    back = read_graph(path)
    clean = data.clone()
    clean.text, clean.label_names = [clean_text(t) for t in texts], [clean_text(n) for n in names]
    equal(clean, back)
    assert nx.utils.graphs_equal(read_networkx(path), to_networkx(data, max_text=None))
    # Once clean, nothing changes any more.
    before = [file.read_bytes() for file in files]
    write_graph(back, path, overwrite=True)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("suffix", WHOLE)
def test_long_texts_and_their_limit(tmp_path: Path, suffix: str) -> None:
    data = described(["é" * 1_000_000, 'x"' * 500_000, "short"], ["a", "b"])
    path = tmp_path / f"graph{suffix}"
    write_graph(data, path)
    assert read_graph(path).text == data.text
    for graph in (data, to_networkx(data, max_text=None)):
        write_graph(graph, path, overwrite=True, max_text=10)
        assert [len(text) for text in read_graph(path).text] == [10, 10, 5]
    assert data.text[0] == "é" * 1_000_000


@pytest.mark.parametrize("suffix", WHOLE)
def test_networkx_graphs_of_any_attributes(tmp_path: Path, suffix: str) -> None:
    graph = nx.DiGraph(name_of="corpus")
    graph.add_node("b", tea=True, size=3)
    graph.add_node("a", size=2**60, note="2")
    graph.add_edge("b", "a", weight=0.25, steps=3, new=False)
    graph.add_edge("a", "a", weight=1 / 3)
    path = tmp_path / f"graph{suffix}"
    write_graph(graph, path)
    back = read_networkx(path)
    assert back.is_directed()
    assert nx.utils.graphs_equal(back, graph)
    assert type(back.nodes["b"]["tea"]) is bool
    assert list(back) == ["b", "a"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_graphs_without_edges(tmp_path: Path, suffix: str, size: int) -> None:
    data = Data(
        edge_index=torch.empty(2, 0, dtype=torch.long),
        edge_weight=torch.empty(0),
        y=torch.full((size,), -1),
        doc_id=torch.arange(size),
        num_nodes=size,
    )
    path = tmp_path / f"graph{suffix}"
    write_graph(data, path)
    back = read_graph(path)
    assert back.num_nodes == size
    assert back.edge_index.shape == (2, 0)
    if suffix != ".npz" and size:
        equal(data, back)


@pytest.mark.parametrize("suffix", FORMATS)
def test_directions_that_differ(tmp_path: Path, suffix: str) -> None:
    data = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 1]]), num_nodes=3)
    data.edge_weight = torch.tensor([0.5, 1.0, 2.0])
    path = tmp_path / f"graph{suffix}"
    with pytest.raises(ValueError, match="must be undirected"):
        write_graph(data, path)
    assert list(tmp_path.iterdir()) == []
    write_graph(data, path, directed=True)
    equal(data, read_graph(path))


def test_matrix_of_a_document_graph(tmp_path: Path, document_graph: MakeGraph) -> None:
    data = document_graph()
    path = tmp_path / "graph.npz"
    assert write_graph(data, path) == [path]
    matrix = sparse.load_npz(path)
    expected = torch.sparse_coo_tensor(data.edge_index, data.edge_weight.detach(), (40, 40))
    np.testing.assert_array_equal(matrix.toarray(), expected.to_dense().numpy())
    assert matrix.dtype == np.float32
    back = read_graph(path)
    assert torch.equal(back.edge_index, data.edge_index)
    assert torch.equal(back.edge_weight, data.edge_weight.detach())
    write_graph(to_networkx(data), path, overwrite=True)
    assert (sparse.load_npz(path) != matrix).nnz == 0
    assert "y" not in back


def test_gexf_has_captions_weights_and_colours(tmp_path: Path) -> None:
    data = described(["green tea\nis good", "cup " * 40, ""], ["calm", "awake"])
    data.y = torch.tensor([1, 0, -1])
    path = tmp_path / "graph.gexf"
    write_graph(data, path)
    space = {"g": "http://www.gexf.net/1.2draft", "v": "http://www.gexf.net/1.2draft/viz"}
    nodes = ElementTree.parse(path).getroot().findall(".//g:node", space)
    assert nodes[0].get("label") == "green tea is good"
    assert len(nodes[1].get("label", "")) == 60
    assert nodes[2].get("label") == "2"
    colors = [tuple(node.find("v:color", space).attrib.values()) for node in nodes]
    # The first class has the first colour of the pictures, whoever comes first.
    assert colors[1][:3] == ("0", "114", "178")
    assert colors[2][:3] == ("154", "160", "166")
    assert len(set(colors)) == 3
    edges = ElementTree.parse(path).getroot().findall(".//g:edge", space)
    found = {(int(e.get("source")), int(e.get("target"))): float(e.get("weight")) for e in edges}
    plain = to_networkx(data).edges(data="weight")
    assert found == {(i, j): weight for i, j, weight in plain}


@pytest.mark.parametrize("suffix", WHOLE)
def test_every_attribute_of_a_graph_is_carried(tmp_path: Path, suffix: str) -> None:
    graph = nx.path_graph(3)
    graph.graph.update(name="tea trade", mode="slow", defaultedgetype="x", k=3)
    path = write_graph(graph, tmp_path / f"graph{suffix}")[0]
    assert read_networkx(path).graph == graph.graph


def test_gexf_of_another_program_may_be_described_in_words(tmp_path: Path) -> None:
    path = tmp_path / "graph.gexf"
    nx.write_gexf(nx.path_graph(3), path)
    words = path.read_text().replace("</creator>", "</creator><description>mine</description>", 1)
    path.write_text(words)
    found = read_networkx(path)
    assert sorted(found.edges) == [(0, 1), (1, 2)]
    assert found.graph == {}


def test_json_is_what_networkx_reads(tmp_path: Path, document_graph: MakeGraph) -> None:
    graph = to_networkx(document_graph())
    path = write_graph(graph, tmp_path / "graph.json")[0]
    stored = json.loads(path.read_text(encoding="ascii"))
    assert nx.utils.graphs_equal(nx.node_link_graph(stored, edges="edges"), graph)
    stored["links"] = stored.pop("edges")
    path.write_text(json.dumps(stored))
    assert nx.utils.graphs_equal(read_networkx(path), graph)


def test_tables_for_other_programs(tmp_path: Path, document_graph: MakeGraph) -> None:
    data = document_graph()
    nodes, edges = write_graph(data, tmp_path / "corpus.parquet")
    assert (nodes.name, edges.name) == ("corpus.nodes.parquet", "corpus.edges.parquet")
    table = pq.read_table(edges).to_pandas()
    assert list(table) == ["source", "target", "weight", "kind"]
    assert 2 * len(table) == data.edge_index.size(1)
    assert (table["source"] < table["target"]).all()
    assert pq.read_table(nodes)["label"].to_pylist() == data.y.tolist()
    equal(read_graph(nodes), read_graph(edges))
    # Tables of another program, without types.
    files = write_graph(data, tmp_path / "corpus.csv")
    files[-1].unlink()
    assert torch.equal(read_graph(files[0]).y, data.y)


def test_many_rows_are_written_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gloss_graph.export.tables._CHUNK", 7)
    data = described([str(i) for i in range(30)], ["a", "b"], num_edges=90)
    for graph in (data, to_networkx(data)):
        for suffix in (".parquet", ".csv"):
            files = write_graph(graph, tmp_path / f"graph{suffix}", overwrite=True)
            equal(data, read_graph(files[0]))
        assert pq.ParquetFile(tmp_path / "graph.nodes.parquet").num_row_groups == 5


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        (".parquet", lambda g: g.nodes[1].update(a=[1]), "Parquet cannot carry the attribute 'a'"),
        (".csv", lambda g: g.nodes[0].update(a=1), "CSV cannot carry .* 'a' of node .*one type"),
        (".parquet", lambda g: g.nodes[0].update(b=2**70), "cannot carry the attribute 'b'"),
        (".csv", lambda g: g.nodes[0].update(node=1), "'node' of node 0 .the name is taken"),
        (".csv", lambda g: g.edges[0, 1].update(source=1), r"'source' of edge \(0, 1\)"),
        (".parquet", lambda g: g.add_node("x"), "all integers or all strings"),
        (".gexf", lambda g: g.nodes[0].update(a=1), "GEXF cannot carry .* 'a' of node 1 .*is int"),
        (".gexf", lambda g: g.nodes[0].update(viz={}), "'viz' of node 0 .the name is taken"),
        (".gexf", lambda g: g.edges[0, 1].update(weight="3"), "a weight must be a number"),
        (".gexf", lambda g: g.graph.update(x=None), "'x' of graph .*got NoneType"),
        (".gexf", lambda g: g.add_node("1"), "must differ in writing"),
        (".gexf", lambda g: g.add_node("\x00"), "free of control characters"),
        (".json", lambda g: g.nodes[0].update(id=1), "'id' of node 0 .the name is taken"),
        (".json", lambda g: g.nodes[0].update(f=float("nan")), "'f' of node 0 .JSON has no nan"),
        (".json", lambda g: g.nodes[0].update({3: 1}), "attribute 3 of node 0 .its name is not"),
        (".json", lambda g: g.add_node((1, 2)), "strings or integers"),
        (".npz", lambda g: g.edges[0, 1].update(weight="x"), "attribute 'weight' of edges must"),
        (".graphml", lambda g: g.nodes[0].update(a=[1]), "attribute 'a' of node 0 .it must be"),
    ],
)
def test_what_a_format_cannot_carry(tmp_path: Path, suffix: str, change, message: str) -> None:
    graph = nx.path_graph(3)
    graph.nodes[1]["a"] = "text"
    change(graph)
    with pytest.raises(ValueError, match=message):
        write_graph(graph, tmp_path / f"graph{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_targets_and_bad_graphs(tmp_path: Path, suffix: str, document_graph: MakeGraph) -> None:
    data = document_graph()
    path = tmp_path / f"graph{suffix}"
    files = write_graph(data, path)
    before = {file: file.read_bytes() for file in files}
    # One file of a group in the way is enough.
    for file in files[:-1]:
        file.unlink()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_graph(data, path)
    assert list(tmp_path.iterdir()) == [files[-1]]
    write_graph(data, path, overwrite=True)
    assert {file: file.read_bytes() for file in files} == before
    with pytest.raises(FileNotFoundError, match="Create it first"):
        write_graph(data, tmp_path / "missing" / path.name)
    with pytest.raises(ValueError, match="multigraph"):
        write_graph(nx.MultiGraph(), path, overwrite=True)
    with pytest.raises(ValueError, match="must be a PyG Data or a NetworkX graph"):
        write_graph([[0, 1]], path, overwrite=True)
    if suffix != ".npz":
        with pytest.raises(ValueError, match="'max_text' must be an integer of at least 1"):
            write_graph(data, path, overwrite=True, max_text=0)
    assert {file: file.read_bytes() for file in files} == before


@pytest.mark.parametrize("name", ["graph.xlsx", "graph", "graph.csv.gz", "graph.gz", ".json"])
def test_unknown_suffixes(tmp_path: Path, name: str) -> None:
    for call in (lambda p: write_graph(nx.Graph(), p), read_graph, read_networkx):
        with pytest.raises(ValueError, match=r"one of \.csv, \.gexf, \.graphml, .*\.parquet"):
            call(tmp_path / name)


@pytest.mark.parametrize("suffix", [*FORMATS, ".json.gz"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x89PNG\r\n\x1a\n\x00", b"[1]"])
def test_damaged_and_missing_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"graph{suffix}"
    with pytest.raises(FileNotFoundError):
        read_graph(path)
    files = write_graph(nx.path_graph(3), path)
    for file in files:
        file.write_bytes(content)
    with pytest.raises(ValueError, match="'path'"):
        read_graph(path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    for suffix in FORMATS:
        with pytest.raises(OSError, match="no space"):
            write_graph(nx.path_graph(3), tmp_path / f"graph{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_packed_files_are_gzip(tmp_path: Path) -> None:
    graph = from_networkx(nx.path_graph(3))
    write_graph(graph, tmp_path / "a.json")
    write_graph(graph, tmp_path / "b.json.gz")
    packed = (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.json").read_bytes()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("words", ['"some words"', "[1]", "0.5"])
def test_json_whose_attributes_are_no_object(tmp_path: Path, words: str) -> None:
    file = tmp_path / "g.json"
    file.write_text(f'{{"graph": {words}, "nodes": [{{"id": 0}}], "edges": []}}')
    with pytest.raises(ValueError, match=r"node-link JSON .*'graph' must be an object"):
        read_graph(file)
