"""Pictures of a search: what is drawn where, and from a table read back from its file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gloss_graph._internal.settings import Choice, Range
from gloss_graph.studies import plot_importance, plot_slices, plot_tuning

TRIALS = pd.DataFrame(
    {
        "number": [0, 1, 2, 3, 4],
        "state": ["complete", "fail", "complete", "pruned", "complete"],
        "value": [0.6, None, 0.8, 0.3, 0.7],
        "bandwidth": [0.2, 1.0, 0.5, 9.0, 3.0],
        "rule": ["poisson", "harmonic", "harmonic", "poisson", "poisson"],
        "memory_size": [None, 64, 128, 64, None],
        "class_balance": [True, False, False, True, True],
        "k": [4, 8, 12, 16, 8],
    }
)
SPACE = {
    "bandwidth": Range(0.1, 10.0, log=True),
    "rule": Choice(["harmonic", "poisson"]),
    "memory_size": Choice([None, 64, 128]),
    "class_balance": Choice([False, True]),
    "k": Range(4, 16, step=4),
}


def test_the_course_of_a_search(tmp_path: Path) -> None:
    axes = plot_tuning(TRIALS, tmp_path / "history.png").axes[0]
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    pruned, complete, best = axes.lines
    assert pruned.get_xydata().tolist() == [[3.0, 0.3]]
    assert complete.get_xydata().tolist() == [[0.0, 0.6], [2.0, 0.8], [4.0, 0.7]]
    assert best.get_ydata().tolist() == [0.6, 0.8, 0.8, 0.8]
    assert best.get_xdata()[-1] == 4
    assert axes.get_title(loc="left") == "Trials: 3 complete, 1 pruned"


@pytest.mark.parametrize("read_back", [False, True])
def test_a_panel_a_setting(tmp_path: Path, read_back: bool) -> None:
    trials = TRIALS
    if read_back:
        TRIALS.to_csv(tmp_path / "trials.csv", index=False)
        trials = pd.read_csv(tmp_path / "trials.csv")
    figure = plot_slices(trials, SPACE, tmp_path / "slices.png", metric="val.accuracy")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == list(SPACE)
    assert [axes.get_ylabel() for axes in panels] == ["val.accuracy", "", "", "", "val.accuracy"]
    assert [axes.get_xscale() for axes in panels] == ["log", *["linear"] * 4]
    stars = [axes.lines[1].get_xydata().tolist() for axes in panels]
    assert stars == [[[x, 0.8]] for x in (0.5, 0.0, 2.0, 0.0, 12.0)]
    dots = panels[2].collections[0].get_offsets().tolist()
    assert dots == [[0.0, 0.6], [2.0, 0.8], [0.0, 0.7]]
    words = [label.get_text() for label in panels[2].get_xticklabels()]
    assert words == ["None", "64", "128"]


def test_importance_is_ordered() -> None:
    axes = plot_importance({"k": 0.2, "bandwidth": 0.7, "rule": 0.1}, trials=9).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rule", "k", "bandwidth"]
    assert "9 complete trials" in axes.get_title(loc="left")


def test_nothing_to_draw() -> None:
    empty = TRIALS[TRIALS["state"] == "fail"]
    for draw in (plot_tuning, lambda trials: plot_slices(trials, SPACE)):
        with pytest.raises(ValueError, match="'trials' must hold one with a value"):
            draw(empty)
    with pytest.raises(ValueError, match="'space' must hold"):
        plot_slices(TRIALS, {})
    with pytest.raises(ValueError, match="'importance' must hold"):
        plot_importance({}, trials=1)
    assert plot_tuning(TRIALS[TRIALS["state"] == "pruned"]).axes
