"""Low-rank adapters (LoRA) in a text encoder, through peft."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gloss_graph._internal.checks import check_positive_int, check_range

if TYPE_CHECKING:
    from gloss_graph.text.encoders import TextEncoder

__all__ = ["Adapters", "add_lora", "merged_model", "require_peft"]

# Query and value projections by the names that families peft has no entry for give them.
_ATTENTION = (("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("Wqkv",), ("c_attn",))
_ALL = "all-linear"


def require_peft() -> Any:
    """The peft module.

    Raises:
        ValueError: Not installed; names the extra that brings it.
    """
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
    """The adapters `add_lora` put into an encoder.

    Attributes:
        encoder: The encoder.
        names: Names of the adapted layers within its model.
        base: Parameters that were trained before and rest while the adapters are in.
    """

    encoder: TextEncoder
    names: tuple[str, ...]
    base: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        """Numbers that are trained instead of the model's own; 0 after `merge`."""
        parameters = self.encoder.model.parameters()
        return sum(value.numel() for value in parameters if value.requires_grad and self._inside)

    @property
    def _inside(self) -> bool:
        return bool(_lora_layers(self.encoder.model))

    def merge(self) -> None:
        """Add every adapter to the weight it belongs to and take it out, in place.

        Embeddings stay the same up to rounding; the model is one of transformers again, which
        saves and loads without peft. A second call does nothing.
        """
        if self._inside:
            _merge(self.encoder.model)
            for value in self.base:
                value.requires_grad_(True)


def add_lora(
    encoder: TextEncoder,
    rank: int,
    *,
    alpha: float = 16.0,
    dropout: float = 0.1,
    targets: str | None = None,
    seed: int = 0,
) -> Adapters:
    r"""Train low-rank adapters in place of an encoder's own weights (Hu et al. 2022, LoRA).

    A linear layer \(W\) becomes \(W + \frac{\alpha}{r} B A\) with \(A\) of `rank` r rows; \(B = 0\)
    at first, so embeddings do not change. All weights of the model are frozen. Layers that were
    frozen before get no adapter, so nothing is computed backward below the first that was not.

    The model keeps its class, its configuration and its names: the encoder embeds, trains,
    checkpoints and recomputes activations as before. :meth:`TextEncoder.save` writes weights
    with the adapters merged.

    Args:
        encoder: Changed in place.
        rank: r.
        alpha: Scale of the adapters, divided by `rank`.
        dropout: On the input of the adapters.
        targets: Names of the linear layers to adapt, comma-separated ends of their full names, or
            "all-linear" for every one in the stack of layers. By default what peft adapts in this
            family, query and value projections in most.
        seed: Of the initial \(A\).

    Returns:
        The adapters; `merge` adds them to the weights.

    Raises:
        ValueError: `rank` below 1, `alpha` not above 0, `dropout` outside [0, 1); peft is not
            installed; the encoder has adapters already; no layer of these names, or only frozen
            ones; a family without a known default.

    Example:
        >>> from gloss_graph.text import load_encoder
        >>> encoder = load_encoder("minilm", max_length=16)
        >>> adapters = add_lora(encoder, 8)
        >>> adapters.names[:2]
        ('encoder.layer.0.attention.self.query', 'encoder.layer.0.attention.self.value')
        >>> adapters.size
        73728
        >>> adapters.merge()
    """
    check_positive_int("rank", rank)
    check_range("alpha", alpha, 0, float("inf"), open_low=True, open_high=True)
    check_range("dropout", dropout, 0, 1, open_high=True)
    peft = require_peft()
    model = encoder.model
    if _lora_layers(model):
        raise ValueError("'encoder' must have no adapters yet (got one that has). Merge them.")
    names = _target_names(model, targets)
    trained = [name for name in names if _is_trained(model.get_submodule(name))]
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
        fan_in_fan_out=not isinstance(model.get_submodule(trained[0]), nn.Linear),
    )
    was_training = model.training
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    model.train(was_training)
    return Adapters(encoder, tuple(trained), base)


def merged_model(model: nn.Module) -> nn.Module:
    """The model itself, or where it has adapters a copy with these merged into the weights."""
    if not _lora_layers(model):
        return model
    plain = copy.deepcopy(model)
    _merge(plain)
    return plain


def _merge(model: nn.Module) -> None:
    for name, layer in _lora_layers(model).items():
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """Adapted layers by name; without peft in memory there are none."""
    if sys.modules.get("peft") is None:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = model.named_modules()
    # An adapted layer holds no other one.
    return {name: module for name, module in modules if isinstance(module, BaseTunerLayer)}


def _target_names(model: Any, targets: str | None) -> list[str]:
    """Full names of the layers to adapt."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    linear = _linear_layers(model)
    if targets == _ALL:
        return linear
    if targets is not None:
        wanted = [word.strip() for word in targets.split(",") if word.strip()]
        for word in wanted or [targets]:
            if not _matches(linear, [word]):
                raise ValueError(
                    f"'lora_targets' must name linear layers of the encoder, comma-separated, or "
                    f"be {_ALL!r} (got {word!r}; there are {', '.join(_last_names(linear))})."
                )
        return _matches(linear, wanted)
    family = model.config.model_type
    choices = [KNOWN[family], *_ATTENTION] if family in KNOWN else list(_ATTENTION)
    for choice in choices:
        if isinstance(choice, str):
            found = [name for name in linear if re.fullmatch(choice, name)]
        elif all(_matches(linear, [word]) for word in choice):
            found = _matches(linear, choice)
        else:
            found = []
        if found:
            return found
    raise ValueError(
        f"'lora_targets' must be given for the family {family!r}, for which no default is known: "
        f"one or more of {', '.join(_last_names(linear))}, or {_ALL!r}."
    )


def _linear_layers(model: nn.Module) -> list[str]:
    """Full names of the linear layers in the stacks of layers, so without a pooler."""
    from transformers.pytorch_utils import Conv1D

    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and any(name.startswith(f"{stack}.") for stack in stacks)
    ]


def _matches(names: list[str], words: Any) -> list[str]:
    return [name for name in names if any(f".{name}".endswith(f".{word}") for word in words)]


def _last_names(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _is_trained(module: nn.Module) -> bool:
    return all(value.requires_grad for value in module.parameters())
