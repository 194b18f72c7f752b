"""One run of a graph model: splits in, a fitted model and a run folder out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import TrainerControl, TrainerState

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.processes import launched
from gloss_graph.baselines.bert_gcn import BertGCNClassifier
from gloss_graph.baselines.config import BertGCNConfig, GraphModelConfig, TextGCNConfig
from gloss_graph.baselines.text_gcn import TextGCNClassifier
from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training.data import with_few_labels
from gloss_graph.training.outcome import ClassReport, describe, split_scores
from gloss_graph.training.run import check_labels
from gloss_graph.training.snapshots import Snapshots

GraphClassifier = TextGCNClassifier | BertGCNClassifier


@dataclass(frozen=True)
class GraphModelResult:
    """What a run of a graph model gives back.

    Attributes:
        model: The fitted estimator.
        metrics: Flat numbers: `test.macro_f1`, `seconds.train`, ...
        history: A row an epoch.
        predictions: Split name -> predicted class (N,) of its documents.
    """

    model: GraphClassifier
    metrics: dict[str, float]
    history: list[dict[str, float]]
    predictions: dict[str, np.ndarray]


def train_graph_model(
    splits: Splits,
    config: GraphModelConfig,
    out: str | Path,
    *,
    encoder: TextEncoder | None = None,
    progress: bool = False,
    finish: Callable[[Path, GraphModelResult], object] | None = None,
) -> GraphModelResult:
    """Fit TextGCN or BertGCN, score it and write a run folder like that of `train_text`.

    The folder holds `config.json`, `metrics.json`, `history.csv`, `classes.csv`,
    `labels_used.csv`, `predictions.csv` (of every document, the unlabeled ones too), `model/` and
    what pictures are drawn from; `compare_runs` and `write_report` read it.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        config: A `TextGCNConfig` or `BertGCNConfig`.
        out: New or empty folder, or that of a run that did not finish; all in it appears at once,
            when it is whole.
        encoder: Of BertGCN, fine-tuned in place.
        progress: Show a progress bar.
        finish: Adds files to the run folder before it is whole: called with the folder as it is
            then, and the result.

    Raises:
        ValueError: No labeled training document, fewer than two classes, no word left, an encoder
            too many or too few, or several processes.
        FileExistsError: `out` holds files.
        BlockingIOError: Another process trains into `out`.

    Example:
        See the README.
    """
    if launched() > 1:
        raise ValueError(f"A {config.model} runs in one process: start it without torchrun.")
    model = _made(config, encoder)
    splits = with_few_labels(
        splits,
        fraction=config.label_fraction,
        per_class=config.labels_per_class,
        seed=config.seed,
    )
    check_labels(splits, picks_step=False)
    with RunFolder(out).claim() as claimed:
        result = _train(model, splits, config, encoder, claimed.draft, progress)
        if finish is not None:
            finish(claimed.draft, result)
    return result


def _train(
    model: GraphClassifier,
    splits: Splits,
    config: GraphModelConfig,
    encoder: TextEncoder | None,
    out: Path,
    progress: bool,
) -> GraphModelResult:
    """Fit the model and write its run into `out`."""
    recorder = _Recorder(model, splits, config)
    start = time.perf_counter()
    model.fit(splits, watch=recorder, progress=progress)
    metrics = {"steps": float(model.steps), "best_step": float(model.best_step)}
    metrics["epochs_to_stop"] = float(len(model.history))
    metrics |= {f"seconds.{name}": seconds for name, seconds in model.clock.items()}
    metrics["seconds.train"] = time.perf_counter() - start - recorder.seconds
    there = splits.parts
    spreads = {name: model.predict_proba(part) for name, part in there.items()}
    predictions = {name: spread.argmax(dim=1).numpy() for name, spread in spreads.items()}
    classes = ClassReport()
    embeddings: dict[str, Tensor] = {}
    for name in ("val", "test"):
        if name in there:
            embeddings[name] = model.embed(there[name])
            metrics |= split_scores(name, predictions[name], embeddings[name], there[name])
            classes.add(name, config.model, predictions[name], there[name])
    metrics["seconds.total"] = time.perf_counter() - start
    folder = RunFolder(out)
    model.save(folder.model)
    folder.write_labels_used(splits.train)
    classes.write(folder.classes)
    _write_predictions(there, spreads, folder.predictions)
    recorder.write(out, embeddings, metrics)
    shared = ("seed", "device", "pictures", "label_fraction", "labels_per_class")
    values = config.as_dict()
    settings: dict[str, Any] = {
        "loss": config.model,
        "model": config.model,
        **{name: values.pop(name) for name in shared},
        **({} if encoder is None else encoder.describe()),
        config.model.replace("-", "_"): values,
        "data": describe(splits),
    }
    folder.write(settings, metrics, model.history)
    return GraphModelResult(model, metrics, model.history, predictions)


def _made(config: GraphModelConfig, encoder: TextEncoder | None) -> GraphClassifier:
    if isinstance(config, TextGCNConfig) and encoder is None:
        return TextGCNClassifier(config)
    if isinstance(config, BertGCNConfig) and isinstance(encoder, TextEncoder):
        return BertGCNClassifier(encoder, config)
    raise ValueError(
        f"'encoder' must be a text encoder for bert-gcn and None for text-gcn (got "
        f"{type(encoder).__name__} for {config.model})."
    )


class _Recorder:
    """Records the embeddings of a fit for its pictures, once the model is made."""

    def __init__(self, model: GraphClassifier, splits: Splits, config: GraphModelConfig) -> None:
        self._model, self._splits, self._config = model, splits, config
        self._state = TrainerState()
        self._snapshots: Snapshots | None = None

    def begin(self) -> None:
        if self._config.pictures:
            self._snapshots = Snapshots(self._model, self._splits, {}, seed=self._config.seed)

    def step(self, step: int, most: int) -> None:
        if self._snapshots is None:
            return
        batch, control = self._snapshots.batch, TrainerControl()
        nothing = cast(Any, None)
        if step == 1:
            self._state.max_steps = most
            batch.on_train_begin(nothing, self._state, control)
        self._state.global_step = step
        batch.on_step_end(nothing, self._state, control)

    @property
    def seconds(self) -> float:
        return 0.0 if self._snapshots is None else self._snapshots.seconds

    def write(self, out: Path, embeddings: dict[str, Tensor], metrics: dict[str, float]) -> None:
        if self._snapshots is not None:
            self._snapshots.write(out, embeddings, metrics)


def _write_predictions(parts: dict[str, Corpus], spreads: dict[str, Tensor], file: Path) -> None:
    """Split, id, label, predicted class and its probability of every document."""
    tables = []
    for name, corpus in parts.items():
        best = spreads[name].max(dim=1)
        names = corpus.label_names
        tables.append(
            pd.DataFrame(
                {
                    "split": name,
                    "id": corpus.ids,
                    "label": [names[label] if label >= 0 else "" for label in corpus.labels],
                    "predicted": [names[label] for label in best.indices.tolist()],
                    "probability": best.values.tolist(),
                    "text": corpus.texts,
                }
            )
        )
    with atomic_write(file, overwrite=True) as draft:
        draft.write(csv_bytes(pd.concat(tables)))
