"""Timing contenders by turns, so that a busy machine slows all of them alike, and peak memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from rich.progress import track
from threadpoolctl import threadpool_limits

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.peak_memory import PeakMemory, free_memory, resident_bytes


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
    """Seconds of every call in each of `repeats` rounds, after one round that does not count.

    Each round has an order of its own: who follows a call that fills the caches runs slower.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, names = random.Random(0), list(calls)
    for number in track(range(repeats + 1), title, disable=not progress):
        for name in order.sample(names, len(names)):
            spent = seconds_of(calls[name], device)
            if number:
                taken[name].append(spent)
    return taken


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """So many threads of every library, as before afterwards; None leaves them their own.

    Raises:
        ValueError: Below 1.
    """
    if threads is None:
        yield
        return
    check_positive_int("threads", threads)
    # Loaded first: a limit reaches the BLAS and OpenMP libraries that are there.
    import faiss
    import scipy.linalg  # noqa: F401
    import sklearn.semi_supervised  # noqa: F401

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    with threadpool_limits(limits=threads):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            faiss.omp_set_num_threads(before[1])


def resident_mib() -> float:
    """Resident memory of this process."""
    return resident_bytes() / 2**20


def peak_mib(call: Callable[[], object], device: torch.device | None = None) -> float:
    """Peak memory (MiB) of a call above what was in use before.

    That of the process, see `PeakMemory`; on a GPU the allocator's. What the C library keeps of
    freed memory is given back first, so that its use again counts; pools of other libraries
    (MKL's) still hide here.
    """
    free_memory()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        taken = torch.cuda.memory_allocated(device)
        call()
        return float(torch.cuda.max_memory_allocated(device) - taken) / 2**20
    before = resident_bytes()
    with PeakMemory() as memory:
        call()
    return max(0.0, memory.peak - before) / 2**20
