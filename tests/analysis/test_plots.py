from __future__ import annotations

import re
import sys

import matplotlib
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from gloss_graph.export import to_networkx
from gloss_graph.visualization import plot_graph, plot_stage_times, plot_training
from gloss_graph.visualization.style import GREY, PALETTE

HISTORY = {
    "ce": [{"step": 10 * i, "loss": 2 / (i + 1), "val_macro_f1": i / 10} for i in range(5)],
    "gloss": pd.DataFrame(
        {
            "step": range(200),
            "loss": 1.0,
            "graph_loss": np.linspace(3, 1, 200),
            "val_macro_f1": [
                0.8 if i == 150 else 0.5 if i % 50 == 0 else np.nan for i in range(200)
            ],
        }
    ),
}
TIMES = {
    "batch": {"encoder": 6.0, "graph": 1.0, "backward": 3.0},
    "memory": {"encoder": 0.2, "search": 0.3, "graph": 0.1, "backward": 0.4},
}


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for box in legends if box is not None for text in box.get_texts()]


def check_picture(path, most: float = 0.6) -> None:
    """The file is a PNG with a white ground, ink in every half and several colors."""
    assert path.read_bytes().startswith(b"\x89PNG")
    image = imread(path)[..., :3]
    assert min(image.shape[:2]) >= 300
    assert image.shape[1] >= 1000
    inked = (image < 0.95).any(axis=2)
    assert 0.005 < inked.mean() < most
    middle = [side // 2 for side in inked.shape]
    halves = (inked[: middle[0]], inked[middle[0] :], inked[:, : middle[1]], inked[:, middle[1] :])
    assert all(half.any() for half in halves)
    colors = (image * 8).astype(int) @ [100, 10, 1]
    assert len(np.unique(colors)) > 10


@pytest.mark.parametrize(
    "plot",
    [
        lambda path: plot_graph(nx.karate_club_graph(), path, color_by="club"),
        lambda path: plot_training(HISTORY, path),
        lambda path: plot_stage_times(TIMES, path),
    ],
    ids=["graph", "training", "times"],
)
def test_pictures_are_saved_whole(plot, tmp_path, monkeypatch):
    figure = plot(tmp_path / "picture.png")
    assert isinstance(figure, Figure)
    check_picture(tmp_path / "picture.png")
    plot(tmp_path / "picture.png")  # replaces
    plot(tmp_path / "picture.svg")
    assert b"<svg" in (tmp_path / "picture.svg").read_bytes()
    with pytest.raises(ValueError, match=re.escape("must end in .png, .pdf or .svg (got")):
        plot(tmp_path / "picture.jpeg")
    with pytest.raises(FileNotFoundError, match="Create it first"):
        plot(tmp_path / "missing" / "picture.png")
    before = (tmp_path / "picture.png").read_bytes()

    def fail(_, handle, **__):
        handle.write(b"half a pic")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"picture.png", "picture.svg"}


def test_no_global_state(document_graph):
    settings = matplotlib.rcParams.copy()
    plot_graph(document_graph())
    plot_training(HISTORY)
    plot_stage_times(TIMES)
    assert matplotlib.rcParams == settings
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_graph_picture_tells_what_it_shows(document_graph):
    data = document_graph(num_nodes=60, num_edges=260)
    predicted = data.y.clone()
    labeled = (predicted >= 0).nonzero().flatten()
    predicted[labeled[:3]] = (predicted[labeled[:3]] + 1) % 4
    figure = plot_graph(data, label_names=["tea", "_x", "$a", "d"], predicted=predicted, title="$1")
    words = legend(figure)
    counts = (data.y + 1).bincount(minlength=5).tolist()
    assert words[:5] == [
        f"$a ({counts[3]})",
        f"_x ({counts[2]})",
        f"d ({counts[4]})",
        f"tea ({counts[1]})",
        f"unlabeled ({counts[0]})",
    ]
    assert words[5] == "misclassified (3)"
    assert [word.rsplit(" ", 1)[0] for word in words[6:]] == [
        "edge with an unlabeled end",
        "edge within a class",
        "edge between classes",
    ]
    pixels(figure)
    facts = figure.axes[0].get_title(loc="left")
    assert facts.startswith("60 documents · ")
    ends = data.y[data.edge_index]
    known = (ends >= 0).all(dim=0)
    share = 100 * (ends[0] != ends[1])[known].double().mean().item()
    assert f"{share:.1f} % of the edges with known ends join two classes" in facts


def test_sample_is_named_and_repeatable(document_graph):
    data = document_graph(num_nodes=200, num_edges=1500)
    first, second = (plot_graph(data, max_nodes=50, seed=7) for _ in range(2))
    assert "50 of 200 documents (random-walk sample)" in first.axes[0].get_title(loc="left")
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(plot_graph(data, max_nodes=50, seed=8)))
    assert "of 200" not in plot_graph(data, max_nodes=200).axes[0].get_title(loc="left")


def test_graph_and_data_give_the_same_picture(document_graph):
    data = document_graph()
    assert np.array_equal(pixels(plot_graph(data)), pixels(plot_graph(to_networkx(data))))


def test_many_classes_share_one_entry():
    graph = nx.path_graph(100)
    for node in graph:
        graph.nodes[node]["label"] = min(node % 20, node % 13) if node else -1
    words = legend(plot_graph(graph))
    assert len(words) == 12 + 1 + 1 + 3
    assert words[12].startswith("1 other class (")
    assert words[13] == "unlabeled (1)"


def test_kinds_of_color(document_graph):
    data = document_graph(num_nodes=80)
    scale = plot_graph(data, color_by="age")
    assert len(scale.axes[0].child_axes) == 1
    assert legend(scale) == [f"edge ({data.edge_index.size(1) // 2:,})"]
    pixels(scale)
    assert legend(plot_graph(data, color_by="in_batch"))[:2] == ["no (60)", "yes (20)"]
    lines = [c for c in plot_graph(data).axes[0].collections if hasattr(c, "get_segments")]
    assert len(lines) == 3  # unknown, within a class, between classes
    opacity = [part.get_colors()[:, 3] for part in lines]
    assert all((np.diff(found) >= 0).all() for found in opacity)  # the heaviest on top


@pytest.mark.parametrize(
    "graph",
    [nx.empty_graph(1), nx.empty_graph(30), nx.path_graph(2), nx.Graph([("a", "a"), ("a", "b")])],
    ids=["one", "no edges", "pair", "loop"],
)
def test_small_graphs(graph):
    nx.set_node_attributes(graph, "x", "label")
    assert pixels(plot_graph(graph)).std() > 1


def test_graphs_that_cannot_be_drawn(document_graph):
    data = document_graph()
    cases = [
        ((nx.Graph(),), {}, "'graph' must be an undirected simple graph with nodes"),
        ((nx.path_graph(3, nx.DiGraph),), {}, "Convert it with nx.Graph(graph)"),
        ((data,), {"color_by": "colour"}, "(got 'colour'). Known here: age, doc_id"),
        ((nx.path_graph(3),), {}, "Known here: none"),
        ((data,), {"max_nodes": 0}, "'max_nodes' must be at least 1 (got 0)"),
        ((to_networkx(data),), {"predicted": [1]}, "only go with a PyG graph"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            plot_graph(*arguments, **options)


def test_training_picture():
    figure = plot_training(HISTORY)
    assert legend(figure) == [
        "ce  ★ 0.400 at step 40",
        "gloss  ★ 0.800 at step 150",
        "total loss",
        "graph loss",
    ]
    left, right = figure.axes
    # The long run: faint points and running mean of the loss, running mean of the graph loss.
    assert [len(line.get_xdata()) for line in left.lines] == [5, 200, 200, 200]
    mean = left.lines[3].get_ydata()
    assert mean[100] == pytest.approx(np.linspace(3, 1, 200)[100])
    assert [len(line.get_xdata()) for line in right.lines] == [5, 1, 4, 1]
    assert left.lines[0].get_color() == right.lines[0].get_color() == PALETTE[0]


def test_training_picture_bears_gaps():
    rows = [{"loss": 3.0}, {"val_accuracy": "0.5", "loss": ""}, {"loss": float("inf")}, {"lr": 1}]
    figure = plot_training({"_a $b": rows, "empty": []})
    assert legend(figure) == ["_a $b  ★ 0.500 at step 1", "empty"]
    assert figure.axes[1].get_title(loc="left") == "Validation accuracy"
    nothing = plot_training({"empty": []})
    assert [axes.texts[0].get_text() for axes in nothing.axes] == ["nothing logged"]
    assert nothing.axes[0].texts[0].get_color() == GREY
    pixels(figure)
    with pytest.raises(ValueError, match="must hold at least one run"):
        plot_training({})
    with pytest.raises(ValueError, match="rows, dicts or a DataFrame"):
        plot_training({"loss": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"must hold numbers \(got 'x' for 'loss' of run 'a'\)"):
        plot_training({"a": [{"loss": "x"}]})


@pytest.mark.parametrize(
    ("row", "titles"),
    [
        ({"loss": 2.0, "graph_loss": 1.0}, ["Training loss"]),
        ({"val_macro_f1": 0.5}, ["Validation macro-F1"]),
    ],
)
def test_a_side_without_numbers_is_left_out(row, titles, tmp_path):
    figure = plot_training({"run": [{"step": step, **row} for step in (1, 2)]}, tmp_path / "a.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    assert not any(axes.texts for axes in figure.axes)
    check_picture(tmp_path / "a.png")


def test_stage_picture():
    figure = plot_stage_times(TIMES)
    assert legend(figure) == ["encoder", "search", "graph", "backward"]
    bars = [patch.get_width() for patch in figure.axes[0].patches]
    assert bars == pytest.approx([60, 20, 0, 30, 10, 10, 30, 40])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["60 %", "20 %", "30 %", "10 %", "10 %", "30 %", "40 %", "10.00 s", "1.00 s"]
    many = plot_stage_times({"$run_": {f"stage {i}": i for i in range(20)}, "idle": {}})
    assert len(legend(many)) == 20
    assert [text.get_text() for text in many.axes[0].texts][-2:] == ["3.2 min", "0 ms"]
    pixels(many)
    for bad in ({}, {"run": {}}):
        with pytest.raises(ValueError, match="must hold a run with a stage"):
            plot_stage_times(bad)
    with pytest.raises(ValueError, match=r"at least 0 \(got -1 for stage 'a' of run 'run'"):
        plot_stage_times({"run": {"a": -1}})
