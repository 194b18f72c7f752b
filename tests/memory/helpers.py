"""Rows, banks and comparisons that several tests of the memory share."""

from __future__ import annotations

import warnings

import torch
from processes import different, state_of
from torch import Tensor

from gloss_graph import MemoryBank
from gloss_graph.neighbors.adjacency import SymmetricLinks, union_rows


def rows(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    """Normally distributed rows (count, dim)."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def enqueue_nameless(bank: MemoryBank, x: Tensor, labels: Tensor | None = None) -> None:
    """Enqueue rows without ids, without the warning about them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bank.enqueue(x, labels)


def assert_unchanged(bank: MemoryBank, before: dict[str, Tensor]) -> None:
    """Compare the state of a bank with an earlier `state_of`, bit for bit."""
    assert different(before, state_of(bank)) == []


def built_graph(bank: MemoryBank) -> SymmetricLinks:
    """The undirected graph of a bank, made from a list of all live links."""
    source, target, squared = bank.edges()
    pointer, column, link = union_rows(source.numpy(), target.numpy(), len(bank))
    parts = (torch.from_numpy(x.astype("int32")) for x in (pointer, column))
    return SymmetricLinks(*parts, squared[torch.from_numpy(link.astype("int64"))])
