"""`gloss-graph train --multilabel` and `predict` on files of several labels a document."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cli.conftest import Command, fast, rows, write
from cli.test_train import run_of


def several(size: int, seed: int = 0) -> pd.DataFrame:
    frame = rows(size, seed)
    long = frame["text"].str.split().str.len() > 6
    frame["label"] = frame["label"].where(~long, frame["label"] + "; long")
    return frame


@pytest.mark.parametrize("separator", [";", "/"])
def test_train_predict_and_report(
    command: Command, encoder_folder: Path, tmp_path: Path, separator: str
) -> None:
    frame = several(36)
    frame["label"] = frame["label"].str.replace(";", separator)
    train = write(frame, tmp_path / "train.csv")
    frame = several(15, seed=1)
    frame["label"] = frame["label"].str.split("; ")
    test = write(frame, tmp_path / "test.jsonl")
    out = tmp_path / "run"
    words = ["--multilabel", "--separator", separator, *fast(encoder_folder, out)]
    result = command("train", "--train", train, "--test", test, *words)
    assert result.status == 0, result.err
    assert "micro-F1" in result.out
    assert "no pictures" in result.out
    config, metrics = run_of(out)
    assert config["data"]["classes"] == ["graphs", "labels", "long", "numbers"]  # type: ignore[index]
    assert config["bank"]["multilabel"] is True  # type: ignore[index]
    assert {"test.micro_f1", "test.macro_f1", "test.subset_accuracy"} <= metrics.keys()
    page = (out / "report.html").read_text()
    assert "exact sets" in page
    assert "separator=" in page

    labels = tmp_path / "labels.csv"
    result = command("predict", "--run", out, "--input", test, "--output", labels)
    assert result.status == 0, result.err
    found = pd.read_csv(labels, keep_default_na=False)
    names = ["graphs", "labels", "long", "numbers"]
    table = found[[f"probability[{name}]" for name in names]]
    assert table.to_numpy().min() > 0
    assert table.to_numpy().max() < 1
    expected = [
        separator.join(name for name, p in zip(names, row, strict=True) if p >= 0.5) or separator
        for row in table.to_numpy()
    ]
    assert found["labels"].tolist() == expected
    assert {"linear_labels", "linear_probability[long]", "reason_1_text"} <= set(found)


def test_losses_for_one_class_are_refused(
    command: Command, encoder_folder: Path, tmp_path: Path
) -> None:
    train, out = write(several(12), tmp_path / "train.csv"), tmp_path / "run"
    words = ["--multilabel", "--loss", "setfit", *fast(encoder_folder, out)]
    result = command("train", "--train", train, *words)
    assert result.status == 2
    assert "'loss' must be one of ['ce', 'gloss'] for label sets" in result.complaint()
    assert not out.exists()
