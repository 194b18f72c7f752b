"""Wall-clock seconds by stage."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Stages of a training step, in their order.
STAGES = (
    *("encoder", "reference", "targets", "search", "graph", "propagation", "loss", "enqueue"),
    *("backward", "optimizer", "refresh"),
)


def stage_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the stages of the training steps, in their order."""
    return {
        stage: metrics[f"seconds.{stage}"]
        for stage in STAGES
        if math.isfinite(metrics.get(f"seconds.{stage}", math.nan))
    }


class StageClock(dict[str, float]):
    """Seconds spent so far in each stage; `clear()` starts over."""

    def spend(self, stage: str, seconds: float) -> None:
        """Add `seconds` to a stage."""
        self[stage] = self.get(stage, 0.0) + seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(stage, time.perf_counter() - start)
