"""Low-rank adapters (LoRA) in a text encoder, through peft."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gloss_graph._internal.checks import check_positive_int, check_range

# Names of the query and value projections in families without a default in peft.
_ATTENTION = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("Wqkv",), ("c_attn",))
_ALL = "all-linear"


def require_peft() -> Any:
    """The peft module, or a ValueError that names the extra that installs it."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            "'lora_rank' above 0 needs peft, which is not installed. Run 'pip install "
            '"gloss-graph[lora]"\'.'
        ) from error
    return peft


@dataclass(frozen=True)
class Adapters:
    """The adapters that `add_lora` put into the model of an encoder.

    Attributes:
        names: Adapted layers within the model.
        base: Parameters that were trained before and are frozen while the adapters are in.
    """

    model: nn.Module
    names: tuple[str, ...]
    base: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        """The number of trained parameters of the adapters; 0 after `merge`."""
        parameters = self.model.parameters() if _lora_layers(self.model) else ()
        return sum(value.numel() for value in parameters if value.requires_grad)

    def merge(self) -> None:
        """Add every adapter to its weight and remove it, in place; a second call does nothing.

        Embeddings stay the same up to rounding; the model saves and loads without peft again.
        """
        if _lora_layers(self.model):
            _merge(self.model)
            for value in self.base:
                value.requires_grad_(True)


def add_lora(
    encoder: nn.Module,
    rank: int,
    *,
    alpha: float = 16.0,
    dropout: float = 0.1,
    targets: str | None = None,
    seed: int = 0,
) -> Adapters:
    r"""Train low-rank adapters instead of the weights of an encoder (Hu et al. 2022, LoRA).

    A linear layer \(W\) becomes \(W + \frac{\alpha}{r} B A\) with \(A\) of `rank` r rows and
    initially \(B = 0\), so embeddings do not change at first. All weights of the model are frozen;
    layers that were frozen before get no adapter. `TextEncoder.save` writes merged weights.

    Args:
        encoder: A `TextEncoder`, changed in place.
        rank: r.
        alpha: Scale of the adapters, divided by `rank`.
        dropout: Dropout on the input of the adapters.
        targets: Linear layers to adapt, comma-separated ends of their full names, or "all-linear"
            for every one in the stack of layers. By default those that peft adapts in this
            family, query and value projections in most.
        seed: Seed of the initial \(A\).

    Raises:
        ValueError: No peft, an encoder that has adapters already, or no trained layer to adapt.

    Example:
        >>> from gloss_graph.text import load_encoder
        >>> encoder = load_encoder("minilm", max_length=16)
        >>> adapters = add_lora(encoder, 8)
        >>> adapters.names[0], adapters.size
        ('encoder.layer.0.attention.self.query', 73728)
        >>> adapters.merge()
    """
    check_positive_int("rank", rank)
    check_range("alpha", alpha, 0, float("inf"), open_low=True, open_high=True)
    check_range("dropout", dropout, 0, 1, open_high=True)
    peft = require_peft()
    model: Any = encoder.model
    if _lora_layers(model):
        raise ValueError("'encoder' must have no adapters yet (got one that has). Merge them.")
    names = _target_names(model, targets)
    layers = {name: model.get_submodule(name) for name in names}
    trained = [n for n, part in layers.items() if all(v.requires_grad for v in part.parameters())]
    if not trained:
        raise ValueError(
            f"'lora_targets' must name a layer that is not frozen (all {len(names)} are). Freeze "
            "fewer layers."
        )
    base = tuple(value for value in model.parameters() if value.requires_grad)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=trained,
        # GPT-2 keeps its weights transposed.
        fan_in_fan_out=not isinstance(layers[trained[0]], nn.Linear),
    )
    was_training = model.training
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    model.train(was_training)
    return Adapters(model, tuple(trained), base)


def merged_model(model: nn.Module) -> nn.Module:
    """The model itself, or a copy with its adapters merged into the weights."""
    if not _lora_layers(model):
        return model
    plain = copy.deepcopy(model)
    _merge(plain)
    return plain


def _merge(model: nn.Module) -> None:
    for name, layer in _lora_layers(model).items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """Adapted layers by name; without peft in memory there are none."""
    if sys.modules.get("peft") is None:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, BaseTunerLayer)}


def _target_names(model: Any, targets: str | None) -> list[str]:
    """Full names of the layers to adapt, all in the stacks of layers, so without a pooler."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from transformers.pytorch_utils import Conv1D

    modules = list(model.named_modules())
    stacks = tuple(f"{name}." for name, part in modules if isinstance(part, nn.ModuleList))
    kinds = (nn.Linear, Conv1D)
    linear = [name for name, m in modules if isinstance(m, kinds) and name.startswith(stacks)]
    if targets == _ALL:
        return linear

    def ending(words: Iterable[str]) -> list[str]:
        ends = tuple(f".{word}" for word in words)
        return [name for name in linear if f".{name}".endswith(ends)]

    last_names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
    if targets is not None:
        words = [word.strip() for word in targets.split(",") if word.strip()]
        if missing := [word for word in words or [targets] if not ending([word])]:
            raise ValueError(
                f"'lora_targets' must name linear layers of the encoder, comma-separated, or be "
                f"{_ALL!r} (got {missing[0]!r}; there are {last_names})."
            )
        return ending(words)
    family = model.config.model_type
    for choice in (KNOWN.get(family, ()), *_ATTENTION):
        if isinstance(choice, str):
            found = [name for name in linear if re.fullmatch(choice, name)]
        else:
            found = ending(choice) if all(ending([word]) for word in choice) else []
        if found:
            return found
    raise ValueError(
        f"'lora_targets' must be given for the family {family!r}, for which no default is known: "
        f"one or more of {last_names}, or {_ALL!r}."
    )
