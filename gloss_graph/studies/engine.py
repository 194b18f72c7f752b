"""Trials in an Optuna storage that many processes and machines share, each run once."""

from __future__ import annotations

import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import Any

import numpy as np
import psutil

from gloss_graph._internal.settings import Choice, Dimension, Scalar
from gloss_graph.studies.trials import Trial, keep_latest, read_row, trial_id, write_row

HEARTBEAT = 10
# A trial without a sign of life for this many heartbeats counts as killed.
_SILENT_BEATS = 6
# A setting that kills its worker (out of memory) is tried again this often.
_RETRIES = 2
# Random trials before the sampler learns from earlier ones, and trials before any is pruned.
_RANDOM_TRIALS, _UNPRUNED_TRIALS = 10, 5
_POLL_SECONDS = 1.0
# Between the name of a study and the digest of its factors.
_TABLE = " trials "
# Attributes of a fixed trial: its identity, and its row.
_FIXED, _ROW = "trial", "row"


def require_optuna() -> Any:
    """Return the optuna module; a `ValueError` names the extra that installs it."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "Studies need optuna, which is not installed. Run 'pip install \"gloss-graph[tune]\"'."
        ) from error
    return optuna


def sqlite_url(file: str | os.PathLike[str]) -> str:
    """Return the database URL of a file; SQLite opens only names in UTF-8."""
    require_optuna()
    from sqlalchemy import URL

    try:
        os.fspath(file).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"'out' must be a name in UTF-8, since a database is kept there (got "
            f"{os.fspath(file)!a}). Choose another."
        ) from None
    return URL.create("sqlite", database=os.fspath(file)).render_as_string()


@contextmanager
def open_storage(url: str, *, heartbeat: int = HEARTBEAT) -> Iterator[Any]:
    """Connect to a database while the block runs, in which Optuna logs nothing; see `connect`."""
    optuna = require_optuna()
    with ExitStack() as after, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        after.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        storage = connect(url, heartbeat=heartbeat)
        after.callback(storage.engine.dispose)
        after.callback(storage.remove_session)
        try:
            yield storage
        except optuna.exceptions.StorageInternalError as error:
            # The database's error names the cause, for example a full disk.
            raise error.__cause__ or error from None


def connect(url: str, *, heartbeat: int = HEARTBEAT) -> Any:
    """Connect to a database and make Optuna's tables where they are missing.

    Proposed trials of dead workers are queued again; fixed ones are claimed again by the plan.
    """
    storages = require_optuna().storages
    import sqlalchemy

    if url.startswith("postgresql://") and find_spec("psycopg"):
        # Before version 2.1 SQLAlchemy takes this for psycopg2.
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    lite = url.startswith("sqlite")
    # On SQLite a worker waits so many seconds while another one writes.
    options = {"connect_args": {"timeout": 60}} if lite else {"pool_pre_ping": True}
    queue_again = storages.RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)

    def retry(study: Any, trial: Any) -> None:
        if _FIXED not in trial.user_attrs:
            queue_again(study, trial)

    for attempts_left in (3, 2, 1, 0):
        try:
            storage = storages.RDBStorage(
                # Optuna takes braces for a template.
                url.replace("{", "{{").replace("}", "}}"),
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=_SILENT_BEATS * heartbeat,
                heartbeat_stale_trial_callback=retry,
            )
            break
        except (ImportError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
            # Workers that start at once all make the tables, and all but one fail.
            raced = isinstance(error, sqlalchemy.exc.IntegrityError)
            if not attempts_left or not (raced or "already exists" in str(error)):
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"'storage' must be a database within reach ({reason}). Check the URL, e.g. "
                    "sqlite:///study.db or postgresql://user@host/name, and its driver."
                ) from error
            time.sleep(0.5)
    if lite:
        _begin_at_once(storage.engine)
    return storage


def _begin_at_once(engine: Any) -> None:
    """Let a SQLite transaction take the lock before it reads.

    By default Python's driver begins at the first write, so that two workers both read a trial as
    waiting and both run it.
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()


def open_study(
    storage: Any,
    name: str,
    attributes: Mapping[str, Any],
    *,
    seed: int,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Create or join a study of proposed trials that maximizes a score.

    The `attributes` are kept with the study; one with other attributes is refused. `defaults` are
    the values of keys that were added after an older study was begun.
    """
    optuna = require_optuna()
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=_numbered_sampler(optuna, seed),
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=_UNPRUNED_TRIALS,
            # The first evaluation says more about warm-up than about settings.
            n_warmup_steps=2,
            interval_steps=1,
            n_min_trials=1,
        ),
    )
    if not study.get_trials(deepcopy=False):
        # A worker may have died between two of them.
        for key in attributes.keys() - study.user_attrs.keys():
            study.set_user_attr(key, attributes[key])
    stored, different = study.user_attrs, []
    for key, new in attributes.items():
        different += _differences(key, stored.get(key), new, (defaults or {}).get(key, {}))
    if different:
        raise ValueError(
            f"The study {name!r} was begun with other settings ({'; '.join(different[:6])}). Give "
            "the same ones to go on with it, or start another with 'study_name' or in a new folder."
        )
    return study


def _numbered_sampler(optuna: Any, seed: int) -> Any:
    """TPE that draws from (seed, number of the trial).

    With one generator per process every worker, and a resumed one, would begin with the same draws.
    """

    class NumberedSampler(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            # Every default that differs between Optuna 4 and 5 is set.
            self._sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence([seed, trial.number]).generate_state(1)[0]),
                n_startup_trials=_RANDOM_TRIALS,
                n_ei_candidates=24,
                multivariate=True,
                group=False,
                constant_liar=True,
            )
            return self._sampler.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._sampler.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._sampler.sample_independent(study, trial, name, distribution)

    return NumberedSampler()


def _differences(key: str, old: Any, new: Any, defaults: Mapping[str, Any]) -> list[str]:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{key}: {old} there, {new} here"]
    known = {**defaults, **{k: v for k, v in old.items() if k in new or v is not None}}
    pairs = {k: (known.get(k, "absent"), new.get(k, "absent")) for k in sorted({*known, *new})}
    return [f"{k}: {was} there, {now} here" for k, (was, now) in pairs.items() if was != now]


def begin_proposal(trial: Any, space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """Sign a proposed trial with this worker and draw its value of every setting."""
    trial.set_user_attr("process", _this_process())
    trial.set_user_attr("worker", worker_name())
    drawn: dict[str, Scalar] = {}
    for name, tried in space.items():
        if isinstance(tried, Choice):
            drawn[name] = trial.suggest_categorical(name, tried.probes())
        else:
            suggest = trial.suggest_int if tried.integer else trial.suggest_float
            step = tried.step or (1 if tried.integer else None)
            drawn[name] = tried.tidy(suggest(name, tried.low, tried.high, step=step, log=tried.log))
    return drawn


def count_trials(study: Any, *more: str) -> int:
    """Number of trials that are complete, pruned or in one of some `more` states."""
    states = ("COMPLETE", "PRUNED", *more)
    return sum(trial.state.name in states for trial in study.get_trials(deepcopy=False))


def turns(
    study: Any,
    storage: Any,
    trials: int,
    *,
    timeout: float = math.inf,
    waiting: Callable[[int], None] = lambda running: None,
) -> Iterator[None]:
    """Yield whenever this worker may start a proposed trial.

    All workers together finish (complete or prune) the given number of `trials`; after `timeout`
    seconds this worker starts no more. While it waits for the trials of others, their number is
    given to `waiting`.
    """
    unsigned, end = dict[int, float](), time.monotonic() + timeout
    while True:
        fail_dead_workers(study, storage, unsigned)
        finished, begun = count_trials(study), count_trials(study, "RUNNING")
        if finished >= trials or time.monotonic() >= end:
            return
        if begun < trials:
            yield
        else:
            waiting(begun - finished)
            time.sleep(_POLL_SECONDS)


def worker_name() -> str:
    """Machine and process, which tell the workers of one study apart."""
    return f"{platform.node()}:{os.getpid()}"


def _this_process() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": platform.node(), "pid": process.pid, "born": process.create_time()}


def fail_dead_workers(study: Any, storage: Any, unsigned: dict[int, float]) -> None:
    """Fail the trials of workers that are no longer alive, so that they are run again.

    A process of this machine is looked up; one of another machine is dead when its heartbeat stops,
    or when the first one does not come. `unsigned` remembers from call to call since when a trial,
    by its number, is seen without a first one.
    """
    optuna, now = require_optuna(), time.monotonic()
    trials = study.get_trials(deepcopy=False)
    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    silent = [trial.number for trial in running if "worker" not in trial.user_attrs]
    known = {number: unsigned.get(number, now) for number in silent}
    unsigned.clear()
    unsigned.update(known)
    patience = _SILENT_BEATS * storage.get_heartbeat_interval()
    for trial in running:
        process = trial.user_attrs.get("process")
        if _alive(process) and now - unsigned.get(trial.number, now) <= patience:
            continue
        try:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            continue  # it has ended meanwhile
        if process is not None:
            storage.get_heartbeat_stale_trial_callback()(study, trial)
    if running:
        optuna.storages.fail_stale_trials(study)


def _alive(process: Mapping[str, Any] | None) -> bool:
    """Whether a worker may be alive; those of other machines may."""
    if process is None or process["host"] != platform.node():
        return True
    try:
        found = psutil.Process(int(process["pid"]))
        # A clock that is set meanwhile moves the time of birth.
        same = abs(found.create_time() - float(process["born"])) < 2.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


class TrialTable:
    """Fixed trials of a study and their results, each as one Optuna trial.

    A worker claims a trial by adding it in the state RUNNING, in one transaction; of several with
    the same id the one with the lowest number counts, and the others are given back. The result is
    the attribute `row`: a trial that has it is never run again, whatever became of its worker.

    Optuna fixes the choices of a study, so other values of the factors are another Optuna study;
    `known` are the rows of others. `rows` has the row of the latest attempt by trial id.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        factors: Mapping[str, Dimension],
        baseline: Mapping[str, Scalar],
        *,
        metric: str | None = None,
        minimize: bool = False,
        known: Iterable[dict[str, Any]] = (),
    ) -> None:
        optuna = require_optuna()
        self._storage, self._metric = storage, metric
        self._distributions = {
            key: _distribution(optuna, tried, baseline[key]) for key, tried in factors.items()
        }
        digest = trial_id({key: repr(found) for key, found in self._distributions.items()}, 0, {})
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{name}{_TABLE}{digest[:8]}",
            direction="minimize" if minimize else "maximize",
            load_if_exists=True,
            # Never used, and the quickest to make.
            sampler=optuna.samplers.RandomSampler(),
        )
        self._id = storage.get_study_id_from_name(self._study.study_name)
        self._process = _this_process()
        self.rows: dict[str, dict[str, Any]] = {}
        for row in known:
            keep_latest(self.rows, row)
        self._decoded, self._unsigned = set[int](), dict[int, float]()
        # Number, id and attempt of every running trial.
        self._running: list[tuple[int, str, int]] = []

    def read(self, *, fail_dead: bool = False) -> None:
        """Read the progress of other workers; `fail_dead` gives trials of dead workers back."""
        if fail_dead:
            fail_dead_workers(self._study, self._storage, self._unsigned)
        self._running = []
        for trial in self._study.get_trials(deepcopy=False):
            if _ROW in trial.user_attrs:
                if trial.number not in self._decoded:
                    keep_latest(self.rows, _row_of(self._study.study_name, trial))
                    self._decoded.add(trial.number)
            elif trial.state.name == "RUNNING":
                fixed = trial.user_attrs[_FIXED]
                self._running.append((trial.number, fixed["id"], fixed["attempt"]))

    def claim(self, trial: Trial, attempt: int) -> int | None:
        """Take a trial and return its key, or None where another worker has it or has finished it.

        The attempt is one more than that of the failed row to be replaced, else 0.
        """
        if self.done(trial.id, attempt):
            return None
        self.read()
        if self._taken(trial.id, attempt):
            return None
        optuna = require_optuna()
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=trial.arm,
            distributions=self._distributions,
            # Every attribute costs a query.
            user_attrs={
                _FIXED: {"id": trial.id, "seed": trial.seed, "attempt": attempt},
                "process": self._process,
            },
        )
        key = int(self._storage.create_new_trial(self._id, template_trial=template))
        self.read()
        if self._taken(trial.id, attempt, below=self._storage.get_trial_number_from_id(key)):
            self.give_back(key)
            return None
        return key

    def done(self, key: str, attempt: int) -> bool:
        """Whether a trial has a row of this attempt or a later one."""
        return key in self.rows and self.rows[key].get("attempt", 0) >= attempt

    def _taken(self, key: str, attempt: int, below: float = math.inf) -> bool:
        return self.done(key, attempt) or any(
            number < below and other == key and tries >= attempt
            for number, other, tries in self._running
        )

    def finish(self, key: int, row: dict[str, Any]) -> bool:
        """Write the row of a claimed trial for good.

        Returns False where other workers took this one for dead, so that the row does not count.
        """
        optuna, metrics = require_optuna(), row["metrics"]
        states = optuna.trial.TrialState
        value = metrics.get(self._metric or next(iter(metrics), ""), math.nan)
        end = (states.COMPLETE, [value]) if math.isfinite(value) else (states.FAIL, None)
        try:
            self._storage.set_trial_user_attr(key, _ROW, write_row(row))
            keep_latest(self.rows, row)
            self._storage.set_trial_state_values(key, *end)
        except optuna.exceptions.UpdateFinishedTrialError:
            # Declared dead between the two writes, the trial has its row and counts.
            return self.rows.get(row["id"]) is row
        return True

    def give_back(self, key: int) -> None:
        """Leave a claimed trial to the next worker that asks."""
        optuna = require_optuna()
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_state_values(key, optuna.trial.TrialState.FAIL)

    @contextmanager
    def beating(self, key: int) -> Iterator[None]:
        """Give signs of life of a claimed trial while the block runs."""
        from sqlalchemy.exc import SQLAlchemyError

        errors, stop = require_optuna().exceptions, threading.Event()
        # The database may be out of reach for a moment.
        passing = (SQLAlchemyError, errors.StorageInternalError, errors.UpdateFinishedTrialError)

        def beat() -> None:
            signed = False
            while not stop.wait(self._storage.get_heartbeat_interval()):
                with suppress(*passing):
                    self._storage.record_heartbeat(key)
                    if not signed:
                        self._storage.set_trial_user_attr(key, "worker", worker_name())
                    signed = True

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _distribution(optuna: Any, tried: Dimension, base: Scalar) -> Any:
    """The values of a factor for Optuna, the baseline included."""
    distributions = optuna.distributions
    if isinstance(tried, Choice):
        return distributions.CategoricalDistribution([*dict.fromkeys((*tried.probes(), base))])
    ends: list[Any] = [tried.low, tried.high, base]
    kind = distributions.IntDistribution if tried.integer else distributions.FloatDistribution
    return kind(min(ends), max(ends), log=tried.log)


def read_rows(storage: Any, name: str | None = None) -> list[dict[str, Any]]:
    """Read the rows of all fixed trials of a database, or only those of the study `name`."""
    rows = []
    for found in require_optuna().get_all_study_names(storage):
        owner, table, _ = found.rpartition(_TABLE)
        if table and name in (None, owner):
            trials = storage.get_all_trials(storage.get_study_id_from_name(found), deepcopy=False)
            rows += [_row_of(found, trial) for trial in trials if _ROW in trial.user_attrs]
    return rows


def _row_of(study: str, trial: Any) -> dict[str, Any]:
    try:
        return read_row(trial.user_attrs[_ROW])
    except ValueError as error:
        raise ValueError(
            f"trial {trial.number} of the Optuna study {study!r} must hold the row of a trial "
            f"({error}). Delete it, and it is run again."
        ) from error
