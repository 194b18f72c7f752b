"""What a run needs: its device, other processes, the loss with its bank, and the Trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.nn.functional import normalize
from transformers import EarlyStoppingCallback, EvalPrediction, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from gloss_graph._internal import processes
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph.analysis.measures import classification_scores, macro_silhouette
from gloss_graph.graph import estimate_bandwidth
from gloss_graph.graph.bandwidth import scaled_bandwidth
from gloss_graph.losses import MetricLoss, PseudoLabelLoss
from gloss_graph.memory import MemoryBank, Reservoir
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import class_shares
from gloss_graph.runs import RunFolder
from gloss_graph.text import Splits
from gloss_graph.text.lora import require_peft
from gloss_graph.training.checkpoints import SavePoints
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.data import MixedSampler, TextCollator, TextDataset, steps_of
from gloss_graph.training.outcome import set_scores
from gloss_graph.training.trainer import BankRefresh, GraphGuidedTrainer, LossModule

_BANK_ROWS = 65_536
_REFRESH = 40

# ------------------------------------------------------------------ device and processes


def find_device(name: str = "auto") -> torch.device:
    """The device to train on, of `DEVICES`; "auto" is the first accelerator, else the CPU.

    With several GPUs a process takes the one of its number on this machine.
    """
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    found = [kind for kind, module in kinds.items() if module.is_available()]
    if name == "auto":
        name = found[0] if found else "cpu"
    if name != "cpu" and name not in found:
        raise ValueError(
            f"'device' must be one this machine and its torch have, {', '.join(['cpu', *found])} "
            f"(got {name!r}). Use 'auto' for the fastest."
        )
    return torch.device(f"{name}:{processes.local_rank()}" if name in ("cuda", "xpu") else name)


def check_run(config: TrainConfig, *, on_features: bool) -> torch.device:
    """The device to train on; refuses what this machine or the kind of encoder cannot do."""
    for name in ("freeze_layers", "lora_rank"):
        if on_features and getattr(config, name):
            raise ValueError(f"{name!r} must be 0 for features (got {getattr(config, name)}).")
    if config.lora_rank:
        require_peft()
    return find_device(config.device)


def join_processes(device: str = "auto") -> None:
    """Join the other processes if `torchrun` or `accelerate launch` started several."""
    if processes.launched() > 1 and not processes.joined():
        PartialState(cpu=find_device(device).type == "cpu")


def on_main(action: Callable[[], object]) -> None:
    """Run `action` on process 0 alone; an `OSError` of it is raised on all processes."""
    failure: OSError | None = None
    if processes.is_main():
        try:
            action()
        except OSError as error:
            failure = error
    if any(_of_all(failure is not None)):
        raise failure or OSError("Process 0 failed; see its message.")


def check_same_everywhere(settings: Mapping[str, Any]) -> None:
    """Raise a `ValueError` on all processes if their settings differ; every process must call."""
    found = _of_all(dict(settings))
    known = dict.fromkeys(name for other in found for name in other)
    values = {name: sorted({repr(part.get(name)) for part in found}) for name in known}
    told = [f"'{name}' is {' and '.join(v)}" for name, v in values.items() if len(v) > 1]
    if told:
        raise ValueError(
            f"All processes of a run must be started with the same settings ({', '.join(told)}). "
            "Start them with one command."
        )


def _of_all(value: Any) -> list[Any]:
    """The values of all processes."""
    found = [value] * processes.world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def has_unused_parameters(classifier: TextClassifier) -> bool:
    """Whether a trained parameter gets no gradient, as that of an unused pooler."""
    encoder = classifier.encoder
    device = next(encoder.parameters()).device
    batch = {name: value.to(device) for name, value in encoder.probe().items()}
    trained = [value for value in classifier.parameters() if value.requires_grad]
    with evaluating(classifier), torch.enable_grad():
        output = classifier(**batch)
        result = output.embeddings if output.logits is None else output.logits
        found = torch.autograd.grad(result.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in found)


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
    spec, sixth = config.loss_spec, max(1, steps_of(config, labels) // 6)
    if spec.module is None:
        return None
    if spec.module == "metric":
        return MetricLoss(
            config.loss,
            weight=config.graph_weight,
            memory=_bank(config, len(labels), dim, k=0) if spec.fills_bank else None,
            temperature=config.temperature,
            margin=config.margin,
        )
    if spec.module == "pseudo-labels":
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
        if not isinstance(bandwidth, (int, float)):
            if sample is None:
                raise ValueError(f"bandwidth={bandwidth!r} needs a 'sample' of embeddings.")
            bandwidth = float(estimate_bandwidth(bandwidth, normalize(sample, dim=1)))
        make = getattr(GraphGuidedObjective, spec.form)
        return make(
            num_classes,
            float(bandwidth),
            graph_weight=config.graph_weight,
            visible_fraction=config.visible_fraction,
            seed=config.seed,
        )
    # Targets that learning does not improve, or has improved already, need not wait for it.
    early = spec.frozen_targets or config.warm_start_steps > 0
    start, ramp = (0, 1) if early else (sixth, sixth)
    refresh = min(_REFRESH, sixth) if config.refresh_every is None else config.refresh_every
    if spec.frozen_targets:
        refresh = sys.maxsize  # longer than any training: targets are solved once
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
    return MemoryBank(
        min(documents, _BANK_ROWS) if config.memory_size is None else config.memory_size,
        dim,
        k=k,
        search=config.search,
        normalize=config.graph.normalize,
        num_classes=num_classes,
        eviction=Reservoir(config.seed) if config.eviction == "reservoir" else config.eviction,
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
    encoder, labels, spec = classifier.encoder, splits.train.labels, config.loss_spec
    sampler, unlabeled = MixedSampler.of(config, labels), min(labels) < 0
    classifier.standalone = config.mode == "standalone"
    device = find_device(config.device)
    classifier.to(device)
    trained = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "lr": config.learning_rate},
            {"params": list(classifier.head.parameters()), "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    metrics = _set_metrics if splits.train.multilabel else _compute_metrics
    several = processes.launched() > 1
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
        reference=spec.reference == "always" or (spec.reference == "unlabeled" and unlabeled),
        teacher_decay=config.teacher_decay or spec.teacher_decay,
        train_sampler=sampler if unlabeled or config.class_balance else None,
        train_dataset=TextDataset(splits.train, encoder, frozen),
        eval_dataset=TextDataset(splits.val or splits.train, encoder),
        data_collator=TextCollator(encoder, ids=config.ids),
        compute_metrics=_space_metrics if classifier.standalone else metrics,
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
    resumable, best = save_steps != 0, not config.keeps_last
    found = {
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "warmup_steps": math.ceil(config.warmup * steps),
        "logging_steps": max(1, steps // 40),
        "eval_steps": every,
        "eval_strategy": strategy if best else "no",
        # A run that keeps its best step saves at the evaluations, `SavePoints` in between.
        "save_strategy": "steps" if save_steps and not best else strategy,
        "save_steps": every if best else save_steps or every,
        # With 1 the Trainer removes the last one at its end, before the run is scored.
        "save_total_limit": 2 if best and resumable else 1,
        "save_only_model": not resumable,
        "restore_callback_states_from_checkpoint": True,
    }
    if best:
        found["load_best_model_at_end"] = found["greater_is_better"] = True
        score = "macro_silhouette" if config.mode == "standalone" else "macro_f1"
        found["metric_for_best_model"] = score
    elif not resumable:
        found["save_strategy"] = "no"
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
