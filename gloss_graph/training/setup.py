"""What a run trains with, as its configuration asks for it: loss, bank and Trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import EarlyStoppingCallback, EvalPrediction, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from gloss_graph._internal.processes import launched
from gloss_graph.analysis.measures import classification_scores, macro_silhouette
from gloss_graph.graph import estimate_bandwidth
from gloss_graph.graph.bandwidth import scaled_bandwidth
from gloss_graph.losses import MetricLoss, PseudoLabelLoss
from gloss_graph.memory import MemoryBank, Reservoir
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import class_shares
from gloss_graph.runs import RunFolder
from gloss_graph.text import Splits
from gloss_graph.training.checkpoints import SavePoints
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.data import MixedSampler, TextCollator, TextDataset, steps_of
from gloss_graph.training.outcome import set_scores
from gloss_graph.training.processes import find_device, has_unused_parameters
from gloss_graph.training.trainer import BankRefresh, GraphGuidedTrainer, LossModule

_BANK_ROWS = 65_536
_REFRESH = 40
# Longer than any training: targets are solved once.
_NEVER_AGAIN = sys.maxsize


# ------------------------------------------------------------------ the loss


def make_loss(
    config: TrainConfig,
    num_classes: int,
    dim: int,
    labels: Sequence[int],
    *,
    frozen_dim: int = 0,
    sample: Tensor | None = None,
    multilabel: bool = False,
    views: Sequence[tuple[Tensor, Tensor]] = (),
) -> LossModule | None:
    """Make the loss module of a configuration; None for cross-entropy.

    `labels` are those of the training documents, -1 = unlabeled; label sets only mark the labeled
    documents there. The other arguments are those of `make_objective`.
    """
    spec = config.loss_spec
    if spec.module == "metric":
        return MetricLoss(
            config.loss,
            weight=config.graph_weight,
            memory=_bank(config, len(labels), dim, k=0) if spec.fills_bank else None,
            temperature=config.temperature,
            margin=config.margin,
        )
    sixth = max(1, steps_of(config, labels) // 6)
    if spec.module == "pseudo-labels":
        prior = class_shares(torch.tensor(labels), num_classes)
        weight = config.consistency_weight
        return PseudoLabelLoss(num_classes, prior, weight=weight, start=sixth, ramp=sixth)
    if spec.module is None:
        return None
    return make_objective(
        config,
        num_classes,
        dim,
        len(labels),
        frozen_dim=frozen_dim,
        sample=sample,
        sixth=sixth,
        multilabel=multilabel,
        views=views,
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
    views: Sequence[tuple[Tensor, Tensor]] = (),
) -> GraphGuidedObjective:
    """Make an objective over a bank: of a graph-guided loss, or one that predicts for another loss.

    The bank has a row for each of the `documents`, unless the settings say otherwise, with `dim`
    learned and `frozen_dim` frozen features. The in-batch forms estimate their bandwidth from a
    `sample` (S, D) of embeddings. Targets begin after a `sixth` of the steps and gain weight in as
    many; `targets=False` leaves them and the contrast out, which predictions do not need. `views`
    are those of the objective, for the contrast.
    """
    spec = config.loss_spec
    bandwidth = scaled_bandwidth(config.bandwidth, config.bandwidth_scale)
    if spec.form is not None:
        if isinstance(bandwidth, (int, float)):
            sigma = float(bandwidth)
        elif sample is None:
            raise ValueError(f"bandwidth={bandwidth!r} needs a 'sample' of embeddings.")
        else:
            sigma = float(estimate_bandwidth(bandwidth, normalize(sample, dim=1)))
        published = spec.form == "published"
        make = GraphGuidedObjective.published if published else GraphGuidedObjective.released
        return make(
            num_classes,
            sigma,
            graph_weight=config.graph_weight,
            visible_fraction=config.visible_fraction,
            seed=config.seed,
        )
    # Targets that learning does not improve, or has improved already, need not wait for it.
    early = spec.frozen_targets or config.warm_start_steps > 0
    start, ramp = (0, 1) if early else (sixth, sixth)
    refresh = min(_REFRESH, sixth) if config.refresh_every is None else config.refresh_every
    if spec.frozen_targets:
        refresh = _NEVER_AGAIN
    classes = num_classes if multilabel else None
    contrasts = targets and config.contrast_weight > 0 and not spec.frozen_targets
    return GraphGuidedObjective(
        num_classes,
        memory=_bank(config, documents, dim + frozen_dim, config.k, classes),
        multilabel=multilabel,
        graph=replace(config.graph, bandwidth=bandwidth),
        graph_weight=config.graph_weight if spec.weighted else 0.0,
        visible_fraction=config.visible_fraction,
        memory_visible_fraction=config.memory_visible_fraction,
        consistency=replace(
            config.consistency,
            start=start if config.consistency_start is None else config.consistency_start,
            ramp=ramp if config.consistency_ramp is None else config.consistency_ramp,
            refresh_every=refresh if targets else 0,
        ),
        contrast=config.contrast if contrasts else None,
        views=views if contrasts else (),
        staleness=config.staleness,
        frozen_weight=1.0 if spec.frozen_targets else config.anchor,
        seed=config.seed,
        **asdict(config.propagation),
    )


def _bank(
    config: TrainConfig, documents: int, dim: int, k: int, num_classes: int | None = None
) -> MemoryBank:
    draws = config.eviction == "reservoir"
    return MemoryBank(
        min(documents, _BANK_ROWS) if config.memory_size is None else config.memory_size,
        dim,
        k=k,
        search=config.search,
        normalize=config.graph.normalize,
        num_classes=num_classes,
        eviction=Reservoir(config.seed) if draws else config.eviction,
    )


# ------------------------------------------------------------------ the Trainer


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
    several = launched() > 1
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
            # Without this transformers refuses bf16 and several processes on a CPU.
            use_cpu=device.type == "cpu",
            ddp_find_unused_parameters=has_unused_parameters(classifier) if several else None,
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
        found |= {
            "eval_strategy": strategy,
            "save_strategy": strategy,
            "save_steps": every,
            # With 1 the Trainer removes the last one at its end, before the run is scored.
            "save_total_limit": 2 if resumable else 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": (
                "macro_silhouette" if config.mode == "standalone" else "macro_f1"
            ),
            "greater_is_better": True,
        }
    if config.gradient_checkpointing:
        # transformers 6 renames the argument.
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
