"""Which parameters of an encoder are trained, and on which device."""

from __future__ import annotations

import torch
from torch import nn

from gloss_graph.text import Adapters, FeatureEncoder, TextEncoder, add_lora
from gloss_graph.text.lora import require_peft
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.processes import find_device


def check_run(config: TrainConfig, *, on_features: bool) -> torch.device:
    """Refuse what this machine or the kind of encoder cannot do, before anything is read.

    Returns:
        The device to train on.

    Raises:
        ValueError: No such device; adapters of features, or without peft.
    """
    if config.lora_rank:
        if on_features:
            raise ValueError(
                "'lora_rank' must be 0 for features, which have no transformer to adapt (got "
                f"{config.lora_rank})."
            )
        require_peft()
    return find_device(config.device)


def adapt(encoder: TextEncoder | FeatureEncoder, config: TrainConfig) -> Adapters | None:
    """Choose what of an encoder is trained: freeze its first layers, give the others adapters.

    Returns:
        The adapters, None without.

    Raises:
        ValueError: Layers that the encoder does not have; adapters of features.
    """
    freeze_layers(encoder, config.freeze_layers)
    if not config.lora_rank or isinstance(encoder, FeatureEncoder):
        return None
    return add_lora(
        encoder,
        config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )


def freeze_layers(encoder: nn.Module, count: int) -> None:
    """Stop training the embedding layer and the first `count` layers; 0 trains all.

    Raises:
        ValueError: The encoder has fewer layers.
    """
    if count == 0:
        return
    model = getattr(encoder, "model", encoder)
    stacks = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not stacks or count > len(stacks[0]):
        found = len(stacks[0]) if stacks else 0
        raise ValueError(f"'freeze_layers' must be at most {found}, the layers (got {count}).")
    whole = getattr(model, "embeddings", None)
    tokens: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    first = whole if isinstance(whole, nn.Module) else tokens
    for module in (first, *stacks[0][:count]):
        for value in module.parameters():
            value.requires_grad_(False)
