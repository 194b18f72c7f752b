"""Pictures of embeddings, similarities and graphs before and after a training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import homophily

from gloss_graph.export import edge_homophily
from gloss_graph.graph import build_document_graph
from gloss_graph.visualization import plot_embeddings, plot_graph_change, plot_similarities
from gloss_graph.visualization.style import PALETTE, class_looks

from .test_plots import check_picture, legend, pixels

NAMES = [f"_{i} $x <script>" for i in range(60)]
Case = tuple[Tensor, Tensor, Tensor]
Plot = Callable[..., Figure]


def clouds(size: int, classes: int, *, dim: int = 8, seed: int = 0) -> Case:
    """Documents before (noise) and after (classes apart), with labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % classes
    noise = torch.randn(size, dim, generator=generator)
    centers = torch.randn(classes, dim, generator=generator)
    return noise, 0.2 * noise + centers[labels], labels


def similarities(before: Tensor, after: Tensor, labels: Tensor, *args: Any, **names: Any) -> Figure:
    return plot_similarities({"start": before, "end": after}, labels, *args, **names)


PLOTS: dict[str, Plot] = {
    "embeddings": plot_embeddings,
    "graph": plot_graph_change,
    "similarities": similarities,
}


@pytest.fixture(params=list(PLOTS))
def plot(request: pytest.FixtureRequest) -> Plot:
    return PLOTS[request.param]


# ------------------------------------------------------------------ every picture


@pytest.mark.parametrize(("size", "classes"), [(30, 1), (60, 30), (2, 2), (1, 1)], ids=str)
def test_any_number_of_classes_and_documents(
    plot: Plot, size: int, classes: int, tmp_path: Path
) -> None:
    before, after, labels = clouds(size, classes)
    plot(before, after, labels, tmp_path / "picture.png", label_names=NAMES)
    assert 255 * imread(tmp_path / "picture.png")[..., :3].std() > 3


def test_a_picture_is_saved_whole_and_again_the_same(plot: Plot, tmp_path: Path) -> None:
    case = clouds(40, 3)
    for name in ("one.png", "other.png"):
        plot(*case, tmp_path / name, label_names=NAMES)
    check_picture(tmp_path / "one.png", 0.8)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    plot(*clouds(40, 3, seed=1), tmp_path / "one.png", label_names=NAMES)  # replaces
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_unlabeled_documents_and_equal_rows(plot: Plot) -> None:
    before, _, labels = clouds(24, 3)
    labels[::4] = -1
    pixels(plot(before, torch.ones(24, 1), labels))
    pixels(plot(before, before.bfloat16(), torch.full((24,), -1)))
    pixels(plot(torch.zeros(24, 2), before, labels.int()))


def test_bad_input(plot: Plot) -> None:
    before, after, labels = clouds(12, 3)
    holed = after.clone()
    holed[3, 0] = float("nan")
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((before, after[:5], labels), {}, ValueError, "the same documents"),
        ((before[:0], after[:0], labels[:0]), {}, ValueError, "at least one"),
        ((before, holed, labels), {}, ValueError, "NaN or inf in 1 of 12 rows"),
        ((before, after, labels[:5]), {}, ValueError, "'labels' must have shape (12,)"),
        ((before, after, labels.float()), {}, ValueError, "must be an integer tensor"),
        ((before, after, labels), {"label_names": ["a"]}, ValueError, "(got 1 names for class 2)"),
        ((before, after.long(), labels), {}, ValueError, "floating point"),
        ((before, after.numpy(), labels), {}, TypeError, "must be a torch.Tensor"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=re.escape(message)):
            plot(*arguments, **options)


def test_arguments_out_of_range() -> None:
    case = clouds(12, 3)
    with pytest.raises(ValueError, match="'max_documents' must be"):
        plot_embeddings(*case, max_documents=0)
    with pytest.raises(ValueError, match="'k' must be"):
        plot_graph_change(*case, k=0)
    with pytest.raises(ValueError, match="'moments' must hold at least one"):
        plot_similarities({}, case[2])


# ------------------------------------------------------------------ classes and samples


def test_looks_of_few_and_many_classes() -> None:
    few = class_looks(np.arange(20), NAMES)
    assert [look.name for look in few] == [f"_{i} $x <script>" for i in range(20)]
    assert len({(look.color, look.marker) for look in few}) == 20
    labels = np.repeat(np.arange(30), np.arange(1, 31))
    many = class_looks(np.append(labels, -1), None)
    assert [look.name for look in many[:16]] == [str(i) for i in range(14, 30)]
    assert [look.name for look in many[16:]] == ["14 other classes", "unlabeled"]
    assert sum(look.members.sum() for look in many) == labels.size + 1
    assert many[-1].hollow
    assert many[16].color not in PALETTE


@pytest.mark.parametrize("plot", [plot_embeddings, plot_graph_change])
def test_a_sample_says_so_and_names_its_classes(plot: Plot) -> None:
    before, after, labels = clouds(80, 3)
    labels[:7] = -1
    figure = plot(before, after, labels, label_names=NAMES, max_documents=40, title="$My_")
    assert figure.get_suptitle() == "$My_ · 40 of 80 documents"
    counts = [int(re.search(r"\((\d+)\)", word)[1]) for word in legend(figure)[:4]]
    assert sum(counts) == 40
    assert legend(figure)[3].startswith("unlabeled")
    assert legend(figure)[0].startswith("_0 $x <script>")
    pixels(figure)
    assert " of 80" not in plot(before, after, labels, max_documents=80).get_suptitle()


# ------------------------------------------------------------------ t-SNE


def dots(figure: Figure, panel: int) -> np.ndarray:
    return np.concatenate([np.asarray(c.get_offsets()) for c in figure.axes[panel].collections])


def test_classes_that_part_are_seen_to_part() -> None:
    before, after, labels = clouds(90, 3)
    figure = plot_embeddings(before, after, labels)

    def spread(panel: int) -> float:
        """Distance between class means against that within classes."""
        groups = [np.asarray(c.get_offsets()) for c in figure.axes[panel].collections]
        means = np.array([group.mean(axis=0) for group in groups])
        inner = np.mean([group.std() for group in groups])
        return float(np.linalg.norm(means - means.mean(axis=0), axis=1).mean() / inner)

    assert spread(1) > 3 * spread(0)


def test_the_seed_and_a_turn() -> None:
    before, _, labels = clouds(50, 3)
    figure = plot_embeddings(before, before, labels)
    np.testing.assert_allclose(dots(figure, 0) - dots(figure, 0).mean(axis=0), dots(figure, 1))
    again = plot_embeddings(before, before, labels)
    assert np.array_equal(dots(again, 0), dots(figure, 0))


def test_the_panels_lie_alike() -> None:
    """A mirrored space gives the same neighbors; the right panel is turned back."""
    before, _, labels = clouds(50, 3)
    figure = plot_embeddings(before, before * torch.tensor([-1.0] + [1.0] * 7), labels)
    first, second = (dots(figure, panel) - dots(figure, panel).mean(axis=0) for panel in (0, 1))
    turn, _, other = np.linalg.svd(second.T @ first)
    np.testing.assert_allclose(turn @ other, np.eye(2), atol=1e-6)


# ------------------------------------------------------------------ similarities


def tables(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_similarities_are_sorted_and_share_a_scale() -> None:
    labels = torch.tensor([1, 0, 1, -1, 0])
    rows = torch.eye(2)[[1, 0, 1, 1, 0]]
    moments = {"start": rows, "step 1": rows.flip(1) * 3, "end": torch.ones(5, 4)}
    figure = plot_similarities(moments, labels, label_names=["a_", "$b"])
    first, second, last = tables(figure)
    expected = np.zeros((5, 5))
    expected[:2, :2] = expected[2:, 2:] = 1
    np.testing.assert_allclose(first, expected, atol=1e-12)
    np.testing.assert_allclose(second, expected, atol=1e-12)
    np.testing.assert_allclose(last, 1)
    panels = [axes for axes in figure.axes if axes.images]
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 1.0)}
    assert [axes.get_title(loc="left").splitlines() for axes in panels] == [
        ["start", "within classes 1.00 · between 0.00"],
        ["step 1", "within classes 1.00 · between 0.00"],
        ["end", "within classes 1.00 · between 1.00"],
    ]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["a_", "$b", "unlabeled"]
    assert [len(axes.get_yticks()) for axes in panels] == [3, 0, 0]
    assert sorted(
        {line.get_ydata()[0] for line in panels[0].lines if line.get_xdata()[1] == 1}
    ) == [
        1.5,
        3.5,
    ]
    pixels(figure)


def test_panels_of_many_moments() -> None:
    before, _, labels = clouds(64, 30)
    figure = plot_similarities({f"step {i}": before for i in range(7)}, labels)
    assert len(tables(figure)) == 7
    assert len({axes.get_position().x0 for axes in figure.axes if axes.images}) >= 3
    # Thirty classes of two or three rows: names only where a line of type fits.
    assert len(figure.axes[0].get_yticks()) < 30
    pixels(figure)


# ------------------------------------------------------------------ graphs


def test_homophily_is_that_of_pyg_on_labeled_ends() -> None:
    before, _, labels = clouds(50, 3)
    data = build_document_graph(before, labels, k=5)
    assert edge_homophily(data) == pytest.approx(homophily(data.edge_index, labels, method="edge"))
    labels[:10] = -1
    data.y = labels
    ends = labels[data.edge_index]
    keep = (ends >= 0).all(dim=0)
    expected = homophily(data.edge_index[:, keep], labels, method="edge")
    assert edge_homophily(data) == pytest.approx(expected)
    nothing = Data(edge_index=torch.zeros(2, 0, dtype=torch.long), y=labels)
    assert np.isnan(edge_homophily(nothing))


def test_headings_and_edges_of_the_graphs() -> None:
    before, after, labels = clouds(60, 3)
    figure = plot_graph_change(before, after, labels, k=4, drawn=60)
    data = build_document_graph(before, labels, k=4)
    share = 100 * edge_homophily(data)
    head = figure.axes[0].get_title(loc="left").splitlines()
    assert head == [
        f"before training · k = 4 · {data.edge_index.size(1) // 2} edges",
        f"{share:.1f} % of the edges within a class ({100 * 19 / 59:.1f} % by chance)",
    ]
    assert "\n100.0 % of the edges within a class" in figure.axes[1].get_title(loc="left")
    lines = [
        [c for c in axes.collections if hasattr(c, "get_segments")] for axes in figure.axes[:2]
    ]
    found = [len(c.get_segments()) for c in lines[0]]
    same = labels[data.edge_index[0]] == labels[data.edge_index[1]]
    assert found == [int(same.sum()) // 2, int((~same).sum()) // 2]
    assert len(lines[1]) == 1  # nothing joins two classes any more
    assert legend(figure)[3:] == ["edge within a class", "edge between classes"]


def test_few_edges_are_drawn_and_classes_named() -> None:
    before, after, labels = clouds(60, 3)
    figure = plot_graph_change(before, after, labels, k=4, label_names=["a", "$b", "c"])
    data = build_document_graph(before, labels, k=4)
    heaviest = {
        tuple(sorted(data.edge_index[:, edge].tolist()))
        for node in range(60)
        for edge in sorted(
            (data.edge_index[0] == node).nonzero().flatten().tolist(),
            key=lambda edge: -float(data.edge_weight[edge]),
        )[:2]
    }
    head = figure.axes[0].get_title(loc="left").splitlines()[0]
    assert head.endswith(f"{data.edge_index.size(1) // 2} edges, {len(heaviest)} drawn")
    lines = [c for c in figure.axes[0].collections if hasattr(c, "get_segments")]
    assert sum(len(c.get_segments()) for c in lines) == len(heaviest)
    for axes in figure.axes[:2]:
        assert {text.get_text() for text in axes.texts} == {"a", "$b", "c"}
    with pytest.raises(ValueError, match="'drawn' must be an integer of at least 1"):
        plot_graph_change(before, after, labels, drawn=0)


def test_a_graph_without_labels() -> None:
    before, after, _ = clouds(20, 2)
    figure = plot_graph_change(before, after, torch.full((20,), -1))
    assert "no edge with two labeled ends" in figure.axes[0].get_title(loc="left")
    assert legend(figure) == ["unlabeled (20)", "edge with an unlabeled end"]


def test_the_words_of_a_class_stand_below_its_name() -> None:
    before, after, labels = clouds(60, 3)
    texts = [["hot tea", "fast train", "old book"][n] + " and more" for n in labels.tolist()]
    names = ["drink", "rail", "read"]
    figure = plot_graph_change(before, after, labels, k=4, label_names=names, texts=texts)
    for axes in figure.axes[:2]:
        at = {text.get_text(): text.get_position() for text in axes.texts}
        assert set(at) == {*names, "hot, tea", "fast, train", "book, old"}
        for name, words in zip(names, ["hot, tea", "fast, train", "book, old"], strict=True):
            assert at[words][0] == at[name][0]
            assert at[words][1] < at[name][1]
    # Names that are shortened to the same keep their own words.
    long = [f"a name of which the {part} is cut away and the end is the same" for part in "xyz"]
    figure = plot_graph_change(before, after, labels, k=4, label_names=long, texts=texts)
    assert {"hot, tea", "fast, train", "book, old"} < {t.get_text() for t in figure.axes[1].texts}
    with pytest.raises(ValueError, match="'groups' must hold one per document"):
        plot_graph_change(before, after, labels, texts=["one"])
