"""One training run: splits and an encoder in, a trained classifier and a run folder out."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, EvalPrediction, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from gloss_graph.graph import estimate_bandwidth
from gloss_graph.memory import MemoryBank
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.metrics import classification_scores, macro_silhouette
from gloss_graph.training.progress import ProgressBar
from gloss_graph.training.provenance import provenance
from gloss_graph.training.state import save_objective
from gloss_graph.training.trainer import GraphGuidedTrainer

_BANK_ROWS = 65_536
_SIGMA_SAMPLE = 1024


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Attributes:
        model: The trained classifier (best validation macro-F1).
        objective: The objective with its bank, None for cross-entropy.
        metrics: Flat numbers: `test.macro_f1`, `val.accuracy`, `steps`, `seconds.encoder`, ...
        history: Rows of step, losses and validation scores.
        predictions: Split name -> predicted class (N,) of its documents.
        embeddings: Split name -> embeddings (N, D) of its documents.
    """

    model: TextClassifier
    objective: GraphGuidedObjective | None
    metrics: dict[str, float]
    history: list[dict[str, float]]
    predictions: dict[str, np.ndarray]
    embeddings: dict[str, Tensor]


def make_objective(
    config: TrainConfig, num_classes: int, dim: int, documents: int, sample: Tensor | None = None
) -> GraphGuidedObjective | None:
    """The objective a configuration asks for, None for cross-entropy.

    Args:
        config: Settings.
        num_classes: C.
        dim: Embedding dimension D.
        documents: Training documents, the default size of the bank.
        sample: (S, D) embeddings the in-batch forms estimate their fixed bandwidth from.

    Raises:
        ValueError: An in-batch form with bandwidth "sqrt" and no `sample`.
    """
    if config.loss == "ce":
        return None
    if config.loss in ("gloss-published", "gloss-released"):
        sigma = config.bandwidth
        if isinstance(sigma, str):
            if sample is None:
                raise ValueError(f"bandwidth={sigma!r} needs a 'sample' of embeddings.")
            unit = torch.nn.functional.normalize(sample, dim=1)
            sigma = float(estimate_bandwidth(sigma, unit))
        form = (
            GraphGuidedObjective.published
            if config.loss == "gloss-published"
            else GraphGuidedObjective.released
        )
        return form(
            num_classes,
            sigma,
            graph_weight=config.graph_weight,
            visible_fraction=config.visible_fraction,
            seed=config.seed,
        )
    size = min(documents, _BANK_ROWS) if config.memory_size is None else config.memory_size
    return GraphGuidedObjective(
        num_classes,
        memory=MemoryBank(size, dim, k=config.k),
        k=config.k,
        bandwidth=config.bandwidth,
        graph_weight=config.graph_weight,
        eta=config.eta,
        rule=config.rule,
        normalization=config.normalization,
        visible_fraction=config.visible_fraction,
        seed=config.seed,
    )


def train_text(
    splits: Splits,
    encoder: TextEncoder,
    config: TrainConfig,
    out: str | Path,
    *,
    progress: bool = False,
    description: str = "Training",
) -> RunResult:
    """Fine-tune an encoder with a linear head and score it.

    Writes `config.json`, `metrics.json`, `history.csv`, `model/` and, with a bank, `memory/` into
    `out`; `checkpoints/` lives there while training runs.

    Args:
        splits: Training, validation and test documents; validation picks the best step.
        encoder: Fine-tuned in place.
        config: Settings.
        out: New or empty folder.
        progress: Show progress bars.
        description: What the bar says.

    Raises:
        ValueError: No validation split, or no labeled document in it or in training.
        FileExistsError: `out` holds files.
    """
    if splits.val is None:
        raise ValueError("'splits' must have a validation part, which picks the best step.")
    for part, needed in (("train", splits.train), ("val", splits.val)):
        if not sum(needed.class_counts):
            raise ValueError(
                f"'splits.{part}' must hold a labeled document (got none of {len(needed)}). Label "
                "some, or check the column of the labels."
            )
    out = new_folder(out)
    set_seed(config.seed)
    labeled = splits.train
    classifier = TextClassifier(
        encoder, splits.train.label_names, dropout=config.dropout, seed=config.seed
    )
    start = time.perf_counter()
    sample = None
    if config.loss.startswith("gloss-") and isinstance(config.bandwidth, str):
        step = max(1, len(labeled) // _SIGMA_SAMPLE)
        some = labeled.select(range(0, len(labeled), step)[:_SIGMA_SAMPLE])
        sample = encoder.encode(some.texts, some.texts_b, progress=progress)
    objective = make_objective(
        config, labeled.num_classes, encoder.dim, len(labeled), sample=sample
    )
    trainer = _trainer(classifier, objective, splits, config, out)
    bar = ProgressBar(description)
    if progress:
        trainer.add_callback(bar)
    try:
        trainer.train()
    finally:
        bar.stop()
    trained = time.perf_counter() - start

    metrics: dict[str, float] = {}
    predictions, embeddings = {}, {}
    history = _history(trainer.state.log_history)
    for name, corpus in (("val", splits.val), ("test", splits.test)):
        if corpus is None:
            continue
        rows = encoder.encode(
            corpus.texts, corpus.texts_b, batch_size=config.eval_batch_size, progress=progress
        )
        predictions[name], embeddings[name] = _predict(classifier, rows), rows
        metrics.update(_scores(name, predictions[name], rows, corpus))
    metrics["steps"] = float(trainer.state.global_step)
    metrics["epochs_to_stop"] = float(trainer.state.epoch or 0.0)
    metrics["best_step"] = float(trainer.state.best_global_step or trainer.state.global_step)
    metrics["seconds.train"] = trained
    metrics["seconds.total"] = time.perf_counter() - start
    for stage, seconds in trainer.stage_seconds().items():
        metrics[f"seconds.{stage}"] = seconds

    classifier.eval().to("cpu").save(out / "model")
    if objective is not None:
        (out / "memory").mkdir()
        save_objective(objective, out / "memory" / "objective.safetensors")
    settings = {**config.as_dict(), "encoder": repr(encoder), "data": _describe(splits)}
    write_json(out / "config.json", {**settings, **provenance()})
    write_json(out / "metrics.json", metrics)
    pd.DataFrame(history).to_csv(out / "history.csv", index=False)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return RunResult(classifier, objective, metrics, history, predictions, embeddings)


def new_folder(out: str | Path) -> Path:
    """Make `out`, refusing a folder that holds anything.

    Raises:
        FileExistsError: It exists and is not empty.
        PermissionError: It cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"'out' must be a new or empty folder ({out} holds files). Choose another name or "
            "remove it."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"'out' cannot be written ({out}: {error.strerror}).") from error
    return out


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN becomes null."""
    plain = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in content.items()
    }
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _trainer(
    classifier: TextClassifier,
    objective: GraphGuidedObjective | None,
    splits: Splits,
    config: TrainConfig,
    out: Path,
) -> GraphGuidedTrainer:
    encoder = classifier.encoder
    steps = config.max_steps or math.ceil(
        config.epochs
        * math.ceil(len(splits.train) / (config.batch_size * config.gradient_accumulation))
    )
    by_steps = config.eval_steps is not None or config.max_steps is not None
    every = config.eval_steps or max(1, steps // 4)
    strategy = "steps" if by_steps else "epoch"
    args = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=math.ceil(config.warmup * steps),
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=every,
        save_steps=every,
        logging_steps=max(1, steps // 40),
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        seed=config.seed,
        bf16=config.bf16,
        # Without an accelerator transformers takes bf16 only where the CPU is asked for.
        use_cpu=config.bf16 and not _has_accelerator(),
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **_checkpointing(config.gradient_checkpointing),
    )
    head = list(classifier.head.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": list(encoder.parameters()), "lr": config.learning_rate},
            {"params": head, "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    trainer = GraphGuidedTrainer(
        classifier,
        args,
        objective=objective,
        train_dataset=TextDataset(splits.train, encoder),
        eval_dataset=TextDataset(splits.val or splits.train, encoder),
        data_collator=TextCollator(encoder),
        compute_metrics=_compute_metrics,
        optimizers=(optimizer, None),
        callbacks=[EarlyStoppingCallback(config.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _has_accelerator() -> bool:
    kinds = (torch.cuda, torch.backends.mps, getattr(torch, "xpu", torch.cuda))
    return any(kind.is_available() for kind in kinds)


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The argument's name changes on the way to transformers 6."""
    if not wanted:
        return {}
    names = {field.name for field in fields(TrainingArguments)}
    new = "activation_checkpointing"
    return {new if new in names else "gradient_checkpointing": True}


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = np.asarray(prediction.predictions)
    return classification_scores(logits.argmax(axis=1), np.asarray(prediction.label_ids))


@torch.no_grad()
def _predict(classifier: TextClassifier, rows: Tensor) -> np.ndarray:
    head = classifier.head.eval()
    return head(rows.to(head.weight.device)).argmax(dim=1).cpu().numpy()


def _scores(split: str, predicted: np.ndarray, rows: Tensor, corpus: Corpus) -> dict[str, float]:
    labels = torch.tensor(corpus.labels)
    if not bool((labels >= 0).any()):
        return {}
    scores = classification_scores(predicted, labels.numpy())
    scores["macro_silhouette"] = macro_silhouette(rows, labels)
    return {f"{split}.{name}": value for name, value in scores.items()}


def _history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row a step from the Trainer's log."""
    names = {
        "loss": "loss",
        "graph_loss": "graph_loss",
        "cross_entropy": "cross_entropy",
        "eval_accuracy": "val_accuracy",
        "eval_macro_f1": "val_macro_f1",
        "eval_loss": "val_cross_entropy",
    }
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        row = rows.setdefault(entry["step"], {"step": entry["step"]})
        row.update({names[key]: value for key, value in entry.items() if key in names})
    return [rows[step] for step in sorted(rows) if len(rows[step]) > 1]


def _describe(splits: Splits) -> dict[str, Any]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        "name": splits.train.name,
        "classes": splits.train.label_names,
        **{name: len(part) for name, part in parts.items() if part is not None},
    }
