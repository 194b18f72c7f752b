"""How much of the exact answer an approximate search finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.neighbors.settings import ExactSearch

if TYPE_CHECKING:
    from gloss_graph.memory.searched import SearchedRows

# Two rows at one distance are as good as each other, up to rounding.
_TIE = 1e-5
_CHUNK = 1024


@torch.no_grad()
def measure_recall(bank: SearchedRows, k: int, sample: int, seed: int) -> float:
    """Share of the exact neighbours that the bank's search finds; see `MemoryBank.recall`."""
    check_positive_int("k", k)
    check_positive_int("sample", sample)
    check_positive_int("seed", seed, minimum=0)
    size = len(bank)
    if size < 2:
        raise ValueError(
            f"'recall' needs a bank of at least 2 rows, each looks for the others (got {size}). "
            "Enqueue or prefill first."
        )
    k = min(k, size - 1)
    draw = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:sample]
    hits = 0
    for own in draw.to(bank.rows.device).split(_CHUNK):
        queries = bank.rows[own].float()
        exact = ExactSearch("auto").others(queries, bank.rows, size, own, k).squared_distances
        found = bank._searcher.others(queries, bank.rows, size, own, k).squared_distances
        hits += int(near_enough(found, exact).sum())
    return hits / (draw.numel() * k)


def near_enough(found: Tensor, exact: Tensor) -> Tensor:
    """Which squared distances (B, k) are no larger than the last of the exact ones (B, k)."""
    return found <= exact[:, -1:] * (1 + _TIE) + _TIE * _TIE
