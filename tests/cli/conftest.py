"""The command line in this process, a tiny encoder to give it, files to train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from training.tiny import CLASSES, MAX_LENGTH, tiny_corpus, tiny_encoder

from gloss_graph.cli import main


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    status: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line on stderr."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        return lines[0]


Command = Callable[..., Result]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command as in a narrow terminal without colours."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words: object) -> Result:
        capfd.readouterr()
        status = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder().save(tmp_path_factory.mktemp("encoder") / "tiny")


def rows(size: int, seed: int = 0) -> pd.DataFrame:
    corpus = tiny_corpus(size, seed=seed)
    return pd.DataFrame(
        {"text": corpus.texts, "label": [CLASSES[label] for label in corpus.labels]}
    )


def write(frame: pd.DataFrame, path: Path) -> Path:
    """The rows in the format the suffix names."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif ".jsonl" in path.name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A training and a test file."""
    folder = tmp_path / "data"
    folder.mkdir()
    return write(rows(36), folder / "train.csv"), write(rows(15, seed=1), folder / "test.csv")


def fast(encoder: Path, out: Path) -> list[str]:
    """Options of a short training."""
    options = {
        "--encoder": encoder,
        "--out": out,
        "--max-length": MAX_LENGTH,
        "--max-steps": 3,
        "--batch-size": 8,
        "--k": 4,
    }
    return [str(word) for pair in options.items() for word in pair]


@dataclass(frozen=True)
class Finished:
    """A run that several tests look at, and the words that made it."""

    words: list[str]
    folder: Path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    train = write(rows(36), folder / "train.csv")
    words = ["train", "--train", str(train), "--no-pictures"]
    words += fast(encoder_folder, folder / "run")
    assert main(words) == 0
    return Finished(words, folder / "run")
