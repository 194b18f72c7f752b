"""Runs the trials of a plan that nobody has run yet."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from numbers import Real
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gloss_graph._internal.peak_memory import PeakMemory, free_memory
from gloss_graph.runs.provenance import provenance
from gloss_graph.studies.designs import Arm
from gloss_graph.studies.identity import TrackedConfig
from gloss_graph.studies.store import TrialStore
from gloss_graph.studies.table import arm_name
from gloss_graph.studies.tune_storage import worker_name

__all__ = ["Runner", "Trial"]

_POLL_SECONDS = 0.3
_BEAT_SECONDS = 10.0
# The time left is told from all trials so far, not from the last half minute.
_ESTIMATE_SECONDS = 7 * 24 * 3600.0
_MEGABYTE = 2.0**20


@dataclass(frozen=True)
class Trial:
    """One arm with one seed.

    Attributes:
        id: Hash of everything it depends on.
        arm: Factor -> value.
        config: What the function is called with.
        seed: The seed.
    """

    id: str
    arm: Arm
    config: dict[str, Any]
    seed: int


class Runner:
    """Runs trials one after another, sharing them with other processes on the same folder.

    Args:
        store: Where rows go.
        run: `(config, seed) -> metrics`.
        baseline: Value of every factor in the baseline arm.
        about: Added to every row.
        progress: Show a bar on stderr.
    """

    def __init__(
        self,
        store: TrialStore,
        run: Callable[[dict[str, Any], int], Mapping[str, float]],
        baseline: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        progress: bool = False,
    ) -> None:
        self.store, self._run, self._baseline, self._about = store, run, baseline, about
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            disable=not progress,
            speed_estimate_period=_ESTIMATE_SECONDS,
        )

    def work(self, trials: Sequence[Trial], *, retry: bool = False, wait: bool = True) -> int:
        """Run what has no row yet; returns when every trial has one.

        Args:
            trials: The plan, in order.
            retry: Do trials again that failed before this call.
            wait: False returns while others still run some.

        Returns:
            Trials this process ran.

        Raises:
            ValueError: A trial did not read any of the factors that tell it from the baseline.
        """
        failed: dict[str, int] = {}
        if retry:
            rows = self.store.rows()
            failed = {
                key: rows[key].get("attempt", 0)
                for key in (trial.id for trial in trials)
                if key in rows and rows[key]["status"] == "failed"
            }
        ran = 0
        with self._bar, _old_objects_aside():
            for old in self._bar.task_ids:
                self._bar.remove_task(old)
            task = self._bar.add_task("Trials", total=len(trials), note="")
            while True:
                before = ran
                waiting = 0
                for trial in trials:
                    if self._done(trial, failed):
                        continue
                    attempt = self.store.claim(trial.id, after=failed.get(trial.id, -1))
                    if attempt is None:
                        waiting += 1
                        continue
                    if self._done(trial, failed):
                        self.store.release(trial.id)
                        continue
                    self._show(task, trials, failed, _name(trial))
                    self._one(trial, attempt)
                    ran += 1
                self._show(task, trials, failed, f"{waiting} begun elsewhere" if waiting else "")
                if not waiting or not wait:
                    return ran
                if ran == before:
                    time.sleep(_POLL_SECONDS)

    def _done(self, trial: Trial, failed: Mapping[str, int]) -> bool:
        return _ended(trial, self.store.rows(), failed)

    def _show(
        self, task: Any, trials: Iterable[Trial], failed: Mapping[str, int], note: str
    ) -> None:
        rows = self.store.rows()
        done = sum(_ended(trial, rows, failed) for trial in trials)
        self._bar.update(task, completed=done, note=note)

    def _one(self, trial: Trial, attempt: int) -> None:
        """Run a trial and write its row, whatever comes of it."""
        config = TrackedConfig(trial.config)
        row: dict[str, Any] = {
            "id": trial.id,
            "attempt": attempt,
            "arm": trial.arm,
            "seed": trial.seed,
            "changed": {k: v for k, v in trial.arm.items() if v != self._baseline.get(k)},
            "config": dict(trial.config),
            **self._about,
            **_provenance(),
            "worker": worker_name(),
            "started": _now(),
        }
        start, memory = time.perf_counter(), PeakMemory()
        idle: list[str] = []
        try:
            with _Beats(self.store), memory:
                found = self._run(config, trial.seed)
            idle = sorted(config.unread & trial.arm.keys())
            row |= {"status": "ok", "metrics": checked_metrics(found)}
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            row |= {
                "status": "failed",
                "metrics": {},
                "error": f"{type(error).__name__}: {text}",
                "traceback": traceback.format_exc(),
            }
        except BaseException:
            self.store.release(trial.id)
            raise
        row |= {"seconds": time.perf_counter() - start, "finished": _now(), "unread": idle}
        row["peak_memory_mb"] = memory.peak / _MEGABYTE
        changed = set(row["changed"])
        if row["status"] == "ok" and changed and changed <= set(idle):
            self.store.release(trial.id)
            raise ValueError(
                f"factor {', '.join(map(repr, sorted(changed)))} was never read by the function, "
                f"though the arm {_name(trial)!r} differs from the baseline in nothing else. Check "
                "the spelling, or leave the factor out."
            )
        self.store.append(row)
        free_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _ended(trial: Trial, rows: Mapping[str, Any], failed: Mapping[str, int]) -> bool:
    row = rows.get(trial.id)
    return row is not None and row.get("attempt", 0) > failed.get(trial.id, -1)


def checked_metrics(found: Any) -> dict[str, float]:
    """What a function gave back, as plain numbers.

    Raises:
        TypeError: No dictionary of numbers, or an empty one.
    """
    if not isinstance(found, Mapping) or not found:
        raise TypeError(
            f"'run' must return a dictionary of metrics, name -> number (got {found!r:.80})."
        )
    plain = {}
    for name, value in found.items():
        item = value.item() if hasattr(value, "item") else value
        if isinstance(item, bool) or not isinstance(item, Real):
            raise TypeError(f"'run' must return numbers (got {value!r:.80} for {name!r}).")
        plain[str(name)] = float(item)
    return plain


@contextmanager
def _old_objects_aside() -> Iterator[None]:
    """Let the collections between trials look at what trials made, not at all that was imported."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Beats:
    """While open: signs of life of the claims."""

    def __init__(self, store: TrialStore) -> None:
        self._store, self._stop = store, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> _Beats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_SECONDS):
            self._store.beat()


@cache
def _provenance() -> dict[str, Any]:
    found = provenance()
    del found["finished"]
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _name(trial: Trial) -> str:
    return f"{arm_name(trial.arm)}, seed {trial.seed}"
