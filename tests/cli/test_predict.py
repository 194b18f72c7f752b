"""`gloss-graph train` with few labels and `gloss-graph predict`, through files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cli.conftest import Command, rows, write
from cli.test_train import fast, run_of

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")
FEW = ["--labels-per-class", 3, "--unlabeled-batch-size", 4, "--no-pictures"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A run with few labels."""
    from gloss_graph.cli import main

    folder = tmp_path_factory.mktemp("few")
    train = write(rows(36), folder / "train.csv")
    words = [
        "train",
        "--train",
        train,
        *FEW,
        "--no-pictures",
        *fast(encoder_folder, folder / "run"),
    ]
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def test_predictions_have_labels_confidence_and_reasons(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    source = write(rows(7, seed=5), tmp_path / "new.jsonl")
    out = tmp_path / "labels.csv"
    result = command("predict", "--run", trained, "--input", source, "--output", out)
    assert result.status == 0, result.err
    frame = pd.read_csv(out)
    assert frame["text"].tolist() == rows(7, seed=5)["text"].tolist()
    assert set(frame["label"]) <= {"graphs", "labels", "numbers"}
    assert frame["probability"].between(1 / 3, 1).all()
    assert frame["confidence"].between(0, 1).all()
    used = pd.read_csv(trained / "labels_used.csv").set_index("id")
    assert len(used) == 9
    named = frame["reason_1_id"].dropna().astype(int)
    assert len(named) > 0
    assert used.loc[named, "text"].tolist() == frame.loc[named.index, "reason_1_text"].tolist()
    assert (frame["reason_1_share"] >= frame["reason_2_share"]).all()
    again = command("predict", "--run", trained, "--input", source, "--output", out)
    assert again.status == 2
    assert "'output' must not exist" in again.complaint()


def test_both_modes_and_the_learned_view_alone(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    source = write(rows(9, seed=6), tmp_path / "new.csv")
    seen = {}
    for name, words in {
        "inductive": [],
        "transductive": ["--mode", "transductive"],
        "learned": ["--anchor", 0],
    }.items():
        out = tmp_path / f"{name}.csv"
        words = ["--run", trained, "--input", source, "--output", out, *words]
        assert command("predict", *words).status == 0
        seen[name] = pd.read_csv(out)["probability"].tolist()
    assert seen["inductive"] != seen["transductive"]
    assert seen["inductive"] != seen["learned"]


def test_a_file_without_labels_joins_and_its_label_column_is_not_read(
    command: Command, encoder_folder: Path, tmp_path: Path
) -> None:
    train = write(rows(12), tmp_path / "train.csv")
    more = write(rows(20, seed=3), tmp_path / "more.csv")
    out = tmp_path / "run"
    words = ["--train", train, "--unlabeled", more, "--unlabeled-batch-size", 4, "--no-pictures"]
    result = command("train", *words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    assert "is not read" in result.out.replace("\n", " ")
    config, _ = run_of(out)
    # Nothing is held back to pick a step.
    assert len(pd.read_csv(out / "labels_used.csv")) == 12
    assert config["data"]["train"] == 12 + 20
    assert config["select"] == "last"


def test_no_unlabeled_documents_is_said_once(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    words = ["train", "--train", files[0], "--no-pictures"]
    result = command(*words, *fast(encoder_folder, tmp_path / "run"))
    assert result.status == 0
    said = " ".join(result.out.split())
    assert said.count("No unlabeled documents") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels-per-class", 2, "--label-fraction", 0.1], "either 'label_fraction'"),
        (["--label-fraction", 0], "'label_fraction' must be in"),
        (["--unlabeled", "missing.csv"], "'path' must be a file"),
    ],
)
def test_bad_few_label_options(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    words: list[object],
    message: str,
) -> None:
    result = command("train", "--train", files[0], *words, *fast(encoder_folder, tmp_path / "out"))
    assert result.status == 2
    assert message in result.complaint()


def test_bad_runs_and_modes(command: Command, trained: Path, tmp_path: Path) -> None:
    source = write(rows(3), tmp_path / "new.csv")
    out = tmp_path / "out.csv"
    empty = tmp_path / "empty"
    empty.mkdir()
    result = command("predict", "--run", empty, "--input", source, "--output", out)
    assert result.status == 2
    assert "'run' must be a folder written by gloss-graph train" in result.complaint()
    words = ["--run", trained, "--input", source, "--output", out, "--mode", "both"]
    result = command("predict", *words)
    assert result.status == 2
    assert not out.exists()
