"""Which row leaves a full bank: policies that give every new document a slot, or none."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_choice, check_positive_int


class StoredRows(Protocol):
    """The parts of a `MemoryBank` that a policy may read; the first `len()` slots are in use."""

    capacity: int
    slot_labels: Tensor
    written_at: Tensor
    cursor: Tensor
    step: Tensor

    @property
    def ids(self) -> Tensor:
        """Document ids (M,) long."""
        ...

    def __len__(self) -> int: ...


@runtime_checkable
class Eviction(Protocol):
    """A policy: the slot that every new document of a batch gets.

    A policy with state is a `torch.nn.Module` whose state is in persistent buffers. Decisions must
    depend on the arguments and this state alone, so that banks of several processes stay bit-equal.
    `MemoryBank.reset()` calls its `reset()`, if there is one.

    Attributes:
        name: What `repr` of the bank shows.
        whole_batch: Whether the policy sees all documents of a batch larger than the bank, or only
            the last `capacity`.
    """

    name: str
    whole_batch: bool

    def choose(self, bank: StoredRows, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        """Slots (n,) long of n new documents; nothing may be changed in the bank.

        Args:
            bank: The bank as it was before the batch.
            ids: (n,) long, distinct, none of them stored; negative = a row without identity.
            labels: (n,) long class numbers, -1 = unlabeled (for label sets 0 = labeled).
            refreshed: (r,) long, slots of stored documents that the same batch renews.

        Returns:
            Distinct slots, -1 for a document that is declined. Slots that are not in use yet are
            taken in order, without a gap. A renewed document whose slot is given away leaves.
        """


class FirstInFirstOut:
    """The oldest tenant leaves: slots are given in ring order, whenever they were refreshed."""

    name = "fifo"
    whole_batch = False

    def choose(self, bank: StoredRows, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        """The next slots in ring order that are not `refreshed`."""
        wanted = ids.numel()
        span = min(bank.capacity, wanted + refreshed.numel())
        ring = (bank.cursor + torch.arange(span, device=ids.device)) % bank.capacity
        return ring[~torch.isin(ring, refreshed)][:wanted]


class Stalest:
    """The row that was written longest ago leaves; a refreshed row counts as new."""

    name = "stalest"
    whole_batch = False

    def choose(self, bank: StoredRows, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        """Free slots, then those of the largest age, for equal age the lowest first."""
        free = _free(bank, ids.numel())
        wanted = ids.numel() - free.numel()
        if wanted == 0:
            return free
        stalest = _by_age(bank, refreshed).topk(wanted, largest=False).values % bank.capacity
        return torch.cat([free, stalest])


class ClassBalanced:
    """The oldest row of the most frequent class leaves, documents without label being a class.

    The classes of a full bank drift toward equal shares. A new document counts for its class while
    a victim is sought; among equally frequent classes the one with the oldest row loses it. Cost
    O(M log M) per batch in a full bank.
    """

    name = "class-balanced"
    whole_batch = True

    def choose(self, bank: StoredRows, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        """Free slots, then those of the most frequent classes."""
        free = _free(bank, ids.numel())
        if free.numel() == ids.numel():
            return free
        chosen, incoming = free.tolist(), labels.tolist()
        held = bank.slot_labels[: len(bank)]
        values, counts = held.unique(return_counts=True)
        count = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        count.update(incoming[: len(chosen)])
        queues: dict[int, deque[tuple[int, int, int]]] = defaultdict(deque)
        order = _by_age(bank, refreshed).sort().values
        # Grouped by label in the order of `values`, the oldest first.
        order = order[held[order % bank.capacity].argsort(stable=True)]
        # No class loses more of its stored rows than there are new ones.
        for label, rows in zip(values.tolist(), order.split(counts.tolist()), strict=True):
            oldest = rows[: len(incoming)].tolist()
            queues[label] = deque((key, key % bank.capacity, -1) for key in oldest)
        newest = (int(bank.step) + 1) * bank.capacity
        for number, label in enumerate(incoming):
            if number < len(chosen):
                slot = chosen[number]
            else:
                count[label] += 1
                most = max(count.values())
                rivals = [one for one, size in count.items() if size == most and queues[one]]
                loser = min(rivals, key=lambda one: queues[one][0])
                _, slot, owner = queues[loser].popleft()
                count[loser] -= 1
                if owner >= 0:
                    chosen[owner] = -1
                chosen.append(slot)
            queues[label].append((newest + number, slot, number))
        return torch.tensor(chosen, dtype=torch.long, device=ids.device)


class Reservoir(nn.Module):
    r"""A uniform sample of the distinct documents that ever came, however often each of them did.

    Every document has a number drawn from its id and the seed (SplitMix64, a bijection); the bank
    holds those with the smallest numbers (bottom-k sampling, Cohen & Kaplan, 2007). A document
    that was declined or evicted is declined again when it comes back, so the sample is that of the
    corpus once every document was seen, and stays. Sampling by a counter (Vitter, 1985) would take
    every comeback for a new document. Each row without identity counts as a document.

    Args:
        seed: Seed of the sample; part of the state.

    Cost O(M) per batch in a full bank.
    """

    name = "reservoir"
    whole_batch = True
    seed: Tensor
    declined: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        check_positive_int("seed", seed, minimum=0)
        self.register_buffer("seed", torch.tensor(seed))
        #: How often a document came and was not stored.
        self.register_buffer("declined", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget how many were declined; the seed stays."""
        self.declined.zero_()

    def priority(self, ids: Tensor) -> Tensor:
        """The number (n,) long of every document id (n,); small ones are kept."""
        return _mixed(ids + _mixed(self.seed))

    def choose(self, bank: StoredRows, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Tensor:
        """Slots of the documents with the smallest numbers."""
        count, wanted = len(bank), ids.numel()
        chosen = torch.full_like(ids, -1)
        free = bank.capacity - count
        if wanted <= free:
            return _free(bank, wanted)
        new, old = self.priority(ids), self.priority(bank.ids)
        # At most so many stored rows can leave; the others have smaller numbers than these.
        risky = old.topk(min(count, wanted)).indices
        together = torch.cat([old[risky], new])
        kept = together.topk(risky.numel() + free, largest=False).indices
        stays = torch.zeros_like(together, dtype=torch.bool)
        stays[kept] = True
        leaving = risky[~stays[: risky.numel()]].sort().values
        coming = stays[risky.numel() :]
        chosen[coming] = torch.cat([_free(bank, free), leaving])
        self.declined += (~coming).sum()
        return chosen


EVICTIONS: dict[str, Callable[[], Eviction]] = {
    "fifo": FirstInFirstOut,
    "reservoir": Reservoir,
    "class-balanced": ClassBalanced,
    "stalest": Stalest,
}


def resolve_eviction(eviction: str | Eviction, num_classes: int | None) -> Eviction:
    """Look a policy up by name, or pass one on."""
    if isinstance(eviction, str):
        check_choice("eviction", eviction, EVICTIONS)
        eviction = EVICTIONS[eviction]()
    if isinstance(eviction, type) or not isinstance(eviction, Eviction):
        raise TypeError(
            f"'eviction' must be one of {sorted(EVICTIONS)} or an object with 'name', "
            f"'whole_batch' and 'choose' (got {eviction!r})."
        )
    if isinstance(eviction, ClassBalanced) and num_classes is not None:
        raise ValueError(
            "'eviction' must not be 'class-balanced' for label sets, where a document has several "
            "classes. Use 'reservoir', 'stalest' or 'fifo'."
        )
    return eviction


def saved_name(eviction: Eviction) -> str:
    """The name that makes a policy like this one; its state is saved apart."""
    make = EVICTIONS.get(eviction.name)
    if make is None or type(eviction) is not type(make()):
        raise ValueError(
            f"'eviction' must be one of {sorted(EVICTIONS)} for a bank that is saved (got "
            f"{eviction!r}). Keep its state_dict() instead."
        )
    return eviction.name


def _check_slots(name: str, slots: Tensor, wanted: int, stored: int, capacity: int) -> None:
    """Raise unless a policy gave `wanted` documents slots that a bank of `stored` rows can take."""
    if not isinstance(slots, Tensor) or slots.dtype != torch.long:
        found = slots.dtype if isinstance(slots, Tensor) else type(slots).__name__
        raise ValueError(f"'eviction' {name!r} must give a long tensor of slots (got {found}).")
    given = slots[slots != -1]
    new = given[given >= stored].sort().values
    gapless = torch.arange(stored, stored + new.numel(), device=slots.device)
    fits = (
        slots.shape == (wanted,)
        and bool((given >= 0).all() & (given < capacity).all())
        and given.unique().numel() == given.numel()
        and torch.equal(new, gapless)
    )
    if not fits:
        raise ValueError(
            f"'eviction' {name!r} must give {wanted} documents distinct slots below {capacity}, "
            f"unused ones from {stored} on without a gap, or -1 (got {slots.tolist()})."
        )


def assign_slots(
    policy: Eviction, bank: StoredRows, ids: Tensor, labels: Tensor, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide where a batch is stored: stored documents stay, others go where the policy says.

    `places` (B,) are the slots of stored documents, else -1. Returns the batch rows that are stored
    (n,), their slots (n,), and whether each is a new tenant.
    """
    last = {id_: row for row, id_ in enumerate(ids.tolist())}
    kept = torch.tensor(sorted(last.values()), dtype=torch.long, device=ids.device)
    if not policy.whole_batch:
        kept = kept[-bank.capacity :]
    old = places[kept]
    fresh, slots = old < 0, old.clone()
    if not bool(fresh.any()):
        return kept, slots, fresh
    new = kept[fresh]
    state = policy.state_dict() if isinstance(policy, nn.Module) else {}
    before = {name: value.clone() for name, value in state.items()}
    try:
        chosen = policy.choose(bank, ids[new], labels[new], old[~fresh])
        _check_slots(policy.name, chosen, new.numel(), len(bank), bank.capacity)
    except BaseException:
        if isinstance(policy, nn.Module):
            policy.load_state_dict(before)
        raise
    slots[fresh] = chosen
    # Declined documents, and refreshed ones whose slot went to another.
    out = (slots < 0) | (~fresh & torch.isin(old, chosen))
    return kept[~out], slots[~out], fresh[~out]


def _free(bank: StoredRows, wanted: int) -> Tensor:
    count = len(bank)
    stop = min(bank.capacity, count + wanted)
    return torch.arange(count, stop, device=bank.slot_labels.device)


def _by_age(bank: StoredRows, refreshed: Tensor) -> Tensor:
    """(M,) long, smaller for older rows, all distinct; modulo the capacity it is the slot."""
    count = len(bank)
    written = bank.written_at[:count].clone()
    written[refreshed] = bank.step
    return written * bank.capacity + torch.arange(count, device=written.device)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finalizer on int64, which wraps as unsigned numbers do."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64)
