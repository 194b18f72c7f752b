"""Two processes: under every policy the banks stay bit-equal, refreshed rows included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from processes import different, state_of, together
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph._internal.processes import gather_rows
from gloss_graph.memory import EVICTIONS
from gloss_graph.step import Staleness

DIM, CLASSES, STEPS = 6, 3, 5


def states(rank: int, eviction: str) -> list[dict[str, Tensor]]:
    """State after every step; batches of different documents and sizes."""
    bank = MemoryBank(12, DIM, k=3, eviction=eviction)
    objective = GraphGuidedObjective(
        CLASSES, memory=bank, k=3, half_life=3.0, staleness=Staleness(warmup_steps=1, ramp_steps=3)
    )
    found = []
    for step in range(STEPS):
        ids = torch.arange(4 + rank) + 7 * step + 100 * rank
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(len(ids), DIM, generator=generator, requires_grad=True)
        objective(x, ids % CLASSES, ids=ids).backward()

        def encode(ids: Tensor, step: int = step) -> Tensor:
            mine = ids.tensor_split(2)[rank]
            base = torch.arange(DIM).float() + step
            return gather_rows(torch.sin(mine.unsqueeze(1) * (1.0 + base)))

        bank.refresh(encode, 3)
        found.append(state_of(objective))
    return found


def work(rank: int, folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    return {name: states(rank, name) for name in sorted(EVICTIONS)}


def test_banks_stay_bit_equal(tmp_path: Path) -> None:
    first, second = together(work, tmp_path)
    last = set()
    for name in EVICTIONS:
        for step in range(STEPS):
            assert different(first[name][step], second[name][step]) == [], (name, step)
        assert int(first[name][-1]["memory.links.stamps"].sum()) > 12 or name == "reservoir"
        last.add(tuple(first[name][-1]["memory.slot_ids"].sort().values.tolist()))
    assert len(last) > 1, "the policies differ"
