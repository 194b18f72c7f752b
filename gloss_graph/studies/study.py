"""A question about settings: its arms, and the trials that answer it."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.files import atomic_write, full_disk_named
from gloss_graph._internal.folders import check_content, join
from gloss_graph._internal.peak_memory import free_memory
from gloss_graph._internal.settings import Choice, Scalar
from gloss_graph.studies import engine
from gloss_graph.studies.results import (
    DATABASE,
    STUDY_FILE,
    Results,
    check_factor,
    proposed_rows,
    results_of,
    rows_of,
)
from gloss_graph.studies.trials import (
    DESIGNS,
    Arm,
    Trial,
    arm_name,
    arms_of,
    canonical,
    factor_dimension,
    read_lines,
    run_trial,
    trial_id,
    write_row,
)

# A file that the workers in a folder lock together.
_CROWD = ".workers"
# A plan with more trials is a mistake.
_MOST_TRIALS = 100_000
_POLL_SECONDS = 0.3
# The time left is estimated from all trials so far, not from the last half minute.
_ESTIMATE_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Plan:
    """The extent of a study: trials in `total`, those `done`, and their mean `seconds`."""

    design: str
    seeds: int
    total: int
    done: int
    #: NaN before the first trial.
    seconds: float
    notes: tuple[str, ...]

    def left(self, workers: int = 1) -> float:
        """Estimate the seconds left for a number of processes, NaN before the first trial."""
        return (self.total - self.done) * self.seconds / workers


class Study:
    """Arms of a function's settings, each run with the same seeds and compared with a baseline.

    Finished trials are never run again: running a study again goes on where it ended, and after
    adding a value or a seed only the new trials are run. Any number of processes may run one study
    in one folder at once.

    Args:
        factors: Setting -> the values to try (a list of two or more; for the designs
            `latin-hypercube` and `optuna` also a `Range`).
        run: `(config, seed) -> {metric: number}`. The configuration is `baseline` with the
            factors' values of the arm. An exception becomes a row with its traceback.
        baseline: Settings of the baseline: of factors (the first value by default) and any other
            ones, which stay fixed.
        design: A key of `DESIGNS`.
        seeds: Number of seeds, or the seeds. Every arm runs with all, so arms are compared in
            pairs.
        metric: The metric the question is about; by default the first one of the first trial.
        minimize: Whether less of it is better.
        arms: Number of arms without the baseline, for the designs `latin-hypercube` and `optuna`.
        question: Title of the report.
        identity: What else results depend on, for example the version of your data; trials of
            another identity are not mixed with these.
        name: Name of the study.

    Raises:
        ValueError: An empty plan, a bad factor, or settings that `run` does not know or use.

    Example:
        >>> import tempfile
        >>> def run(config, seed):
        ...     return {"score": config["rate"] * 2 + seed}
        >>> study = Study(factors={"rate": [1, 2, 4]}, run=run, seeds=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = study.run(folder, progress=False).table
        >>> table.groupby("rate")["score"].mean().tolist()
        [3.0, 5.0, 9.0]
    """

    def __init__(
        self,
        *,
        factors: Mapping[str, Any],
        run: Callable[[dict[str, Any], int], Mapping[str, float]],
        baseline: Mapping[str, Any] | None = None,
        design: str = "grid",
        seeds: int | Iterable[int] = 5,
        metric: str | None = None,
        minimize: bool = False,
        arms: int | None = None,
        question: str = "",
        identity: Mapping[str, Any] | None = None,
        name: str = "study",
    ) -> None:
        check_choice("design", design, DESIGNS)
        if not callable(run):
            raise ValueError(f"'run' must be a function (config, seed) -> metrics (got {run!r}).")
        if not factors:
            raise ValueError("'factors' must name a setting to vary (got none).")
        if "seed" in factors or "seed" in (baseline or {}):
            raise ValueError("'seed' must be given as 'seeds': every arm is run with all of them.")
        for factor in map(str, factors):
            check_factor(factor)
        self.factors = {str(key): factor_dimension(str(key), v) for key, v in factors.items()}
        self.settings: dict[str, Any] = dict(baseline or {})
        try:
            canonical(self.settings)
        except ValueError as error:
            raise ValueError(f"'baseline' must hold plain settings: {error}") from error
        self.design, self.question, self.name = design, question, name
        self.metric = metric or getattr(run, "metric", None)
        self.minimize, self.seeds = bool(minimize), _seeds(seeds)
        self.identity = {**getattr(run, "identity", {}), **(identity or {})}
        self.function, self.size = run, arms
        if design in ("latin-hypercube", "optuna"):
            check_positive_int("arms", arms)
        elif arms is not None:
            raise ValueError(f"'arms' must be left out for design={design!r} (got {arms}).")
        if design == "optuna" and not self.metric:
            raise ValueError("'metric' must say what design='optuna' is to improve (got none).")
        self.baseline: Arm = {
            name: self.settings.get(name, tried.probes()[0]) for name, tried in self.factors.items()
        }
        choices = [len(v.probes()) for v in self.factors.values() if isinstance(v, Choice)]
        count = arms or (math.prod(choices) if design == "grid" else sum(choices))
        if count * len(self.seeds) > _MOST_TRIALS:
            raise ValueError(
                f"The plan has {count * len(self.seeds):,} trials, more than {_MOST_TRIALS:,}: "
                f"{count:,} arms with {len(self.seeds):,} seeds. Leave values out, or take "
                "design='latin-hypercube'."
            )
        self.arms, self.notes = list[Arm](), list[str]()
        if design == "optuna":
            # Known before the first proposal: every end of every range, one at a time.
            probes: list[Arm] = [
                {**self.baseline, name: value}
                for name, tried in self.factors.items()
                for value in tried.probes()
            ]
            self._check([self.baseline, *probes])
        else:
            self.arms = arms_of(design, self.factors, self.baseline, size=arms)
            self._check(self.arms)
            if len(self.arms) < 2:
                raise ValueError("The plan is empty: no arm differs from the baseline.")

    def __repr__(self) -> str:
        tried = ", ".join(f"{name}: {values}" for name, values in self.factors.items())
        arms = self.size if self.design == "optuna" else len(self.arms)
        return f"Study({self.design}, {arms} arms, {len(self.seeds)} seeds; {tried})"

    def trial(self, arm: Mapping[str, Scalar], seed: int) -> Trial:
        """Return an arm with a seed."""
        config = {**self.settings, **arm}
        resolve = getattr(self.function, "resolve", dict)
        name = getattr(self.function, "name", None) or getattr(self.function, "__qualname__", "run")
        key = trial_id(resolve(config), seed, {**self.identity, "function": name})
        return Trial(key, dict(arm), config, seed)

    def trials(self) -> list[Trial]:
        """List every arm with every seed, all arms of the first seed first."""
        return [self.trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def plan(self, out: str | os.PathLike[str] | None = None) -> Plan:
        """Plan the study, and count the trials that a folder has already."""
        rows = rows_of(Path(out)) if out is not None and Path(out).is_dir() else {}
        if self.design == "optuna":
            arms = (self.size or 0) + 1
            known = proposed_rows(rows, self.factors, self.settings, self.identity)
        else:
            arms = len(self.arms)
            known = [rows[trial.id] for trial in self.trials() if trial.id in rows]
        fine = [row["seconds"] for row in known if row["status"] == "ok"]
        seconds, seeds = sum(fine) / len(fine) if fine else math.nan, len(self.seeds)
        return Plan(self.design, seeds, arms * seeds, len(known), seconds, tuple(self.notes))

    def _check(self, arms: list[Arm]) -> None:
        """Refuse arms that would fail, and settings and factors without effect."""
        check = getattr(self.function, "check", lambda config: None)
        used = getattr(self.function, "used", None)
        for arm in arms:
            try:
                check({**self.settings, **arm})
            except ValueError as error:
                raise ValueError(f"The arm {arm_name(arm)} cannot be run: {error}") from error
        if used is None:
            return
        needed = [set(used({**self.settings, **arm})) for arm in arms]
        known, tolerated = set().union(*needed), getattr(self.function, "tolerated", ())
        idle = sorted(set(self.settings) - known - self.factors.keys())
        if ignored := [name for name in idle if name in tolerated]:
            self.notes.append(f"{', '.join(ignored)} of the baseline mean nothing at this cost.")
        if idle := [name for name in idle if name not in tolerated]:
            raise ValueError(
                f"'baseline' sets {', '.join(map(repr, idle))}, which no arm uses. Leave it out; "
                f"used here are {sorted(known)}."
            )
        if useless := [name for name in self.factors if name not in known]:
            raise ValueError(
                f"factor {', '.join(map(repr, useless))} is not used by any arm, so all arms would "
                f"be equal in it. Leave it out; used here are {sorted(known)}."
            )
        for name in self.factors:
            if count := sum(name not in names for names in needed):
                self.notes.append(f"{name} has no effect in {count} of {len(arms)} arms.")

    def run(
        self,
        out: str | os.PathLike[str],
        *,
        progress: bool = True,
        retry: bool = False,
        storage: str | None = None,
        wait: bool = True,
        limit: int | None = None,
        heartbeat: int = engine.HEARTBEAT,
    ) -> Results:
        """Run the trials that have no result yet, and read all results. The same call resumes.

        Args:
            out: Folder of the study: new, empty or that of the same study before.
            progress: Show a bar on stderr.
            retry: Run failed trials again.
            storage: Database URL that machines share; None keeps the trials in `out`.
            wait: Wait for trials that other processes have begun.
            limit: Run only the first trials of the plan, this many.
            heartbeat: Seconds between signs of life of a running trial; on another machine a trial
                that is silent for six times as long counts as killed.

        Raises:
            FileExistsError: The folder holds something else.
            BlockingIOError: Another process runs another study in it.
            ValueError: A factor the function never reads, or a database out of reach.
            RuntimeError: Every trial failed; names the last error.
        """
        folder, content = Path(out), self._content()
        file = folder / STUDY_FILE
        if not file.is_file():
            known = ("trials", "claims", _CROWD, DATABASE, f"{DATABASE}-journal")
            check_content(folder, known=known)
        folder.mkdir(parents=True, exist_ok=True)

        def same() -> bool:
            return file.is_file() and file.read_bytes() == content

        url = engine.sqlite_url(folder / DATABASE) if storage is None else storage
        with full_disk_named(folder), engine.open_storage(url, heartbeat=heartbeat) as database:
            # Another study is refused; the folder must then stay as it is.
            proposals = self._proposals(database) if self.design == "optuna" else None
            begin = partial(_write, file, content)
            with join(folder, "ablate", folder / _CROWD, same=same, begin=begin):
                rows = read_lines(folder / "trials")
                rows += engine.read_rows(database, None if storage is None else self.name)
                table = engine.TrialTable(
                    database,
                    self.name,
                    self.factors,
                    self.baseline,
                    metric=self.metric,
                    minimize=self.minimize,
                    known=rows,
                )
                work = partial(self._work, table, progress=progress, retry=retry)
                if proposals is None:
                    work(self.trials()[:limit], wait=wait)
                else:
                    work([self.trial(self.baseline, seed) for seed in self.seeds])
                    objective = partial(self._propose, table, work)
                    for _ in engine.turns(proposals, database, self.size or 0):
                        proposals.optimize(objective, n_trials=1, catch=(), gc_after_trial=True)
                if storage is not None:
                    # So that the folder can be read without the database.
                    (folder / "trials").mkdir(exist_ok=True)
                    lines = "".join(f"{write_row(row)}\n" for row in table.rows.values())
                    _write(folder / "trials" / "shared.jsonl", lines.encode())
                results = results_of(folder, table.rows)
        failed = results.table["status"] == "failed"
        if len(failed) and failed.all():
            raise RuntimeError(
                f"All {len(failed)} trials failed, the last by {results.table['error'].iloc[-1]}. "
                "Fix the cause and run again with retry (--retry)."
            )
        return results

    def _proposals(self, storage: Any) -> Any:
        """The Optuna study that proposes arms."""
        attributes: dict[str, Any] = {
            "factors": {name: tried.as_dict() for name, tried in self.factors.items()},
            **{name: canonical(getattr(self, name)) for name in ("settings", "identity")},
            **{name: getattr(self, name) for name in ("metric", "minimize", "seeds")},
        }
        return engine.open_study(storage, self.name, attributes, seed=0)

    def _propose(
        self, table: engine.TrialTable, work: Callable[[list[Trial]], None], proposal: Any
    ) -> float:
        """Run an arm that the sampler proposes, which is worth its mean over the seeds."""
        arm = engine.begin_proposal(proposal, self.factors)
        trials = [self.trial(arm, seed) for seed in self.seeds]
        work(trials)
        found = [table.rows[trial.id]["metrics"].get(self.metric, math.nan) for trial in trials]
        mean = sum(found) / len(found)
        if not math.isfinite(mean):
            raise engine.require_optuna().TrialPruned(f"no {self.metric!r}")
        return -mean if self.minimize else mean

    def _content(self) -> bytes:
        """The content of the study's file."""
        kept = ("name", "question", "design", "baseline", "seeds", "metric", "minimize", "identity")
        told = {"cost": "", "about": "", "glossary": {}, "titles": {}}
        told |= {"lower_is_better": (), "shown": ()}
        content: dict[str, Any] = {
            **{name: getattr(self, name) for name in (*kept, "notes")},
            "factors": {name: tried.as_dict() for name, tried in self.factors.items()},
            "settings": {k: v for k, v in self.settings.items() if k not in self.factors},
            **{name: getattr(self.function, name, default) for name, default in told.items()},
            "trials": [trial.id for trial in self.trials()],
        }
        return (json.dumps(content, indent=1) + "\n").encode()

    def _work(
        self,
        table: engine.TrialTable,
        trials: Sequence[Trial],
        *,
        progress: bool,
        retry: bool,
        wait: bool = True,
    ) -> None:
        """Run trials until every one has a row; `wait=False` leaves those of other workers."""
        table.read(fail_dead=True)
        # The attempt of a trial whose row counts.
        attempts = {trial.id: 0 for trial in trials}
        for key in attempts.keys() & table.rows.keys() if retry else ():
            if table.rows[key]["status"] == "failed":
                attempts[key] = table.rows[key].get("attempt", 0) + 1
        bar = Progress(
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)),
            console=Console(stderr=True),
            disable=not progress,
            speed_estimate_period=_ESTIMATE_SECONDS,
        )
        with bar, ExitStack() as after:
            # Collections between trials look only at objects of the trials, not at all imports.
            gc.freeze()
            after.callback(gc.unfreeze)
            task = bar.add_task("Trials", total=len(trials), note="")

            while True:
                ran = False
                for trial in trials:
                    attempt = attempts[trial.id]
                    claimed = table.claim(trial, attempt)
                    if claimed is not None:
                        done = sum(itertools.starmap(table.done, attempts.items()))
                        bar.update(task, completed=done, note=str(trial))
                        self._one(table, trial, claimed, attempt)
                        ran = True
                table.read(fail_dead=True)
                left = len(attempts) - sum(itertools.starmap(table.done, attempts.items()))
                elsewhere = f"{left} begun elsewhere" if left else ""
                bar.update(task, completed=len(attempts) - left, note=elsewhere)
                if not left or not (ran or wait):
                    return
                if not ran:
                    time.sleep(_POLL_SECONDS)

    def _one(self, table: engine.TrialTable, trial: Trial, key: int, attempt: int) -> None:
        """Run a trial and write its row, whether it succeeds or not."""
        about = {"cost": getattr(self.function, "cost", ""), "identity": self.identity}
        about |= {"attempt": attempt, "worker": engine.worker_name()}
        try:
            with table.beating(key):
                row = run_trial(trial, self.function, self.baseline, about)
        except BaseException:
            table.give_back(key)
            raise
        if not table.finish(key, row):
            message = f"The trial {trial} was silent for too long and is run again."
            warnings.warn(message, UserWarning, stacklevel=4)
        free_memory()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _write(file: Path, content: bytes) -> None:
    with atomic_write(file, overwrite=True) as draft:
        draft.write(content)


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if isinstance(seeds, int):
        check_positive_int("seeds", seeds)
        if seeds > _MOST_TRIALS:
            raise ValueError(f"'seeds' must be at most {_MOST_TRIALS:,} (got {seeds}).")
        return list(range(seeds))
    if isinstance(seeds, (str, Mapping)) or not isinstance(seeds, Iterable):
        raise ValueError(f"'seeds' must be a number or a list of seeds (got {seeds!r}).")
    listed = list(seeds)
    for seed in listed:
        check_positive_int("seeds", seed, minimum=0)
    if not listed or len(set(listed)) != len(listed):
        raise ValueError(f"'seeds' must hold distinct seeds, one at least (got {listed}).")
    return listed
