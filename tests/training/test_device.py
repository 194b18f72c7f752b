"""The device of a run: chosen by name, refused where it is not there, one for all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gloss_graph.text import TextEncoder
from gloss_graph.training import GraphGuidedTrainer, TrainConfig
from gloss_graph.training.setup import find_device

from .tiny import quick, run


def machine(monkeypatch: pytest.MonkeyPatch, *there: str) -> None:
    """A machine with these accelerators."""
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": getattr(torch, "xpu", None)}
    for name, module in kinds.items():
        if module is not None:
            monkeypatch.setattr(module, "is_available", lambda name=name: name in there)


def test_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert find_device() == find_device("cpu") == torch.device("cpu")
    machine(monkeypatch, "mps")
    assert find_device() == find_device("mps") == torch.device("mps")
    assert find_device("cpu") == torch.device("cpu")
    machine(monkeypatch, "cuda")
    assert find_device() == find_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    machine(monkeypatch)
    message = rf"^'device' must be one this machine and its torch have, cpu \(got '{name}'\)"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", quick(device=name))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:1", "", None, 0])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^'device' must be one of \['auto', 'cpu', 'cuda'"):
        TrainConfig(device=name)


@pytest.mark.filterwarnings("ignore:Graph skill")
def test_every_stage_is_on_the_device_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is moved before anything is embedded, and back at the end."""
    events: list[str] = []
    watched: dict[str, tuple[Any, str]] = {
        "move": (nn.Module, "to"),
        "encode": (TextEncoder, "encode"),
        "trainer": (GraphGuidedTrainer, "__init__"),
    }
    for event, (owner, name) in watched.items():
        plain = getattr(owner, name)

        def noted(
            self: Any, *words: Any, event: str = event, plain: Any = plain, **more: Any
        ) -> Any:
            if event != "move":
                events.append(event)
            elif isinstance(self, TextEncoder) and words:
                events.append(f"to {words[0]}")
            done = plain(self, *words, **more)
            if event == "trainer":
                assert self.args.device == find_device("cpu")
            return done

        monkeypatch.setattr(owner, name, noted)
    config = quick(device="cpu", warm_start_steps=1, labels_per_class=3, batch_size=4)
    result = run(tmp_path / "run", config)
    assert events[0] == "to cpu"
    assert {"encode", "trainer"} <= set(events)
    assert {value.device.type for value in result.model.parameters()} == {"cpu"}
    assert result.objective.memory.rows.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Graph skill")
@pytest.mark.parametrize("mode", ["integrated", "standalone"])
def test_a_run_on_a_gpu(tmp_path: Path, mode: str) -> None:
    few = {"labels_per_class": 3, "batch_size": 6, "unlabeled_batch_size": 4}
    config = quick(device="cuda", mode=mode, warm_start_steps=2, graph_start_steps=2, **few)
    result = run(tmp_path / "run", config)
    assert {value.device.type for value in result.model.parameters()} == {"cpu"}
    assert 0 <= result.metrics["test.macro_f1"] <= 1
