"""A whole run: what it leaves behind, what it refuses, that it repeats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import assert_same_state, snapshot
from transformers import TrainerCallback

from gloss_graph.analysis import classification_scores, macro_silhouette, micro_silhouette
from gloss_graph.graph import estimate_bandwidth
from gloss_graph.losses import METRIC_LOSSES
from gloss_graph.training import (
    LOSSES,
    GraphGuidedTrainer,
    Run,
    RunResult,
    TextClassifier,
    TrainConfig,
    make_loss,
    make_objective,
)

from .tiny import (
    CLASSES,
    DIM,
    quick,
    run,
    tiny_encoder,
    tiny_splits,
)

SCORES = ("accuracy", "macro_f1", "macro_silhouette", "micro_silhouette")
STAGES = ("encoder", "backward", "optimizer")
GRAPH_STAGES = (*STAGES, "graph", "propagation", "loss")
STAGES_OF = {
    "ce": STAGES,
    "gloss": (*GRAPH_STAGES, "search", "enqueue", "targets"),
    "static-lp": (*STAGES, "loss", "enqueue", "targets"),
    "pseudo-label": (*STAGES, "loss", "reference"),
    "setfit": ("warm_start",),
    **dict.fromkeys(METRIC_LOSSES, (*STAGES, "loss")),
    "gloss-published": GRAPH_STAGES,
    "gloss-released": GRAPH_STAGES,
}


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds.")}


@pytest.fixture(scope="module", params=list(LOSSES))
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, RunResult]:
    """One run with each of the losses."""
    out = tmp_path_factory.mktemp(request.param) / "runs" / "one"
    return request.param, out, run(out, quick(loss=request.param))


# ------------------------------------------------------------------ the run folder


def test_folder_holds_what_is_promised_and_no_more(
    finished: tuple[str, Path, RunResult],
) -> None:
    _, out, _ = finished
    files = {
        "README.md",
        "config.json",
        "metrics.json",
        "history.csv",
        "labels_used.csv",
        "classes.csv",
    }
    files |= {"model", "memory", "pictures"}
    assert {path.name for path in out.iterdir()} == files


def test_configuration_holds_every_setting_and_where_it_ran(
    finished: tuple[str, Path, RunResult],
) -> None:
    loss, out, _ = finished
    stored = json.loads((out / "config.json").read_text())
    config = quick(loss=loss)
    assert {name: stored[name] for name in config.as_dict()} == config.as_dict()
    assert stored["seed"] == 0
    assert stored["versions"]["torch"] == torch.__version__
    assert {"transformers", "torch-geometric", "faiss-cpu", "numpy"} < set(stored["versions"])
    assert {"python", "git_commit", "finished"} < set(stored)
    assert stored["encoder"] == repr(tiny_encoder())
    assert re.fullmatch("[0-9a-f]{16}", stored["data"].pop("digest"))
    assert stored["data"] == {
        "name": "tiny",
        "classes": CLASSES,
        "train": 36,
        "val": 12,
        "test": 15,
    }


def test_metrics_have_the_promised_names(finished: tuple[str, Path, RunResult]) -> None:
    loss, out, result = finished
    stored = json.loads((out / "metrics.json").read_text())
    names = {f"{split}.{score}" for split in ("val", "test") for score in SCORES}
    names |= {f"{split}_propagation.{score}" for split in ("val", "test") for score in SCORES[:2]}
    names |= {"steps", "seconds.train", "seconds.total"}
    names |= {f"seconds.{stage}" for stage in STAGES_OF[loss]}
    names |= {"head.C"} if loss == "setfit" else {"epochs_to_stop", "best_step"}
    assert set(stored) == set(result.metrics) == names
    assert stored == result.metrics
    assert stored["steps"] == 4
    if loss != "setfit":
        assert stored["best_step"] in (2, 4)
        assert stored["epochs_to_stop"] == pytest.approx(4 / 5)
    assert all(stored[f"{split}.{name}"] <= 1 for split in ("val", "test") for name in SCORES)


def test_scores_are_those_of_the_model_that_is_handed_back(
    finished: tuple[str, Path, RunResult],
) -> None:
    _, _, result = finished
    splits = tiny_splits()
    assert not any(module.training for module in result.model.modules())
    for name, corpus in (("val", splits.val), ("test", splits.test)):
        rows = result.model.encoder.encode(corpus.texts)
        torch.testing.assert_close(result.embeddings[name], rows)
        predicted = result.model.head(rows).argmax(dim=1).numpy()
        assert np.array_equal(result.predictions[name], predicted)
        labels = torch.tensor(corpus.labels)
        expected = classification_scores(predicted, labels.numpy())
        expected["macro_silhouette"] = macro_silhouette(rows, labels)
        expected["micro_silhouette"] = micro_silhouette(rows, labels)
        assert {score: result.metrics[f"{name}.{score}"] for score in SCORES} == expected


def test_classes_are_scored_by_both_heads(finished: tuple[str, Path, RunResult]) -> None:
    _, out, result = finished
    frame = pd.read_csv(out / "classes.csv")
    assert frame["class"].tolist() == CLASSES * 4
    for (split, head), rows in frame.groupby(["split", "head"]):
        stored = f"{split}_propagation" if head == "propagation" else split
        recalled = (rows["recall"] * rows["support"]).sum() / rows["support"].sum()
        assert recalled == pytest.approx(result.metrics[f"{stored}.accuracy"])
        assert rows["support"].sum() == (12 if split == "val" else 15)


def test_history_has_losses_and_scores(finished: tuple[str, Path, RunResult]) -> None:
    loss, out, result = finished
    frame = pd.read_csv(out / "history.csv")
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert frame["loss"].notna().all()
    assert [row["step"] for row in result.history] == [1, 2, 3, 4]
    if loss == "setfit":
        return
    evaluated = frame.dropna(subset="val_macro_f1")
    assert evaluated["step"].tolist() == [2, 4]
    assert result.metrics["val.macro_f1"] == pytest.approx(evaluated["val_macro_f1"].max())
    best = evaluated.loc[evaluated["val_macro_f1"].idxmax(), "step"]
    assert result.metrics["best_step"] == best
    assert ("graph_loss" in frame) == (loss == "static-lp" or loss.startswith("gloss"))
    assert ("metric_loss" in frame) == (loss in METRIC_LOSSES)
    if loss.startswith("gloss"):
        mixed = 0.3 * frame["graph_loss"] + 0.7 * frame["cross_entropy"]
        np.testing.assert_allclose(frame["loss"], mixed, atol=1e-3)


def test_model_and_memory_load(finished: tuple[str, Path, RunResult]) -> None:
    loss, out, result = finished
    loaded = TextClassifier.load(out / "model")
    assert_same_state(loaded.head.state_dict(), result.model.head.state_dict())
    texts = tiny_splits().test.texts
    assert torch.equal(loaded.encoder.encode(texts), result.model.encoder.encode(texts))
    again = Run(out)
    assert_same_state(again.objective.state_dict(), result.objective.state_dict())
    # Where the loss keeps no bank of documents, one is filled for predictions at the end.
    steps = int(result.metrics.get("best_step", 0))
    expected = min(36, 8 * steps) if loss == "gloss" else 36
    assert len(again.objective.memory) == expected
    assert again.objective.memory.capacity == 36
    predicted = again.predict(texts)
    rows = result.embeddings["test"]
    torch.testing.assert_close(predicted.explanation.probabilities, result.objective.predict(rows))


# ------------------------------------------------------------------ seeds


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    one, other = (run(tmp_path / name, quick(seed=4, memory_size=10)) for name in "ab")
    assert timeless(one.metrics) == timeless(other.metrics)
    assert one.history == other.history
    assert_same_state(one.model.state_dict(), other.model.state_dict())
    assert_same_state(one.objective.state_dict(), other.objective.state_dict())
    for name in ("val", "test"):
        assert np.array_equal(one.predictions[name], other.predictions[name])
    third = run(tmp_path / "c", quick(seed=5, memory_size=10))
    assert not torch.equal(third.model.head.weight, one.model.head.weight)
    assert third.history != one.history


# ------------------------------------------------------------------ schedules


def test_steps_follow_from_epochs_and_micro_batches(tmp_path: Path) -> None:
    """36 documents, 2 x 5 a step: four steps an epoch, the last of one micro-batch and a bit."""
    config = quick(max_steps=None, eval_steps=None, epochs=2, batch_size=5, gradient_accumulation=2)
    result = run(tmp_path / "run", config)
    assert result.metrics["steps"] == 8
    assert result.metrics["epochs_to_stop"] == pytest.approx(2)
    assert [row["step"] for row in result.history if "val_macro_f1" in row] == [4, 8]


def test_part_of_an_epoch(tmp_path: Path) -> None:
    config = quick(max_steps=None, eval_steps=None, epochs=0.5)
    result = run(tmp_path / "run", config)
    assert result.metrics["steps"] == 3
    assert [row["step"] for row in result.history if "val_macro_f1" in row] == [3]


def test_fewer_steps_than_an_evaluation_takes(tmp_path: Path) -> None:
    """The last model is the best one known, whether it was evaluated on the way or not."""
    result = run(tmp_path / "run", quick(max_steps=2, eval_steps=50))
    assert result.metrics["steps"] == result.metrics["best_step"] == 2
    assert "val.macro_f1" in result.metrics
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_early_stopping_and_the_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is made to peak at the second evaluation; patience 2 ends it at the fourth."""
    script = iter([0.3, 0.8, 0.1, 0.2, 0.9])
    monkeypatch.setattr(
        "gloss_graph.training.setup._compute_metrics",
        lambda prediction: {"accuracy": 0.0, "macro_f1": next(script)},
    )
    states: dict[int, tuple[Any, Any]] = {}

    class Keep(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states[state.global_step] = tuple(map(snapshot, (kwargs["model"], trainers[-1])))

    trainers: list[Any] = []
    plain = GraphGuidedTrainer.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        trainers.append(self.objective)
        self.add_callback(Keep())

    monkeypatch.setattr(GraphGuidedTrainer, "__init__", watched)
    config = quick(max_steps=20, eval_steps=1, patience=2, memory_size=10, batch_size=4)
    result = run(tmp_path / "run", config)
    assert result.metrics["steps"] == 4
    assert result.metrics["best_step"] == 2
    assert_same_state(result.model.state_dict(), states[2][0])
    assert_same_state(result.objective.state_dict(), states[2][1])
    assert not torch.equal(states[4][0]["head.weight"], result.model.head.weight)


@pytest.mark.parametrize("loss", ["ce", "gloss"])
def test_reduced_precision_and_checkpointing_train(tmp_path: Path, loss: str) -> None:
    result = run(tmp_path / "run", quick(loss=loss, bf16=True, gradient_checkpointing=True))
    assert {value.dtype for value in result.model.parameters()} == {torch.float32}
    assert np.isfinite([row["loss"] for row in result.history]).all()


@pytest.mark.parametrize(
    ("rule", "normalization"), [("poisson", "row"), ("spreading", "symmetric")]
)
def test_settings_reach_the_objective(tmp_path: Path, rule: str, normalization: str) -> None:
    config = quick(
        rule=rule,
        normalization=normalization,
        memory_size=7,
        k=3,
        bandwidth=0.7,
        visible_fraction=0.25,
        graph_weight=0.9,
    )
    objective = run(tmp_path / "run", config).objective
    assert (objective.propagation.rule, objective.propagation.normalization) == (
        rule,
        normalization,
    )
    assert (objective.memory.capacity, objective.memory.k, objective.graph.k) == (7, 3, 3)
    assert (objective.graph.bandwidth, objective.visible_fraction) == (0.7, 0.25)
    assert objective.graph_weight == 0.9


def test_a_bank_has_a_row_per_document_up_to_a_limit() -> None:
    assert make_objective(TrainConfig(), 3, DIM, 500).memory.capacity == 500
    assert make_objective(TrainConfig(), 3, 2, 100_000).memory.capacity == 65_536
    assert make_objective(TrainConfig(memory_size=0), 3, DIM, 500).memory.capacity == 0
    assert make_loss(TrainConfig(loss="ce"), 3, DIM, [0] * 500) is None


def test_in_batch_bandwidth_is_estimated_from_a_sample() -> None:
    config = TrainConfig(loss="gloss-released")
    sample = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    sigma = make_objective(config, 3, DIM, 50, sample=sample).graph.bandwidth
    unit = torch.nn.functional.normalize(sample, dim=1)
    assert sigma == pytest.approx(float(estimate_bandwidth("sqrt", unit)))
    with pytest.raises(ValueError, match="needs a 'sample' of embeddings"):
        make_objective(config, 3, DIM, 50)
