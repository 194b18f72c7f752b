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
from gloss_graph.graph import estimate_bandwidth
from gloss_graph.graph.bandwidth import scaled_bandwidth
from gloss_graph.losses import METRIC_LOSSES, MetricLoss, PseudoLabelLoss
from gloss_graph.memory import MemoryBank, Reservoir
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import class_shares
from gloss_graph.step import Staleness
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.checkpoints import FOLDER, SavePoints
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.multilabel import set_scores
from gloss_graph.training.processes import find_device, has_unused_parameters
from gloss_graph.training.refresh import BankRefresh
from gloss_graph.training.sampler import MixedSampler
from gloss_graph.training.trainer import GraphGuidedTrainer, LossModule

_BANK_ROWS = 65_536
_REFRESH = 40
# Losses that learn from documents without label.
USES_UNLABELED = ("gloss", "static-lp", "pseudo-label")


def steps_of(config: TrainConfig, labels: Sequence[int]) -> int:
    """Optimiser steps of a run over documents with these labels (-1 = unlabeled).

    Several processes share the batches of an epoch.
    """
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(_sampler(config, labels).blocks / launched())
    return math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def _sampler(config: TrainConfig, labels: Sequence[int]) -> MixedSampler:
    mixes = config.loss in USES_UNLABELED and any(label < 0 for label in labels)
    return MixedSampler(
        labels,
        labeled=config.batch_size,
        unlabeled=config.unlabeled_batch_size if mixes else 0,
        balanced=config.class_balance,
        seed=config.seed,
    )


def _bank(
    config: TrainConfig, documents: int, dim: int, k: int, num_classes: int | None = None
) -> MemoryBank:
    size = min(documents, _BANK_ROWS) if config.memory_size is None else config.memory_size
    # A policy that draws does so by the seed of the run.
    draws = config.eviction == "reservoir"
    policy = Reservoir(config.seed) if draws else config.eviction
    return MemoryBank(
        size,
        dim,
        k=k,
        search=config.search,
        num_classes=num_classes,
        eviction=policy,
    )


def make_loss(
    config: TrainConfig,
    num_classes: int,
    dim: int,
    labels: Sequence[int],
    *,
    frozen_dim: int = 0,
    sample: Tensor | None = None,
    multilabel: bool = False,
) -> LossModule | None:
    """The loss module a configuration asks for, None for cross-entropy.

    Args:
        config: Settings.
        num_classes: C.
        dim: Embedding dimension D.
        labels: Of the training documents, -1 = unlabeled; one row of the bank each.
        frozen_dim: D' of frozen features, 0 without.
        sample: (S, D) embeddings the in-batch forms estimate their fixed bandwidth from.
        multilabel: Labels are sets; `labels` then only mark the labeled documents.

    Raises:
        ValueError: An in-batch form with bandwidth "sqrt" and no `sample`.
    """
    if config.loss in ("ce", "setfit"):
        return None
    if config.loss in METRIC_LOSSES:
        memory = None
        if config.loss == "xbm-scl":
            memory = _bank(config, len(labels), dim, k=0)
        return MetricLoss(
            config.loss,
            weight=config.graph_weight,
            memory=memory,
            temperature=config.temperature,
            margin=config.margin,
        )
    sixth = max(1, steps_of(config, labels) // 6)
    if config.loss == "pseudo-label":
        prior = class_shares(torch.tensor(labels), num_classes)
        weight = config.consistency_weight
        return PseudoLabelLoss(num_classes, prior, weight=weight, start=sixth, ramp=sixth)
    return make_objective(
        config,
        num_classes,
        dim,
        len(labels),
        frozen_dim=frozen_dim,
        sample=sample,
        sixth=sixth,
        multilabel=multilabel,
    )


def make_objective(
    config: TrainConfig,
    num_classes: int,
    dim: int,
    documents: int,
    *,
    frozen_dim: int = 0,
    sample: Tensor | None = None,
    sixth: int = _REFRESH,
    targets: bool = True,
    multilabel: bool = False,
) -> GraphGuidedObjective:
    """The objective of a graph-guided loss; for other losses, one that predicts over a bank.

    Args:
        config: Settings.
        num_classes: C.
        dim: Embedding dimension D.
        documents: Training documents, the default size of the bank.
        frozen_dim: D' of frozen features, 0 without.
        sample: (S, D) embeddings the in-batch forms estimate their fixed bandwidth from.
        sixth: A sixth of the steps: when targets begin, and how fast they gain weight.
        targets: False leaves out the table of targets, which predictions do not need.
        multilabel: Labels are sets.

    Raises:
        ValueError: An in-batch form with bandwidth "sqrt" and no `sample`.
    """
    bandwidth = scaled_bandwidth(config.bandwidth, config.bandwidth_scale)
    if config.loss in ("gloss-published", "gloss-released"):
        if isinstance(bandwidth, (int, float)):
            sigma = float(bandwidth)
        elif sample is None:
            raise ValueError(f"bandwidth={bandwidth!r} needs a 'sample' of embeddings.")
        else:
            unit = torch.nn.functional.normalize(sample, dim=1)
            sigma = float(estimate_bandwidth(bandwidth, unit))
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
    static = config.loss == "static-lp"
    # Targets that learning does not improve, or has improved already, need not wait for it.
    early = static or config.warm_start_steps > 0
    refresh = min(_REFRESH, sixth) if config.refresh_every is None else config.refresh_every
    return GraphGuidedObjective(
        num_classes,
        memory=_bank(
            config, documents, dim + frozen_dim, config.k, num_classes if multilabel else None
        ),
        multilabel=multilabel,
        k=config.k,
        bandwidth=bandwidth,
        graph_weight=config.graph_weight if config.loss == "gloss" else 0.0,
        eta=config.eta,
        rule=config.rule,
        normalization=config.normalization,
        visible_fraction=config.visible_fraction,
        memory_visible_fraction=config.memory_visible_fraction,
        consistency_weight=config.consistency_weight,
        consistency_start=0 if early else sixth,
        consistency_ramp=1 if early else sixth,
        refresh_every=0 if not targets else 2**40 if static else refresh,
        frozen_weight=1.0 if static else config.anchor,
        align=config.align,
        hops=config.hops,
        staleness=Staleness(
            half_life=config.half_life,
            restandardize=config.restandardize,
            warmup_steps=config.memory_start,
            ramp_steps=config.memory_ramp,
        ),
        seed=config.seed,
    )


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
    sampler = _sampler(config, labels)
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
        output_dir=str(out / FOLDER),
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
        reference=isinstance(loss, PseudoLabelLoss) or _wants_reference(config, labels),
        teacher_decay=_teacher_decay(config),
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
    return config.loss == "gloss" and any(label < 0 for label in labels)


def _teacher_decay(config: TrainConfig) -> float:
    """A teacher makes pseudo-labels; without one of its own a model confirms itself."""
    if config.loss == "pseudo-label":
        return config.teacher_decay or 0.98
    return config.teacher_decay
