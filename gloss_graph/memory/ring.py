"""Which slot a document gets: helpers of the first-in-first-out ring."""

from __future__ import annotations

import torch
from torch import Tensor


def last_of_each(ids: Tensor) -> Tensor:
    """Positions (n,) of the last row of every distinct id (B,), in batch order."""
    last = {id_: position for position, id_ in enumerate(ids.tolist())}
    return torch.tensor(sorted(last.values()), dtype=torch.long, device=ids.device)


def victims(cursor: Tensor, capacity: int, wanted: int, refreshed: Tensor) -> Tensor:
    """The next `wanted` slots in ring order that are not `refreshed` (n,) in this very call."""
    span = min(capacity, wanted + refreshed.numel())
    ring = (cursor + torch.arange(span, device=cursor.device)) % capacity
    return ring[~torch.isin(ring, refreshed)][:wanted]
