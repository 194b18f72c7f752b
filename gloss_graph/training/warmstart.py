"""Contrastive warm start: the encoder fine-tuned on pairs of the few labels, as SetFit does."""

from __future__ import annotations

import math

import torch
from rich.console import Console
from rich.progress import track

from gloss_graph._space import Dimension, Range
from gloss_graph.losses.pairs import pair_cosine_loss
from gloss_graph.text import Corpus, TextEncoder
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.sampler import MixedSampler

SEARCH_SPACE: dict[str, Dimension] = {"warm_start_rate": Range(1e-6, 1e-4, log=True)}


def contrastive_warm_start(
    encoder: TextEncoder,
    corpus: Corpus,
    *,
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
        steps: Optimiser steps (AdamW, 10 % warm-up, then linear decay).
        batch_size: Labeled documents a step.
        learning_rate: Peak.
        seed: Of the batches and of dropout.
        bf16: Autocast the encoder to bfloat16.
        progress: Show a progress bar.

    Returns:
        The loss of every step.

    Raises:
        ValueError: No labeled document.
    """
    dataset, collate = TextDataset(corpus, encoder), TextCollator(encoder)
    sampler = MixedSampler(corpus.labels, labeled=batch_size, unlabeled=0, balanced=True, seed=seed)
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    warmup = max(1, math.ceil(0.1 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)),
    )
    device = next(encoder.parameters()).device
    was_training, losses, order = encoder.training, [], iter(sampler)
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
        for _ in bar:
            chosen: list[int] = []
            while len(chosen) < batch_size:
                index = next(order, None)
                if index is None:
                    sampler.set_epoch(sampler.epoch + 1)
                    order = iter(sampler)
                else:
                    chosen.append(index)
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
