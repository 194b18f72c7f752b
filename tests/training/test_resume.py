"""Training on from a checkpoint is the same as never having stopped, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_state, snapshot
from torch import Tensor

from gloss_graph import GraphGuidedObjective
from gloss_graph.training import GraphGuidedTrainer, MixedSampler, hide_labels
from gloss_graph.training.checkpoints import OBJECTIVE_FILE

from .tiny import (
    StopAt,
    make_trainer,
    tiny_classifier,
    tiny_corpus,
    tiny_objective,
)

STEPS = 10
CAPACITY = 10  # of 24 documents: the bank evicts from the third step on


def fresh_trainer(folder: Path, *, seed: int = 0, **settings: Any) -> GraphGuidedTrainer:
    """A trainer as a new process makes it; the seed is that of the weights it starts from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 the global state is what a process starts with
    torch.manual_seed(seed)
    capacity = settings.pop("capacity", CAPACITY)
    objective = settings.pop("objective", None) or tiny_objective(capacity, seed=seed)
    return make_trainer(
        folder,
        tiny_classifier(seed=seed),
        objective,
        **{
            "max_steps": STEPS,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            **settings,
        },
    )


def losses(trainer: GraphGuidedTrainer) -> dict[int, tuple[float, ...]]:
    names = ("loss", "graph_loss", "cross_entropy", "learning_rate", "grad_norm")
    return {
        entry["step"]: tuple(entry[name] for name in names)
        for entry in trainer.state.log_history
        if "loss" in entry
    }


def optimizer_state(trainer: GraphGuidedTrainer) -> dict[str, Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, s in state.items() for name, v in s.items()}


def assert_same_training(
    resumed: GraphGuidedTrainer, whole: GraphGuidedTrainer, *, optimizer: bool = True
) -> None:
    assert resumed.state.global_step == whole.state.global_step == STEPS
    assert_same_state(resumed.model.state_dict(), whole.model.state_dict())
    if optimizer:
        assert_same_state(optimizer_state(resumed), optimizer_state(whole))
    assert_same_state(resumed.objective.state_dict(), whole.objective.state_dict())
    assert torch.equal(
        resumed.objective.generator.get_state(), whole.objective.generator.get_state()
    )
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        pytest.param(5, {}, id="within-an-epoch"),
        pytest.param(6, {}, id="between-epochs"),
        pytest.param(2, {"gradient_accumulation_steps": 2}, id="accumulated"),
        pytest.param(4, {"bf16": True}, id="bfloat16"),
    ],
)
def test_resumed_training_equals_uninterrupted(
    tmp_path: Path, stop: int, settings: dict[str, Any]
) -> None:
    """Dropout, shuffling, warm-up and evictions included; nothing but the folder is handed on."""
    whole = fresh_trainer(tmp_path / "whole", **settings)
    whole.train()
    assert len(whole.objective.memory) == CAPACITY
    assert int(whole.objective.memory.links.stamps.max()) > 1, "nothing was evicted"

    first = fresh_trainer(tmp_path / "parts", callbacks=[StopAt(stop)], **settings)
    first.train()
    assert first.state.global_step == stop
    second = fresh_trainer(tmp_path / "parts", seed=999, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert_same_training(second, whole)
    # The second half is worth testing only if it does something.
    start = snapshot(first.model)
    assert not torch.equal(start["head.weight"], second.model.head.weight)


def test_resuming_twice_and_from_the_last_checkpoint(tmp_path: Path) -> None:
    whole = fresh_trainer(tmp_path / "whole")
    whole.train()
    for seed, stop in ((0, 3), (11, 7), (22, STEPS)):
        part = fresh_trainer(tmp_path / "parts", seed=seed, callbacks=[StopAt(stop)])
        part.train(resume_from_checkpoint=stop > 3)
        assert part.state.global_step == stop
    assert_same_training(part, whole)


@pytest.mark.parametrize("form", ["published", "released"])
def test_in_batch_forms_resume_too(tmp_path: Path, form: str) -> None:
    """Without a bank the generator of the splits is all there is to restore."""

    def objective(seed: int) -> GraphGuidedObjective:
        return getattr(GraphGuidedObjective, form)(3, 0.5, seed=seed)

    whole = fresh_trainer(tmp_path / "whole", objective=objective(0))
    whole.train()
    fresh_trainer(tmp_path / "parts", objective=objective(0), callbacks=[StopAt(5)]).train()
    second = fresh_trainer(tmp_path / "parts", seed=5, objective=objective(5))
    second.train(resume_from_checkpoint=True)
    assert_same_training(second, whole)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("stopped")
    fresh_trainer(folder, callbacks=[StopAt(2)]).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing", "other-capacity"])
def test_a_checkpoint_without_a_fitting_objective(
    tmp_path: Path, stopped: Path, damage: str
) -> None:
    """Training does not start, the message names the file, the objective stays as it was."""
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for file in stopped.iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    file = checkpoint / OBJECTIVE_FILE
    content = file.read_bytes()
    trainer = fresh_trainer(tmp_path, seed=1, capacity=8 if damage == "other-capacity" else 10)
    trainer.objective.train()
    trainer.objective(torch.eye(4, 16), torch.tensor([0, 1, 0, 1]), ids=torch.arange(4))
    if damage == "missing":
        file.unlink()
    elif damage != "other-capacity":
        file.write_bytes(
            {"truncated": content[:-100], "garbage": b"\x07" * 500, "empty": b""}[damage]
        )
    before = snapshot(trainer.objective)
    with pytest.raises(ValueError, match=OBJECTIVE_FILE.replace(".", r"\.")) as caught:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert str(checkpoint) in str(caught.value)
    assert_same_state(trainer.objective.state_dict(), before)
    assert trainer.state.global_step == 0
    if damage == "other-capacity":
        assert "(10, 4) float32 in the file, (8, 4) float32 here" in str(caught.value)


@pytest.mark.parametrize("stop", [3, 6, 8])
def test_few_label_training_resumes(tmp_path: Path, stop: int) -> None:
    """Mixed batches, targets, reference pass and teacher go on where they were."""
    corpus = hide_labels(tiny_corpus(24), [0, 1, 2, 3, 4, 5])

    def trainer(name: str, *callbacks: Any, seed: int = 0) -> GraphGuidedTrainer:
        made = fresh_trainer(
            tmp_path / name,
            seed=seed,
            objective=tiny_objective(
                24, graph_weight=0.2, consistency_start=2, consistency_ramp=3, refresh_every=3
            ),
            documents=corpus,
            callbacks=callbacks,
            per_device_train_batch_size=6,
        )
        made.train_sampler = MixedSampler(corpus.labels, labeled=2, unlabeled=4, seed=7)
        made.reference = True
        made.use_teacher(0.8)
        return made

    whole = trainer("whole")
    whole.train()
    assert int(whole.objective.targets.solved_at) >= 0
    trainer("parts", StopAt(stop)).train()
    second = trainer("parts", seed=999)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert_same_training(second, whole)
    assert_same_state(second.teacher.state_dict(), whole.teacher.state_dict())
    consistency = [row["consistency"] for row in whole.state.log_history if "consistency" in row]
    assert consistency[0] == 0.0
    assert consistency[-1] > 0.0


def test_a_training_that_was_over_ends_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    whole = fresh_trainer(tmp_path / "whole", save_strategy="steps", save_steps=STEPS)
    whole.train()
    again = fresh_trainer(tmp_path / "whole", seed=5)
    again.train(resume_from_checkpoint=True)
    assert_same_training(again, whole, optimizer=False)
    longer = fresh_trainer(tmp_path / "whole", seed=5, max_steps=STEPS + 2)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == STEPS + 2
