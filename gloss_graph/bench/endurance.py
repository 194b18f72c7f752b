"""Whether many steps at a full bank leave memory as it was."""

from __future__ import annotations

import gc
import os

from rich.progress import track

from gloss_graph.bench.stages import StageSettings, single_step
from gloss_graph.bench.turns import resident_mib


def memory_growth(
    steps: int = 10_000,
    *,
    rows: int = 4_096,
    dim: int = 64,
    settings: StageSettings | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Resident memory before and after `steps` training steps on a full bank.

    The first tenth of the steps is a warm-up: allocators and threads take what they need then.

    Returns:
        `steps`, `before MiB`, `after MiB` and `growth %`.

    Raises:
        ValueError: Fewer than 10 steps.
        OSError: The system does not tell how much memory a process has (no /proc).
    """
    if steps < 10:
        raise ValueError(f"'steps' must be at least 10 (got {steps}).")
    step = single_step(rows, dim, settings or StageSettings(encoder="none"))
    for _ in track(range(steps // 10), "Warming up", disable=not progress):
        step()
    gc.collect()
    before = resident_mib()
    for _ in track(range(steps), f"{steps:,} steps", disable=not progress):
        step()
    gc.collect()
    after = resident_mib()
    if before is None or after is None:
        raise OSError(f"The resident memory of process {os.getpid()} is not known here (no /proc).")
    growth = 100.0 * (after - before) / before
    return {"steps": steps, "before MiB": before, "after MiB": after, "growth %": growth}
