"""Two processes, gloo: both banks must be bit-equal and hold the rows of both."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph._processes import gather_rows


def _train(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    objective = GraphGuidedObjective(3, memory=MemoryBank(64, 8, k=4), k=4)
    for step in range(3):
        size = 5 + rank  # batches of different size
        ids = torch.arange(size) + 100 * rank + 10 * step
        x = torch.randn(size, 8, generator=generator, requires_grad=True)
        objective(x, ids % 3, ids=ids).backward()
        if x.grad is None or x.grad.shape != x.shape:
            raise RuntimeError("the gradient must stay local")
    torch.save(objective.memory.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_banks_of_all_processes_are_equal(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_train, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    expected = [
        100 * rank + 10 * step + i for step in range(3) for rank in (0, 1) for i in range(5 + rank)
    ]
    assert first["slot_ids"][: int(first["count"])].tolist() == expected


def test_one_process_is_left_alone():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
