"""Starting a few processes that train together, on the CPU, from a test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

WORLD = 2


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _enter(rank: int, port: int, work: Callable[[int, Path], Any], folder: str) -> None:
    torch.set_num_threads(1)
    # What torchrun sets.
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        LOCAL_WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    result = work(rank, Path(folder))
    torch.save(result, f"{folder}/result-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def together(work: Callable[[int, Path], Any], folder: Path) -> list[Any]:
    """Run `work(rank, folder)` in two processes; what each gave back, by rank.

    Args:
        work: A function of a module; gives back tensors and plain values.
        folder: For the results.
    """
    mp.spawn(_enter, args=(free_port(), work, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"result-{r}.pt", weights_only=True) for r in range(WORLD)]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def different(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not equal bit for bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
