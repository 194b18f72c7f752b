"""The loss module of a configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gloss_graph.graph import estimate_bandwidth
from gloss_graph.graph.bandwidth import scaled_bandwidth
from gloss_graph.losses import MetricLoss, PseudoLabelLoss
from gloss_graph.memory import MemoryBank, Reservoir
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import class_shares
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.data import steps_of

LossModule = GraphGuidedObjective | MetricLoss | PseudoLabelLoss
"""A loss that a trainer can train with."""

_BANK_ROWS = 65_536
_REFRESH = 40
# Longer than any training: targets are solved once.
_NEVER_AGAIN = sys.maxsize


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
    """Make an objective over a bank: of a graph-guided loss, or one that predicts for another loss.

    The bank has a row for each of the `documents`, unless the settings say otherwise, with `dim`
    learned and `frozen_dim` frozen features. The in-batch forms estimate their bandwidth from a
    `sample` (S, D) of embeddings. Targets begin after a `sixth` of the steps and gain weight in as
    many; `targets=False` leaves their table out, which predictions do not need.
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
        forms = {
            "published": GraphGuidedObjective.published,
            "released": GraphGuidedObjective.released,
        }
        return forms[spec.form](
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
