"""Whether many training steps on a full bank leave resident memory as it was.

Run ``python examples/benchmarks/endurance.py [--steps 10000 --bank 4096 --dim 64]``.
"""

from __future__ import annotations

import argparse
import gc
import os
from pathlib import Path

import pandas as pd
from rich.progress import track
from stages import StageSettings, single_step
from tables import machine_note, show_tables
from turns import limited_threads, resident_mib

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--bank", type=int, nargs="+", default=[4_096], help="rows of the banks")
    parser.add_argument("--dim", type=int, nargs="+", default=[64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--k", type=int, default=16, help="neighbors per document")
    parser.add_argument("--threads", type=int, help="of every library; default: theirs")
    parser.add_argument("--out", type=Path, default=Path("runs/endurance"))
    given = parser.parse_args()
    settings = StageSettings(batch=given.batch_size, k=given.k, encoder="none")
    load = os.getloadavg()[0]
    with limited_threads(given.threads):
        growth = [
            memory_growth(given.steps, rows=rows, dim=dim, settings=settings, progress=True)
            for dim in given.dim
            for rows in given.bank
        ]
        note = machine_note(1, load)
    show_tables({"endurance: resident memory": pd.DataFrame(growth)}, given.out, note)


if __name__ == "__main__":
    main()
