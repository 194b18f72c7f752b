"""Writing into a bank: who gets which slot, and everything that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from gloss_graph.memory.eviction import Eviction, check_slots, last_of_each
from gloss_graph.neighbors.lists import NeighborLists
from gloss_graph.neighbors.quantized import searched, version_of

if TYPE_CHECKING:
    from gloss_graph.memory.bank import MemoryBank


class Incoming(NamedTuple):
    """Checked rows of a batch: x (B, D), class numbers (B,), targets (B, C) or None, ids (B,)."""

    x: Tensor
    labels: Tensor
    targets: Tensor | None
    ids: Tensor


def store(
    bank: MemoryBank, batch: Incoming, neighbors: NeighborLists, *, nameless: int = 0
) -> None:
    """Store a batch as the next enqueue call: stored documents in place, others by the policy.

    Args:
        bank: The bank, which is changed.
        batch: What to store.
        neighbors: Of the whole batch, in slots as they are now.
        nameless: How many rows came without identity.

    Raises:
        ValueError: The policy gave slots that do not fit; nothing was changed.
    """
    policy = bank.eviction
    kept = last_of_each(batch.ids)
    if not policy.whole_batch:
        kept = kept[-bank.capacity :]
    old = bank.slots_of(batch.ids[kept])
    fresh = old < 0
    slots = old.clone()
    if bool(fresh.any()):
        new = kept[fresh]
        asked = (bank, batch.ids[new], batch.labels[new], old[~fresh])
        with _policy_unchanged_by_errors(policy):
            chosen = policy.choose(*asked)
            check_slots(policy.name, chosen, new.numel(), len(bank), bank.capacity)
        slots[fresh] = chosen
        # Declined documents, and renewed ones whose slot another was given.
        out = (slots < 0) | (~fresh & torch.isin(old, chosen))
        kept, slots, fresh = kept[~out], slots[~out], fresh[~out]
    gone = bank.slot_ids[slots[fresh]].tolist()
    bank._slots().move(gone, batch.ids[kept].tolist(), slots.tolist())
    bank.written_at[slots] = bank.step
    if bool(fresh.any()):
        bank.count.copy_(torch.maximum(bank.count, slots.max() + 1))
        bank.cursor.copy_((slots[fresh][-1] + 1) % bank.capacity)
    bank.step += 1
    bank.anonymous += nameless
    _fill(bank, batch, neighbors, kept, slots, fresh)


@contextmanager
def _policy_unchanged_by_errors(policy: Eviction) -> Iterator[None]:
    state = policy.state_dict() if isinstance(policy, nn.Module) else {}
    before = {name: value.clone() for name, value in state.items()}
    try:
        yield
    except BaseException:
        if isinstance(policy, nn.Module):
            policy.load_state_dict(before)
        raise


def renew(bank: MemoryBank, slots: Tensor, x: Tensor, neighbors: NeighborLists) -> None:
    """Write new embeddings x (n, D) of the documents in `slots` (n,), as of the last enqueue."""
    kept = torch.arange(slots.numel(), device=slots.device)
    batch = Incoming(x, bank.slot_labels[slots], None, bank.slot_ids[slots])
    bank.written_at[slots] = bank.step - 1
    _fill(bank, batch, neighbors, kept, slots, torch.zeros_like(slots, dtype=torch.bool))


def _fill(
    bank: MemoryBank,
    batch: Incoming,
    neighbors: NeighborLists,
    kept: Tensor,
    slots: Tensor,
    fresh: Tensor,
) -> None:
    version = version_of(searched(bank.rows))
    bank.rows[slots] = batch.x[kept].to(bank.rows.dtype)
    bank.slot_labels[slots] = batch.labels[kept]
    if bank.slot_targets is not None and batch.targets is not None:
        bank.slot_targets[slots] = batch.targets[kept].to(bank.slot_targets.dtype)
    bank.slot_ids[slots] = batch.ids[kept]
    bank.links.write(neighbors, kept, slots, fresh, searched(bank.rows), len(bank))
    bank._searcher.wrote(bank.rows, len(bank), slots, version)
