"""One run of a graph model: splits in, a fitted model and a run folder out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import TrainerControl, TrainerState

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.processes import launched
from gloss_graph.baselines.bert_gcn import BertGCNClassifier, BertGCNConfig
from gloss_graph.baselines.graph_model import GraphModelConfig
from gloss_graph.baselines.text_gcn import TextGCNClassifier, TextGCNConfig
from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training.data import with_few_labels
from gloss_graph.training.outcome import ClassReport, describe, split_scores
from gloss_graph.training.run import check_labels
from gloss_graph.training.snapshots import Snapshots

GraphClassifier = TextGCNClassifier | BertGCNClassifier

MODELS = {
    "text-gcn": "TextGCN (Yao et al. 2019): a GCN over documents and words",
    "bert-gcn": "BertGCN (Lin et al. 2021): an encoder and a GNN over its embeddings",
}
CONFIGS: dict[str, type[GraphModelConfig]] = {
    config.model: config for config in (TextGCNConfig, BertGCNConfig)
}


@dataclass(frozen=True)
class GraphModelResult:
    """The fitted estimator of a run, its metrics and a row of history per epoch."""

    model: GraphClassifier
    metrics: dict[str, float]
    history: list[dict[str, float]]
    #: Split name -> predicted class (N,) of its documents.
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
    `labels_used.csv`, `predictions.csv` (of all documents), `model/` and the data of pictures;
    `compare_runs` and `write_report` read it.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        config: A `TextGCNConfig` or `BertGCNConfig`.
        out: New or empty folder, or that of an unfinished run; its files appear at the end.
        encoder: The encoder of BertGCN, fine-tuned in place.
        progress: Show a progress bar.
        finish: Adds files: called with the folder before it is complete, and the result.

    Raises:
        ValueError: No labeled training document, fewer than two classes, no word left, an encoder
            for TextGCN or none for BertGCN, or several processes.
    """
    if launched() > 1:
        raise ValueError(f"A {config.model} runs in one process: start it without torchrun.")
    model: GraphClassifier
    if isinstance(config, TextGCNConfig) and encoder is None:
        model = TextGCNClassifier(config)
    elif isinstance(config, BertGCNConfig) and isinstance(encoder, TextEncoder):
        model = BertGCNClassifier(encoder, config)
    else:
        raise ValueError(
            f"'encoder' must be a text encoder for bert-gcn and None for text-gcn (got "
            f"{type(encoder).__name__} for {config.model})."
        )
    splits = with_few_labels(
        splits, fraction=config.label_fraction, per_class=config.labels_per_class, seed=config.seed
    )
    check_labels(splits, picks_step=False)
    parts, described = splits.parts, {} if encoder is None else encoder.describe()
    recorder = _Recorder(model, splits) if config.pictures else None
    with RunFolder(out).claim() as claimed:
        start, folder = time.perf_counter(), RunFolder(claimed.draft)
        model.fit(splits, watch=recorder, progress=progress)
        seconds = time.perf_counter() - start
        metrics = {"steps": float(model.steps), "best_step": float(model.best_step)}
        metrics["epochs_to_stop"] = float(len(model.history))
        metrics |= {f"seconds.{name}": spent for name, spent in model.clock.items()}
        metrics["seconds.train"] = seconds - (recorder.snapshots.seconds if recorder else 0.0)
        spreads = {name: model.predict_proba(part) for name, part in parts.items()}
        predictions = {name: spread.argmax(dim=1).numpy() for name, spread in spreads.items()}
        classes = ClassReport()
        embeddings = {name: model.embed(part) for name, part in parts.items() if name != "train"}
        for name, rows in embeddings.items():
            metrics |= split_scores(name, predictions[name], rows, parts[name])
            classes.add(name, config.model, predictions[name], parts[name])
        metrics["seconds.total"] = time.perf_counter() - start
        model.save(folder.model)
        classes.write(folder.classes)
        table = pd.concat([_predicted(name, parts[name], spreads[name]) for name in parts])
        with atomic_write(folder.predictions, overwrite=True) as draft:
            draft.write(csv_bytes(table))
        if recorder:
            recorder.snapshots.write(claimed.draft, embeddings, metrics)
        shared = ("seed", "device", "pictures", "label_fraction", "labels_per_class")
        values = asdict(config)
        settings: dict[str, Any] = {
            "loss": config.model,
            "model": config.model,
            **{name: values.pop(name) for name in shared},
            **described,
            config.model.replace("-", "_"): values,
            "data": describe(splits),
        }
        folder.write(settings, metrics, model.history, splits.train)
        result = GraphModelResult(model, metrics, model.history, predictions)
        if finish is not None:
            finish(claimed.draft, result)
    return result


class _Recorder:
    """Records embeddings for the pictures of a run, from the moment its model is made."""

    snapshots: Snapshots

    def __init__(self, model: GraphClassifier, splits: Splits) -> None:
        self._model, self._splits, self._state = model, splits, TrainerState()

    def __call__(self, step: int, most: int) -> None:
        self._state.global_step, self._state.max_steps = step, most
        if step:
            self.snapshots.batch.on_step_end(None, self._state, TrainerControl())
            return
        self.snapshots = Snapshots(self._model, self._splits, {}, seed=self._model.config.seed)
        self.snapshots.batch.on_train_begin(None, self._state, TrainerControl())


def _predicted(split: str, corpus: Corpus, spread: Tensor) -> pd.DataFrame:
    """Split, id, label, predicted class and its probability of every document."""
    best, names = spread.max(dim=1), corpus.label_names
    return pd.DataFrame(
        {
            "split": split,
            "id": corpus.ids,
            "label": [names[label] if label >= 0 else "" for label in corpus.labels],
            "predicted": [names[label] for label in best.indices.tolist()],
            "probability": best.values.tolist(),
            "text": corpus.texts,
        }
    )
