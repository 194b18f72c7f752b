"""Run folders and classifiers that version 0.1.0 wrote load and give the same predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gloss_graph.baselines import TextGCNClassifier
from gloss_graph.runs import compare_runs, read_run
from gloss_graph.text import FeatureEncoder, Splits, with_features
from gloss_graph.training import Run, TextClassifier, TrainConfig, load_snapshots, train_text

from .tiny import CLASSES, quick, tiny_splits

DATA = Path(__file__).parents[1] / "data"
# Of the run on features and of the one that was interrupted.
SETTINGS: dict[str, Any] = {
    "labels_per_class": 3,
    "half_life": 20.0,
    "refresh_every": 2,
    "graph_start_steps": 2,
    "warm_start_steps": 2,
    "eta": 0.3,
    "unlabeled_batch_size": 8,
    "max_steps": 6,
}


@pytest.fixture
def table() -> np.ndarray:
    return np.load(DATA / "features.npy")


def expected(run: str) -> dict[str, Any]:
    return json.loads((DATA / run / "expected.json").read_text())


def assert_close(found: torch.Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-4)


def test_a_run_on_texts_gives_the_same_predictions() -> None:
    run, wanted = Run(DATA / "run-texts"), expected("run-texts")
    found = run.predict(wanted["texts"])
    assert_close(found.linear, wanted["linear"])
    assert_close(found.explanation.probabilities, wanted["probabilities"])


def test_a_run_on_features_with_frozen_rows_gives_the_same_predictions(table: np.ndarray) -> None:
    run, wanted = Run(DATA / "run-features"), expected("run-features")
    found = run.predict(features=table[: wanted["rows"]], mode="transductive")
    assert_close(found.linear, wanted["linear"])
    assert_close(found.explanation.probabilities, wanted["probabilities"])


def test_a_classifier_loads_by_itself() -> None:
    model, wanted = TextClassifier.load(DATA / "run-texts" / "model"), expected("run-texts")
    assert model.label_names == CLASSES
    batch = model.encoder.collate(model.encoder.tokenize(wanted["texts"]))
    with torch.no_grad():
        assert_close(model(**batch).logits.softmax(dim=1), wanted["linear"])


def test_a_graph_model_gives_the_same_predictions() -> None:
    folder = DATA / "run-text-gcn"
    found = TextGCNClassifier.load(folder / "model").predict_proba(tiny_splits().parts["test"])
    assert_close(found, expected("run-text-gcn")["test"])


def test_runs_of_both_kinds_are_compared() -> None:
    arms = compare_runs([DATA / "run-texts", DATA / "run-text-gcn"]).runs["arm"]
    assert sorted(arms) == ["gloss", "text-gcn"]


@pytest.mark.parametrize("name", ["run-texts", "run-features", "run-text-gcn"])
def test_the_numbers_of_a_run_are_read(name: str) -> None:
    run = read_run(DATA / name)
    assert 0 <= run.metrics["test.macro_f1"] <= 1
    assert load_snapshots(DATA / name) is not None


def on_features(table: np.ndarray) -> tuple[Splits, FeatureEncoder]:
    return with_features(tiny_splits(), table), FeatureEncoder.scaled_to(table, seed=0)


def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path: Path, table: np.ndarray) -> None:
    out = tmp_path / "run"
    shutil.copytree(DATA / "run-interrupted", out)
    splits, encoder = on_features(table)
    result = train_text(splits, encoder, quick(**SETTINGS), out, resume=True)
    whole = read_run(DATA / "run-features").metrics
    names = [name for name in whole if not name.startswith("seconds.")]
    assert {name: result.metrics[name] for name in names} == pytest.approx(
        {name: whole[name] for name in names}, abs=1e-5
    )
    assert not (out / "checkpoints").exists()


def test_an_interrupted_run_with_other_settings_is_refused_by_name(
    tmp_path: Path, table: np.ndarray
) -> None:
    out = tmp_path / "run"
    shutil.copytree(DATA / "run-interrupted", out)
    splits, encoder = on_features(table)
    config: TrainConfig = quick(**{**SETTINGS, "half_life": 10.0})
    with pytest.raises(ValueError, match=r"'half_life' was 20\.0, is 10\.0"):
        train_text(splits, encoder, config, out, resume=True)
