"""A run that was interrupted and goes on ends as one that was not, bit for bit."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import gloss_graph.training.stages as stages
from gloss_graph.training import RunResult, TrainConfig, train_text
from gloss_graph.training.checkpoints import whole_checkpoints

from .tiny import tiny_encoder, tiny_splits

SETTINGS: dict[str, Any] = {"max_steps": 8, "eval_steps": 2, "batch_size": 8, "k": 4}
FEW = {**SETTINGS, "labels_per_class": 4, "warm_start_steps": 3, "graph_start_steps": 3}


class StopAt(TrainerCallback):
    """Ctrl-C at a step, or at its checkpoint."""

    def __init__(self, step: int, event: str = "on_step_end") -> None:
        self._step = step
        setattr(self, event, self._stop)

    def _stop(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise KeyboardInterrupt


def train(out: Path, config: TrainConfig, *callbacks: TrainerCallback, **more: Any) -> RunResult:
    return train_text(tiny_splits(), tiny_encoder(), config, out, callbacks=callbacks, **more)


def content(out: Path) -> tuple[dict[str, float], dict[str, torch.Tensor], str]:
    """Metrics but times, all tensors and the history of a run folder."""
    metrics = json.loads((out / "metrics.json").read_text())
    tensors = {
        f"{file.relative_to(out)} {name}": value
        for file in sorted(out.rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    history = (out / "history.csv").read_text() + (out / "pictures" / "data.json").read_text()
    kept = {name: value for name, value in metrics.items() if not name.startswith("seconds.")}
    return kept, tensors, history


def assert_same(one: Path, other: Path) -> None:
    first, second = content(one), content(other)
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert [n for n, v in first[1].items() if not torch.equal(v, second[1][n])] == []
    assert first[2] == second[2]
    assert not (other / "checkpoints").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the run of some settings without interruption, which is trained once."""
    found: dict[str, Path] = {}

    def trained(config: TrainConfig, **more: Any) -> Path:
        key = repr((config, more))
        if key not in found:
            found[key] = tmp_path_factory.mktemp("whole") / "run"
            train(found[key], config, **more)
        return found[key]

    return trained


@pytest.mark.parametrize(
    ("settings", "stops", "more"),
    [
        pytest.param(SETTINGS, [(3, "on_step_end"), (6, "on_step_end")], {}, id="best-step"),
        pytest.param(FEW, [(5, "on_step_end")], {"save_steps": 3}, id="few-labels"),
        pytest.param(
            {**SETTINGS, "max_steps": None, "eval_steps": None, "epochs": 2.0},
            [(5, "on_save"), (6, "on_step_end")],
            {},
            id="epochs",
        ),
        pytest.param({**SETTINGS, "patience": 1}, [(8, "on_save")], {}, id="after-the-last-step"),
    ],
)
def test_goes_on_bit_for_bit(
    tmp_path: Path,
    whole: Callable[..., Path],
    settings: dict[str, Any],
    stops: list[tuple[int, str]],
    more: dict[str, Any],
) -> None:
    config = TrainConfig(**settings)
    expected = whole(config, **more)
    for step, event in stops:
        # A step that early stopping never reaches interrupts nothing.
        try:
            train(tmp_path / "parts", config, StopAt(step, event), resume=True, **more)
        except KeyboardInterrupt:
            continue
        break
    else:
        train(tmp_path / "parts", config, resume=True, **more)
    assert_same(expected, tmp_path / "parts")


@pytest.mark.parametrize("stage", [1, 2])
def test_goes_on_from_the_stages_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Path], stage: int
) -> None:
    """A finished stage is not done again, a broken one is."""
    config = TrainConfig(**FEW)
    expected = whole(config)
    calls: list[str] = []

    def breaking(name: str) -> None:
        done = getattr(stages, name)

        def broken(*args: Any, **kwargs: Any) -> list[float]:
            calls.append(name)
            losses = done(*args, **kwargs)
            if len(calls) == stage:
                raise KeyboardInterrupt
            return losses

        monkeypatch.setattr(stages, name, broken)

    breaking("contrastive_warm_start")
    breaking("contrast_over_bank")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config)
    train(tmp_path / "parts", config, resume=True)
    assert len(calls) == 3
    assert_same(expected, tmp_path / "parts")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("PytorchStreamWriter failed")])
def test_broken_in_the_middle_of_a_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Path],
    error: BaseException,
) -> None:
    """The checkpoint before is taken; a full disk is said by name."""
    config = TrainConfig(**SETTINGS)
    expected = whole(config)
    save, saved = torch.save, []

    def broken(*args: Any, **kwargs: Any) -> None:
        saved.append(str(args[1]))
        if "checkpoint-4" in saved[-1] and "scheduler" in saved[-1]:
            raise error
        save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", broken)
        with pytest.raises((KeyboardInterrupt, OSError)) as caught:
            train(tmp_path / "parts", config)
    if isinstance(caught.value, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "checkpoint-4" in str(caught.value)
    folder = tmp_path / "parts" / "checkpoints"
    assert [path.name for path in whole_checkpoints(folder)] == ["checkpoint-2"]
    train(tmp_path / "parts", config, resume=True)
    assert_same(expected, tmp_path / "parts")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    out, config = tmp_path / "run", TrainConfig(**SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(out, config, StopAt(3))
    before = sorted(path.name for path in (out / "checkpoints").iterdir())
    other = TrainConfig(**{**SETTINGS, "learning_rate": 1e-3, "seed": 5})
    with pytest.raises(
        ValueError, match=r"'learning_rate' was 5e-05, is 0.001; 'seed' was 0, is 5"
    ):
        train(out, other, resume=True)
    with pytest.raises(ValueError, match="'train documents' was "):
        train_text(tiny_splits(seed=9), tiny_encoder(), config, out, resume=True)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before


def test_nothing_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    config = TrainConfig(**{**SETTINGS, "select": "last"})
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", config, StopAt(3), save_steps=0)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    with pytest.raises(ValueError, match=r"'save_steps' must be an integer of at least 0"):
        train(tmp_path / "run", config, save_steps=-1)
