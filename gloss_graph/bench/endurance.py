"""Whether many steps at a full bank leave memory as it was."""

from __future__ import annotations

import gc

from rich.progress import track

from gloss_graph.bench.stages import StageSettings, single_step
from gloss_graph.bench.turns import resident_mib

_WARM_STEPS = 500


def memory_growth(
    steps: int = 10_000,
    *,
    rows: int = 4_096,
    dim: int = 64,
    settings: StageSettings | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Resident memory before and after `steps` training steps on a full bank.

    A warm-up of a tenth of the steps, and of 500 where there are as many, does not count: graphs
    are built, and allocators and threads take what they need then.

    Returns:
        `bank`, `dim`, `steps`, `before MiB`, `after MiB`, `growth %`, and `second half %`, the
        growth over the last half of the steps: a leak grows there too, a late warm-up does not.

    Raises:
        ValueError: Fewer than 10 steps, or an empty bank.
    """
    if steps < 10:
        raise ValueError(f"'steps' must be at least 10 (got {steps}).")
    if rows < 1:
        raise ValueError(f"'rows' must be at least 1, a bank to fill (got {rows}).")
    step = single_step(rows, dim, settings or StageSettings(encoder="none"))
    warm = max(steps // 10, min(steps, _WARM_STEPS))
    for _ in track(range(warm), "Warming up", disable=not progress):
        step()
    marks = [_resident()]
    for number in track(range(steps), f"{steps:,} steps", disable=not progress):
        step()
        if number + 1 in (steps // 2, steps):
            marks.append(_resident())
    before, middle, after = marks
    return {
        "bank": rows,
        "dim": dim,
        "steps": steps,
        "before MiB": before,
        "after MiB": after,
        "growth %": 100.0 * (after - before) / before,
        "second half %": 100.0 * (after - middle) / middle,
    }


def _resident() -> float:
    gc.collect()
    return resident_mib()
