"""A whole run: what it leaves behind, what it refuses, that it repeats."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.progress import Progress
from transformers import TrainerCallback

from gloss_graph.graph import estimate_bandwidth
from gloss_graph.text import Corpus, Splits
from gloss_graph.training import (
    LOSSES,
    GraphGuidedTrainer,
    RunResult,
    TextClassifier,
    TrainConfig,
    classification_scores,
    load_objective,
    macro_silhouette,
    make_objective,
    train_text,
)

from .tiny import (
    CLASSES,
    DIM,
    assert_same_state,
    copied_state,
    tiny_corpus,
    tiny_encoder,
    tiny_splits,
)

SCORES = ("accuracy", "macro_f1", "macro_silhouette")
STAGES = ("encoder", "backward", "optimizer")
OBJECTIVE_STAGES = ("graph", "propagation", "loss")


def quick(**settings: Any) -> TrainConfig:
    defaults = {"max_steps": 4, "batch_size": 8, "eval_steps": 2, "k": 4, "learning_rate": 1e-3}
    return TrainConfig(**{**defaults, **settings})


def run(out: Path, config: TrainConfig | None = None, splits: Splits | None = None) -> RunResult:
    return train_text(splits or tiny_splits(), tiny_encoder(), config or quick(), out)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds.")}


def unlabeled(corpus: Corpus) -> Corpus:
    return replace(corpus, labels=[-1] * len(corpus))


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
    loss, out, _ = finished
    files = {"config.json", "metrics.json", "history.csv", "model"}
    files |= set() if loss == "ce" else {"memory"}
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
    names |= {"steps", "epochs_to_stop", "best_step", "seconds.train", "seconds.total"}
    names |= {f"seconds.{stage}" for stage in STAGES}
    if loss != "ce":
        names |= {f"seconds.{stage}" for stage in OBJECTIVE_STAGES}
    if loss == "gloss":
        names |= {"seconds.search", "seconds.enqueue"}
    assert set(stored) == set(result.metrics) == names
    assert stored == result.metrics
    assert stored["steps"] == 4
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
        assert {score: result.metrics[f"{name}.{score}"] for score in SCORES} == expected


def test_history_has_losses_and_scores(finished: tuple[str, Path, RunResult]) -> None:
    loss, out, result = finished
    frame = pd.read_csv(out / "history.csv")
    assert frame["step"].tolist() == [1, 2, 3, 4]
    assert frame["loss"].notna().all()
    evaluated = frame.dropna(subset="val_macro_f1")
    assert evaluated["step"].tolist() == [2, 4]
    assert result.metrics["val.macro_f1"] == pytest.approx(evaluated["val_macro_f1"].max())
    best = evaluated.loc[evaluated["val_macro_f1"].idxmax(), "step"]
    assert result.metrics["best_step"] == best
    assert ("graph_loss" in frame) == (loss != "ce")
    if loss != "ce":
        mixed = 0.3 * frame["graph_loss"] + 0.7 * frame["cross_entropy"]
        np.testing.assert_allclose(frame["loss"], mixed, atol=1e-3)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4]


def test_model_and_memory_load(finished: tuple[str, Path, RunResult]) -> None:
    loss, out, result = finished
    loaded = TextClassifier.load(out / "model")
    assert_same_state(loaded.head.state_dict(), result.model.head.state_dict())
    texts = tiny_splits().test.texts
    assert torch.equal(loaded.encoder.encode(texts), result.model.encoder.encode(texts))
    if loss == "ce":
        assert result.objective is None
        return
    fresh = make_objective(quick(loss=loss), 3, DIM, 36, sample=torch.randn(9, DIM))
    load_objective(fresh, out / "memory" / "objective.safetensors")
    assert_same_state(fresh.state_dict(), result.objective.state_dict())
    if loss == "gloss":
        assert len(fresh.memory) == min(36, 8 * int(result.metrics["best_step"]))
        assert fresh.memory.capacity == 36


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
        "gloss_graph.training.run._compute_metrics",
        lambda prediction: {"accuracy": 0.0, "macro_f1": next(script)},
    )
    states: dict[int, tuple[Any, Any]] = {}

    class Keep(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states[state.global_step] = tuple(map(copied_state, (kwargs["model"], trainers[-1])))

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
    assert (objective.memory.capacity, objective.memory.k, objective.k) == (7, 3, 3)
    assert (objective.bandwidth, objective.visible_fraction) == (0.7, 0.25)
    assert objective.graph_weight == 0.9


def test_a_bank_has_a_row_per_document_up_to_a_limit() -> None:
    assert make_objective(TrainConfig(), 3, DIM, 500).memory.capacity == 500
    assert make_objective(TrainConfig(), 3, 2, 100_000).memory.capacity == 65_536
    assert make_objective(TrainConfig(memory_size=0), 3, DIM, 500).memory.capacity == 0
    assert make_objective(TrainConfig(loss="ce"), 3, DIM, 500) is None


def test_in_batch_bandwidth_is_estimated_from_a_sample() -> None:
    config = TrainConfig(loss="gloss-released")
    sample = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    sigma = make_objective(config, 3, DIM, 50, sample=sample).bandwidth
    unit = torch.nn.functional.normalize(sample, dim=1)
    assert sigma == pytest.approx(float(estimate_bandwidth("sqrt", unit)))
    with pytest.raises(ValueError, match="needs a 'sample' of embeddings"):
        make_objective(config, 3, DIM, 50)


# ------------------------------------------------------------------ data of other shapes


def test_no_test_documents(tmp_path: Path) -> None:
    result = run(tmp_path / "run", splits=tiny_splits(test=0))
    assert not any(name.startswith("test.") for name in result.metrics)
    assert set(result.predictions) == set(result.embeddings) == {"val"}


def test_unlabeled_test_documents_are_predicted(tmp_path: Path) -> None:
    splits = tiny_splits()
    result = run(tmp_path / "run", splits=replace(splits, test=unlabeled(splits.test)))
    assert not any(name.startswith("test.") for name in result.metrics)
    assert result.predictions["test"].shape == (15,)


def test_a_class_with_one_test_document_has_no_silhouette(tmp_path: Path) -> None:
    """JSON knows no NaN: the file says null."""
    test = tiny_corpus(3, first_id=100)
    run(tmp_path / "run", splits=replace(tiny_splits(), test=test))
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["test.macro_silhouette"] is None


@pytest.mark.parametrize("loss", list(LOSSES))
def test_mostly_unlabeled_training_documents(tmp_path: Path, loss: str) -> None:
    splits = tiny_splits()
    labels = [label if i < 9 else -1 for i, label in enumerate(splits.train.labels)]
    splits = replace(splits, train=replace(splits.train, labels=labels))
    result = run(tmp_path / "run", quick(loss=loss, batch_size=6), splits)
    assert np.isfinite([row["loss"] for row in result.history]).all()


def test_pairs_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second texts reach training, scoring and the estimate of the bandwidth."""

    def paired(corpus: Corpus) -> Corpus:
        return replace(corpus, texts_b=corpus.texts[::-1])

    splits = tiny_splits()
    splits = Splits(paired(splits.train), paired(splits.val), paired(splits.test))
    encoder = tiny_encoder()
    seen: list[bool] = []
    encode = type(encoder).encode

    def watched(self: Any, texts: list[str], texts_b: Any = None, **options: Any) -> Any:
        seen.append(texts_b is not None and len(texts_b) == len(texts))
        return encode(self, texts, texts_b, **options)

    monkeypatch.setattr(type(encoder), "encode", watched)
    train_text(splits, encoder, quick(loss="gloss-released"), tmp_path / "run")
    assert seen == [True, True, True]


# ------------------------------------------------------------------ progress


def test_bars_are_on_stderr_and_only_on_demand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    train_text(
        tiny_splits(),
        tiny_encoder(),
        quick(),
        tmp_path / "shown",
        progress=True,
        description="Mine",
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"Mine .*4/4.*loss \d\.\d{3}  val F1 0\.\d{3}", err)


def test_a_failure_on_the_way_stops_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the terminal keeps its hidden cursor and the thread that draws."""
    calls: list[str] = []
    for name in ("start", "stop"):
        plain = getattr(Progress, name)

        def noted(self: Progress, name: str = name, plain: Any = plain) -> None:
            calls.append(name)
            plain(self)

        monkeypatch.setattr(Progress, name, noted)

    def fail(self: Any, *_: Any, **__: Any) -> None:
        calls.append("fail")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GraphGuidedTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_text(tiny_splits(), tiny_encoder(), quick(), tmp_path / "run", progress=True)
    assert calls == ["start", "fail", "stop"]


# ------------------------------------------------------------------ refusals


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".hidden"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="'out' must be a new or empty folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]
    with pytest.raises(FileExistsError, match=r"\.hidden"):
        run(file)
    assert file.read_text() == "mine"


def test_an_empty_folder_and_a_deep_one_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", quick(max_steps=1))
    run(tmp_path / "a" / "b" / "c", quick(max_steps=1))
    assert (tmp_path / "a" / "b" / "c" / "metrics.json").is_file()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(PermissionError, match=r"'out' cannot be written .*file/run"):
        run(file / "run")
    assert file.read_text() == "mine"

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(PermissionError, match="Read-only file system"):
        run(tmp_path / "new")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_without_labels(tmp_path: Path, part: str) -> None:
    splits = tiny_splits()
    blank = replace(splits, **{part: unlabeled(getattr(splits, part))})
    with pytest.raises(ValueError, match=f"'splits.{part}' must hold a labeled document"):
        run(tmp_path / "run", splits=blank)
    assert not (tmp_path / "run").exists()


def test_no_validation_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a validation part"):
        run(tmp_path / "run", splits=replace(tiny_splits(), val=None))
    assert not (tmp_path / "run").exists()
