"""Legends keep to their room; letters that a font lacks are said once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from matplotlib.lines import Line2D

from gloss_graph import build_document_graph
from gloss_graph.visualization import plot_communities, plot_stage_times
from gloss_graph.visualization.style import add_legend, new_figure, shortened, text_width

NAMES = [f"{i} questions about international shipping and customs"[:40] for i in range(20)]


def test_panels_of_a_map_keep_their_width() -> None:
    labels = torch.arange(60) % 20
    data = build_document_graph(torch.eye(20)[labels], labels, k=3)
    figure = plot_communities(data, label_names=NAMES)
    figure.canvas.draw()
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes]
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert boxes[0].x1 <= panels[1].x0
    assert all(panel.width > 0.4 * figure.bbox.width for panel in panels)
    assert all(box.y1 <= panel.y0 for box, panel in zip(boxes, panels, strict=True))


@pytest.mark.parametrize("names", [NAMES, ["a"] * 20, ["W" * 200, "a"], ["標" * 40] * 20])
def test_a_legend_takes_no_more_than_its_room(names: list[str]) -> None:
    figure = new_figure(8, 6)
    entries = [(Line2D([], []), name) for name in names]
    legend = add_legend(figure, entries, room=5.0, columns=4, loc="upper left")
    with pytest.warns(UserWarning, match="missing") if "標" in names[0] else nullcontext():
        figure.canvas.draw()
    assert legend.get_window_extent().width / figure.dpi <= 5.15


def test_classes_whose_names_differ_at_the_end_only_are_told_apart() -> None:
    names = [f"customer questions about customs, category {i:02d}" for i in range(20)]
    labels = torch.arange(60) % 20
    data = build_document_graph(torch.eye(20)[labels], labels, k=3)
    legend = plot_communities(data, label_names=names).axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert [text[-6:-4] for text in shown] == [f"{i:02d}" for i in range(20)], shown
    handles = {(h.get_marker(), h.get_markerfacecolor()) for h in legend.legend_handles}
    assert len(handles) == 20


def test_stages_stay_in_their_picture() -> None:
    figure = plot_stage_times({"run": dict.fromkeys(NAMES[:11], 1.0)})
    figure.canvas.draw()
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_shortened_keeps_the_count() -> None:
    text = shortened("a name of forty characters and some (12)", 10, 1.5)
    assert text.endswith(" (12)")
    assert "…" in text
    assert text_width(text, 10) <= 1.5
    assert shortened("short", 10, 1.5) == "short"


def test_a_font_that_lacks_letters_is_named_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="lacks letters") as caught:
        plot_stage_times({"標準化": {"検索": 1.0, "伝播": 2.0}}, tmp_path / "stages.png")
    assert [str(one.message).partition(" lacks")[0] for one in caught] == ["The font 'DejaVu Sans'"]
