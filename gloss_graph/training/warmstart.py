"""Contrastive warm start: the encoder fine-tuned on pairs of the few labels, as SetFit does."""

from __future__ import annotations

import math

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import WeightedRandomSampler

from gloss_graph.losses import pair_cosine_loss
from gloss_graph.text import Corpus, FeatureEncoder, TextEncoder
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.sampler import MixedSampler


def contrastive_warm_start(
    encoder: TextEncoder | FeatureEncoder,
    corpus: Corpus,
    *,
    weights: Tensor | None = None,
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    seed: int = 0,
    bf16: bool = False,
    progress: bool = False,
) -> list[float]:
    """Pull documents of one class together and push others apart, in class-balanced batches.

    Args:
        encoder: Fine-tuned in place, on its own device; only parameters that require a gradient.
        corpus: Documents; unlabeled ones are left out.
        weights: (N,) how often a document is drawn beside others of its class, for labels that are
            not all certain; None takes turns.
        steps: Optimiser steps (AdamW, 10 % warm-up, then linear decay).
        batch_size: Labeled documents a step.
        learning_rate: Peak.
        seed: Of the batches and of dropout.
        bf16: Autocast the encoder to bfloat16.
        progress: Show a progress bar.

    Returns:
        The loss of every step.

    Raises:
        ValueError: No labeled document, or `weights` of another length, negative, or zero for
            all of them.
    """
    dataset, collate = TextDataset(corpus, encoder), TextCollator(encoder)
    wanted = steps * batch_size
    drawn = (
        _turns(corpus, wanted, seed) if weights is None else _draws(corpus, weights, wanted, seed)
    )
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    warmup = max(1, math.ceil(0.1 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)),
    )
    device = next(encoder.parameters()).device
    was_training, losses = encoder.training, []
    encoder.train()
    torch.manual_seed(seed)
    bar = track(
        range(steps),
        "Warm start",
        console=Console(stderr=True),
        transient=True,
        disable=not progress,
    )
    try:
        for step in bar:
            chosen = drawn[step * batch_size : (step + 1) * batch_size]
            batch = {k: v.to(device) for k, v in collate([dataset[i] for i in chosen]).items()}
            labels = batch.pop("labels")
            batch.pop("ids")
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                embeddings = encoder(**batch)
            loss = pair_cosine_loss(embeddings, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    finally:
        encoder.train(was_training)
    return losses


def _turns(corpus: Corpus, wanted: int, seed: int) -> list[int]:
    """Labeled documents, classes in equal shares, each as often as the others of its class."""
    sampler = MixedSampler(corpus.labels, labeled=1, unlabeled=0, balanced=True, seed=seed)
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn.extend(sampler)
        sampler.set_epoch(sampler.epoch + 1)
    return drawn[:wanted]


def _draws(corpus: Corpus, weights: Tensor, wanted: int, seed: int) -> list[int]:
    """Labeled documents by weight, classes in equal shares."""
    labels = torch.tensor(corpus.labels)
    if weights.shape != labels.shape or not bool((weights >= 0).all()):
        raise ValueError(
            f"'weights' must hold a value >= 0 for each of the {len(corpus)} documents (got shape "
            f"{tuple(weights.shape)})."
        )
    weights = torch.where(labels >= 0, weights, 0.0).double()
    if not bool((weights > 0).any()):
        raise ValueError("'weights' must be above 0 for a labeled document (got none).")
    totals = torch.zeros(corpus.num_classes, dtype=torch.double)
    totals.index_add_(0, labels.clamp(min=0), weights)
    shares = weights / totals.clamp(min=torch.finfo(torch.double).tiny)[labels.clamp(min=0)]
    generator = torch.Generator().manual_seed(seed)
    return list(WeightedRandomSampler(shares.tolist(), wanted, generator=generator))
