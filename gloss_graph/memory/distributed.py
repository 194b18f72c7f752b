"""Batches of all processes in rank order, so that every process keeps the same bank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from gloss_graph._internal.processes import gather_rows, world_size
from gloss_graph.memory.bank import MemoryBank
from gloss_graph.memory.incoming import Batch
from gloss_graph.neighbors.lists import NeighborLists


def gathered(batch: Batch, memory: MemoryBank | None) -> Batch:
    """The batches of all processes in rank order, without gradient."""
    if world_size() == 1:
        return batch
    ids = None if batch.ids is None else gather_rows(batch.ids)
    return Batch(
        x=gather_rows(batch.x),
        labels=gather_rows(batch.labels),
        targets=None if batch.targets is None else gather_rows(batch.targets),
        ids=ids,
        slots=None if ids is None or memory is None else memory.slots_of(ids),
    )


def store_gathered(memory: MemoryBank, batch: Batch, neighbors: NeighborLists | None) -> None:
    """Store a checked batch; with several processes, the batches of all of them in every bank.

    Every bank then takes the same rows in the same order and stays bit-equal to the others,
    whatever the sizes of the batches. A document that several processes hold (a sampler that
    fills up its last batch) is stored once, as the last of them sees it.

    The `neighbors` of one process know nothing of the others' rows, so with several processes they
    are searched for again.
    """
    memory.store(gathered(batch, memory), neighbors if world_size() == 1 else None)


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Give every process the weights, buffers and generator state that process 0 has.

    Call it once before training: banks that each process filled by itself may differ in the last
    bit. Nothing happens with one process.

    Args:
        module: An objective or a head, with the same settings on every process, on a device that
            the backend supports.

    Raises:
        TypeError: Not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"'module' must be a torch.nn.Module (got {type(module).__name__}).")
    if world_size() == 1:
        return
    device = None
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor, src=0)
        device = tensor.device
    for part in module.modules():
        if isinstance(part, MemoryBank):
            part.forget_derived()
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            state = generator.get_state().to(device or "cpu")
            dist.broadcast(state, src=0)
            generator.set_state(state.cpu())
