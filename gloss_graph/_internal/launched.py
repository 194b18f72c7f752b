"""Which of several processes this one is, known without importing torch."""

from __future__ import annotations

import os
import sys
from typing import Any


def joined() -> bool:
    """Whether this process is in a process group."""
    # Absent from builds of torch without it, and while torch is being imported.
    ask = getattr(_distributed(), "is_initialized", None)
    return ask is not None and ask()


def world_size() -> int:
    """Number of processes that train together, 1 without `torch.distributed`."""
    return _distributed().get_world_size() if joined() else 1


def launched() -> int:
    """Number of processes a launcher (torchrun, accelerate) started, 1 without one."""
    if joined():
        return _distributed().get_world_size()
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, before the processes joined too."""
    if joined():
        return _distributed().get_rank()
    return _number("RANK", 0) if launched() > 1 else 0


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def leave_processes() -> None:
    """Leave the process group at the end of a program; nothing happens without one."""
    if joined():
        _distributed().destroy_process_group()


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        _distributed().barrier()


def _distributed() -> Any:
    """`torch.distributed` where it is imported; before that no process has joined a group."""
    return sys.modules.get("torch.distributed")


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default
