"""What a run is made of: the objective and the Trainer a configuration asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.checkpoints import SavePoints
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.multilabel import set_scores
from gloss_graph.training.objectives import LossModule
from gloss_graph.training.processes import find_device, has_unused_parameters
from gloss_graph.training.refresh import BankRefresh
from gloss_graph.training.sampler import MixedSampler, steps_of
from gloss_graph.training.trainer import GraphGuidedTrainer


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
    """The Trainer of a run; `frozen` (N, D') travels with the training documents.

    `save_steps` as `train_text` has it.
    """
    encoder = classifier.encoder
    labels = splits.train.labels
    steps = steps_of(config, labels)
    sampler = MixedSampler.of(config, labels)
    standalone = config.mode == "standalone"
    classifier.standalone = standalone
    device = find_device(config.device)
    classifier.to(device)
    by_steps = config.eval_steps is not None or config.max_steps is not None
    every = config.eval_steps or max(1, steps // 4)
    strategy = "steps" if by_steps else "epoch"
    resumable = save_steps != 0
    keeps: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no"}
    if resumable:
        keeps["save_strategy"] = "steps" if save_steps else strategy
    if not config.keeps_last:
        keeps = {
            "eval_strategy": strategy,
            "save_strategy": strategy,
            "load_best_model_at_end": True,
            "metric_for_best_model": "macro_silhouette" if standalone else "macro_f1",
            "greater_is_better": True,
        }
    args = TrainingArguments(
        output_dir=str(RunFolder(out).checkpoints),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=sampler.labeled + sampler.unlabeled,
        per_device_eval_batch_size=config.eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=math.ceil(config.warmup * steps),
        eval_steps=every,
        save_steps=save_steps or every if config.keeps_last else every,
        logging_steps=max(1, steps // 40),
        # With 1 the Trainer removes the last one at its end, with the scoring still to come.
        save_total_limit=2 if resumable and not config.keeps_last else 1,
        save_only_model=not resumable,
        restore_callback_states_from_checkpoint=True,
        seed=config.seed,
        bf16=config.bf16,
        # Also without an accelerator: else transformers refuses bf16 and several processes.
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=has_unused_parameters(classifier) if launched() > 1 else None,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **keeps,
        **_checkpointing(config.gradient_checkpointing),
    )
    head = list(classifier.head.parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [value for value in encoder.parameters() if value.requires_grad],
                "lr": config.learning_rate,
            },
            {"params": head, "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    trainer = GraphGuidedTrainer(
        classifier,
        args,
        objective=loss,
        reference=_wants_reference(config, labels),
        teacher_decay=config.teacher_decay or config.loss_spec.teacher_decay,
        train_sampler=sampler
        if any(label < 0 for label in labels) or config.class_balance
        else None,
        train_dataset=TextDataset(splits.train, encoder, frozen),
        eval_dataset=TextDataset(splits.val or splits.train, encoder),
        data_collator=TextCollator(encoder, ids=config.ids),
        compute_metrics=_space_metrics if standalone else _head_metrics(splits.train),
        optimizers=(optimizer, None),
        callbacks=[] if config.keeps_last else [EarlyStoppingCallback(config.patience)],
    )
    trainer.remove_callback(PrinterCallback)
    if resumable:
        trainer.add_callback(SavePoints(None if config.keeps_last else save_steps))
    if config.refresh_rows and getattr(loss, "memory", None) is not None:
        trainer.add_callback(BankRefresh(trainer, config.refresh_rows, config.refresh_rows_every))
    return trainer


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


def _head_metrics(corpus: Corpus) -> Callable[[EvalPrediction], dict[str, float]]:
    return _set_metrics if corpus.multilabel else _compute_metrics


def _set_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = np.asarray(prediction.predictions)
    return set_scores(logits >= 0, np.asarray(prediction.label_ids))


def _space_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Of embeddings, which a classifier without logits hands out."""
    rows, labels = torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids)
    return {"macro_silhouette": macro_silhouette(rows, labels)}


def _wants_reference(config: TrainConfig, labels: Sequence[int]) -> bool:
    """With unlabeled documents the bank is filled without dropout; static targets need no bank."""
    wanted = config.loss_spec.reference
    return wanted == "always" or (wanted == "unlabeled" and any(label < 0 for label in labels))
