"""`gloss-graph train --model` and `predict` of its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Command, rows, write

Files = tuple[Path, Path]
WORDS = ["--min-count", "1", "--no-stop-words"]


def test_a_text_gcn_run_leaves_a_whole_folder(
    command: Command, tmp_path: Path, files: Files
) -> None:
    out = tmp_path / "run"
    words = ["train", "--model", "text-gcn", "--train", files[0], "--test", files[1], *WORDS]
    result = command(*words, "--epochs", 3, "--out", out)
    assert result.status == 0, result.err
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "metrics.json", "history.csv", "labels_used.csv", "model"} <= names
    assert {"training.png", "report.html", "predictions.csv", "pictures"} <= names
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == config["loss"] == "text-gcn"
    assert config["text_gcn"]["epochs"] == 3
    assert config["text_gcn"]["learning_rate"] == 0.02
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "TextGCN (Yao et al. 2019)" in page
    assert "TextGCNConfig(" in page
    refused = command("predict", "--run", out, "--input", files[1], "--output", tmp_path / "p.csv")
    assert refused.status == 2
    assert "--unlabeled" in refused.complaint()
    assert "bert-gcn" in refused.complaint()


def test_bert_gcn_labels_new_documents_by_its_encoder(
    command: Command, encoder_folder: Path, tmp_path: Path, files: Files
) -> None:
    out, labels = tmp_path / "run", tmp_path / "p.csv"
    words = ["train", "--model", "bert-gcn", "--train", files[0], "--encoder", encoder_folder]
    words += [*WORDS, "--epochs", 1, "--fine-tune-epochs", 1, "--no-pictures", "--max-length", 12]
    words += ["--graph-weight", 0.5, "--bf16", "--freeze-layers", 1]
    result = command(*words, "--out", out)
    assert result.status == 0, result.err
    settings = json.loads((out / "config.json").read_text())["bert_gcn"]
    assert settings["graph_weight"] == 0.5
    assert settings["bf16"]
    assert settings["freeze_layers"] == 1
    new = write(rows(5, seed=7)[["text"]], tmp_path / "new.csv")
    predicted = command("predict", "--run", out, "--input", new, "--output", labels)
    assert predicted.status == 0, predicted.err
    assert list(pd.read_csv(labels).columns) == ["text", "label", "probability"]
    again = tmp_path / "q.csv"
    refused = command(
        "predict", "--run", out, "--input", new, "--output", again, "--rule", "poisson"
    )
    assert refused.status == 2
    assert "'--rule' must be left out" in refused.complaint()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "text-gcn", "--lora-rank", "4"], "'--lora-rank' must be left out"),
        (["--model", "text-gcn", "--encoder", "minilm"], "'--encoder' must be left out"),
        (["--model", "bert-gcn", "--k", "4"], "'--k' must be left out"),
        (["--model", "bert-gcn", "--loss", "ce"], "'--loss' must be left out"),
        (["--model", "text-gcn", "--text-b", "b"], "'--text-b' must be left out"),
        (["--model", "bert-gcn", "--encoder", "none"], "'encoder' must read texts"),
        (["--model", "text-gcn", "--epochs", "1.5"], "'epochs' must be whole"),
        (["--model", "gcn"], "'model' must be one of"),
        (["--window", "5"], "'--window' must be left out without --model"),
        (["--model", "text-gcn", "--min-count", "999"], "a word that is kept"),
    ],
)
def test_options_that_do_not_apply_are_refused_by_name(
    command: Command, tmp_path: Path, files: Files, words: list[str], message: str
) -> None:
    out = tmp_path / "run"
    result = command("train", "--train", files[0], "--out", out, *words)
    assert result.status == 2
    assert message in result.complaint()
    assert not out.exists()
