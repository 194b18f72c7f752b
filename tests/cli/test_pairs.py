"""Pairs of texts (question and sentence) from files to predictions, and runs of odd data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from text.tiny_models import WORDS, build_model, build_tokenizer

from gloss_graph.text.checkpoints import quiet_transformers

from .conftest import Command, Finished, fast, rows, write
from .test_train import run_of

COLUMNS = ["--text", "question", "--text-b", "sentence"]


def questions(size: int, seed: int) -> pd.DataFrame:
    """A sentence answers its question if it names the question's word."""
    source = random.Random(seed)
    table = []
    for number in range(size):
        word = source.choice(WORDS)
        others = [other for other in WORDS if other != word]
        sentence = source.sample(others, 4)
        if number % 2:
            sentence[source.randrange(4)] = word
        label = ["not_entailment", "entailment"][number % 2]
        table.append((f"the {word}", " ".join(sentence), label))
    return pd.DataFrame(table, columns=["question", "sentence", "label"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pairs."""
    from gloss_graph.cli import main

    folder = tmp_path_factory.mktemp("pairs")
    with quiet_transformers():
        build_model("bert").save_pretrained(folder / "encoder")
        build_tokenizer("bert").save_pretrained(folder / "encoder")
    train = write(questions(30, 0), folder / "train.tsv")
    test = write(questions(12, 1), folder / "test.tsv")
    words = ["train", "--train", train, "--test", test, *COLUMNS, "--max-length", 24]
    words += ["--no-pictures", *fast(folder / "encoder", folder / "run")]
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def test_predictions_of_pairs(command: Command, trained: Path, tmp_path: Path) -> None:
    """Both texts reach the encoder, the predictions and their reasons."""
    config, metrics = run_of(trained)
    assert config["data"]["classes"] == ["entailment", "not_entailment"]
    assert config["data"]["pairs"] is True
    assert 0 <= metrics["test.accuracy"] <= 1
    frame = questions(9, 2)
    source = write(frame.drop(columns="label"), tmp_path / "new.csv")
    out = tmp_path / "labels.csv"
    words = ["predict", "--run", trained, "--input", source]
    result = command(*words, *COLUMNS, "--output", out)
    assert result.status == 0, result.err
    found = pd.read_csv(out)
    assert found["text"].tolist() == frame["question"].tolist()
    assert found["text_b"].tolist() == frame["sentence"].tolist()
    assert set(found["label"]) <= {"entailment", "not_entailment"}
    used = pd.read_csv(trained / "labels_used.csv").set_index("id")
    assert list(used.columns) == ["label", "text", "text_b"]
    named = found["reason_1_id"].dropna().astype(int)
    assert len(named) > 0
    for column in ("text", "text_b"):
        expected = found.loc[named.index, f"reason_1_{column}"].tolist()
        assert used.loc[named, column].tolist() == expected

    turned = tmp_path / "turned.csv"
    columns = ["--text", "sentence", "--text-b", "question"]
    assert command(*words, *columns, "--output", turned).status == 0
    assert pd.read_csv(turned)["linear_probability"].tolist() != (
        found["linear_probability"].tolist()
    )


def test_single_texts_for_a_run_on_pairs(command: Command, trained: Path, tmp_path: Path) -> None:
    source = write(questions(3, 2), tmp_path / "new.csv")
    words = ["predict", "--run", trained, "--input", source, "--output", tmp_path / "out.csv"]
    result = command(*words, "--text", "question")
    assert result.status == 2
    assert "'--text-b' must name the column of second texts" in result.complaint()
    result = command(*words, "--text", "question", "--text-b", "answer")
    assert result.status == 2
    assert "answer" in result.complaint()
    assert not (tmp_path / "out.csv").exists()


def test_pairs_for_a_run_on_single_texts(
    command: Command, finished: Finished, tmp_path: Path
) -> None:
    out = finished.folder
    assert "pairs" not in run_of(out)[0]["data"]
    source = write(questions(3, 2), tmp_path / "new.csv")
    words = ["predict", "--run", out, "--input", source, "--output", tmp_path / "labels.csv"]
    result = command(*words, *COLUMNS)
    assert result.status == 2
    assert "'--text-b' must be left out" in result.complaint()


# ------------------------------------------------------------------ odd data and settings


def test_a_class_with_one_document(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    """Trained on and scored; where a silhouette is no number JSON says null, tables nothing."""
    lone = pd.DataFrame({"text": ["one walks"], "label": ["poems"]})
    train = write(pd.concat([rows(30), lone]), tmp_path / "train.csv")
    test = write(rows(3, seed=2), tmp_path / "test.csv")
    out = tmp_path / "run"
    words = ["train", "--train", train, "--val", files[1], "--test", test, "--no-pictures"]
    result = command(*words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    config, metrics = run_of(out)
    assert config["data"]["classes"] == ["graphs", "labels", "numbers", "poems"]
    assert metrics["test.macro_silhouette"] is None
    assert metrics["test.micro_silhouette"] is None
    assert 0 <= metrics["test.macro_f1"] <= 1
    assert "NaN" not in (out / "metrics.json").read_text()
    classes = pd.read_csv(out / "classes.csv").query("split == 'test' and head == 'linear'")
    assert classes.set_index("class")["support"]["poems"] == 0
    result = command("evaluate", out, "--metric", "test.macro_f1")
    assert result.status == 0, result.err


def test_a_finished_run_is_not_overwritten(command: Command, finished: Finished) -> None:
    out = finished.folder
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = command(*finished.words)
    assert result.status == 2
    assert "'out' must be a new or empty folder" in result.complaint()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_two_runs_of_one_seed_differ_in_seconds_alone(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    found = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        out = tmp_path / name
        words = ["train", "--train", files[0], "--test", files[1], "--no-pictures", "--seed", seed]
        assert command(*words, *fast(encoder_folder, out)).status == 0
        metrics = run_of(out)[1]
        assert metrics["seconds.total"] > 0
        timeless = {k: v for k, v in metrics.items() if not k.startswith("seconds.")}
        history = (out / "history.csv").read_text()
        found.append((timeless, history, json.loads((out / "config.json").read_text())["seed"]))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


@pytest.mark.parametrize("kind", ["no-tokenizer", "adapters", "device"])
def test_what_a_run_cannot_do(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    encoder, words, message = encoder_folder, [], ""
    if kind == "no-tokenizer":
        encoder, message = tmp_path / "bare", "'name' must be a model with its tokenizer"
        with quiet_transformers():
            build_model("bert").save_pretrained(encoder)
    elif kind == "adapters":
        words, message = ["--lora-rank", -1], "'lora_rank' must be an integer of at least 0"
    else:
        for module in ("torch.cuda", "torch.backends.mps"):
            monkeypatch.setattr(f"{module}.is_available", lambda: False)
        words, message = ["--device", "cuda"], "'device' must be one this machine"
    out = tmp_path / "out"
    result = command("train", "--train", files[0], *words, *fast(encoder, out))
    assert result.status == 2
    assert message in result.complaint()
    assert not out.exists()


def test_adapters_from_the_command_line(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    out = tmp_path / "run"
    words = ["--lora-rank", 4, "--lora-alpha", 8, "--lora-dropout", 0, "--lora-targets", "query"]
    words += ["--device", "cpu", "--no-pictures"]
    result = command("train", "--train", files[0], *words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    config, metrics = run_of(out)
    assert (config["lora_rank"], config["lora_alpha"], config["lora_dropout"]) == (4, 8.0, 0.0)
    assert (config["lora_targets"], config["device"]) == ("query", "cpu")
    assert metrics["lora.parameters"] == 2 * 4 * (16 + 16)
    source = write(rows(4, seed=5), tmp_path / "new.csv")
    words = ["--run", out, "--input", source, "--output", tmp_path / "labels.csv"]
    assert command("predict", *words).status == 0
    words = ["--features", tmp_path / "x.npy", "--lora-rank", 4, *fast(Path("none"), out / "b")]
    result = command("train", "--train", files[0], *words)
    assert result.status == 2
    assert "'lora_rank' must be 0 for features" in result.complaint()
