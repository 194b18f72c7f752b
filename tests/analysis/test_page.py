from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from gloss_graph import build_document_graph
from gloss_graph.analysis import audit
from gloss_graph.analysis.audit import hidden_labels
from gloss_graph.analysis.explanation import top_masses
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.visualization import write_html

NASTY = [
    "</script><script>window.broken = 1</script>",
    "<!-- <script> ]]> <img src=x onerror='window.broken = 2'>",
    "nul \x00 bell \x07 quotes \" ' ` back\\slash \u2028 &amp; @TITLE@ @DATA@",
    "emoji 😀 and a lone \ud800 surrogate",
]


def documents(size: int = 60, k: int = 5) -> Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(size) % 3
    x = 2 * torch.eye(6)[y] + torch.randn(size, 6, generator=generator)
    graph = build_document_graph(x, y, 100 + torch.arange(size), k=k)
    graph.seed_mask = torch.arange(size) < 24
    graph.text = [f"document number {i}" for i in range(size)]
    graph.text[: len(NASTY)] = NASTY
    graph.label_names = ["tea", "<b>coffee</b>", "water & ice"]
    return graph


def columns(data: dict) -> dict:
    """The columns of a page by name."""
    return {column["name"]: column for column in data["columns"]}


def content(path: Path) -> dict:
    """The data of a page, found the way a browser finds it: up to the first closing tag."""
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)
    assert found is not None
    return json.loads(found.group(1))


@pytest.mark.parametrize("dense", [0, 5000])
@pytest.mark.parametrize("eta", [0.0, 0.2])
@pytest.mark.parametrize("normalization", ["row", "hub"])
def test_masses_are_those_of_absorbing_chains(eta, normalization, dense, monkeypatch):
    monkeypatch.setattr("gloss_graph.analysis.explanation._DENSE", dense)
    # Several blocks of right sides must give what one would.
    monkeypatch.setattr("gloss_graph.analysis.explanation._BLOCK", 7)
    table = read_arrays(documents())
    size = table.size
    top = top_masses(table, np.arange(size), top=size, eta=eta, normalization=normalization)
    weight = table.adjacency.toarray()
    scale = np.ones(size)
    if normalization == "hub":
        scale = 1 / (weight @ weight.sum(axis=1) ** -0.5)
    walk = scale[:, None] * weight * scale
    walk /= (1 + eta) * walk.sum(axis=1, keepdims=True)
    for node in range(size):
        seeds = table.seeds.copy()
        seeds[node] = False  # an own label is hidden
        free = np.flatnonzero(~seeds)
        ends = np.flatnonzero(seeds)
        inner = np.eye(free.size) - walk[np.ix_(free, free)]
        hit = np.linalg.solve(inner, walk[np.ix_(free, ends)])[free == node][0]
        expected = np.zeros(size)
        expected[ends] = hit
        got = np.zeros(size)
        known = top.nodes[node] >= 0
        got[top.nodes[node][known]] = top.mass[node][known]
        np.testing.assert_allclose(got, expected, atol=1e-8)
        assert (np.diff(top.mass[node]) <= 0).all()
        for label in range(3):
            want = expected[table.y == label].sum()
            assert top.by_class[node, label] == pytest.approx(want, abs=1e-8)
    if eta == 0:
        np.testing.assert_allclose(top.by_class.sum(axis=1), 1, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_masses_of_classes_are_what_the_audit_hears(eta):
    graph = documents()
    # A piece of its own without a label, and a document without a neighbor.
    apart = graph.edge_index.new_tensor([[60, 61], [61, 60]])
    graph.edge_index = torch.cat([graph.edge_index, apart], dim=1)
    graph.edge_weight = torch.cat([graph.edge_weight, torch.ones(2)])
    graph.y = torch.cat([graph.y, torch.tensor([-1, -1, 0])])
    graph.seed_mask = torch.cat([graph.seed_mask, torch.tensor([False, False, True])])
    graph.num_nodes = 63
    del graph.text, graph.doc_id, graph.in_batch, graph.age
    found = top_masses(read_arrays(graph), np.arange(63), eta=eta)
    heard = hidden_labels(read_arrays(graph), eta=eta).mass.numpy()
    np.testing.assert_allclose(found.by_class, heard, atol=1e-8)
    assert found.by_class[60:].sum() == 0
    assert found.propagated[60:].tolist() == [-1, -1, -1]


def test_page_holds_everything_and_no_text_breaks_out(tmp_path):
    graph = documents()
    path = write_html(graph, tmp_path / "graph.html", title='</title>@STYLE@ "x"', explanations=3)
    page = path.read_text(encoding="utf-8")
    assert page.lower().count("</script") == 2
    assert page.lower().count("<script") == 2
    assert page.lower().count("</title") == 1
    # Nothing the page loads: no address but the language's own.
    assert not re.search(
        r"(?:src|href)\s*=|https?:|url\(|@import|import\s*\(|fetch\(",
        page[: page.index('id="data"')],
    )
    assert "default-src 'none'" in page
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert forbidden not in page
    data = content(path)
    assert data["shown"] == 60
    assert data["docs"]["id"][0] == 100
    assert data["docs"]["text"][0] == NASTY[0]
    assert data["docs"]["text"][2].startswith("nul \ufffd bell \ufffd quotes")
    assert data["docs"]["text"][3].endswith("\ufffd surrogate")
    assert columns(data)["label"]["names"] == graph.label_names
    assert len(data["edges"]["from"]) == graph.edge_index.size(1) // 2
    table = read_arrays(graph)
    masses = top_masses(table, np.arange(60), top=3)
    assert data["masses"]["by"][40] == masses.nodes[40].tolist()
    np.testing.assert_allclose(data["masses"]["mass"][40], masses.mass[40], rtol=1e-4)
    assert columns(data)["propagated"]["values"] == masses.propagated.tolist()


def test_groups_have_words(tmp_path):
    graph = documents(12, k=3)
    graph.text = [f"{'tea tea' if label == 0 else 'water'} {label}" for label in graph.y.tolist()]
    graph.text[1] = "</script><i>"
    data = content(write_html(graph, tmp_path / "a.html"))
    words = [look["words"] for look in columns(data)["label"]["looks"]]
    assert words == ["tea", "script, water", "water"]
    assert all("words" in look for look in columns(data)["community"]["looks"])
    del graph.text
    data = content(write_html(graph, tmp_path / "b.html"))
    assert [look["words"] for look in columns(data)["label"]["looks"]] == [""] * 3


def test_sample_keeps_the_masses_of_the_whole_graph(tmp_path):
    graph = documents()
    data = content(write_html(graph, tmp_path / "a.html", max_nodes=10))
    docs = data["docs"]
    assert data["shown"] == 10
    assert data["total"] == 60
    assert len(docs["place"]) == len(columns(data)["community"]["values"]) == 10
    assert len(docs["id"]) == len(docs["text"]) > 10
    node = docs["id"][9] - 100
    whole = top_masses(read_arrays(graph), np.array([node]))
    assert [docs["id"][j] - 100 for j in data["masses"]["by"][9]] == whole.nodes[0].tolist()


def test_existing_and_unwritable_targets(tmp_path):
    graph = documents(12, k=3)
    path = tmp_path / "graph.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_html(graph, path)
    assert path.read_text() == "mine"
    write_html(graph, path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_html(graph, tmp_path / "none" / "graph.html")
    with pytest.raises(ValueError, match=r"must end in \.html"):
        write_html(graph, tmp_path / "graph.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.html"]


def test_bad_texts_and_settings_leave_nothing_behind(tmp_path):
    graph = documents(12, k=3)
    path = tmp_path / "graph.html"
    for change, words in (
        ({"texts": ["a", None] + ["b"] * 10}, "'texts' must hold strings"),
        ({"texts": ["a"]}, "'texts' must have 12 entries"),
        ({"label_names": ["a"]}, "'label_names' must name every class"),
        ({"max_nodes": 0}, "'max_nodes'"),
        ({"explanations": -1}, "'explanations'"),
        ({"max_text": 0}, "'max_text'"),
        ({"eta": -1.0}, "'eta'"),
    ):
        with pytest.raises(ValueError, match=words):
            write_html(graph, path, **change)
    assert not list(tmp_path.iterdir())


def test_columns_that_color_the_map(tmp_path):
    graph = documents()
    graph.predicted = graph.y.clone()
    graph.predicted[:6] = -1
    graph.predicted[6] = (graph.y[6] + 1) % 3
    graph.split = ["train" if i < 40 else "test" for i in range(60)]
    graph.loss = torch.arange(60) / 10
    graph.loss[3] = torch.nan
    graph.rank = 10**9 + torch.arange(60)
    graph.apart = torch.tensor([1] * 59 + [10**6])
    graph.empty = torch.full((60,), torch.nan)
    found = columns(content(write_html(graph, tmp_path / "a.html")))
    names = ["label", "propagated", "predicted", "correct", "community", "suspicion"]
    assert list(found)[:8] == [*names, "confidence", "neighbors"]
    assert {"age", "in_batch", "split", "loss", "rank"} <= set(found)
    assert not {"doc_id", "text", "y", "seed"} & set(found)
    for name in ("propagated", "predicted"):
        colors = [look["color"] for look in found[name]["looks"]]
        assert colors == [look["color"] for look in found["label"]["looks"]]
    assert found["predicted"]["values"] == graph.predicted.tolist()
    assert found["correct"]["names"] == ["yes", "no"]
    assert found["correct"]["values"][5:8] == [1, 1, 0]
    assert found["split"]["names"] == ["test", "train"]
    assert found["in_batch"]["names"] == ["yes"]
    # The suspicion of an audit.
    del graph.text
    table = audit(graph).table.sort_values("node")
    np.testing.assert_allclose(found["suspicion"]["numbers"], table["suspicion"], atol=1e-4)
    assert all(0.3 < share <= 1 for share in found["confidence"]["numbers"])
    # Steps of round numbers hold their values.
    steps = found["loss"]
    assert steps["names"] == [f"{i} – {i + 1}" for i in range(6)]
    assert steps["values"][3] == -1
    assert steps["numbers"][3] is None
    for value, number in zip(steps["values"], steps["numbers"], strict=True):
        assert number is None or value == int(number)
    assert len({look["color"] for look in steps["looks"]}) == 6
    assert found["rank"]["numbers"] == graph.rank.tolist()
    assert found["rank"]["names"][1] == "1000000010 – 1000000019"
    assert found["apart"]["names"][0] == "1 – 199999"
    assert found["apart"]["values"] == [0] * 59 + [5]
    assert found["empty"]["values"] == [-1] * 60


def test_predictions_are_named_like_labels(tmp_path):
    graph = documents()
    graph.predicted = ["tea"] * 30 + ["soup"] * 29 + [""]
    found = columns(content(write_html(graph, tmp_path / "a.html")))["predicted"]
    assert found["names"] == [*graph.label_names, "soup"]
    assert found["values"] == [0] * 30 + [3] * 29 + [-1]
    del graph.label_names
    graph.predicted = torch.full((60,), 7)
    found = columns(content(write_html(graph, tmp_path / "b.html")))["predicted"]
    assert found["names"] == ["0", "1", "2", "7"]
    assert found["values"] == [3] * 60


@pytest.mark.parametrize("size", [0, 1, 12])
def test_small_flat_and_unlabeled_graphs(size, tmp_path):
    if size == 12:
        graph = build_document_graph(torch.ones(size, 4), k=50)
    else:
        graph = Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=size)
    data = content(write_html(graph, tmp_path / "a.html"))
    assert data["shown"] == size
    assert data["masses"] is None
    labeled = Data(edge_index=graph.edge_index, y=torch.zeros(size).long(), num_nodes=size)
    data = content(write_html(labeled, tmp_path / "b.html"))
    if size == 1:
        # Its own label hidden, nothing is left to say anything.
        assert data["masses"]["by"] == [[]]
        assert columns(data)["propagated"]["values"] == [-1]
