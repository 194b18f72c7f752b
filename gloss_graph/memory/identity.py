"""The slot of every document id, in a tenth of the memory that a dict of a million ids takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

# Largest share and number of changes kept apart from the sorted ids before they are sorted in.
_CHANGED_SHARE = 16
_CHANGED = 4096


class SlotMap:
    """Slot of every document id: sorted arrays, and the changes since they were sorted.

    Args:
        ids: (M,) long, the id in every slot.
    """

    def __init__(self, ids: Tensor) -> None:
        values = ids.cpu().numpy()
        order = values.argsort(kind="stable")
        self._sort(values[order], order.astype(np.int32))

    def _sort(self, ids: np.ndarray, slots: np.ndarray) -> None:
        self._ids, self._slots = ids, slots
        self._changed: dict[int, int] = {}

    def find(self, ids: Tensor) -> list[int]:
        """Slot of every id (n,) long, -1 where it is in none."""
        wanted = ids.cpu().numpy().astype(np.int64, copy=False)
        found = np.full(wanted.size, -1, dtype=np.int64)
        if self._ids.size:
            place = self._ids.searchsorted(wanted).clip(max=self._ids.size - 1)
            found = np.where(self._ids[place] == wanted, self._slots[place], found)
        slots: list[int] = found.tolist()
        changed = self._changed
        if changed:
            pairs = zip(wanted.tolist(), slots, strict=True)
            slots = [changed.get(id_, slot) for id_, slot in pairs]
        return slots

    def move(self, gone: Iterable[int], ids: list[int], slots: list[int]) -> None:
        """Forget the documents `gone`; `ids` are in `slots` from now on."""
        self._changed.update(dict.fromkeys(gone, -1))
        self._changed.update(zip(ids, slots, strict=True))
        if len(self._changed) > max(_CHANGED, self._ids.size // _CHANGED_SHARE):
            new = np.array(list(self._changed), dtype=np.int64)
            where = np.array(list(self._changed.values()), dtype=np.int32)
            old = ~np.isin(self._ids, new)
            new, where = new[where >= 0], where[where >= 0]
            all_ids = np.concatenate([self._ids[old], new])
            order = all_ids.argsort(kind="stable")
            self._sort(all_ids[order], np.concatenate([self._slots[old], where])[order])
