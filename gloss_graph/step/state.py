"""The state of an objective: values that a solve starts from, checks, and what a step restores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph._internal.processes import world_size
from gloss_graph.graph.build import Connection
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.storage import check_forms, check_keys, check_limits, fit_cells


def check_objective_state(
    objective: nn.Module,
    memory: MemoryBank | None,
    classes: int,
    state: dict[str, Any],
    prefix: str,
    strict: bool,
) -> None:
    """Raise unless `state` fits an objective over `memory`, whose labels are below `classes`."""
    if memory is not None:
        fit_cells(memory.cells, state, f"{prefix}memory.")
    if strict:
        check_keys(objective, state.keys())
    if memory is not None:
        memory.check_state(state, f"{prefix}memory.")
    check_forms(objective, state, prefix)
    limits = {
        "memory.slot_labels": (-1, classes - 1),
        "targets.steps": (0, None),
        "targets.solved_at": (-1, None),
        "targets.table": (0.0, 1.0),
        "targets.table_ids": (None, None),
        "targets.confidence": (0.0, 1.0),
        "targets.mass": (-1.0, 1.0),
        "warm.values": (None, None),
        "class_weight": (0.0, None),
    }
    for name, (low, high) in limits.items():
        if prefix + name in state:
            check_limits(prefix + name, state[prefix + name], low, high)
    if f"{prefix}_extra_state" in state:
        check_generator_state(state[f"{prefix}_extra_state"])


def check_generator_state(state: Any) -> None:
    """Raise ValueError unless `state` is that of a CPU generator."""
    if not isinstance(state, Tensor) or state.dtype != torch.uint8:
        raise ValueError("The generator state must be a uint8 tensor (foreign state_dict?).")
    try:
        torch.Generator().set_state(state.cpu())
    except RuntimeError as error:
        raise ValueError(f"The generator state is not one of torch ({error}).") from error


@contextmanager
def state_kept(parts: Sequence[nn.Module], generator: torch.Generator) -> Iterator[None]:
    """Restore the buffers of `parts` and the state of `generator` if the block raises.

    A step replaces the buffers of its parts and never writes into them; the bank restores itself.
    """
    before = [(part, [*part.named_buffers(recurse=False)]) for part in parts]
    drawn = generator.get_state()
    try:
        yield
    except BaseException:
        for part, buffers in before:
            for name, value in buffers:
                setattr(part, name, value)
        generator.set_state(drawn)
        raise


class WarmStart(nn.Module):
    """Propagated values (capacity, columns) of every slot, as the last training step left them.

    They are a first guess: a new document of a slot starts from the values of the old one. With
    several processes nothing is kept and every solve starts from 0.
    """

    values: Tensor

    def __init__(self, memory: MemoryBank | None, columns: int, rule: str) -> None:
        super().__init__()
        if rule != "harmonic":
            # Spreading was measured to gain nothing.
            raise ValueError(f"'warm_start' must be False but for rule='harmonic' (got {rule!r}).")
        if memory is None:
            raise ValueError("'warm_start' must be False without 'memory': nothing persists.")
        start = torch.full((memory.capacity, columns), 1.0 / columns, dtype=torch.float32)
        self.register_buffer("values", start)

    def guess(self, connection: Connection) -> Tensor | None:
        """Values (N, columns) of the nodes of a step; batch rows get the mean of neighbors."""
        edges = connection.bank
        if edges is None or world_size() > 1:
            return None
        size, known = connection.size, self.values[_slots(connection)]
        ends = edges.nodes[edges.edge_index]
        outward = (ends[0] < size) & (ends[1] >= size)
        row, slot = ends[0][outward], ends[1][outward] - size
        weight = edges.edge_weight.detach()[outward].to(known.dtype).unsqueeze(1)
        total = known.new_zeros(size, 1).index_add_(0, row, weight)
        fresh = known.new_zeros(size, known.size(1)).index_add_(0, row, weight * known[slot])
        mean = torch.where(total > 0, fresh / total, 1.0 / known.size(1))
        return torch.cat([mean, known])

    def keep(self, connection: Connection, values: Tensor) -> None:
        """Remember the values (N, columns) of a training step."""
        edges = connection.bank
        if edges is None or not self.training or world_size() > 1:
            return
        kept = values.detach()[connection.size :].to(self.values.dtype)
        # Slots that took no part keep their values.
        absent = edges.absent - connection.size
        # A new tensor, so that a step that raises later can go back to the old one.
        values = self.values.clone()
        values[_slots(connection)] = kept.index_copy(0, absent, self.values[absent])
        self.values = values


def _slots(connection: Connection) -> Tensor | slice:
    rows = connection.y.numel() - connection.size
    return connection.slots if rows == connection.slots.numel() else slice(rows)
