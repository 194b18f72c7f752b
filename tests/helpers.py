"""What tests of several rooms make and compare."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def rows(count: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal rows (count, dim), the same in every call with a seed."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all that a module keeps."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def different(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def assert_same_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert different(found, expected) == []
