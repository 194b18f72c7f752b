"""The trainer and a whole run in two processes on the CPU, against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import different, snapshot
from processes import WORLD, together
from torch import Tensor
from transformers import TrainerCallback, set_seed

from gloss_graph._internal.processes import gather_rows, wait_for_all
from gloss_graph.text import Corpus
from gloss_graph.training import GraphGuidedTrainer, MixedSampler, hide_labels
from gloss_graph.training.setup import has_unused_parameters, join_processes, on_main

from .tiny import (
    StopAt,
    make_trainer,
    quick,
    run,
    tiny_classifier,
    tiny_corpus,
    tiny_objective,
    tiny_splits,
)

STEPS = 6


class States(TrainerCallback):
    """The objective's state after every step."""

    def __init__(self) -> None:
        self.trainer: GraphGuidedTrainer | None = None
        self.states: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(snapshot(self.trainer.objective))


def outcome(trainer: GraphGuidedTrainer, states: States | None = None) -> dict[str, Any]:
    names = ("loss", "graph_loss", "cross_entropy", "consistency", "grad_norm")
    batches = [batch["ids"] for batch in trainer.data_collator.batches]
    return {
        "log": [[row[name] for name in names] for row in trainer.state.log_history if "loss" in row]
        if trainer.objective is not None
        else [],
        "ids": [gather_rows(ids).tolist() for ids in batches],
        "labeled": [int((batch["labels"] >= 0).sum()) for batch in trainer.data_collator.batches],
        "model": snapshot(trainer.model),
        "objective": snapshot(trainer.objective),
        "states": [] if states is None else states.states,
    }


def few_labels() -> Corpus:
    return hide_labels(tiny_corpus(30), [0, 1, 2, 3, 4, 5])


def trainer_of(folder: Path, share: int, few: bool, **settings: Any) -> GraphGuidedTrainer:
    """Without graph loss; `share` is the number of processes a batch is for."""
    set_seed(0)
    objective = tiny_objective(
        48,
        graph_weight=0.0,
        consistency_start=1,
        consistency_ramp=2,
        refresh_every=2,
    )
    trainer = make_trainer(
        folder,
        tiny_classifier(dropout=False),
        objective,
        documents=few_labels() if few else tiny_corpus(24),
        per_device_train_batch_size=(6 if few else 4) * share,
        max_steps=STEPS,
        sgd=True,
        **settings,
    )
    if few:
        trainer.train_sampler = MixedSampler(few_labels().labels, labeled=2, unlabeled=4, seed=7)
        trainer.reference = True
        trainer.use_teacher(0.8)
    return trainer


def trained(folder: Path, share: int, few: bool) -> dict[str, Any]:
    trainer = trainer_of(folder, share, few)
    trainer.train()
    return outcome(trainer)


def graph_training(folder: Path, *callbacks: Any, resume: bool = False, **settings: Any) -> Any:
    """The graph loss with dropout, by AdamW; batches that do not divide the documents."""
    set_seed(1 if resume else 0)
    states = States()
    # So few labels that some batches have none.
    corpus = hide_labels(tiny_corpus(26), range(6))
    trainer = make_trainer(
        folder,
        tiny_classifier(seed=1 if resume else 0),
        tiny_objective(18, consistency_start=2, refresh_every=2, seed=1 if resume else 0),
        documents=corpus,
        max_steps=8,
        callbacks=[states, *callbacks],
        **settings,
    )
    states.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    return outcome(trainer, states)


def ragged(folder: Path) -> dict[str, Any]:
    """14 documents in fours without filling up: the last batch of process 1 has two."""
    states = States()
    trainer = make_trainer(
        folder,
        tiny_classifier(),
        tiny_objective(18),
        documents=tiny_corpus(14),
        max_steps=4,
        callbacks=[states],
        accelerator_config={"even_batches": False},
    )
    states.trainer = trainer
    trainer.train()
    return outcome(trainer, states)


def text_run(folder: Path, **settings: Any) -> dict[str, Any]:
    result = run(folder, quick(**settings), tiny_splits(train=37))
    return {
        "metrics": {key: value for key, value in result.metrics.items() if "seconds" not in key},
        "files": sorted(path.name for path in folder.iterdir()),
    }


def failed() -> str:
    def fail() -> None:
        raise FileExistsError("it is there")

    try:
        on_main(fail)
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def work(rank: int, folder: Path) -> dict[str, Any]:
    graph = graph_training(folder / "whole")
    graph_training(folder / "parts", StopAt(3))
    wait_for_all()
    return {
        "graph": graph,
        "resumed": graph_training(folder / "parts", resume=True),
        "labeled": trained(folder / "labeled", 1, few=False),
        "few": trained(folder / "few", 1, few=True),
        "ragged": ragged(folder / "ragged"),
        "run": text_run(folder / "run"),
        "few_run": text_run(
            folder / "few_run", labels_per_class=3, warm_start_steps=2, unlabeled_batch_size=4
        ),
        "failed": failed(),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    return [{**result, "folder": folder} for result in together(work, folder)]


def assert_same_outcome(first: dict[str, Any], second: dict[str, Any]) -> None:
    for part in ("model", "objective"):
        assert different(first[part], second[part]) == [], part
    assert len(first["states"]) == len(second["states"])
    for step, pair in enumerate(zip(first["states"], second["states"], strict=True)):
        assert different(*pair) == [], f"step {step}"


@pytest.mark.parametrize("kind", ["graph", "resumed", "labeled", "few", "ragged"])
def test_processes_end_with_the_same_weights_and_banks(
    results: list[dict[str, Any]], kind: str
) -> None:
    first, second = (result[kind] for result in results)
    assert_same_outcome(first, second)


@pytest.mark.parametrize("few", [False, True])
def test_without_graph_loss_two_processes_are_one_with_the_joined_batch(
    results: list[dict[str, Any]], tmp_path: Path, few: bool
) -> None:
    """Losses, weights and banks; with targets from the bank, a reference pass and a teacher."""
    joined = trained(tmp_path, WORLD, few)
    found = results[0]["few" if few else "labeled"]
    assert found["ids"][:STEPS] == joined["ids"][:STEPS]
    assert len(found["log"]) == STEPS
    assert found["log"] == [pytest.approx(row, abs=2e-4) for row in joined["log"]]
    assert (joined["log"][-1][3] > 0) == few, "the unlabeled documents' term"
    for name, value in joined["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)
    mine, other = found["objective"], joined["objective"]
    for name in ("memory.slot_ids", "memory.slot_labels", "targets.solved_at", "targets.table_ids"):
        assert torch.equal(mine[name], other[name]), name
    for name in ("memory.rows", "targets.table"):
        torch.testing.assert_close(mine[name], other[name], rtol=1e-3, atol=1e-4)


def test_resumed_training_equals_uninterrupted(results: list[dict[str, Any]]) -> None:
    """On every process, from the checkpoint that process 0 wrote."""
    for result in results:
        whole, resumed = result["graph"], result["resumed"]
        assert len(whole["states"]) == 8
        assert_same_outcome({**whole, "states": whole["states"][3:]}, resumed)
        assert whole["log"] == resumed["log"]


def test_batches_are_uneven_and_some_without_label(results: list[dict[str, Any]]) -> None:
    """The cases are what they claim to be."""
    sizes = [len(ids) for ids in results[0]["ragged"]["ids"]]
    assert sorted(set(sizes)) == [6, 8]
    epoch = [number for ids in results[0]["graph"]["ids"][:4] for number in ids]
    assert len(epoch) == 32, "the last batch is filled up with documents of the first"
    assert len(set(epoch)) == 26
    labeled = zip(*(result["graph"]["labeled"] for result in results), strict=True)
    assert any(min(pair) == 0 < max(pair) for pair in labeled)
    assert int(results[0]["graph"]["objective"]["targets.solved_at"]) > 0


def test_a_run_is_written_once(results: list[dict[str, Any]]) -> None:
    expected = {
        "README.md",
        "config.json",
        "metrics.json",
        "history.csv",
        "classes.csv",
        "labels_used.csv",
    }
    expected |= {"model", "memory", "pictures"}
    for kind in ("run", "few_run"):
        first, second = (result[kind] for result in results)
        assert set(first["files"]) == set(second["files"]) == expected
        assert first["metrics"] == second["metrics"]
        file = results[0]["folder"] / kind / "metrics.json"
        written = json.loads(file.read_text(encoding="utf-8"))
        assert {key: written[key] for key in first["metrics"]} == first["metrics"]
        assert 0 <= written["test.macro_f1"] <= 1


def test_a_failure_of_process_0_reaches_all(results: list[dict[str, Any]]) -> None:
    assert [result["failed"] for result in results] == [
        "FileExistsError: it is there",
        "OSError: Process 0 failed; see its message.",
    ]


def test_unused_parameters_are_found() -> None:
    """BertModel brings a pooler that mean pooling does not ask."""
    model = tiny_classifier()
    before = snapshot(model)
    assert has_unused_parameters(model)
    for parameter in model.encoder.model.pooler.parameters():
        parameter.requires_grad_(False)
    assert not has_unused_parameters(model)
    assert different(before, snapshot(model)) == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_processes_that_would_train_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CPUs under torchrun without use_cpu; here the launcher's variables alone are set."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="every one of the 2 launched processes train alone"):
        make_trainer(tmp_path, tiny_classifier(), tiny_objective(), use_cpu=False)


def refused(rank: int, folder: Path) -> str:
    """What a process is told whose seed is its number."""
    join_processes("cpu")
    try:
        run(folder / "run", quick(seed=rank))
    except ValueError as error:
        return str(error)
    return "trained"


def test_processes_of_different_settings_are_refused_by_name(tmp_path: Path) -> None:
    first, second = together(refused, tmp_path)
    assert first == second
    assert "must be started with the same settings ('seed' is 0 and 1)" in first
    assert not (tmp_path / "run").exists()
