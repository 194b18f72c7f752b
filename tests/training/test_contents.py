"""A run knows the files it is made of and the encoder it was trained from, by what they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gloss_graph.analysis import document_graph
from gloss_graph.text import load_encoder
from gloss_graph.training import Run, train_text

from .tiny import quick, tiny_encoder, tiny_splits

TEXTS = ["graph node edge", "label walks"]


def trained(folder: Path, encoder: Any, seed: int = 0) -> Path:
    train_text(tiny_splits(24, 9, 0), encoder, quick(seed=seed, labels_per_class=4), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of other seeds."""
    parent = tmp_path_factory.mktemp("runs")
    one, two = (trained(parent / f"run-{seed}", tiny_encoder(), seed) for seed in (1, 2))
    return one, two


@pytest.fixture
def mixed(runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the first run, to be damaged, and the second one."""
    return Path(shutil.copytree(runs[0], tmp_path / "mixed")), runs[1]


def forget_contents(run: Path) -> dict[str, Any]:
    """Make it a run of an older version; its settings."""
    settings = json.loads((run / "config.json").read_text())
    settings.pop("contents", None)
    (run / "config.json").write_text(json.dumps(settings))
    return settings


PARTS = [
    "model/model.safetensors",
    "model/head.safetensors",
    "model/classifier.json",
    "model/tokenizer.json",
    "memory/objective.safetensors",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_run_or_a_changed_one_is_named(
    mixed: tuple[Path, Path], part: str
) -> None:
    run, other = mixed
    Run(run)
    content = (other / part).read_bytes()
    if content == (run / part).read_bytes():
        content += b" "
    (run / part).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{part} is damaged or of another run"):
        Run(run)
    with pytest.raises(ValueError, match=rf"{part} is damaged or of another run"):
        document_graph(run, k=2)
    (run / part).unlink()
    with pytest.raises(ValueError, match=rf"{part} is missing"):
        Run(run)


def test_a_run_that_does_not_list_its_files_is_read(mixed: tuple[Path, Path]) -> None:
    forget_contents(mixed[0])
    assert len(Run(mixed[0]).label_names) == 3


def test_a_bank_of_more_classes_than_the_run_is_named(mixed: tuple[Path, Path]) -> None:
    run = mixed[0]
    forget_contents(run)
    file = run / "memory" / "objective.safetensors"
    state = load_file(file)
    state["memory.slot_labels"][0] = 3
    save_file(state, file)
    with pytest.raises(ValueError, match=r"objective\.safetensors"):
        Run(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bank": None}, "config.json"),
        ({"bank": {"capacity": "24", "frozen_dim": 0, "targets": True}}, "'bank.capacity' must be"),
        ({"bank": {"capacity": 24, "frozen_dim": 0, "targets": 3}}, "'bank.targets' must be true"),
        ({"bank": {"capacity": 10**12, "frozen_dim": 0, "targets": True}}, "objective.safetensors"),
        ({"data": {"classes": ["x", "y"]}}, "has the classes"),
        ({"learning_rate": [1]}, "'learning_rate' must be a number"),
        ({"contents": [1]}, "'contents'"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    mixed: tuple[Path, Path], change: dict[str, Any], words: str
) -> None:
    run = mixed[0]
    settings = forget_contents(run)
    (run / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ValueError, match=words):
        Run(run)


def test_the_encoder_is_found_from_any_folder_and_only_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_encoder().save(tmp_path / "enc")
    run = trained(tmp_path / "run", load_encoder("./enc"))
    settings = json.loads((run / "config.json").read_text())
    assert settings["encoder_name"] == str(tmp_path / "enc")
    before = Run(run).predict(TEXTS).explanation.probabilities
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert torch.equal(Run(run).predict(TEXTS).explanation.probabilities, before)

    changed = load_encoder(str(tmp_path / "enc"))
    with torch.no_grad():
        next(changed.parameters()).add_(0.1)
    changed.save(tmp_path / "enc")
    with pytest.raises(ValueError, match=r"trained from the encoder in .*enc, which has changed"):
        Run(run).predict(TEXTS)
    assert len(Run(run).predict(TEXTS, anchor=0.0).linear) == 2
