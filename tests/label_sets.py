"""Random documents with label sets."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph import MemoryBank

CLASSES, DIM, SIZE = 3, 4, 12
NAN = float("nan")


def rows(count: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64)


def sets_of(count: int = SIZE, seed: int = 1, unlabeled: tuple[int, ...] = ()) -> Tensor:
    """Random label sets, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    sets = (torch.rand(count, CLASSES, generator=generator) < 0.4).double()
    sets[list(unlabeled)] = NAN
    return sets


def filled(count: int = 15, unlabeled: tuple[int, ...] = (2, 7), capacity: int = 40) -> MemoryBank:
    bank = MemoryBank(capacity, DIM, k=4, num_classes=CLASSES)
    sets = sets_of(count, 5, unlabeled)
    for part in torch.arange(count).split(6):
        bank.enqueue(rows(count, 9)[part], sets[part], part + 100)
    return bank
