"""Masses of explanations and hidden labels, against dense solutions made here."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from gloss_graph import build_document_graph
from gloss_graph.analysis import NodeExplanation, explain
from gloss_graph.analysis.audit import hidden_labels
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.visualization import plot_explanation


def corpus(size: int = 60, labeled: float = 0.5, seed: int = 0, k: int = 4) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (size,), generator=generator)
    y[torch.rand(size, generator=generator) > labeled] = -1
    graph = build_document_graph(x, y, torch.arange(size) + 100, k=k, symmetrize="mutual")
    graph.text = [f"text {i}" for i in range(size)]
    graph.label_names = ["tea", "rain", "war"]
    return graph


def walk(graph: Data, normalization: str) -> np.ndarray:
    """Transition matrix, dense; rows of isolated documents are zero."""
    size = graph.num_nodes
    weight = np.zeros((size, size))
    weight[tuple(graph.edge_index.numpy())] = graph.edge_weight.numpy()
    if normalization == "hub":
        degree = weight.sum(1)
        root = np.where(degree > 0, degree, 1.0) ** -0.5
        scale = weight @ root
        scale = 1.0 / np.where(scale > 0, scale, 1.0)
        weight = scale[:, None] * weight * scale
    sums = weight.sum(1, keepdims=True)
    return weight / np.where(sums > 0, sums, 1.0)


def absorbed(graph: Data, node: int, normalization: str, eta: float) -> tuple[np.ndarray, float]:
    """Chance to end at every seed (N,), and to leak, for a walk from `node`: textbook chain."""
    step = walk(graph, normalization) / (1 + eta)
    seeds = graph.seed_mask.numpy().copy()
    seeds[node] = False
    free = np.flatnonzero(~seeds)
    stay = np.eye(free.size) - step[np.ix_(free, free)]
    visits = np.linalg.inv(stay) if eta > 0 else np.linalg.pinv(stay)
    start = visits[np.searchsorted(free, node)]
    masses = np.zeros(len(seeds))
    masses[seeds] = start @ step[np.ix_(free, np.flatnonzero(seeds))]
    # An isolated document stays where it is until it leaks.
    moves = step[free].sum(1) > 0
    return masses, float((start * moves).sum() * eta / (1 + eta))


@pytest.mark.parametrize("normalization", ["hub", "row"])
@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_masses_are_those_of_the_absorbing_chain(normalization: str, eta: float) -> None:
    graph = corpus(k=8)
    connected = np.flatnonzero(np.bincount(graph.edge_index[0], minlength=60))
    for node in connected[::3].tolist():
        answer = explain(graph, node, normalization=normalization, eta=eta, top=None)
        masses, leaked = absorbed(graph, node, normalization, eta)
        table = answer.table
        chosen = table[table["kind"] == "document"]
        ours = np.zeros(60)
        ours[chosen["node"]] = chosen["mass"]
        assert np.abs(ours - masses).max() < 1e-8
        prior = table.loc[table["kind"] == "prior", "mass"].sum()
        assert abs(prior - leaked) < 1e-8
        assert abs(table["mass"].sum() - 1) < 1e-8
        assert (chosen["node"] != node).all()
        assert (chosen["mass"].diff().dropna() <= 0).all()


def test_large_graphs_are_solved_as_exactly() -> None:
    """Beyond 512 unknowns the solve is iterative."""
    graph = corpus(900, labeled=0.2, k=8)
    node = int(graph.edge_index[0, 50])
    answer = explain(graph, node, eta=0.01, top=3)
    masses, leaked = absorbed(graph, node, "hub", 0.01)
    best = np.sort(masses)[::-1][:3]
    assert np.abs(answer.table["mass"][:3].to_numpy() - best).max() < 1e-8
    assert abs(answer.table["mass"].sum() - 1) < 1e-8
    rest = answer.table.set_index("kind")["mass"]
    assert rest["other documents"] == pytest.approx(masses.sum() - best.sum(), abs=1e-8)
    assert rest["prior"] == pytest.approx(leaked, abs=1e-8)


def test_the_head_of_an_explanation_keeps_all_mass() -> None:
    graph = corpus(k=8)
    whole = explain(graph, 7, top=None)
    for top in (1, 4):
        short = whole.head(top)
        pd.testing.assert_frame_equal(short.table, explain(graph, 7, top=top).table)
        pd.testing.assert_frame_equal(short.table, whole.head(6).head(top).table)
        assert short.table["kind"].tolist() == ["document"] * top + ["other documents", "prior"]
        assert short.table["mass"].sum() == pytest.approx(1.0)
        assert short.table["mass"][:top].tolist() == whole.table["mass"][:top].tolist()
        assert short.classes.equals(whole.classes)
    assert whole.head(len(whole.table)) is whole
    with pytest.raises(ValueError, match="'top' must be an integer"):
        whole.head(0)


def test_a_labeled_document_is_explained_by_the_others() -> None:
    graph = corpus(k=8)
    node = int(graph.seed_mask.nonzero()[0])
    with_label = explain(graph, node).table
    hidden = graph.clone()
    hidden.y[node], hidden.seed_mask[node] = -1, False
    assert with_label.equals(explain(hidden, node).table)


@pytest.mark.parametrize(("eta", "kind"), [(0.0, "unreachable"), (0.2, "prior")])
def test_a_document_no_label_reaches(eta: float, kind: str) -> None:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    graph = Data(edge_index=edges, y=torch.tensor([0, -1, -1, -1, -1, 2]), num_nodes=6)
    # Of a pair without label, alone, and the only label of its component.
    for node in (2, 4, 5, 0):
        answer = explain(graph, node, eta=eta)
        assert answer.predicted == ""
        assert answer.classes.empty
        assert answer.table[["kind", "mass"]].values.tolist() == [[kind, 1.0]]
    assert explain(graph, 1, eta=0.0).predicted == "0"


def test_graph_and_picture_of_an_explanation(tmp_path: Path) -> None:
    graph = corpus(k=8)
    graph.text[7] = 'quotes " <b> $x^2$ \x00 😀 ' + "long " * 500
    answer = explain(graph, 7, top=4)
    small = answer.to_networkx()
    assert nx.is_bipartite(small)
    assert small.nodes[7]["bipartite"] == 0
    assert len(small) == len(answer.table) + 1
    total = sum(weight for _, _, weight in small.edges(data="weight"))
    assert total == pytest.approx(1.0)
    for _, attributes in small.nodes(data=True):
        assert {type(value) for value in attributes.values()} <= {int, str}
    nx.write_graphml(small, tmp_path / "explanation.graphml")
    nx.write_gexf(small, tmp_path / "explanation.gexf")
    figure = plot_explanation(answer, tmp_path / "explanation.png")
    assert (tmp_path / "explanation.png").stat().st_size > 10_000
    # A line and a point a row, and the document itself.
    assert len(figure.axes[0].lines) == 2 * len(answer.table) + 1
    assert len(plot_explanation(answer, max_documents=2).axes[0].lines) == 2 * 4 + 1
    assert f"Document {answer.doc_id}" in str(answer)
    with pytest.raises(ValueError, match="'path' must end"):
        plot_explanation(answer, tmp_path / "explanation.txt")


@pytest.mark.parametrize("node", [-1, 60, 1.0, True, "3", None])
def test_no_such_document(node: object) -> None:
    with pytest.raises(ValueError, match="'node' must be a document"):
        explain(corpus(), node)  # type: ignore[arg-type]


def test_bad_input() -> None:
    graph = corpus()
    for change, error, words in (
        ({"y": torch.full((60,), -1)}, ValueError, "must hold a labeled document"),
        ({"seed_mask": torch.zeros(60, dtype=torch.bool)}, ValueError, "labeled document"),
        ({"y": torch.rand(60, 3)}, ValueError, "label sets"),
        ({"label_names": ["tea"]}, ValueError, "must name every class"),
        ({"text": ["one"]}, ValueError, "'graph.text' must hold one text per node"),
        ({"edge_weight": -graph.edge_weight}, ValueError, "finite and >= 0"),
        ({"edge_weight": graph.edge_weight[:3]}, ValueError, "entries, one per column"),
        ({"edge_index": graph.edge_index + 1}, ValueError, "must point at nodes 0..59"),
        ({"edge_index": torch.tensor([[0], [1]]), "edge_weight": None}, ValueError, "undirected"),
    ):
        broken = graph.clone()
        for key, value in change.items():
            broken[key] = value
        with pytest.raises(error, match=words):
            explain(broken, 1)
    for settings, words in (
        ({"normalization": "column"}, "must be one of"),
        ({"eta": -1.0}, "'eta' must be in"),
        ({"top": 0}, "'top' must be an integer"),
    ):
        with pytest.raises(ValueError, match=words):
            explain(graph, 1, **settings)
    with pytest.raises(TypeError, match="'graph' must be a torch_geometric"):
        explain(nx.path_graph(3), 1)


def brute_force(graph: Data, normalization: str, eta: float) -> np.ndarray:
    """Mass of every class (N, C), hiding every label and solving anew."""
    mass = np.zeros((graph.num_nodes, 3))
    y = graph.y.numpy()
    for node in range(graph.num_nodes):
        masses, _ = absorbed(graph, node, normalization, eta)
        for label in range(3):
            mass[node, label] = masses[y == label].sum()
    return mass


@pytest.mark.parametrize("normalization", ["hub", "row"])
@pytest.mark.parametrize("eta", [0.0, 0.2])
@pytest.mark.parametrize("labeled", [0.06, 0.5, 0.9, 1.0])
def test_hidden_labels_equal_a_solve_each(normalization: str, eta: float, labeled: float) -> None:
    graph = corpus(labeled=labeled, seed=3, k=7)
    found = hidden_labels(read_arrays(graph), normalization=normalization, eta=eta)
    assert found.exact
    wanted = brute_force(graph, normalization, eta)
    assert np.abs(found.mass.numpy() - wanted).max() < 1e-8
    if labeled == 0.5:
        # The correction is what makes them equal.
        assert float(found.returning.max()) > 0.1


def test_hidden_labels_over_many_columns_and_an_iterative_solve() -> None:
    graph = corpus(1200, labeled=0.3, k=8)
    found = hidden_labels(read_arrays(graph), eta=0.1)
    assert found.exact
    nodes = np.flatnonzero(graph.seed_mask.numpy())[::50]
    for node in nodes.tolist():
        masses, _ = absorbed(graph, node, "hub", 0.1)
        wanted = np.bincount(graph.y.numpy()[masses > 0], masses[masses > 0], minlength=3)
        assert np.abs(found.mass[node].numpy() - wanted).max() < 1e-8


def test_estimated_returns_are_close_and_said_to_be_estimates() -> None:
    documents = read_arrays(corpus(300, labeled=0.5, k=8))
    exact = hidden_labels(documents)
    guess = hidden_labels(documents, max_columns=2, probes=1000)
    assert (exact.exact, guess.exact) == (True, False)
    assert float((exact.returning - guess.returning).abs().max()) < 0.03
    assert float((exact.mass - guess.mass).abs().max()) < 0.05
    again = hidden_labels(documents, max_columns=2, probes=1000)
    assert torch.equal(guess.mass, again.mass)


def test_former_names_work_and_warn(tmp_path: Path) -> None:
    answer = explain(corpus(), 3)
    with pytest.warns(DeprecationWarning, match=r"Use gloss_graph\.analysis\.NodeExplanation"):
        from gloss_graph.analysis import Explanation
    assert Explanation is NodeExplanation
    assert isinstance(answer, NodeExplanation)
    with pytest.warns(DeprecationWarning, match="Call plot_explanation"):
        answer.plot(tmp_path / "explanation.png")
    assert (tmp_path / "explanation.png").is_file()
