"""A ramp of the weight of unlabeled rows, and a running mean of their class shares."""

from __future__ import annotations

import torch
from torch import Tensor

_MOMENTUM = 0.95


def ramped(step: int, start: int, ramp: int) -> float:
    """Weight in [0, 1]: 0 before `start`, then rising to 1 within `ramp` steps."""
    past = step - start
    return 0.0 if past < 0 else min(1.0, (past + 1) / max(1, ramp))


def unseen_mean(num_classes: int) -> Tensor:
    """A running mean (C,) of class shares before the first batch: negative."""
    return torch.full((num_classes,), -1.0, dtype=torch.float32)


def is_seen(mean: Tensor) -> bool:
    """Whether a running mean (C,) has taken a batch in."""
    return float(mean[0]) >= 0


def updated_mean(mean: Tensor, new: Tensor) -> Tensor:
    """A running mean (C,) moved toward `new` (C,); the first value replaces it."""
    return _MOMENTUM * mean + (1 - _MOMENTUM) * new if is_seen(mean) else new.clone()
