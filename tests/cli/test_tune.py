"""`gloss-graph tune` on small files: the search, its report and what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import typer

from gloss_graph.cli.app import app
from gloss_graph.training import TrainConfig

from .conftest import Command, rows, write

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

Paths = tuple[Path, Path]


def options(encoder: Path, files: Paths, out: Path, **more: object) -> list[str]:
    """Of a short search."""
    given: dict[str, object] = {
        "train": files[0],
        "encoder": encoder,
        "out": out,
        "max-length": 12,
        "max-steps": 2,
        "eval-steps": 2,
        "batch-size": 8,
        "trials": 2,
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return ["tune", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]


def test_a_search_from_files_to_a_command_that_repeats_it(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Paths
) -> None:
    out = tmp_path / "my tune"
    words = options(encoder_folder, files, out, test=files[1], seed=3)
    words += ["--params", "bandwidth", "visible_fraction", "graph_weight", "learning_rate"]
    words += ["--choice", "rule=harmonic,poisson", "--set", "k=4", "--set", "dropout=0.2"]
    result = command(*words)
    assert result.status == 0, result.err
    written = {path.name for path in out.iterdir()}
    assert written - {"importance.png"} == {
        "best.json",
        "history.png",
        "slices.png",
        "study.db",
        "study.json",
        "trials.csv",
    }
    assert ("importance.png" in written) != ("No importance.png" in result.out)
    best = json.loads((out / "best.json").read_text())
    assert list(best["params"]) == [
        "bandwidth",
        "visible_fraction",
        "graph_weight",
        "learning_rate",
        "rule",
    ]
    assert (best["config"]["k"], best["config"]["dropout"], best["config"]["seed"]) == (4, 0.2, 3)
    assert f"{100 * best['value']:.1f}" in result.out
    assert "Trials: 2 complete." in result.out
    line = result.out.splitlines()[-1]
    assert line == best["command"]
    assert shlex.split(line)[:2] == ["gloss-graph", "train"]

    again = command(*shlex.split(line)[1:])
    assert again.status == 0, again.err
    run = out / "best"
    stored, metrics = (
        json.loads((run / f"{name}.json").read_text()) for name in ("config", "metrics")
    )
    assert {name: stored[name] for name in best["config"]} == best["config"]
    assert metrics["val.macro_f1"] == best["value"]
    assert "test.macro_f1" in metrics


def test_the_best_settings_are_trained_and_tested_at_last(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Paths
) -> None:
    out = tmp_path / "tune"
    val = write(rows(12, seed=5), tmp_path / "val.csv")
    words = options(encoder_folder, files, out, val=val, test=files[1], loss="ce", trials=1)
    assert command(*words).status == 0
    assert not (out / "best").exists()
    result = command(*words, "--final")
    assert result.status == 0, result.err
    assert "No importance.png: it takes two complete trials" in result.out
    metrics = json.loads((out / "best" / "metrics.json").read_text())
    assert metrics["val.macro_f1"] == json.loads((out / "best.json").read_text())["value"]
    assert "test.macro_f1" in metrics
    assert not [name for name in pd.read_csv(out / "trials.csv") if name.startswith("test")]
    again = command(*words, "--final")
    assert again.status == 2
    assert "'final' must find no" in again.complaint()


def test_documents_without_label_and_a_loss_of_its_own(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Paths
) -> None:
    """Steps are not picked there, yet a tenth of the labels is held back to choose settings on."""
    rest = write(rows(12, seed=7)[["text"]], tmp_path / "rest.csv")
    out = tmp_path / "tune"
    words = options(encoder_folder, files, out, unlabeled=rest, loss="pseudo-label", trials=1)
    result = command(*words, "--keep-runs", "--metric", "val_propagation.accuracy")
    assert result.status == 0, result.err
    run = json.loads((out / "trials" / "0000" / "config.json").read_text())
    assert run["data"]["val"] == 4
    assert run["select"] == "last"
    best = json.loads((out / "best.json").read_text())
    assert list(best["params"]) == ["learning_rate", "consistency_weight"]
    assert shlex.join(["--unlabeled", str(rest)]) in best["command"]


def test_every_setting_is_an_option_of_train_with_the_same_default() -> None:
    """Or the printed command could not repeat it."""
    train = typer.main.get_command(app).commands["train"]
    options = train.get_params(typer.Context(train))
    defaults = {option.name: option.default for option in options}
    for field in fields(TrainConfig):
        assert defaults[field.name] == field.default, field.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--params", "sigma"], "'params' must be among ['alpha', 'anchor', 'bandwidth'"),
        (["--params", "bandwidth", "sigma,k"], "(got 'sigma')"),
        (["--range", "bandwidth=2:0.1:log"], "'low' must be below 'high' (got 2 and 0.1)"),
        (["--range", "colour=0:1"], "'colour' must be a setting of a training, one of ['loss'"),
        (["--choice", "rule=harmonic,magic"], "rule='magic' cannot be tried"),
        (["--choice", "rule=a", "--choice", "rule=b"], "(got 'rule' twice)"),
        (["--set", "k=4", "--params", "k"], "'k' must be either searched or fixed"),
        (["--set", "k=none"], "'k' must be a whole number (got 'none')"),
        (["--trials", "0"], "'trials' must be an integer of at least 1"),
        (["--timeout", "-1"], "'timeout'"),
        (["--metric", "test.accuracy"], "'metric' must be one of"),
        (["--storage", "sqlite:////no/such/folder/x.db"], "'storage' must be a database within"),
        (["--loss", "magic"], "'loss' must be one of"),
    ],
)
def test_bad_options(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: Paths,
    words: list[str],
    message: str,
) -> None:
    out = tmp_path / "tune"
    result = command(*options(encoder_folder, files, out), *words)
    assert result.status == 2
    assert result.out == ""
    assert message in result.complaint()
    assert not out.exists()


def test_too_few_documents_to_hold_some_back(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Paths
) -> None:
    train = tmp_path / "few.csv"
    train.write_text("text,label\na,x\nb,y\n")
    result = command(*options(encoder_folder, (train, files[1]), tmp_path / "tune"))
    assert result.status == 2
    assert "two documents or more to draw from" in result.complaint()
    assert not (tmp_path / "tune").exists()


def test_without_optuna(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: Paths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = command(*options(encoder_folder, files, tmp_path / "tune"))
    assert result.status == 2
    assert 'pip install "gloss-graph[tune]"' in result.complaint()


def test_when_every_trial_fails(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: Paths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", broken)
    out = tmp_path / "tune"
    result = command(*options(encoder_folder, files, out))
    assert result.status == 1
    lines = result.err.splitlines()
    assert lines[-1].startswith("RuntimeError: All trials failed, trial 1 by MemoryError: no room")
    assert any(line.startswith("trial 0: MemoryError: no room (bandwidth") for line in lines)
    assert "Traceback" not in result.err
    assert pd.read_csv(out / "trials.csv")["state"].tolist() == ["fail", "fail"]
