"""What tests of several rooms make and compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rows(count: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal rows (count, dim), the same in every call with a seed."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a module keeps."""
    return {name: value.clone() for name, value in module.state_dict().items()}
