"""Memory of this process: resident, at its peak, and given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

# Between two looks where the system keeps no record of the peak.
_SAMPLE_SECONDS = 0.01


def resident_bytes() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss)


def free_memory() -> None:
    """Collect garbage and, on Linux, hand it back to the system."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The largest resident memory, in bytes, while it was open.

    It is Linux's record of the peak if that can be reset; else a thread looks every hundredth of a
    second.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._exact = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._exact = _reset_peak()
        self.peak = resident_bytes()
        if not self._exact:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._exact:
            self.peak = _peak() or self.peak
            return
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, resident_bytes())

    def _look(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, resident_bytes())


def _reset_peak() -> bool:
    """Start Linux's record over; False where there is none."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return _peak() is not None
    return False


def _peak() -> float | None:
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("VmHWM:")]
        return 1024.0 * float(line.split()[1])
    return None
