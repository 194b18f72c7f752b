"""`gloss-graph evaluate`: tables, files, picture and complaints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis.test_plots import check_picture
from training.made_runs import DATA, write_run, write_series

from gloss_graph.reports import evaluation_markdown, plot_evaluation
from gloss_graph.runs import compare_runs

from .conftest import Command

F1 = "test.macro_f1"
CE = {0: 0.600, 1: 0.640, 2: 0.610}
GLOSS = {0: 0.660, 1: 0.670, 2: 0.650, 4: 0.660}
FILES = {"runs.csv", "summary.csv", "tests.csv", "evaluation.md", "evaluation.png"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two arms over seeds, one of them with a number the other lacks."""
    root = tmp_path / "runs"
    write_series(root, "a", GLOSS, "gloss")
    write_series(root, "b", CE, "ce")
    write_run(root / "c", "ce", 4, {F1: 0.63, "test.accuracy": 0.9, "seconds.train": 61.0})
    return root


def test_table_of_two_arms(command: Command, runs: Path) -> None:
    result = command("evaluate", runs)
    assert (result.status, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert "R8, by seed against ce" in lines
    place = lines.index("test macro-F1, %")
    assert lines[place + 1] == "ce 4 62.0 ± 1.8"
    # Differences 0.06, 0.03, 0.04, 0.03.
    assert lines[place + 2] == "gloss 4 66.0 ± 0.8 +4.0 0.011 0.011"
    assert "ce 1 90.0" in lines
    assert "nan" not in result.out.lower()


def test_files_hold_the_same_numbers(command: Command, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    result = command("evaluate", runs, "--out", out)
    assert (result.status, result.err) == (0, "")
    assert f"Report: {out}\n" in result.out
    assert {path.name for path in out.iterdir()} == FILES
    expected = compare_runs([runs])
    for name in ("runs", "summary", "tests"):
        text = (out / f"{name}.csv").read_text()
        assert "nan" not in text.lower()
        pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), getattr(expected, name))
    check_picture(out / "evaluation.png")
    report = (out / "evaluation.md").read_text()
    assert "![Every run by metric and arm](evaluation.png)" in report
    assert "nan" not in report.lower()
    row = r"\| test macro-F1, % \| gloss \| 4 \| \+4.0 \| \+1.7 to \+6.3 \| 0.011 \| 0.011 "
    assert re.search(row, report)
    assert "| ce | 4 | 90.0 (n=1) | 62.0 ± 1.8 | 61.0 (n=1) |" in report
    assert "| gloss | 4 |  | 66.0 ± 0.8 |  |" in report
    widths = [line.replace("\\|", "").count("|") for line in report.splitlines()]
    tables = [group for group in "".join(chr(w + 32) for w in widths).split(" ") if group]
    assert len(tables) == 3, "arms, tests, runs"
    assert all(len(set(table)) == 1 for table in tables), "every row of a table has its columns"


def test_an_output_that_holds_files_is_refused(
    command: Command, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = command("evaluate", runs, "--out", tmp_path)
    assert result.status == 2
    assert "'out' must be a new or empty folder" in result.complaint()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "f1"], "'metrics' must be among those of the runs (got 'f1')"),
        (["--by", "lambda"], "'by' must name settings"),
        (["--by", "bf16"], "tell them apart with --by"),
        (["--baseline", "scl"], "'baseline' must be one of the arms 'gloss', 'ce'"),
        (["/nowhere"], "(/nowhere: there is no such folder)"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    command: Command, runs: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    result = command("evaluate", runs, "--out", out, *words)
    assert result.status == 2
    assert result.out == ""
    assert message in result.complaint()
    assert not out.exists()


def test_no_run_is_bad_usage(command: Command) -> None:
    result = command("evaluate")
    assert result.status == 2
    assert "gloss-graph evaluate --help" in result.complaint()


def test_options_reach_the_comparison(command: Command, tmp_path: Path) -> None:
    for seed in range(2):
        for k in (8, 16, 32):
            numbers = {F1: k / 100 + seed / 10, "steps": k, "head.C": 1.0}
            write_run(tmp_path / f"{k}-{seed}", "gloss", seed, numbers, k=k)
    words = ["--metric", "steps", "--metric", F1, "--by", "k", "--baseline", "k=8"]
    result = command("evaluate", tmp_path, *words)
    assert result.status == 0
    lines = [" ".join(line.split()) for line in result.out.splitlines() if line.strip()]
    assert lines[0] == "R8, by seed against k=8"
    assert lines.index("steps") < lines.index("test macro-F1, %")
    # Equal differences have no spread to test against.
    assert "k=16 2 16 ± 0 +8" in lines
    assert "head.C" not in result.out


def test_unfinished_runs_are_said(command: Command, runs: Path) -> None:
    stopped = runs / "stopped [red] run"
    (stopped / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    result = command("evaluate", runs)
    assert result.status == 0
    assert f"Not finished, left out: {stopped}\n" in result.out


@pytest.mark.parametrize("count", [1, 12])
def test_picture_of_few_and_many_arms(tmp_path: Path, count: int) -> None:
    for place in range(count):
        for seed in range(3):
            numbers = {F1: 0.5 + 0.01 * place + 0.02 * seed, "steps": 60}
            if place != 3:
                numbers["test.accuracy"] = 0.9
            folder = tmp_path / "runs" / f"{place:02d}-{seed}"
            write_run(folder, "gloss", seed, numbers, k=place + 1, rule="poisson")
    found = compare_runs([tmp_path / "runs"])
    figure = plot_evaluation(found, tmp_path / "picture.png")
    check_picture(tmp_path / "picture.png")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["test accuracy, %", "test macro-F1, %", "steps"]
    axes = panels[1]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == found.arms("R8")
    dots = [dots.get_offsets() for dots in axes.collections]
    assert [len(points) for points in dots] == [3] * count
    np.testing.assert_allclose(dots[-1][:, 0], 49 + count + np.array([0, 2, 4]))
    joined = [line for line in axes.lines if line.get_linewidth() == 0.8]
    assert len(joined) == 3, "one a seed"
    assert all(len(line.get_xdata()) == count for line in joined)
    # The interval of three seeds 0.02 apart: mean ± 2.484 standard deviations.
    bar = next(line for line in axes.lines if line.get_linewidth() == 2.2)
    low, high = axes.get_xlim()
    assert bar.get_xdata()[0] == pytest.approx(max(low, 52 - 2.4842 * 2), abs=1e-2)
    assert bar.get_xdata()[1] == pytest.approx(min(high, 52 + 2.4842 * 2), abs=1e-2)


def test_odd_names_are_shown_as_they_are(command: Command, tmp_path: Path) -> None:
    data = {**DATA, "name": "$a|b_[red]*c*"}
    root = tmp_path / "a|b"
    for loss, shift in {"ce": 0.0, "gloss": 0.01}.items():
        for seed in range(2):
            numbers = {F1: 0.5 + shift * (seed + 1)}
            write_run(root / f"{loss}{seed}", loss, seed, numbers, data=data)
    out = tmp_path / "out"
    result = command("evaluate", root, "--out", out)
    assert result.status == 0
    assert "$a|b_[red]*c*, by seed" in result.out
    report = (out / "evaluation.md").read_text()
    assert "## $a\\|b\\_\\[red\\]\\*c\\*\n" in report
    assert "a\\|b" in report.splitlines()[-2]


def test_blocks_stand_below_each_other(tmp_path: Path) -> None:
    for name in ("R8", "MR"):
        for loss in ("ce", "gloss"):
            data = {**DATA, "name": name}
            write_run(tmp_path / f"{name}-{loss}", loss, 0, {F1: 0.5}, data=data)
    found = compare_runs([tmp_path])
    figure = plot_evaluation(found)
    assert [part.get_suptitle() for part in figure.subfigs] == ["MR", "R8"]
    report = evaluation_markdown(found)
    assert report.index("## MR") < report.index("## R8") < report.index("## Runs")
    assert "![" not in report
