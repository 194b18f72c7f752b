"""Timing contenders by turns, so that a busy machine slows all of them alike, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.progress import track

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds_of(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock seconds of one call, its work on `device` included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device | None) -> None:
    """Until what was asked of a GPU is done; on CPU nothing."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    device: torch.device | None = None,
    title: str = "",
    progress: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every call in each of `repeats` rounds, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in track(range(repeats + 1), title, disable=not progress):
        for name, call in calls.items():
            spent = seconds_of(call, device)
            if number:
                taken[name].append(spent)
    return taken


def _status(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) / 1024 if found else None


def _give_back() -> None:
    """Freed memory back to the system, where the C library is glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def resident_mib() -> float | None:
    """Resident memory of this process, None where the system does not say."""
    return _status("VmRSS")


def peak_mib(call: Callable[[], object], device: torch.device | None = None) -> float | None:
    """Peak memory (MiB) of a call above what was in use before, None where unknown.

    On Linux the high-water mark of the process, reset before; on a GPU the allocator's. What the
    C library keeps of freed memory is given back first, so that its use again counts; pools of
    other libraries (MKL's) still hide here.
    """
    gc.collect()
    _give_back()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return None
    rss = _status("VmRSS")
    call()
    peak = _status("VmHWM")
    return None if rss is None or peak is None else max(0.0, peak - rss)
