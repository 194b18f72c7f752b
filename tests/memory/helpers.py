"""Rows, banks and comparisons that several tests of the memory share."""

from __future__ import annotations

import warnings

import torch
from helpers import different, snapshot
from torch import Tensor

from gloss_graph import MemoryBank


def rows(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    """Normally distributed rows (count, dim)."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def enqueue_nameless(bank: MemoryBank, x: Tensor, labels: Tensor | None = None) -> None:
    """Enqueue rows without ids, without the warning about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bank.enqueue(x, labels)


def assert_unchanged(bank: MemoryBank, before: dict[str, Tensor]) -> None:
    """Compare the state of a bank with an earlier `snapshot`, bit for bit."""
    assert different(before, snapshot(bank)) == []
