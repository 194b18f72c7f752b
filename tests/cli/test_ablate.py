"""`gloss-graph ablate`: settings from a file and from the command line, as `train` takes them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .conftest import MAX_LENGTH, Command

Files = tuple[Path, Path]


def study(tmp_path: Path, files: Files) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(
        "factors: {graph: {hops: [1, 2]}}\n"
        "baseline: {max_steps: 1, graph: {k: 4}, batch_size: 8}\n"
        f"train: {files[0]}\ntest: {files[1]}\nmax_length: {MAX_LENGTH}\nseeds: 1\n"
    )
    return file


def test_settings_come_from_config_study_and_set(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Files
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("graph: {k: 9}\npropagation.eta: 0.5\nbatch_size: 16\n")
    words = ["ablate", study(tmp_path, files), "--encoder", encoder_folder, "--dry-run"]
    words += ["--config", config, "--set", "batch_size=12", "--out", tmp_path / "out"]
    result = command(*words)
    assert result.status == 0, result.err
    (fixed,) = [line for line in result.out.splitlines() if line.startswith("Fixed: ")]
    assert sorted(fixed.removeprefix("Fixed: ").rstrip(".").split(", ")) == [
        "batch_size=12",
        "eta=0.5",
        "k=4",
        "max_steps=1",
    ]
    assert "hops" in result.out
    assert "Time left: about" in result.out


def test_bad_settings_are_refused_first(command: Command, tmp_path: Path, files: Files) -> None:
    words = ["ablate", study(tmp_path, files), "--out", tmp_path / "out"]
    for more, message in (
        (["--set", "graf.k=2"], "Did you mean 'graph'?"),
        (["--set", "k=2", "--set", "graph.k=3"], "(got 'k' twice)"),
        (["--config", tmp_path / "no.yaml"], "no.yaml must be a YAML file (it does not exist)"),
    ):
        result = command(*words, *more)
        assert result.status == 2
        assert message in result.complaint()
    assert not (tmp_path / "out").exists()


def test_without_optuna_no_document_is_read(
    command: Command, tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ablate", study(tmp_path, files), "--out", tmp_path / "out"]
    files[0].write_text("damaged")
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = command(*words)
    assert result.status == 2
    assert 'pip install "gloss-graph[tune]"' in result.complaint()
