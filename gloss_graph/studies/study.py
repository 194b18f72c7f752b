"""A question about settings, and all that is needed to answer it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.files import atomic_write, full_disk_named
from gloss_graph._internal.folders import check_content, join
from gloss_graph._internal.search_space import Choice, Dimension, Range, Scalar
from gloss_graph.studies.designs import DESIGNS, arms_of, check_used, factor_dimension
from gloss_graph.studies.engine import (
    HEARTBEAT,
    TrialTable,
    open_storage,
    open_study,
    read_rows,
    sqlite_url,
)
from gloss_graph.studies.results import (
    DATABASE,
    STUDY_FILE,
    Results,
    check_factor,
    proposed_rows,
    results_of,
    rows_of,
    write_shared_rows,
)
from gloss_graph.studies.runner import Runner, propose_arms
from gloss_graph.studies.trials import Arm, Trial, arm_name, canonical, read_lines, trial_id

__all__ = ["Plan", "Study"]

# A file that the workers in a folder lock together.
CROWD = ".workers"
# Beyond that a plan is a slip of the pen.
_MOST_TRIALS = 100_000


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    Attributes:
        design: Its name.
        arms: Arms, the baseline first; None with the design `optuna`, which decides on the way.
        trials: All trials.
        done: How many have a row.
        seconds: Mean of the finished ones, NaN before the first.
        notes: What to know before it starts.
        seeds: How many.
    """

    design: str
    arms: list[Arm]
    trials: list[Trial]
    done: int
    seconds: float
    notes: tuple[str, ...]
    seeds: int
    total: int

    def left(self, workers: int = 1) -> float:
        """Seconds of work left for so many processes, NaN before the first trial."""
        return (self.total - self.done) * self.seconds / workers


class Study:
    """Arms of a function's settings, each run with the same seeds and compared with a baseline.

    Finished trials are never run again: running a study again goes on where it ended, and after
    adding a value or a seed only what is new is run. Any number of processes may run one study
    in one folder at once.

    Args:
        factors: Setting -> the values to try (a list of two or more; for the designs
            `latin-hypercube` and `optuna` also a `Range`).
        run: `(config, seed) -> {metric: number}`. The configuration is `baseline` with the
            factors' values of the arm. Whatever it raises becomes a row with its traceback.
        baseline: Settings of the baseline: of factors (the first value by default) and any other
            ones, which stay fixed.
        design: A key of `DESIGNS`.
        seeds: Number of seeds, or the seeds. Every arm runs with all, so arms are compared in
            pairs.
        metric: The metric the question is about; by default the first one of the first trial.
        minimize: Less of it is better.
        arms: Arms to try beside the baseline, for the designs `latin-hypercube` and `optuna`.
        question: What the report says at the top.
        identity: What else results depend on, for example the version of your data; trials of
            another identity are not mixed with these.
        name: Of the study.

    Raises:
        ValueError: No factor; one called as a column of the results; one with one value; an empty
            plan; a seed twice; settings that `run` says it does not know or use.

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
        for factor in factors:
            check_factor(str(factor))
        self.factors: dict[str, Dimension] = {
            str(name): factor_dimension(str(name), values) for name, values in factors.items()
        }
        self.settings: dict[str, Any] = dict(baseline or {})
        try:
            canonical(self.settings)
        except ValueError as error:
            raise ValueError(f"'baseline' must hold plain settings: {error}") from error
        self.design, self.question, self.name = design, question, name
        self.metric = metric or getattr(run, "metric", None)
        self.minimize, self.seeds = bool(minimize), _seeds(seeds)
        self.identity = {**getattr(run, "identity", {}), **(identity or {})}
        #: What is run.
        self.function = run
        self.size = arms
        if design in ("latin-hypercube", "optuna"):
            check_positive_int("arms", arms)
            if design == "optuna" and not self.metric:
                raise ValueError("'metric' must say what design='optuna' is to improve (got none).")
        elif arms is not None:
            raise ValueError(f"'arms' must be left out for design={design!r} (got {arms}).")
        self.baseline: Arm = {
            name: self.settings.get(name, _first(tried)) for name, tried in self.factors.items()
        }
        self._check_size()
        self.arms: list[Arm] = []
        self.notes: list[str] = []
        if design == "optuna":
            # What can be known before: every end of every range, one at a time.
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

    @classmethod
    def read(cls, path: str | os.PathLike[str], **overrides: Any) -> Study:
        """A study of text classifiers from a YAML file, see `gloss_graph.studies.read_study`."""
        from gloss_graph.studies.yaml_study import read_study

        return read_study(path, **overrides)

    # ------------------------------------------------------------------ plan

    def config(self, arm: Mapping[str, Scalar]) -> dict[str, Any]:
        """What the function is called with for an arm."""
        return {**self.settings, **arm}

    def trial(self, arm: Mapping[str, Scalar], seed: int) -> Trial:
        """An arm with a seed."""
        config = self.config(arm)
        resolve = getattr(self.function, "resolve", None)
        whole = config if resolve is None else resolve(config)
        name = getattr(self.function, "name", None) or getattr(self.function, "__qualname__", "run")
        key = trial_id(whole, seed, {**self.identity, "function": name})
        return Trial(key, dict(arm), config, seed)

    def trials(self) -> list[Trial]:
        """Every arm with every seed, all arms of the first seed first."""
        return [self.trial(arm, seed) for seed in self.seeds for arm in self.arms]

    def plan(self, out: str | os.PathLike[str] | None = None) -> Plan:
        """What is to be done, and what of it is done already in a folder."""
        trials = self.trials()
        total = len(trials)
        seconds = math.nan
        done = 0
        if out is not None and Path(out).is_dir():
            rows = rows_of(Path(out))
            known = [rows[trial.id] for trial in trials if trial.id in rows]
            if self.design == "optuna":
                known = proposed_rows(rows.values(), self.factors, self.settings, self.identity)
            done = len(known)
            fine = [row["seconds"] for row in known if row["status"] == "ok"]
            seconds = sum(fine) / len(fine) if fine else math.nan
        if self.design == "optuna":
            total = ((self.size or 0) + 1) * len(self.seeds)
        return Plan(
            self.design, self.arms, trials, done, seconds, tuple(self.notes), len(self.seeds), total
        )

    def _check_size(self) -> None:
        """Refuse a plan that no machine would come to the end of."""
        choices = [tried for tried in self.factors.values() if isinstance(tried, Choice)]
        listed = [len(list(choice.values)) for choice in choices]
        crossed = math.prod(listed) if self.design == "grid" else sum(listed)
        trials = (self.size or crossed) * len(self.seeds)
        if trials > _MOST_TRIALS:
            raise ValueError(
                f"The plan has {trials:,} trials, more than {_MOST_TRIALS:,}: "
                f"{trials // len(self.seeds):,} arms with {len(self.seeds):,} seeds. Leave values "
                "out, or take design='latin-hypercube'."
            )

    def _check(self, arms: list[Arm]) -> None:
        """Refuse before the first trial what could only fail or be without effect."""
        check = getattr(self.function, "check", None)
        if check is not None:
            for arm in arms:
                try:
                    check(self.config(arm))
                except ValueError as error:
                    raise ValueError(f"The arm {arm_name(arm)} cannot be run: {error}") from error
        used = getattr(self.function, "used", None)
        if used is None:
            return
        needed = [set(used(self.config(arm))) for arm in arms]
        base_used = set().union(*needed)
        idle = sorted(set(self.settings) - base_used - self.factors.keys())
        ignored = [name for name in idle if name in getattr(self.function, "tolerated", ())]
        if ignored:
            self.notes.append(f"{', '.join(ignored)} of the baseline mean nothing at this cost.")
            idle = [name for name in idle if name not in ignored]
        if idle:
            raise ValueError(
                f"'baseline' sets {', '.join(map(repr, idle))}, which no arm uses. Leave it out; "
                f"used here are {sorted(base_used)}."
            )
        without = check_used(needed, self.factors)
        self.notes += [
            f"{name} has no effect in {count} of {len(arms)} arms."
            for name, count in without.items()
        ]

    # ------------------------------------------------------------------ run

    def run(
        self,
        out: str | os.PathLike[str],
        *,
        progress: bool = True,
        retry: bool = False,
        storage: str | None = None,
        wait: bool = True,
        limit: int | None = None,
        heartbeat: int = HEARTBEAT,
    ) -> Results:
        """Run what is not done yet, and read the results. The same call resumes.

        Args:
            out: Folder of the study: new, empty or that of the same study before.
            progress: Show a bar on stderr.
            retry: Do failed trials again.
            storage: Database URL that machines share; None keeps the trials in `out`.
            wait: Return only when trials that other processes have begun are done, too.
            limit: Of the plan, run the first so many trials only.
            heartbeat: Seconds between signs of life of a running trial; on another machine a trial
                that is silent for six times as long counts as killed.

        Raises:
            FileExistsError: The folder holds something else.
            BlockingIOError: Another process runs another study in it.
            ValueError: A factor the function never reads; no optuna; a database that cannot be
                reached.
            RuntimeError: Every trial failed; names the last error.
        """
        folder = study_folder(out)
        about = {"cost": getattr(self.function, "cost", ""), "identity": self.identity}
        file, content = folder / STUDY_FILE, self._content()
        url = sqlite_url(folder / DATABASE) if storage is None else storage

        def begin() -> None:
            with atomic_write(file, overwrite=True) as draft:
                draft.write(content)

        with full_disk_named(folder), open_storage(url, heartbeat=heartbeat) as database:
            # It refuses other settings; the folder must then stay as it is.
            proposals = self._proposals(database) if self.design == "optuna" else None
            with join(
                folder,
                "ablate",
                folder / CROWD,
                same=lambda: file.is_file() and file.read_bytes() == content,
                begin=begin,
            ):
                known = read_lines(folder / "trials")
                known += read_rows(database, None if storage is None else self.name)
                table = TrialTable(
                    database,
                    self.name,
                    self.factors,
                    self.baseline,
                    metric=self.metric,
                    minimize=self.minimize,
                    rows=known,
                )
                runner = Runner(table, self.function, self.baseline, about, progress=progress)
                if proposals is None:
                    runner.work(self.trials()[:limit], retry=retry, wait=wait)
                else:
                    runner.work(self._seeded(self.baseline), retry=retry)
                    propose_arms(
                        proposals,
                        database,
                        runner,
                        self.factors,
                        self._seeded,
                        arms=self.size or 0,
                        metric=self.metric or "",
                        minimize=self.minimize,
                        retry=retry,
                    )
                if storage is not None:
                    write_shared_rows(folder, table.rows().values())
                results = results_of(folder, table.rows())
        rows = results.table
        if len(rows) and (rows["status"] == "failed").all():
            raise RuntimeError(
                f"All {len(rows)} trials failed, the last by {rows['error'].iloc[-1]}. Mend the "
                "cause and run again with retry (--retry)."
            )
        return results

    def _seeded(self, arm: Arm) -> list[Trial]:
        return [self.trial(arm, seed) for seed in self.seeds]

    def _proposals(self, storage: Any) -> Any:
        """The Optuna study that proposes arms."""
        attributes = {
            "factors": {name: tried.as_dict() for name, tried in self.factors.items()},
            "settings": canonical(self.settings),
            "metric": self.metric,
            "minimize": self.minimize,
            "seeds": self.seeds,
            "identity": canonical(self.identity),
        }
        return open_study(storage, self.name, attributes, seed=0)

    def _content(self) -> bytes:
        """What the study's file holds."""
        call = self.function
        content = {
            "name": self.name,
            "question": self.question,
            "design": self.design,
            "factors": {name: tried.as_dict() for name, tried in self.factors.items()},
            "baseline": self.baseline,
            "settings": {k: v for k, v in self.settings.items() if k not in self.factors},
            "seeds": self.seeds,
            "metric": self.metric,
            "minimize": self.minimize,
            "cost": getattr(call, "cost", ""),
            "about": getattr(call, "about", ""),
            "identity": self.identity,
            "glossary": getattr(call, "glossary", {}),
            "titles": getattr(call, "titles", {}),
            "lower_is_better": list(getattr(call, "lower_is_better", ())),
            "shown": list(getattr(call, "shown", ())),
            "notes": self.notes,
            "trials": [trial.id for trial in self.trials()],
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def study_folder(out: str | os.PathLike[str]) -> Path:
    """Make a folder for a study, or take the one of the study before.

    Raises:
        FileExistsError: It holds something else.
    """
    folder = Path(out)
    if not (folder / STUDY_FILE).is_file():
        try:
            check_content(
                folder, known=("trials", "claims", CROWD, DATABASE, f"{DATABASE}-journal")
            )
        except FileExistsError:
            raise FileExistsError(
                f"'out' must be a new folder or that of a study ({folder} holds other files). "
                "Choose another name."
            ) from None
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        check_positive_int("seeds", seeds)
        if seeds > _MOST_TRIALS:
            raise ValueError(f"'seeds' must be at most {_MOST_TRIALS:,} (got {seeds}).")
        return list(range(seeds))
    if isinstance(seeds, (bool, str, Mapping)) or not isinstance(seeds, Iterable):
        raise ValueError(f"'seeds' must be a number or a list of seeds (got {seeds!r}).")
    listed = list(seeds)
    for seed in listed:
        check_positive_int("seeds", seed, minimum=0)
    if not listed or len(set(listed)) != len(listed):
        raise ValueError(f"'seeds' must hold distinct seeds, one at least (got {listed}).")
    return listed


def _first(tried: Dimension) -> Scalar:
    return tried.low if isinstance(tried, Range) else next(iter(tried.values))
