"""Neighbour lists of the stored rows: the inherited edges of the bank's graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gloss_graph.memory.search import Nearest, squared_distances


class NeighborLists(NamedTuple):
    """Nearest neighbours of B batch rows among the bank and the batch itself.

    `squared_distances` (B, k), ascending, `inf` where there is none; `indices` (B, k) long: a bank
    slot where >= 0, batch row `-2 - index` where <= -2, none where -1.
    """

    squared_distances: Tensor
    indices: Tensor


def add_batch_mates(x: Tensor, found: Nearest, k: int) -> NeighborLists:
    """The k nearest of the stored rows `found` (B, k) and the other rows of the batch x (B, D)."""
    mates = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").square()
    mates.fill_diagonal_(torch.inf)
    mate_index = -2 - torch.arange(x.size(0), device=x.device).expand(x.size(0), -1)
    squared = torch.cat([found.squared_distances, mates], dim=1)
    index = torch.cat([found.indices, mate_index], dim=1)
    squared, order = squared.topk(min(k, squared.size(1)), dim=1, largest=False)
    return NeighborLists(squared, index.gather(1, order).masked_fill(squared.isinf(), -1))


def check_lists(lists: NeighborLists, batch: int, stored: int) -> None:
    """Raise unless `lists` are (batch, k) and name stored slots and batch rows only.

    Raises:
        ValueError: Shape or indices that do not fit.
    """
    index = lists.indices
    if index.dim() != 2 or index.size(0) != batch:
        raise ValueError(
            f"'neighbors' must hold one list a row, ({batch}, k) (got {tuple(index.shape)})."
        )
    if index.numel() and (int(index.max()) >= stored or int(index.min()) < -1 - batch):
        raise ValueError(
            f"'neighbors' must name slots below {stored} or batch rows below {batch}, as "
            "MemoryBank.neighbors gives them. Search them anew."
        )


class LinkTable(nn.Module):
    """Fixed-width neighbour lists over the slots of a bank.

    A link names a slot and the stamp the slot had then. A slot's stamp grows when it gets a new
    tenant, so links to a former tenant die without being looked for. The stored squared length
    of every live link equals that of the stored rows at any time.

    Args:
        capacity: Slots.
        k: Links a slot.
    """

    slots: Tensor
    slot_stamps: Tensor
    squared: Tensor
    stamps: Tensor

    def __init__(self, capacity: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("slots", torch.full((capacity, k), -1, dtype=torch.int32))
        self.register_buffer("slot_stamps", torch.zeros(capacity, k, dtype=torch.int32))
        self.register_buffer("squared", torch.zeros(capacity, k))
        # How many documents a slot has held.
        self.register_buffer("stamps", torch.zeros(capacity, dtype=torch.int32))

    def write(
        self,
        lists: NeighborLists,
        kept: Tensor,
        slots: Tensor,
        fresh: Tensor,
        rows: Tensor,
        size: int,
    ) -> None:
        """Store the lists of the batch rows `kept`, which now live in `slots`.

        Args:
            lists: Neighbours of the whole batch, in slots as they were before this write.
            kept: (n,) long, batch rows that were stored.
            slots: (n,) long, where; the stored rows are in place already.
            fresh: (n,) bool, the slot got a new tenant (else the same document was refreshed).
            rows: (capacity, D) stored rows.
            size: Number of slots in use.
        """
        index = lists.indices[kept, : self.k]
        mates = index <= -2
        row_of = torch.full((lists.indices.size(0),), -1, dtype=torch.long, device=slots.device)
        row_of[kept] = slots
        links = torch.where(mates, row_of[(-2 - index).clamp(min=0)], index)
        # A twin that was dropped and a row that would list itself are no neighbours.
        links = links.masked_fill(links == slots.unsqueeze(1), -1)
        before = self.stamps[links.clamp(min=0)]
        self.stamps[slots[fresh]] += 1
        # A slot evicted in this very call keeps its old stamp here, so that link is dead.
        stamps = torch.where(mates, self.stamps[links.clamp(min=0)], before)
        width = links.size(1)
        self.slots[slots] = -1
        self.slots[slots, :width] = links.to(torch.int32)
        self.slot_stamps[slots, :width] = stamps
        self._measure(rows, slots, refreshed=slots[~fresh], size=size)

    def _measure(self, rows: Tensor, written: Tensor, refreshed: Tensor, size: int) -> None:
        neighbors = self.slots[written].long().clamp(min=0)
        own = squared_distances(rows[written].float(), rows, neighbors)
        self.squared[written] = own.to(self.squared.dtype)
        if refreshed.numel() == 0:
            return
        moved = torch.zeros(self.slots.size(0), dtype=torch.bool, device=rows.device)
        moved[refreshed] = True
        flat = self.slots[:size].reshape(-1)
        hit = (moved[flat.clamp(min=0)] & (flat >= 0)).nonzero().squeeze(1)
        delta = rows[hit // self.k].float() - rows[flat[hit].long()].float()
        self.squared[:size].view(-1)[hit] = delta.square().sum(dim=1).to(self.squared.dtype)

    def replace(self, slots: Tensor, neighbors: Tensor, squared: Tensor) -> None:
        """Overwrite the lists of `slots` (n,) by live slots `neighbors` (n, j), j <= k."""
        width = neighbors.size(1)
        self.slots[slots] = -1
        self.slots[slots, :width] = neighbors.to(torch.int32)
        self.slot_stamps[slots, :width] = self.stamps[neighbors]
        self.squared[slots, :width] = squared.to(self.squared.dtype)

    def edges(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Live links among the first `size` slots: source, target, squared length, each (E,)."""
        flat = self.slots[:size].reshape(-1)
        live = self.stamps[flat.clamp(min=0)] == self.slot_stamps[:size].reshape(-1)
        position = (live & (flat >= 0)).nonzero().squeeze(1)
        squared = self.squared[:size].reshape(-1)[position]
        return position // self.k, flat[position].long(), squared

    def reset(self) -> None:
        """Forget every list."""
        self.slots.fill_(-1)
        for buffer in (self.slot_stamps, self.squared, self.stamps):
            buffer.zero_()
