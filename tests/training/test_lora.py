"""Adapters in runs: stages, modes, checkpoints, and that nothing of them is left at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_state, snapshot
from torch import nn

from gloss_graph.text import FeatureEncoder, TextEncoder, add_lora
from gloss_graph.training import GraphGuidedTrainer, Run, TrainConfig, train_text

from .tiny import (
    StopAt,
    make_trainer,
    quick,
    run,
    tiny_classifier,
    tiny_encoder,
    tiny_objective,
    tiny_splits,
)

pytest.importorskip("peft", reason="the extra lora is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")

RANK = 2
FEW = {"labels_per_class": 3, "batch_size": 6, "unlabeled_batch_size": 4}


def adapted(**settings: Any) -> TrainConfig:
    defaults = {"lora_rank": RANK, "learning_rate": 1e-2, "pictures": False}
    return quick(**{**defaults, **settings})


def assert_low_rank_change(encoder: nn.Module, layers: tuple[str, ...] = ("0", "1")) -> None:
    """Query and value moved by a matrix of the rank asked for, all else is as it was."""
    start, now = snapshot(tiny_encoder()), snapshot(encoder)
    # A pooler that nothing asks is left out on loading.
    assert {name for name in start.keys() ^ now.keys() if "pooler" not in name} == set()
    changed = {name for name in now if not torch.equal(start[name], now[name])}
    assert changed == {
        f"model.encoder.layer.{layer}.attention.self.{kind}.weight"
        for layer in layers
        for kind in ("query", "value")
    }
    for name in changed:
        values = torch.linalg.svdvals((now[name] - start[name]).double())
        assert values[RANK] < 1e-4 * values[0], name


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        pytest.param({}, "encoder", id="joint"),
        pytest.param({"mode": "standalone"}, "encoder", id="standalone"),
        pytest.param(
            {"warm_start_steps": 3, "graph_start_steps": 3, "warm_start_rate": 1e-2, **FEW},
            "graph_start",
            id="start-stages",
        ),
        pytest.param(
            {"loss": "ce", "max_steps": 0, "warm_start_steps": 3, "warm_start_rate": 1e-2},
            "warm_start",
            id="head-alone",
        ),
        pytest.param({"loss": "pseudo-label", **FEW}, "reference", id="teacher"),
        pytest.param(
            {"bf16": True, "gradient_checkpointing": True}, "encoder", id="bfloat16-recomputed"
        ),
    ],
)
def test_runs_change_the_encoder_by_low_rank(
    tmp_path: Path, settings: dict[str, Any], seconds: str
) -> None:
    result = run(tmp_path / "run", adapted(**settings))
    assert_low_rank_change(result.model.encoder)
    assert f"seconds.{seconds}" in result.metrics
    assert result.metrics["lora.parameters"] == 4 * RANK * (16 + 16)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["lora_rank"], stored["lora_targets"]) == (RANK, None)
    # The head is trained whole.
    assert not torch.equal(result.model.head.weight, tiny_classifier().head.weight)


def test_a_saved_run_needs_no_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path / "run", adapted())
    monkeypatch.setitem(sys.modules, "peft", None)
    answer = Run(tmp_path / "run").predict(tiny_splits().test.texts)
    assert answer.linear.argmax(dim=1).tolist() == result.predictions["test"].tolist()
    files = {path.name for path in (tmp_path / "run").rglob("*")}
    assert not any("adapter" in name for name in files)


def test_the_best_step_is_kept(tmp_path: Path) -> None:
    """The scores at the end, by merged weights, are those of the best checkpoint."""
    result = run(tmp_path / "run", adapted(max_steps=8, learning_rate=0.05))
    found = {row["step"]: row["val_macro_f1"] for row in result.history if "val_macro_f1" in row}
    assert len(found) == 4
    assert result.metrics["val.macro_f1"] == pytest.approx(max(found.values()))
    assert found[result.metrics["best_step"]] == max(found.values())


def test_two_runs_of_one_seed(tmp_path: Path) -> None:
    config = adapted(warm_start_steps=2, warm_start_rate=1e-2)
    one, other = run(tmp_path / "one", config), run(tmp_path / "other", config)
    assert_same_state(snapshot(one.model), snapshot(other.model))
    third = run(tmp_path / "third", adapted(warm_start_steps=2, warm_start_rate=1e-2, seed=1))
    assert not torch.equal(one.embeddings["test"], third.embeddings["test"])


def test_frozen_layers_get_no_adapter(tmp_path: Path) -> None:
    result = run(tmp_path / "run", adapted(freeze_layers=1))
    assert_low_rank_change(result.model.encoder, ("1",))
    assert result.metrics["lora.parameters"] == 2 * RANK * (16 + 16)
    with pytest.raises(ValueError, match="must name a layer that is not frozen"):
        run(tmp_path / "none", adapted(freeze_layers=2))


def fresh_trainer(folder: Path, seed: int, *callbacks: Any) -> GraphGuidedTrainer:
    """As a new process makes it; the seed is that of head and adapters."""
    torch.manual_seed(seed)
    model = tiny_classifier(seed=seed)
    assert isinstance(model.encoder, TextEncoder)
    add_lora(model.encoder, RANK, seed=seed)
    return make_trainer(
        folder,
        model,
        tiny_objective(10, seed=seed),
        callbacks=callbacks,
        max_steps=8,
        lr_scheduler_type="linear",
    )


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Bit for bit, and the model saved after it is whole."""
    whole = fresh_trainer(tmp_path / "whole", 0)
    whole.train()
    fresh_trainer(tmp_path / "parts", 0, StopAt(5)).train()
    second = fresh_trainer(tmp_path / "parts", 99)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    assert second.state.global_step == 8
    assert any("lora_B" in name for name in second.model.state_dict())
    assert_same_state(second.model.state_dict(), whole.model.state_dict())
    folder = second.model.save(tmp_path / "model")
    loaded = type(second.model).load(folder)
    assert_low_rank_change(loaded.encoder)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lora_rank": -1}, "lora_rank"),
        ({"lora_rank": 1.5}, "lora_rank"),
        ({"lora_alpha": 0.0}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"lora_targets": ","}, "lora_targets"),
        ({"lora_targets": ["query"]}, "lora_targets"),
    ],
)
def test_bad_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' must be"):
        TrainConfig(**settings)


def test_what_cannot_be_adapted_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder is made."""
    with pytest.raises(ValueError, match="'lora_rank' must be 0 for features"):
        train_text(tiny_splits(), FeatureEncoder(16), adapted(), tmp_path / "run")
    with pytest.raises(ValueError, match="'freeze_layers' must be 0 for features"):
        train_text(tiny_splits(), FeatureEncoder(16), quick(freeze_layers=1), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "gloss-graph\[lora\]"'):
        run(tmp_path / "run", adapted())
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", quick(lora_targets="query", pictures=False))
