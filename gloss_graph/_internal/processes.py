"""Several processes that train together: how many, which one writes, what they tell each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from gloss_graph._internal.launched import (
    is_main,
    joined,
    launched,
    leave_processes,
    local_rank,
    rank,
    wait_for_all,
    world_size,
)

__all__ = [
    "any_process",
    "gather_rows",
    "is_main",
    "joined",
    "launched",
    "leave_processes",
    "local_rank",
    "mean_over_processes",
    "rank",
    "step_generator",
    "wait_for_all",
    "world_size",
]

# Spreads the splits of the processes of one step far apart.
_STRIDE = 1_000_003


def any_process(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` holds on any process; every process must ask, `device` is its backend's."""
    if world_size() == 1:
        return flag
    found = torch.tensor([int(flag)], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


@torch.no_grad()
def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, concatenated in rank order, without gradient.

    Args:
        rows: (B_r, ...) of this process; only the first size may differ between processes, and
            may be 0.

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
    if longest == 0:
        return rows
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: rows.size(0)] = rows
    parts = [torch.zeros_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor over the processes, equal on all of them; itself with one process."""
    if world_size() == 1:
        return value
    # Gathered and not reduced: the order of the sum, so its rounding, is the same everywhere.
    return gather_rows(value.detach().unsqueeze(0)).mean(dim=0)


def own_rows(count: int, device: torch.device) -> Tensor:
    """Which of the gathered rows (B,) bool are the `count` ones of this process."""
    return gather_rows(torch.full((count,), rank(), device=device)) == rank()


def share_of_mean(count: int, device: torch.device) -> float:
    """Factor for a mean over the `count` rows of this process.

    The mean over the processes of what results is then the mean over the rows of all. 1 with one
    process; with several every process must ask.
    """
    if world_size() == 1:
        return 1.0
    mean = float(mean_over_processes(torch.tensor(float(count), device=device)))
    return count / mean if mean else 1.0


def step_generator(generator: torch.Generator, training: bool) -> torch.Generator:
    """The source of a step's random splits.

    With one process `generator` itself. With several, every process takes exactly one number of
    it a training step, so that its state stays the same on all of them whatever their batches
    hold, and gets a generator of its own made from that number and its rank. Outside of training
    nothing is taken: an evaluation leaves training as it was.
    """
    if not training:
        looking = torch.Generator()
        looking.set_state(generator.get_state())
        generator = looking
    if world_size() == 1:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator().manual_seed((seed + _STRIDE * rank()) % 2**63)
