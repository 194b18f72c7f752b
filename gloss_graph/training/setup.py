"""The Trainer of a run, as its configuration asks for it."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, EvalPrediction, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from gloss_graph._internal.processes import launched
from gloss_graph.analysis.scores import classification_scores, macro_silhouette
from gloss_graph.runs import RunFolder
from gloss_graph.text import Splits
from gloss_graph.training.checkpoints import SavePoints
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.data import MixedSampler, TextCollator, TextDataset, steps_of
from gloss_graph.training.objectives import LossModule
from gloss_graph.training.outcome import set_scores
from gloss_graph.training.processes import find_device, has_unused_parameters
from gloss_graph.training.trainer import BankRefresh, GraphGuidedTrainer


def make_trainer(
    classifier: TextClassifier,
    loss: LossModule | None,
    splits: Splits,
    config: TrainConfig,
    out: Path,
    *,
    frozen: Tensor | None = None,
    save_steps: int | None = None,
) -> GraphGuidedTrainer:
    """The Trainer of a run; `frozen` (N, D') travels with the training documents."""
    encoder, labels = classifier.encoder, splits.train.labels
    sampler, unlabeled = MixedSampler.of(config, labels), min(labels) < 0
    standalone = classifier.standalone = config.mode == "standalone"
    device = find_device(config.device)
    classifier.to(device)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [value for value in encoder.parameters() if value.requires_grad],
                "lr": config.learning_rate,
            },
            {"params": list(classifier.head.parameters()), "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    reference = config.loss_spec.reference
    metrics = _set_metrics if splits.train.multilabel else _compute_metrics
    trainer = GraphGuidedTrainer(
        classifier,
        TrainingArguments(
            output_dir=str(RunFolder(out).checkpoints),
            per_device_train_batch_size=sampler.labeled + sampler.unlabeled,
            per_device_eval_batch_size=config.eval_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
            bf16=config.bf16,
            # Also without an accelerator: else transformers refuses bf16 and several processes.
            use_cpu=device.type == "cpu",
            ddp_find_unused_parameters=has_unused_parameters(classifier)
            if launched() > 1
            else None,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **_schedule(config, steps_of(config, labels), save_steps),
        ),
        objective=loss,
        # Without unlabeled documents the bank takes the rows of the training pass.
        reference=reference == "always" or (reference == "unlabeled" and unlabeled),
        teacher_decay=config.teacher_decay or config.loss_spec.teacher_decay,
        train_sampler=sampler if unlabeled or config.class_balance else None,
        train_dataset=TextDataset(splits.train, encoder, frozen),
        eval_dataset=TextDataset(splits.val or splits.train, encoder),
        data_collator=TextCollator(encoder, ids=config.ids),
        compute_metrics=_space_metrics if standalone else metrics,
        optimizers=(optimizer, None),
        callbacks=[] if config.keeps_last else [EarlyStoppingCallback(config.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if save_steps != 0:
        trainer.add_callback(SavePoints(None if config.keeps_last else save_steps))
    if config.refresh_rows and getattr(loss, "memory", None) is not None:
        trainer.add_callback(BankRefresh(trainer, config.refresh_rows, config.refresh_rows_every))
    return trainer


def _schedule(config: TrainConfig, steps: int, save_steps: int | None) -> dict[str, Any]:
    """Training arguments about length, evaluations, checkpoints and activations."""
    by_steps = config.eval_steps is not None or config.max_steps is not None
    strategy, every = "steps" if by_steps else "epoch", config.eval_steps or max(1, steps // 4)
    resumable, saves = save_steps != 0, "no"
    if resumable:
        saves = "steps" if save_steps else strategy
    found = {
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "warmup_steps": math.ceil(config.warmup * steps),
        "logging_steps": max(1, steps // 40),
        "eval_steps": every,
        "eval_strategy": "no",
        "save_strategy": saves,
        "save_steps": save_steps or every,
        "save_total_limit": 1,
        "save_only_model": not resumable,
        "restore_callback_states_from_checkpoint": True,
    }
    if not config.keeps_last:
        standalone = config.mode == "standalone"
        found |= {
            "eval_strategy": strategy,
            "save_strategy": strategy,
            "save_steps": every,
            # With 1 the Trainer removes the last one at its end, with the scoring still to come.
            "save_total_limit": 2 if resumable else 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "macro_silhouette" if standalone else "macro_f1",
            "greater_is_better": True,
        }
    if config.gradient_checkpointing:
        # The argument's name changes on the way to transformers 6.
        new = "activation_checkpointing"
        known = {field.name for field in fields(TrainingArguments)}
        found[new if new in known else "gradient_checkpointing"] = True
    return found


def _compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = np.asarray(prediction.predictions)
    return classification_scores(logits.argmax(axis=1), np.asarray(prediction.label_ids))


def _set_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = np.asarray(prediction.predictions)
    return set_scores(logits >= 0, np.asarray(prediction.label_ids))


def _space_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Score embeddings, which a classifier without logits returns."""
    rows, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
    return {"macro_silhouette": macro_silhouette(rows, labels)}
