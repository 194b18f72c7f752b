"""Runs the trials of a study: those of a fixed plan, and those that a sampler proposes."""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gloss_graph._internal.peak_memory import free_memory
from gloss_graph._internal.search_space import Dimension
from gloss_graph.studies.engine import (
    TrialBudget,
    TrialTable,
    quiet_optuna,
    suggest,
    this_process,
    worker_name,
)
from gloss_graph.studies.trials import Arm, Trial, arm_name, run_trial

_POLL_SECONDS = 0.3
# The time left is told from all trials so far, not from the last half minute.
_ESTIMATE_SECONDS = 7 * 24 * 3600.0


class Runner:
    """Runs trials one after another, sharing them with other processes on the same table.

    Args:
        table: Where trials are claimed and rows go.
        run: `(config, seed) -> metrics`.
        baseline: Value of every factor in the baseline arm.
        about: Added to every row.
        progress: Show a bar on stderr.
    """

    def __init__(
        self,
        table: TrialTable,
        run: Callable[[dict[str, Any], int], Mapping[str, float]],
        baseline: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        progress: bool = False,
    ) -> None:
        self.table, self._run, self._baseline, self._about = table, run, baseline, about
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

    def work(self, trials: Sequence[Trial], *, retry: bool = False, wait: bool = True) -> None:
        """Run what has no row yet; returns when every trial has one.

        Args:
            trials: The plan, in order.
            retry: Do trials again that failed before this call.
            wait: False returns while other workers still run some.

        Raises:
            ValueError: A trial did not read any of the factors that tell it from the baseline.
        """
        self.table.read(fail_dead=True)
        rows = self.table.rows()
        # The attempt of a trial whose row counts.
        attempts = {trial.id: 0 for trial in trials}
        for key in attempts:
            if retry and key in rows and rows[key]["status"] == "failed":
                attempts[key] = rows[key].get("attempt", 0) + 1
        with self._bar, _old_objects_aside():
            for old in self._bar.task_ids:
                self._bar.remove_task(old)
            task = self._bar.add_task("Trials", total=len(trials), note="")

            def show(note: str) -> None:
                done = sum(_done(rows, *item) for item in attempts.items())
                self._bar.update(task, completed=done, note=note)

            while True:
                ran = False
                for trial in trials:
                    attempt = attempts[trial.id]
                    if _done(rows, trial.id, attempt):
                        continue
                    claimed = self.table.claim(trial, attempt)
                    if claimed is not None:
                        show(f"{arm_name(trial.arm)}, seed {trial.seed}")
                        self._one(trial, claimed, attempt)
                        ran = True
                self.table.read(fail_dead=True)
                left = sum(not _done(rows, *item) for item in attempts.items())
                show(f"{left} begun elsewhere" if left else "")
                if not left or not (ran or wait):
                    return
                if not ran:
                    time.sleep(_POLL_SECONDS)

    def _one(self, trial: Trial, key: int, attempt: int) -> None:
        """Run a trial and write its row, whatever comes of it."""
        about = {**self._about, "attempt": attempt, "worker": worker_name()}
        try:
            with self.table.beating(key):
                row = run_trial(trial, self._run, self._baseline, about)
        except BaseException:
            self.table.give_back(key)
            raise
        if not self.table.finish(key, row):
            warnings.warn(
                f"The trial {arm_name(trial.arm)}, seed {trial.seed} was silent for too long and "
                "is run again.",
                UserWarning,
                stacklevel=4,
            )
        free_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _done(rows: Mapping[str, Mapping[str, Any]], key: str, attempt: int) -> bool:
    return key in rows and rows[key].get("attempt", 0) >= attempt


@contextmanager
def _old_objects_aside() -> Iterator[None]:
    """Let the collections between trials look at what trials made, not at all that was imported."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def propose_arms(
    proposals: Any,
    storage: Any,
    runner: Runner,
    factors: Mapping[str, Dimension],
    trials_of: Callable[[Arm], Sequence[Trial]],
    *,
    arms: int,
    metric: str,
    minimize: bool,
    retry: bool,
) -> None:
    """Run arms that the sampler proposes until the study has enough of them.

    Args:
        proposals: The Optuna study; an arm is a trial of it, worth the mean over its seeds.
        storage: Where it is kept.
        runner: Runs the arm with every seed.
        factors: What is tried.
        trials_of: An arm with every seed.
        arms: How many.
        metric: What arms are to improve.
        minimize: Less of it is better.
        retry: Do failed trials again.
    """
    with quiet_optuna() as optuna:

        def objective(proposal: Any) -> float:
            proposal.set_user_attr("process", this_process())
            proposal.set_user_attr("worker", worker_name())
            trials = trials_of({name: suggest(proposal, name, d) for name, d in factors.items()})
            runner.work(trials, retry=retry)
            rows = runner.table.rows()
            values = [rows[trial.id]["metrics"].get(metric, math.nan) for trial in trials]
            mean = sum(values) / len(values)
            if not math.isfinite(mean):
                raise optuna.TrialPruned(f"no {metric!r}")
            return -mean if minimize else mean

        budget = TrialBudget(proposals, storage, arms)
        while budget.next():
            proposals.optimize(objective, n_trials=1, catch=(), gc_after_trial=True)
