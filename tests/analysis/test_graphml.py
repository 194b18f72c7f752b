from __future__ import annotations

import enum
import os
import stat
import xml.etree.ElementTree as ElementTree

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gloss_graph._internal.files import atomic_write
from gloss_graph.export import to_networkx, write_graphml
from gloss_graph.export.attributes import clean_text

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=()), max_size=12).map(clean_text),
)


def read(path) -> nx.Graph:
    graph = nx.read_graphml(path, node_type=int)
    for key in ("node_default", "edge_default"):  # the reader adds them
        assert graph.graph.pop(key) == {}
    return graph


def typed(graph: nx.Graph) -> list[tuple[object, ...]]:
    rows = [*graph.nodes(data=True), *(((i, j), d) for i, j, d in graph.edges(data=True))]
    rows.append(("graph", graph.graph))
    return [(key, {name: (type(v), v) for name, v in data.items()}) for key, data in rows]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from("abc<"), SCALARS, max_size=3), min_size=6))
def test_round_trip(tmp_path, rows):
    graph = nx.Graph(**rows[0])
    graph.add_nodes_from(enumerate(rows[1:4]))
    graph.add_edges_from([(0, 1, rows[4]), (1, 2, rows[5]), (2, 2, {})])
    path = write_graphml(graph, tmp_path / "graph.graphml", overwrite=True)
    assert typed(read(path)) == typed(graph)


def test_document_graph_round_trip(document_graph, tmp_path):
    data = document_graph(num_nodes=5, num_edges=30)
    texts = ["<&>\"'", "🦊\t\n]]>", "\ud83e\udd8a \udfff", "\x00\x0b\x1f\x7f\ufffe", ""]
    graph = to_networkx(data, texts, label_names=["ä", "ß", "<c>", "4"], split=["train"] * 5)
    assert graph.nodes[2]["text"] == "🦊 \ufffd"
    path = write_graphml(graph, tmp_path / "graph.graphml")
    assert typed(read(path)) == typed(graph)


def test_same_content_as_networkx(document_graph, tmp_path):
    graph = to_networkx(document_graph())
    nx.write_graphml(graph, tmp_path / "theirs.graphml")
    write_graphml(graph, tmp_path / "ours.graphml")
    ours, theirs = read(tmp_path / "ours.graphml"), read(tmp_path / "theirs.graphml")
    assert typed(ours) == typed(theirs) == typed(graph)


def test_unclean_attributes_are_cleaned_in_the_file_only(tmp_path):
    graph = nx.Graph()
    graph.add_node(0, text="a\x00b\r\n")
    path = write_graphml(graph, tmp_path / "graph.graphml")
    assert read(path).nodes[0]["text"] == "a\ufffdb\n"
    assert graph.nodes[0]["text"] == "a\x00b\r\n"


def test_other_scalars_and_names(tmp_path):
    color = enum.Enum("color", {"RED": "red"}, type=str)
    graph = nx.DiGraph()
    graph.add_node('a "quoted" <name>', i=np.int64(3), f=np.float32(0.5), b=np.bool_(True))
    graph.add_edge('a "quoted" <name>', "ü", inf=float("inf"), nan=float("nan"), c=color.RED)
    back = nx.read_graphml(write_graphml(graph, tmp_path / "graph.graphml"))
    assert back.is_directed()
    assert back.nodes['a "quoted" <name>'] == {"i": 3, "f": 0.5, "b": True}
    edge = back.edges['a "quoted" <name>', "ü"]
    assert edge["inf"] == float("inf")
    assert np.isnan(edge["nan"])
    assert edge["c"] == "red"


def test_defaults_of_a_graph_that_was_read_survive(tmp_path):
    graph = nx.path_graph(2)
    graph.graph |= {"node_default": {"size": 3, "color": "red"}, "edge_default": {}}
    graph.nodes[0]["size"] = 4
    path = write_graphml(graph, tmp_path / "graph.graphml")
    back = nx.read_graphml(path, node_type=int)
    assert back.graph["node_default"] == {"size": 3, "color": "red"}
    assert dict(back.nodes) == {0: {"size": 4}, 1: {}}


def test_compressed_and_empty(tmp_path):
    first = write_graphml(nx.path_graph(3), tmp_path / "a.graphml.gz")
    second = write_graphml(nx.path_graph(3), tmp_path / "b.graphml.gz")
    assert first.read_bytes() == second.read_bytes()
    assert nx.utils.graphs_equal(read(first), nx.path_graph(3))
    empty = write_graphml(nx.Graph(), tmp_path / "empty.graphml")
    assert ElementTree.parse(empty).getroot().tag.endswith("graphml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.nodes[1].update(x=[1]), "attribute 'x' of node 1 .*must be .*got list"),
        (lambda g: g.edges[0, 1].update(x=None), r"'x' of edge \(0, 1\) .*must be .*got NoneType"),
        (lambda g: g.graph.update(x={}), "attribute 'x' of graph .*must be .*got dict"),
        (lambda g: g.add_node("1"), "must differ in writing"),
        (lambda g: g.add_node("\x00"), "free of control characters"),
    ],
)
def test_what_cannot_be_written(tmp_path, change, message):
    graph = nx.path_graph(3)
    change(graph)
    with pytest.raises(ValueError, match=message):
        write_graphml(graph, tmp_path / "graph.graphml")
    with pytest.raises(ValueError, match="must not be a multigraph"):
        write_graphml(nx.MultiGraph(), tmp_path / "graph.graphml")
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept(tmp_path):
    path = tmp_path / "graph.graphml"
    path.write_text("old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_graphml(nx.path_graph(2), path)
    assert path.read_text() == "old"
    write_graphml(nx.path_graph(2), path, overwrite=True)
    assert len(read(path)) == 2
    with pytest.raises(IsADirectoryError, match="Name a file inside it"):
        write_graphml(nx.path_graph(2), tmp_path, overwrite=True)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    class Exploding(nx.Graph):
        @property
        def edges(self):
            raise OSError("disk full")

    graph = Exploding(nx.path_graph(100))
    old = tmp_path / "old.graphml"
    old.write_text("old")
    for path in (tmp_path / "new.graphml", old):
        with pytest.raises(OSError, match="disk full"):
            write_graphml(graph, path, overwrite=True)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_graphml(nx.path_graph(3), tmp_path / "new.graphml.gz")
    assert [file.name for file in tmp_path.iterdir()] == ["old.graphml"]
    assert old.read_text() == "old"


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "note.txt"
    with pytest.raises(FileExistsError), atomic_write(path) as handle:  # noqa: PT012
        handle.write(b"late")
        path.write_text("first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    graph = nx.path_graph(2)
    with pytest.raises(FileNotFoundError, match=r"does not exist. Create it first"):
        write_graphml(graph, tmp_path / "missing" / "graph.graphml")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        write_graphml(graph, tmp_path / "file" / "graph.graphml")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(PermissionError, match="Cannot write into the folder"):
        write_graphml(graph, tmp_path / "graph.graphml")


def test_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    path = write_graphml(nx.path_graph(2), tmp_path / "graph.graphml")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
