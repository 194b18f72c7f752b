"""Integrated and standalone training, metric losses in the Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import assert_same_state, snapshot

from gloss_graph.analysis import macro_silhouette
from gloss_graph.text import Splits
from gloss_graph.training import TrainConfig
from training.tiny import (
    quick,
    run,
    tiny_corpus,
    tiny_encoder,
    tiny_splits,
)


@pytest.mark.parametrize("loss", ["gloss", "gloss-published", "xbm-scl"])
def test_standalone_picks_the_best_silhouette_and_probes(tmp_path: Path, loss: str) -> None:
    result = run(tmp_path / "run", quick(loss=loss, mode="standalone", max_steps=6))
    frame = pd.read_csv(tmp_path / "run" / "history.csv")
    silhouettes = frame["val_macro_silhouette"].dropna()
    assert len(silhouettes) == 3
    best = frame.loc[silhouettes.idxmax(), "step"]
    assert result.metrics["best_step"] == best
    assert result.metrics["val.macro_silhouette"] == pytest.approx(silhouettes.max(), abs=1e-5)
    assert "val_cross_entropy" not in frame
    assert result.metrics["head.C"] > 0
    # The encoder was trained; the head is a probe of it that predicts.
    before, after = snapshot(tiny_encoder()), snapshot(result.model.encoder)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rows = result.model.encoder.encode(tiny_splits().val.texts)
    labels = torch.tensor(tiny_splits().val.labels)
    assert macro_silhouette(rows, labels) == pytest.approx(result.metrics["val.macro_silhouette"])
    encoder = result.model.encoder
    assert result.model(**encoder.collate(encoder.tokenize(["a"]))).logits is not None


def test_the_cross_batch_memory_is_as_large_as_ours(tmp_path: Path) -> None:
    from gloss_graph.training import make_loss

    labels = tiny_corpus(36).labels
    ours = make_loss(TrainConfig(), 3, 16, labels)
    rival = make_loss(TrainConfig(loss="xbm-scl"), 3, 16, labels)
    assert ours.memory.capacity == rival.memory.capacity == 36
    small = make_loss(TrainConfig(loss="xbm-scl", memory_size=7), 3, 16, labels)
    assert small.memory.capacity == 7


@pytest.mark.parametrize("loss", ["triplet", "xbm-scl"])
def test_integrated_history_has_both_terms(tmp_path: Path, loss: str) -> None:
    result = run(tmp_path / "run", quick(loss=loss, graph_weight=0.4))
    row = result.history[0]
    expected = 0.4 * row["metric_loss"] + 0.6 * row["cross_entropy"]
    assert row["loss"] == pytest.approx(expected, rel=1e-4)
    again = run(tmp_path / "again", quick(loss=loss, graph_weight=0.4))
    assert_same_state(snapshot(result.model), snapshot(again.model))


@pytest.mark.parametrize("loss", ["ce", "static-lp", "pseudo-label", "setfit"])
def test_losses_that_are_a_classifier_have_no_standalone_mode(loss: str) -> None:
    with pytest.raises(ValueError, match="'mode' must be 'integrated'"):
        TrainConfig(loss=loss, mode="standalone")


def test_a_validation_split_without_silhouette_is_refused(tmp_path: Path) -> None:
    splits = tiny_splits()
    lone = Splits(splits.train, replace(splits.val, labels=[0, 1, 2] + [-1] * 9))
    config = quick(loss="scl", mode="standalone")
    with pytest.raises(ValueError, match=r"'splits.val' must hold two classes"):
        run(tmp_path / "run", config, lone)
    assert not (tmp_path / "run").exists()
    run(tmp_path / "last", replace(config, select="last"), lone)
