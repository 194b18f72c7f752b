"""Memory settings of a training: rows encoded again on the way, and everything resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.analysis import document_graph
from gloss_graph.memory import EVICTIONS
from gloss_graph.training import BankRefresh, GraphGuidedTrainer, TrainConfig, hide_labels
from gloss_graph.training.predict import Run
from gloss_graph.training.setup import make_objective

from .test_resume import assert_same_training, fresh_trainer
from .tiny import CLASSES, DIM, StopAt, quick, run, tiny_objective, tiny_splits

SETTINGS: dict[str, Any] = {
    "hops": 2,
    "half_life": 6.0,
    "restandardize": True,
    "memory_start": 2,
    "memory_ramp": 4,
}

OF_OBJECTIVE = {
    {"memory_start": "warmup_steps", "memory_ramp": "ramp_steps"}.get(name, name): value
    for name, value in SETTINGS.items()
}


def objective(eviction: str, **settings: Any) -> GraphGuidedObjective:
    # One policy also stands for half precision and search over the links.
    few = {"dtype": torch.float16, "search": "descent"} if eviction == "stalest" else {}
    bank = MemoryBank(10, DIM, k=4, eviction=eviction, **few)
    return GraphGuidedObjective(len(CLASSES), memory=bank, k=4, **settings)


@pytest.mark.parametrize("eviction", sorted(EVICTIONS))
def test_resumed_training_equals_uninterrupted(tmp_path: Path, eviction: str) -> None:
    """Every policy, with decay, late start, re-standardising and refreshed rows."""

    def trainer(name: str, *callbacks: Any, seed: int = 0) -> GraphGuidedTrainer:
        made = fresh_trainer(
            tmp_path / name,
            seed=seed,
            objective=objective(eviction, **OF_OBJECTIVE),
            callbacks=callbacks,
        )
        made.add_callback(BankRefresh(made, rows=3, every=2))
        return made

    whole = trainer("whole")
    whole.train()
    trainer("parts", StopAt(5)).train()
    second = trainer("parts", seed=999)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-5"))
    assert_same_training(second, whole)
    assert whole.seconds["refresh"] > 0
    # The settings do something: without them other weights come out.
    plain = fresh_trainer(tmp_path / "plain", objective=objective(eviction))
    plain.train()
    assert not torch.equal(plain.model.head.weight, whole.model.head.weight)


@pytest.mark.parametrize("how", ["plain", "teacher", "bf16", "frozen"])
def test_refreshed_rows_are_what_the_model_makes_of_them_now(tmp_path: Path, how: str) -> None:
    trainer = fresh_trainer(
        tmp_path,
        objective=tiny_objective(10 if how != "frozen" else 0),
        max_steps=3,
        bf16=how == "bf16",
    )
    corpus = trainer.train_dataset.corpus
    frozen = torch.randn(len(corpus), 5, generator=torch.Generator().manual_seed(1))
    if how == "teacher":
        trainer.use_teacher(0.9)
    if how == "frozen":
        bank = MemoryBank(10, DIM + 5, k=4)
        trainer.objective = GraphGuidedObjective(len(CLASSES), memory=bank, k=4, frozen_weight=0.25)
        trainer.train_dataset.frozen = frozen
    trainer.add_callback(BankRefresh(trainer, rows=100, every=3))
    trainer.train()
    memory = trainer.objective.memory
    assert memory.age.tolist() == [0] * len(memory)
    encoder = (trainer.teacher if how == "teacher" else trainer.model).eval().encoder
    rows = encoder.embed(corpus)[memory.ids]
    expected = F.normalize(rows, dim=1)
    if how == "frozen":
        other = F.normalize(frozen[memory.ids], dim=1)
        expected = torch.cat([0.75**0.5 * expected, 0.25**0.5 * other], dim=1)
    tolerance = 0.03 if how == "bf16" else 1e-5
    torch.testing.assert_close(memory.embeddings, expected, rtol=0, atol=tolerance)


def test_refreshing_draws_no_random_number(tmp_path: Path) -> None:
    """A step after it has the dropout and the batch it had without."""
    found = []
    for rows in (0, 5):
        trainer = fresh_trainer(
            tmp_path / str(rows), objective=tiny_objective(10, graph_weight=0.0)
        )
        if rows:
            trainer.add_callback(BankRefresh(trainer, rows=rows, every=1))
        trainer.train()
        assert trainer.model.training
        found.append(trainer.model.head.weight.detach().clone())
    assert torch.equal(found[0], found[1])


def test_documents_that_cannot_be_encoded_are_named(tmp_path: Path) -> None:
    trainer = fresh_trainer(tmp_path)
    trainer.objective.memory.enqueue(torch.eye(2, DIM), ids=torch.tensor([1000, 1001]))
    before = trainer.objective.memory.embeddings.clone()
    refresh = BankRefresh(trainer, rows=2, every=1)
    with pytest.raises(ValueError, match="holds document 1000, which is none of the training"):
        trainer.objective.memory.refresh(refresh.encode, 2)
    assert torch.equal(trainer.objective.memory.embeddings, before)
    for name, settings in {
        "rows": {"rows": 0, "every": 1},
        "every": {"rows": 1, "every": 0},
    }.items():
        with pytest.raises(ValueError, match=f"'{name}' must be"):
            BankRefresh(trainer, **settings)
    trainer.objective = None
    with pytest.raises(ValueError, match="'trainer' must have an objective with a memory"):
        BankRefresh(trainer, rows=1, every=1)


# ------------------------------------------------------------------ settings of a run

BAD: list[tuple[str, Any]] = [
    *(("eviction", value) for value in ("lru", "FIFO", "", None, 3)),
    *(("hops", value) for value in (0, -1, 1.5, "2", True)),
    *(("search", value) for value in ("hops", "", None, 3)),
    *(("half_life", value) for value in (0, -2.0, float("inf"), float("nan"), True)),
    *(
        (name, value)
        for name in ("memory_start", "memory_ramp", "refresh_rows")
        for value in (-1, 0.5, None, True)
    ),
    *(("refresh_rows_every", value) for value in (0, -1, 2.0, None)),
    *(("restandardize", value) for value in (1, None, "yes")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' must be"):
        TrainConfig(**{name: value})


def test_settings_reach_bank_and_objective() -> None:
    config = quick(eviction="reservoir", seed=5, memory_size=8, **SETTINGS)
    made = make_objective(config, 3, DIM, 24)
    assert int(made.memory.eviction.seed) == 5
    assert "hops=2" in repr(made)
    assert "half_life=6.0, restandardize=True, warmup_steps=2, ramp_steps=4" in repr(made)


def test_a_run_with_all_of_them_is_recorded_and_read_again(tmp_path: Path) -> None:
    settings = {"eviction": "reservoir", "refresh_rows": 4, "refresh_rows_every": 2, **SETTINGS}
    settings |= {"search": "descent"}
    config = quick(memory_size=12, pictures=False, **settings)
    result = run(tmp_path / "run", config)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: written[name] for name in settings} == settings
    assert result.metrics["seconds.refresh"] > 0
    memory = result.objective.memory
    assert memory.search_backend == "descent"
    # Its graph, and predictions over it, are read from the folder again.
    assert document_graph(tmp_path / "run", k=3).num_nodes == 12
    assert len(memory) == 12
    again = Run(tmp_path / "run").objective.memory
    for name, value in memory.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_few_labels_with_all_of_them(tmp_path: Path) -> None:
    splits = tiny_splits()
    train = hide_labels(splits.train, [0, 1, 2, 3, 4, 5])
    splits = type(splits)(train, splits.val, splits.test)
    config = quick(
        eviction="stalest", refresh_rows=4, refresh_rows_every=1, pictures=False, **SETTINGS
    )
    result = run(tmp_path / "run", config, splits)
    assert bool(torch.isfinite(result.objective.memory.embeddings).all())
    assert result.objective.memory.dim == 2 * DIM


def test_class_balanced_label_sets_are_refused() -> None:
    from gloss_graph.training.config import check_multilabel

    with pytest.raises(ValueError, match="'eviction' must not be 'class-balanced'"):
        check_multilabel(TrainConfig(eviction="class-balanced"))
