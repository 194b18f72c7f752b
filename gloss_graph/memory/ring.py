"""Which slot a document gets: helpers of the first-in-first-out ring."""

from __future__ import annotations

import warnings

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


def warn_anonymous(warned: bool) -> bool:
    """Warn once, for the caller of `MemoryBank.enqueue`, that rows come without identity."""
    if not warned:
        warnings.warn(
            "MemoryBank.enqueue was called without 'ids'. When the same documents come again (a "
            "second epoch), each one finds its own stored copy with its own label: label "
            "leakage. Pass stable document 'ids', or call reset() before every epoch.",
            UserWarning,
            # This function, enqueue, and the no_grad wrapper around it.
            stacklevel=4,
        )
    return True
