"""Training and prediction on features, real images from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from cli.conftest import Command

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """600 images: 400 to train on, of which 50 labeled, and 200 to test; no text column."""
    images = load_digits()
    labels = images.target[:600].astype(str)
    shown = np.where(np.arange(600) < 50, labels, "")
    pd.DataFrame({"label": shown[:400]}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"label": labels[400:]}).to_csv(tmp_path / "test.csv", index=False)
    np.save(tmp_path / "x.npy", images.data[:600].astype(np.float32))
    return tmp_path


def test_images_are_trained_on_and_predicted(command: Command, digits: Path) -> None:
    few = ("--max-steps", 0, "--warm-start-steps", 40, "--graph-start-steps", 40)
    few = (*few, "--select", "last", "--graph-weight", 0)
    result = command(
        *("train", "--encoder", "none", "--features", digits / "x.npy", *few),
        *("--train", digits / "train.csv", "--test", digits / "test.csv", "--out", digits / "run"),
    )
    assert result.status == 0, result.complaint()
    metrics = json.loads((digits / "run" / "metrics.json").read_text())
    images = np.load(digits / "x.npy")
    names = pd.read_csv(digits / "train.csv", dtype=str)["label"].fillna("").to_numpy()
    linear = LogisticRegression(max_iter=2000).fit(images[:50], names[:50])
    truth = pd.read_csv(digits / "test.csv", dtype=str)["label"].to_numpy()
    rival = linear.score(images[400:], truth)
    assert metrics["test.accuracy"] > rival
    assert metrics["test_propagation.accuracy"] > rival + 0.02
    np.save(digits / "new.npy", np.load(digits / "x.npy")[400:])
    options = ("--run", digits / "run", "--input", digits / "test.csv")
    found = digits / "labels.csv"
    result = command(
        "predict", *options, "--features", digits / "new.npy", "--output", found, "--mode",
        "transductive",
    )  # fmt: skip
    assert result.status == 0, result.complaint()
    truth = pd.read_csv(digits / "test.csv")["label"]
    right = (pd.read_csv(found)["label"] == truth).mean()
    assert right == pytest.approx(metrics["test_propagation.accuracy"])
    for extra, message in (
        ((), "'features' must be given"),
        (("--features", digits / "x.npy"), "a row per document"),
    ):
        result = command("predict", *options, *extra, "--output", digits / "other.csv")
        assert result.status == 2
        assert message in result.complaint()


def test_features_and_encoder_go_together(command: Command, digits: Path) -> None:
    files = ("--train", digits / "train.csv", "--test", digits / "test.csv")
    for options, message in (
        (("--encoder", "none"), "'features' must be given exactly with encoder 'none'"),
        (("--features", digits / "x.npy"), "'features' must be given exactly with encoder 'none'"),
        (("--encoder", "none", "--features", digits / "no.npy"), "must be a file"),
    ):
        result = command("train", *files, *options, "--out", digits / "out")
        assert result.status == 2
        assert message in result.complaint()
        assert not (digits / "out").exists()
    np.save(digits / "short.npy", np.ones((9, 4)))
    options = ("--encoder", "none", "--features", digits / "short.npy")
    result = command("train", *files, *options, "--out", digits / "out")
    assert "got 9 rows for 600 documents" in result.complaint()
