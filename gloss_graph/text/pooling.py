"""Token states to one vector per document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from gloss_graph._internal.limits import read_object

__all__ = ["POOLINGS", "Pooling", "check_pooling", "default_pooling", "pack_left", "pool"]

Pooling: TypeAlias = Literal["cls", "mean", "last"]

POOLINGS: tuple[str, ...] = get_args(Pooling)
"""The rules known: the first token, the mean over tokens, the last token."""


def pool(states: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Reduce the states of right-padded token rows to one vector per row.

    Shapes: ``states`` (B, L, D) with L tokens, ``attention_mask`` (B, L), result (B, D).

    The result is float32 for half-precision states, whatever autocast says: distances between
    embeddings are what the graph is made of. Gradients flow to the states.

    Args:
        states: Last hidden states.
        attention_mask: 1 for tokens, 0 for padding; ones come first in every row.
        pooling: ``cls``, ``mean`` or ``last``.

    Example:
        >>> states = torch.tensor([[[2.0], [4.0], [9.0]]])
        >>> mask = torch.tensor([[1, 1, 0]])
        >>> [pool(states, mask, how).item() for how in ("cls", "mean", "last")]
        [2.0, 3.0, 4.0]
    """
    if pooling == "mean":
        states = _at_least_float32(states)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if pooling == "cls":
        return _at_least_float32(states[:, 0])
    rows = torch.arange(len(states), device=states.device)
    last = (attention_mask.long().sum(dim=1) - 1).clamp(min=0)
    return _at_least_float32(states[rows, last])


def pack_left(attention_mask: Tensor, *rows: Tensor | None) -> tuple[Tensor | None, ...]:
    """Move the tokens of every row to its left end, whichever side was padded.

    A model without position arguments counts positions from the left end of a row, so a
    left-padded row would get other positions, and other states, than the same row padded right.
    Right-padded rows come out as they are.

    Shapes: everything (B, L); the mask is the first tensor returned.

    Example:
        >>> mask, ids = pack_left(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 7, 8]]))
        >>> mask.tolist(), ids.tolist()
        ([[1, 1, 0]], [[7, 8, 0]])
    """
    order = attention_mask.ne(0).long().argsort(dim=1, descending=True, stable=True)
    return tuple(None if row is None else row.gather(1, order) for row in (attention_mask, *rows))


def check_pooling(pooling: str) -> None:
    """Raise a ValueError that lists the known rules if this is not one of them."""
    if pooling not in POOLINGS:
        raise ValueError(
            f"'pooling' must be one of {', '.join(POOLINGS)} (got {pooling!r}). Use 'mean' for "
            "sentence encoders, 'cls' for encoders and 'last' for decoders."
        )


def default_pooling(config: Any, modules: Path | None = None) -> Pooling:
    """Choose the rule a model was made for.

    Sentence encoders declare it in a file of theirs, which wins; models that only exist as causal
    language models get ``last``, all others ``cls``.

    Args:
        config: The model's Hugging Face configuration.
        modules: The ``1_Pooling/config.json`` of a sentence encoder.

    Raises:
        ValueError: If the file declares a rule that is not known here.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if modules is not None:
        return _declared_pooling(modules)
    causal_only = (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return "last" if causal_only or getattr(config, "is_decoder", False) else "cls"


def _declared_pooling(file: Path) -> Pooling:
    declared = read_object(file)
    names: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
    keys = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken"}
    found = {
        key.removeprefix("pooling_mode_")
        for key, value in declared.items()
        if key.startswith("pooling_mode_") and value is True
    }
    modes = [keys.get(key, key) for key in sorted(found)] or [str(declared.get("pooling_mode"))]
    if len(modes) != 1 or modes[0] not in names:
        raise ValueError(
            f"'pooling' is declared as {'+'.join(modes)} in {file}, which is not offered here. "
            f"Pass pooling= one of {', '.join(POOLINGS)}."
        )
    return names[modes[0]]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
