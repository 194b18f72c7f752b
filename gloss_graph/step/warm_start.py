"""Starts a solve over the bank at the values that the step before propagated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gloss_graph._internal.processes import world_size
from gloss_graph.graph.build import Connection
from gloss_graph.memory import MemoryBank


class WarmStart(nn.Module):
    """Propagated values (capacity, columns) of every slot, as the last training step left them.

    They are a first guess: a new document of a slot starts from the values of the old one. They
    are part of the state, so that training resumes bit for bit. With several processes, whose
    batches differ, nothing is kept and every solve starts from 0.
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
