"""A study that many machines share and that outlives any of them: Optuna on a database."""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

# A trial without a sign of life for this many heartbeats counts as killed.
_SILENT_BEATS = 6
# A setting that kills its worker (out of memory) is tried again this often, not for ever.
_RETRIES = 2
# Trials at random before the sampler learns from earlier ones, and before anything is pruned.
_RANDOM_TRIALS = 10
_UNPRUNED_TRIALS = 5
# The first evaluation of a trial says more about warm-up than about its settings.
_UNPRUNED_EVALUATIONS = 1
_POLL_SECONDS = 1.0
# Seconds a worker waits while another one writes to the same SQLite file.
_SQLITE_PATIENCE = 60


def require_optuna() -> Any:
    """The optuna module.

    Raises:
        ValueError: Not installed; names the extra that brings it.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "Tuning needs optuna, which is not installed. Run 'pip install \"gloss-graph[tune]\"'."
        ) from error
    return optuna


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """Optuna without its log lines and without warnings that its heartbeat is new."""
    optuna = require_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(level)


def worker_name() -> str:
    """Machine and process, to tell workers of one study apart."""
    return f"{platform.node()}:{os.getpid()}"


def sqlite_url(file: str | os.PathLike[str]) -> str:
    """Database URL of a file, whatever characters its name has."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=os.fspath(file)).render_as_string()


def open_study(
    url: str, name: str, attributes: Mapping[str, Any], *, seed: int, heartbeat: int
) -> Any:
    """Create or join a study that maximises, refusing one that was made with other settings.

    Args:
        url: Of the database.
        name: Of the study in it.
        attributes: What defines the study, as JSON types; kept with it and compared.
        seed: Of what is tried.
        heartbeat: Seconds between signs of life of a running trial.

    Raises:
        ValueError: A database out of reach; a study with other attributes or another program's.
    """
    optuna = require_optuna()
    storage = _storage(url, heartbeat)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=_numbered_sampler(optuna, seed),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=_UNPRUNED_TRIALS, n_warmup_steps=_UNPRUNED_EVALUATIONS + 1
        ),
    )
    _check_attributes(study, name, attributes)
    return study


def _storage(url: str, heartbeat: int) -> Any:
    import sqlalchemy

    optuna = require_optuna()
    lite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": _SQLITE_PATIENCE}} if lite else {"pool_pre_ping": True}
    for last in (False, False, False, True):
        try:
            return optuna.storages.RDBStorage(
                # Optuna takes braces for a template.
                url.replace("{", "{{").replace("}", "}}"),
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=_SILENT_BEATS * heartbeat,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(
                    max_retry=_RETRIES
                ),
            )
        except (ImportError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
            # Workers that start at once all make the tables, and all but one fail.
            raced = isinstance(error, sqlalchemy.exc.IntegrityError)
            if (raced or "already exists" in str(error)) and not last:
                time.sleep(0.5)
                continue
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"'storage' must be a database within reach ({_shown(url)}: {reason}). Check the "
                "URL, e.g. sqlite:///study.db or postgresql://user@host/name, and its driver."
            ) from error
    raise RuntimeError("unreachable")


def _shown(url: str) -> str:
    """The URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return repr(url)


def _numbered_sampler(optuna: Any, seed: int) -> Any:
    """TPE that draws what it tries from (seed, number of the trial).

    One generator a process would make every worker, and a resumed one, start with the same draws.
    """

    class NumberedSampler(optuna.samplers.BaseSampler):
        def __init__(self) -> None:
            self._made: tuple[int, Any] = (-1, None)

        def _of(self, number: int) -> Any:
            if self._made[0] != number:
                drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
                sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_TRIALS, seed=drawn)
                self._made = (number, sampler)
            return self._made[1]

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._of(trial.number).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._of(trial.number).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._of(trial.number).sample_independent(study, trial, name, distribution)

    return NumberedSampler()


def _check_attributes(study: Any, name: str, attributes: Mapping[str, Any]) -> None:
    stored = {key: study.user_attrs[key] for key in attributes if key in study.user_attrs}
    if not study.get_trials(deepcopy=False):
        # A worker may have died between two of them.
        for key in attributes.keys() - stored.keys():
            study.set_user_attr(key, attributes[key])
            stored[key] = attributes[key]
    different = [
        line for key in attributes for line in _differences(key, stored.get(key), attributes[key])
    ]
    if different:
        raise ValueError(
            f"The study {name!r} was begun with other settings ({'; '.join(different[:6])}). Give "
            "the same ones to go on with it, or start another with 'study_name' or in a new folder."
        )


def _differences(key: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            f"{name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} here"
            for name in sorted({*old, *new})
            if old.get(name, "absent") != new.get(name, "absent")
        ]
    return [] if old == new else [f"{key}: {old} there, {new} here"]


class Turns:
    """Says when a worker may start a trial, so that all together keep to the budget.

    Args:
        study: The study.
        trials: Finished (complete or pruned) trials wanted in all of it.
        timeout: Seconds after which this worker starts no more; None = never.
        heartbeat: Seconds between signs of life of a running trial.
    """

    def __init__(self, study: Any, trials: int, timeout: float | None, heartbeat: int) -> None:
        self._study, self._trials = study, trials
        self._grace = _SILENT_BEATS * heartbeat
        self._end = None if timeout is None else time.monotonic() + timeout
        self._unsigned: dict[int, float] = {}

    def finished(self) -> int:
        """Complete and pruned trials so far."""
        return len(self._of("COMPLETE", "PRUNED"))

    def next(self, waiting: Callable[[int], None] = lambda running: None) -> bool:
        """Wait until there is room for a trial; False once all are finished or time is over.

        Args:
            waiting: Told how many trials of others the worker waits for.
        """
        optuna = require_optuna()
        while True:
            optuna.storages.fail_stale_trials(self._study)
            self._fail_stillborn(optuna)
            finished, running = self.finished(), len(self._of("RUNNING"))
            if finished >= self._trials:
                return False
            if self._end is not None and time.monotonic() >= self._end:
                return False
            if finished + running < self._trials:
                return True
            waiting(running)
            time.sleep(_POLL_SECONDS)

    def _of(self, *states: str) -> list[Any]:
        return [
            trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name in states
        ]

    def _fail_stillborn(self, optuna: Any) -> None:
        """Trials whose worker died before the first heartbeat, which Optuna waits for for ever."""
        now = time.monotonic()
        unsigned = [t.number for t in self._of("RUNNING") if "worker" not in t.user_attrs]
        self._unsigned = {number: self._unsigned.get(number, now) for number in unsigned}
        for number, since in self._unsigned.items():
            if now - since > self._grace:
                try:
                    self._study.tell(number, state=optuna.trial.TrialState.FAIL)
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    continue
