"""Starting a few processes that train together, on the CPU, from a test."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2
# Imported once, in the process that all others are forked from.
PRELOAD = ["gloss_graph.training.run", "gloss_graph.studies.study", "optuna", "sqlalchemy"]


def warm_context() -> Any:
    """Starts processes that have imported everything already, and know nothing of this one."""
    set_forkserver_preload(PRELOAD)
    return mp.get_context("forkserver")


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
    warm_context()
    arguments = (free_port(), work, str(folder))
    mp.start_processes(_enter, args=arguments, nprocs=WORLD, start_method="forkserver")
    return [torch.load(folder / f"result-{r}.pt", weights_only=True) for r in range(WORLD)]
