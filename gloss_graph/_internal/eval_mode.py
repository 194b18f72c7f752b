"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: object) -> Iterator[None]:
    """Put a module into eval mode, and every part back into its mode; other objects stay."""
    modes = {}
    if isinstance(module, nn.Module):
        modes = {part: part.training for part in module.modules()}
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
