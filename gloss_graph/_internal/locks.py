"""Locks that die with their process."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["HELD", "TAKEN", "UNKNOWN", "keep_from_children", "let_go", "share_lock", "try_lock"]

#: What `try_lock` finds: the lock is this process's now, another's, or the system has none.
TAKEN, HELD, UNKNOWN = "taken", "held", "unknown"

# Open locks that a forked child must not keep alive.
_OPEN: set[int] = set()


def try_lock(number: int) -> str:
    """Lock an open file for this process without waiting; closing it gives the lock back.

    The system drops the lock when the process ends, however it ends, so none is ever stale.

    Args:
        number: File descriptor, open for writing.

    Returns:
        `TAKEN`, `HELD` by another, or `UNKNOWN` on systems and disks without locks.
    """
    if fcntl is None:
        return UNKNOWN
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return HELD if error.errno in (errno.EAGAIN, errno.EACCES) else UNKNOWN
    return TAKEN


def share_lock(number: int) -> None:
    """Hold the lock of an open file together with others that share it."""
    if fcntl is not None:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)


def keep_from_children(number: int) -> None:
    """Close a locked file in forked children, which would hold the lock after their parent."""
    _OPEN.add(number)


def let_go(number: int) -> None:
    """Close a locked file, unless this is a child in which it is closed already."""
    if number in _OPEN:
        _OPEN.discard(number)
        os.close(number)


def _close_all() -> None:
    for number in _OPEN:
        os.close(number)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
