"""The stored rows of a memory bank: buffers, what can be read from them, who lies where."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph.memory.identity import SlotMap
from gloss_graph.memory.labels import join_targets
from gloss_graph.neighbors.quantized import QuantizedRows, Rows


class StoredRows(nn.Module):
    """State of a `MemoryBank` that is not about neighbours, and its readable side.

    Everything lives in persistent buffers of `capacity` slots; the first `len()` are in use. The
    map from document id to slot is derived from them and dropped by pickle and deepcopy.

    Args:
        capacity: Number of slots.
        dim: Embedding dimension D.
        dtype: Storage of the rows.
        num_classes: C for label sets, None for class numbers.
        bits: An entry of the rows, None = `dtype` keeps them.
    """

    rows: Rows
    slot_labels: Tensor
    slot_targets: Tensor | None
    slot_ids: Tensor
    written_at: Tensor
    cursor: Tensor
    count: Tensor
    step: Tensor
    anonymous: Tensor

    def __init__(
        self,
        capacity: int,
        dim: int,
        dtype: torch.dtype,
        num_classes: int | None,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        self.capacity, self.dim, self.num_classes, self.bits = capacity, dim, num_classes, bits
        if bits is None:
            self.register_buffer("rows", torch.zeros(capacity, dim, dtype=dtype))
        else:
            self.rows = QuantizedRows(capacity, dim, bits)
        buffers = {
            "slot_labels": torch.full((capacity,), -1),
            "slot_ids": torch.full((capacity,), -1),
            "written_at": torch.zeros(capacity, dtype=torch.long),
            "cursor": torch.zeros((), dtype=torch.long),
            "count": torch.zeros((), dtype=torch.long),
            "step": torch.zeros((), dtype=torch.long),
            "anonymous": torch.zeros((), dtype=torch.long),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        # With targets `slot_labels` says which rows have any: 0 or -1.
        targets = None
        if num_classes is not None:
            targets = torch.zeros(capacity, num_classes, dtype=torch.float32)
        self.register_buffer("slot_targets", targets)
        self._slot_of: SlotMap | None = None

    def __len__(self) -> int:
        return int(self.count)

    @property
    def embeddings(self) -> Tensor:
        """Stored rows (M, D), a view; with `bits` a copy, made tile by tile."""
        return self.rows[: len(self)]

    @property
    def labels(self) -> Tensor:
        """Labels (M,) long, -1 = unlabeled; with `num_classes` (M, C), rows of NaN = unlabeled."""
        known = self.slot_labels[: len(self)]
        if self.slot_targets is None:
            return known
        return join_targets(known, self.slot_targets[: len(self)])

    @property
    def labeled(self) -> Tensor:
        """Which of the stored rows (M,) bool carry a label."""
        return self.slot_labels[: len(self)] >= 0

    @property
    def ids(self) -> Tensor:
        """Document ids (M,) long of the stored rows; negative where none was given, a view."""
        return self.slot_ids[: len(self)]

    @property
    def age(self) -> Tensor:
        """Enqueue calls since each row (M,) long was last written; 0 = by the last one."""
        return self.step - self.written_at[: len(self)] - 1

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {**state, "_slot_of": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with torch.inference_mode(False):
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget_derived()

    def _forget_derived(self) -> None:
        """Drop what is derived from the buffers, after they were changed from outside."""
        self._slot_of = None

    def _slots(self) -> SlotMap:
        """Id -> slot, derived from the buffers and rebuilt when they were loaded."""
        if self._slot_of is None:
            self._slot_of = SlotMap(self.ids)
        return self._slot_of

    def slots_of(self, ids: Tensor) -> Tensor:
        """Slot (B,) long of every document id, -1 where it is not stored.

        Args:
            ids: (B,) integer document ids.
        """
        return torch.tensor(self._slots().find(ids), dtype=torch.long, device=self.rows.device)

    def own_slots(self, ids: Tensor | None) -> Tensor:
        """Sorted slots (n,) long of those documents `ids` (any,) that are stored; none for None."""
        if ids is None:
            return torch.empty(0, dtype=torch.long, device=self.rows.device)
        slots = self.slots_of(ids.reshape(-1))
        return slots[slots >= 0].unique()


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
