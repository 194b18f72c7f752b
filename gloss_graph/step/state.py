"""The state of an objective: checked before it is loaded, restored when a step raises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph.memory import MemoryBank
from gloss_graph.memory.storage import check_entries, check_keys, check_limits, fit_cells


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
    check_entries(objective.state_dict(), state, prefix)
    limits = {
        "memory.slot_labels": (-1, classes - 1),
        "targets.steps": (0, None),
        "targets.solved_at": (-1, None),
        "targets.table": (0.0, 1.0),
        "targets.table_ids": (None, None),
        "targets.confidence": (0.0, 1.0),
        "targets.mass": (-1.0, 1.0),
        "classes.labels": (-1, classes - 1),
        "classes.trust": (0.0, 1.0),
        "classes.ids": (None, None),
        "classes.found_at": (-1, None),
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
def state_kept(
    buffers: Sequence[tuple[nn.Module, str]], generator: torch.Generator
) -> Iterator[None]:
    """Restore the `buffers`, module and name, and the state of `generator` if the block raises.

    A step replaces the buffers of its parts and never writes into them; the bank restores itself.
    """
    before = [getattr(part, name) for part, name in buffers]
    drawn = generator.get_state()
    try:
        yield
    except BaseException:
        for (part, name), value in zip(buffers, before, strict=True):
            setattr(part, name, value)
        generator.set_state(drawn)
        raise
