"""Batches of all processes in rank order, so that every process keeps the same bank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from gloss_graph.memory.bank import MemoryBank
from gloss_graph.memory.links import NeighborLists


def world_size() -> int:
    """Number of processes that train together, 1 without `torch.distributed`."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return dist.get_world_size()


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, concatenated in rank order, without gradient.

    Args:
        rows: (B_r, ...) of this process; only the first size may differ between processes.

    Returns:
        (B, ...), equal on every process. Cost: two collectives, O(B D) traffic.
    """
    count = world_size()
    if count == 1:
        return rows
    mine = torch.tensor([rows.size(0)], device=rows.device)
    sizes = [torch.zeros_like(mine) for _ in range(count)]
    dist.all_gather(sizes, mine)
    longest = int(torch.cat(sizes).max())
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.size(0)] = rows
    parts = [torch.zeros_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def enqueue_gathered(
    memory: MemoryBank,
    x: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    neighbors: NeighborLists | None,
) -> None:
    """Enqueue a batch; with several processes, that of all of them in every bank.

    Arguments as `MemoryBank.enqueue`. The `neighbors` of one process know nothing of the others'
    rows, so with several they are searched anew.
    """
    if world_size() == 1:
        memory.enqueue(x, labels, ids, neighbors=neighbors)
        return
    ids = None if ids is None else gather_rows(ids)
    memory.enqueue(gather_rows(x), gather_rows(labels), ids)
