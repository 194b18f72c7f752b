"""An audit finds what was planted: wrong labels, duplicates, loners, classes that run together."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch_geometric.data import Data

from gloss_graph import build_document_graph
from gloss_graph.analysis import Audit, audit, measures
from gloss_graph.text import Corpus
from gloss_graph.visualization import plot_communities

NAMES = ["tea", "rain", "war", "cats"]


def clusters(size: int = 200, spread: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rows around four centers, and their true classes."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(size) % 4
    centers = torch.eye(16)[:4] * 2
    return centers[truth] + spread * torch.randn(size, 16, generator=generator), truth


def graph_of(rows: torch.Tensor, y: torch.Tensor, **settings: object) -> Data:
    graph = build_document_graph(rows, y, torch.arange(len(y)) + 1000, k=8)
    graph.text = [f"text {i}" for i in range(len(y))]
    graph.label_names = NAMES
    for key, value in settings.items():
        graph[key] = value
    return graph


def printed(found: Audit) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(found.summary())
    return console.file.getvalue()


@pytest.mark.parametrize("labeled", [1.0, 0.5])
def test_planted_flips_come_first(labeled: float) -> None:
    x, truth = clusters()
    y = truth.clone()
    wrong = torch.arange(0, 190, 19)
    y[wrong] = (truth[wrong] + 1) % 4
    generator = torch.Generator().manual_seed(1)
    hide = torch.rand(200, generator=generator) > labeled
    hide[wrong] = False
    y[hide] = -1
    found = audit(graph_of(x, y))
    top = found.table.head(10)
    assert set(top["node"]) == set(wrong.tolist())
    assert top["suggested"].tolist() == [NAMES[truth[i]] for i in top["node"]]
    assert (top["suspicion"] > 0.5).all()
    assert (top["doc_id"] == top["node"] + 1000).all()
    assert found.exact
    assert len(found.table) == int((y >= 0).sum())
    suspicion = found.table["suspicion"]
    assert (suspicion.diff().dropna() <= 0).all()
    assert set(found.disagreeing["node"]) >= set(wrong.tolist())
    counts = pd.crosstab(found.table["label"], found.table["suggested"])
    for given, suggested in ((a, b) for a in NAMES for b in NAMES):
        wanted = counts.at[given, suggested] if given in counts and suggested in counts else 0
        assert found.confusion.at[given, suggested] == wanted


def test_own_label_is_never_heard() -> None:
    """Random labels: whatever a document's label is, the others do not know it."""
    x, _ = clusters(400, spread=3.0)
    generator = torch.Generator().manual_seed(2)
    y = torch.randint(4, (400,), generator=generator)
    y[torch.rand(400, generator=generator) < 0.5] = -1
    found = audit(graph_of(x, y))
    agree = 1 - len(found.disagreeing) / len(found.table)
    assert agree < 0.36


def test_labels_that_are_no_seeds_are_judged_but_do_not_speak() -> None:
    x, truth = clusters()
    y = truth.clone()
    y[:40] = 3
    silent = torch.arange(200) >= 40
    found = audit(graph_of(x, y, seed_mask=silent))
    assert set(found.disagreeing["node"]) == set(np.flatnonzero(truth[:40] != 3))


def test_duplicates_with_different_labels() -> None:
    x, truth = clusters()
    x[1], truth[1] = x[0] * 3, 2  # a copy but for its length
    x[5] = x[4] = x[2]  # copies that agree
    texts = [f"text {i}" for i in range(200)]
    texts[11], texts[150] = "Green  Tea", "green tea\n"
    truth[5] = truth[4] = truth[2]
    for settings in ({"x": x}, {}):  # from the rows, and from the weights
        found = audit(graph_of(x, truth, text=texts, **settings))
        pairs = found.duplicates
        assert pairs[["node", "other"]].values.tolist() == [[0, 1], [11, 150]]
        assert pairs["similarity"].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
        assert pairs.loc[0, ["label", "other_label"]].tolist() == ["tea", "war"]
        noted = found.table.set_index("node")["note"]
        assert noted[[0, 1, 11, 150]].eq("near-duplicate with another label").all()
    unread = graph_of(x, truth, bandwidth=torch.tensor(float("nan")), text=texts)
    assert len(audit(unread).duplicates) == 1
    loose = audit(graph_of(x, truth, text=texts, x=x), duplicate_similarity=0.5)
    assert len(loose.duplicates) > 2
    given = audit(graph_of(x, truth, text=texts), embeddings=F.one_hot(truth).float())
    assert len(given.duplicates) == 1


def test_isolated_documents_and_lonely_classes() -> None:
    edges = torch.tensor([[0, 1, 1, 2, 5, 6], [1, 0, 2, 1, 6, 5]])
    y = torch.tensor([0, 0, 1, 0, -1, 2, -1])
    found = audit(Data(edge_index=edges, y=y, num_nodes=7))
    assert found.isolated["node"].tolist() == [3, 4, 5]
    assert found.isolated["label"].tolist() == ["0", "", "2"]
    assert found.isolated["degree"].tolist() == [0, 0, 1]
    notes = found.table.set_index("node")
    assert notes["note"].to_dict() == {
        0: "",
        1: "",
        2: "only label of its class",
        3: "isolated",
        5: "isolated",
    }
    assert notes["suspicion"].isna().to_dict() == {0: False, 1: False, 2: True, 3: True, 5: True}
    assert notes.at[3, "suggested"] == ""
    assert found.table["node"].tolist()[-3:] == [2, 3, 5]
    assert 2 not in set(found.disagreeing["node"])
    assert "no other label reaches" in printed(found)


def test_classes_that_run_into_each_other() -> None:
    x, truth = clusters(spread=0.3)
    y = truth.clone()
    mixed = torch.arange(200) % 8 == 1  # half of the rain is filed under tea
    y[mixed] = 0
    found = audit(graph_of(x, y))
    worst = found.bleeding.iloc[0]
    assert {worst["label"], worst["other"]} == {"tea", "rain"}
    both = found.confusion.loc["tea", "rain"] + found.confusion.loc["rain", "tea"]
    assert worst["documents"] == both > 0
    assert worst["share"] == both / int(((y == 0) | (y == 1)).sum())
    text = printed(found)
    assert "Classes that run into each other" in text
    assert "labels contradicted" in text


def test_text_with_markup_is_printed_as_it_is() -> None:
    x, truth = clusters(40)
    y = truth.clone()
    y[0] = 1
    found = audit(graph_of(x, y, text=["[bold]tea[/red] \x00 " + "w " * 5000] * 40))
    assert "[bold]tea[/red]" in printed(found)


def test_half_a_surrogate_pair_is_one_odd_letter() -> None:
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    texts = [f"tea \ud800 {number}" for number in range(12)]
    graph = build_document_graph(rows, torch.tensor([0, 1, -1] * 4), k=3)
    graph.text, graph.label_names = texts, ["a\udfff", "b\ud83d\ude00"]
    found = audit(graph)
    assert set(found.table["label"]) == {"a\ufffd", "b😀"}
    assert "tea \ufffd 0" in set(found.table["text"])
    table = measures(graph)
    assert {"a\ufffd", "b😀"} <= {name for name in table["scope"] for name in str(name).split(": ")}
    assert Corpus(texts, [-1] * 12, list(range(12)), []).texts[3] == "tea \ufffd 3"
    plot_communities(graph)


@pytest.mark.parametrize("size", [1, 2])
def test_smallest_graphs(size: int) -> None:
    y = torch.zeros(size, dtype=torch.long)
    graph = build_document_graph(torch.eye(3)[:size], y, k=3, bandwidth=1.0)
    found = audit(graph)
    assert len(found.table) == size
    assert found.disagreeing.empty
    assert found.duplicates.empty
    assert len(found.isolated) == (1 if size == 1 else 0)
    assert "Audit(" in repr(found)
    assert printed(found)


def test_identical_documents() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, -1])
    x = torch.ones(6, 4)
    found = audit(graph_of(x, y, x=x), max_columns=4)
    assert found.table.loc[0, "node"] in range(4)
    assert found.table.set_index("node").at[4, "note"] == "only label of its class"
    assert set(found.duplicates["other"]) | set(found.duplicates["node"]) >= {4}
    assert found.table["suspicion"].dropna().between(0, 1).all()


def test_bad_input() -> None:
    x, truth = clusters(40)
    for labels in (torch.full((40,), -1), None):
        with pytest.raises(ValueError, match="'graph' must hold a labeled document"):
            audit(build_document_graph(x, labels))
    with pytest.raises(ValueError, match="label sets"):
        audit(build_document_graph(x, F.one_hot(truth).float()))
    with pytest.raises(ValueError, match="must hold a labeled document"):
        audit(Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=0))
    graph = graph_of(x, truth)
    with pytest.raises(ValueError, match="'embeddings' must have 40 rows"):
        audit(graph, embeddings=x[:3])
    for settings, words in (
        ({"duplicate_similarity": 0.0}, "'duplicate_similarity' must be in"),
        ({"normalization": "symmetric"}, "must be one of"),
        ({"max_columns": 0}, "'max_columns' must be an integer"),
        ({"probes": -1}, "'probes' must be an integer"),
    ):
        with pytest.raises(ValueError, match=words):
            audit(graph, **settings)
    with pytest.raises(ValueError, match="'top' must be an integer"):
        audit(graph).summary(0)
    with pytest.raises(TypeError, match="'graph' must be a torch_geometric"):
        audit([1, 2])
