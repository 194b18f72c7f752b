"""Search for the settings that score best on validation documents."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.files import atomic_write, is_full_disk
from gloss_graph._internal.folders import check_content, hold, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph._internal.settings import Choice, Dimension, Range, Scalar
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.studies import engine
from gloss_graph.studies.trials import error_text, read_range
from gloss_graph.text import Splits, TextEncoder
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training.config import (
    LOSSES,
    SETTINGS,
    TrainConfig,
    check_value,
    parse_value,
    setting_named,
)
from gloss_graph.training.data import encoder_identity
from gloss_graph.training.outcome import TrialBar
from gloss_graph.training.run import train_text

#: Scores of the validation documents that a search can maximize.
SCORES = (
    *("val.macro_f1", "val.accuracy", "val.macro_silhouette"),
    *("val_propagation.macro_f1", "val_propagation.accuracy"),
)
#: Setting of a training -> what a search tries for it unless told otherwise.
SEARCH_SPACE: dict[str, Dimension] = {
    name: one.search for name, one in SETTINGS.items() if one.search is not None
}
_STUDY_FILE, _DATABASE = "study.json", "study.db"
# So many failures in a row do not depend on the settings.
_FAILURES = 5


def default_parameters(loss: str) -> tuple[str, ...]:
    """List the settings to search with a loss: those of the paper that the loss depends on."""
    return LOSSES[loss].searched


def search_space(
    names: Iterable[str], extra: Mapping[str, Dimension] | None = None
) -> dict[str, Dimension]:
    """Look up what to try for each of some settings.

    Args:
        names: Settings with a declared range, see `SEARCH_SPACE`.
        extra: Ranges and choices that replace declared ones or add settings.

    Raises:
        ValueError: A name without declared range; lists those that have one.

    Example:
        >>> {name: str(tried) for name, tried in search_space(["bandwidth", "k"]).items()}
        {'bandwidth': '0.1 to 10 (log)', 'k': '4 to 64 (log)'}
    """
    extra, names = extra or {}, list(names)
    if unknown := [name for name in names if name not in {*SEARCH_SPACE, *extra}]:
        raise ValueError(
            f"'params' must be among {sorted(SEARCH_SPACE)} (got {unknown[0]!r}). Give another "
            "setting a range (name=low:high) or a choice (name=one,two)."
        )
    return {name: {**SEARCH_SPACE, **extra}[name] for name in dict.fromkeys([*names, *extra])}


def check_space(config: TrainConfig, space: Mapping[str, Dimension]) -> None:
    """Refuse a space with a setting or value that the training would not accept."""
    if not space:
        raise ValueError("'space' must hold a setting to try (got none). Try 'learning_rate'.")
    for name, tried in space.items():
        if isinstance(tried, Range) and not {int, float} & set(setting_named(name).kinds):
            raise ValueError(
                f"'{name}' must be given a choice (name=one,two), not a range (got {tried})."
            )
        for value in tried.probes():
            check_value(name, value)
            changed: dict[str, Any] = {name: value}
            try:
                replace(config, **changed)
            except ValueError as error:
                raise ValueError(f"{name}={value!r} cannot be tried: {error}") from error


def parse_range(text: str) -> tuple[str, Range]:
    """Read name and range from `name=low:high`, `name=low:high:log` or `name=low:high:STEP`.

    Raises:
        ValueError: Another form; a name that is no setting; a range that is none.

    Example:
        >>> parse_range("bandwidth=0.1:2:log")
        ('bandwidth', Range(low=0.1, high=2.0, log=True, step=None))
    """
    name, _, written = text.partition("=")
    one = setting_named(name.strip())
    whole = int in one.kinds and float not in one.kinds
    try:
        return one.name, read_range(written, int if whole else float)
    except ValueError as error:
        raise ValueError(
            f"'range' must read name=low:high, name=low:high:log or name=low:high:step, with "
            f"{'whole ' * whole}numbers (got {text!r}: {error})."
        ) from error


def parse_choice(text: str) -> tuple[str, Choice]:
    """Read name and choice from `name=one,two`.

    Raises:
        ValueError: Another form; a name that is no setting; a value of the wrong type.

    Example:
        >>> parse_choice("rule=harmonic,poisson")
        ('rule', Choice(values=('harmonic', 'poisson')))
    """
    name, found, written = text.partition("=")
    one = setting_named(name.strip())
    if not found:
        raise ValueError(f"'choice' must read name=one,two (got {text!r}).")
    values = [parse_value(one.name, part.strip()) for part in written.split(",")]
    try:
        return one.name, Choice(values)
    except ValueError as error:
        raise ValueError(f"'choice' of {name.strip()!r}: {error}") from error


@dataclass(frozen=True)
class TuneResult:
    """Result of a search: the best settings, their validation score and the number of their trial.

    `params` are the values of the settings that were searched; `trials` has a row per trial.
    """

    config: TrainConfig
    value: float
    number: int
    params: dict[str, Scalar]
    trials: pd.DataFrame
    #: Setting -> share of the spread of scores it explains (fANOVA), empty without spread.
    importance: dict[str, float]


def tune_text(
    splits: Splits,
    encoder_factory: Callable[[], TextEncoder],
    config: TrainConfig,
    out: str | Path,
    *,
    space: Mapping[str, Dimension],
    trials: int,
    storage: str | None = None,
    study_name: str = "gloss-graph",
    timeout: float | None = None,
    metric: str = "val.macro_f1",
    seed: int | None = None,
    keep_runs: bool = False,
    heartbeat: int = engine.HEARTBEAT,
    progress: bool = False,
    finish: Callable[[TuneResult], Mapping[str, Any]] | None = None,
) -> TuneResult:
    """Search settings by TPE, stopping trials below the median of the others (G-Loss-O).

    Call it again with the same arguments to go on after an interruption, or on several machines
    with one `storage` to work together: the budget is counted over the whole study, and a trial
    whose worker died is tried again. What trial n tries depends on the seed, n and the results of
    the others, not on interruptions. No trial sees the test documents. Trials that keep
    the last step (`TrainConfig.select`) are not evaluated on the way and thus never stopped early.

    Writes `study.json`, `trials.csv` and `best.json` into `out`, and `study.db` without `storage`.

    Args:
        splits: Training and validation documents; a test part is ignored.
        encoder_factory: Makes the untrained encoder, once per trial.
        config: Settings that are not searched.
        out: New or empty folder, or that of the same search before.
        space: Setting of `TrainConfig` -> what to try, see `search_space`.
        trials: Finished (complete or pruned) trials wanted in the whole study. Workers that take
            the last turn at the same moment may exceed it by one each.
        storage: Database URL; None = SQLite in `out`.
        study_name: Name of the study in the database.
        timeout: Seconds after which no further trial starts; None = no limit.
        metric: One of `SCORES`, maximized.
        seed: Seed of the sampler; None = `config.seed`.
        keep_runs: Keep run folders of complete trials, `out/trials/NUMBER`.
        heartbeat: Seconds between signs of life; a trial silent for six times as long counts as
            killed.
        progress: Show progress on stderr.
        finish: Adds files to `out` while no other process may: called with the result, it returns
            more entries of `best.json`, which is written last.

    Raises:
        ValueError: No optuna; no labeled validation document; a space the training refuses; a
            database out of reach; a study begun with other settings; no complete trial in time.
        FileExistsError: `out` holds other files.
        BlockingIOError: Another process searches in `out`.
        RuntimeError: Five trials in a row failed; names the last error.
    """
    if splits.train.multilabel:
        raise ValueError("'splits' must hold class numbers to tune on (got label sets).")
    check_positive_int("trials", trials)
    check_positive_int("heartbeat", heartbeat)
    check_choice("metric", metric, SCORES)
    limit = math.inf if timeout is None else timeout
    check_range("timeout", limit, 0, math.inf, open_low=True)
    check_space(config, space)
    if splits.val is None or not sum(splits.val.class_counts):
        raise ValueError(
            "'splits' must have a validation part with labels, which settings are chosen on."
        )
    engine.require_optuna()
    seed = config.seed if seed is None else seed
    check_positive_int("seed", seed, minimum=0)
    splits = replace(splits, test=None)
    encoder = encoder_factory()
    # Trials under other conditions must not be mixed with this study.
    attributes = {
        "space": {name: tried.as_dict() for name, tried in space.items()},
        "settings": {key: v for key, v in config.as_dict().items() if key not in space},
        "metric": metric,
        "encoder": repr(encoder),
        # Another checkpoint of the same shape looks the same.
        "encoder_source": encoder_identity(encoder.source) if encoder.source else {},
        "documents": documents_digest((splits.train, splits.val)),
    }
    out = Path(out)
    _check_study_folder(out, study_name)
    url = engine.sqlite_url(out / _DATABASE) if storage is None else storage
    with hold(out, "tune"), engine.open_storage(url, heartbeat=heartbeat) as database:
        # Settings that are newer than the study have been at their defaults.
        known = {name: v for name, v in TrainConfig().as_dict().items() if name not in space}
        study = engine.open_study(
            database, study_name, attributes, seed=seed, defaults={"settings": known}
        )
        write_json(out / _STUDY_FILE, {"study_name": study_name, "seed": seed, **attributes})
        frozen = None
        if config.few_labels or min(splits.train.labels) < 0:
            # Embeddings before training, the same in every trial.
            size = config.eval_batch_size
            frozen = {n: encoder.embed(part, batch_size=size) for n, part in splits.parts.items()}
        del encoder
        try:
            with TrialBar(trials, show=progress) as bar:
                turns = engine.turns(study, database, trials, timeout=limit, waiting=bar.waiting)
                given = (splits, frozen, encoder_factory, config, space, metric)
                search = _Search(study, *given, bar, out / "trials", keep_runs)
                search.run(turns, min(_FAILURES, trials))
        finally:
            _drop_partial_runs(study, out / "trials", keep_runs)
            table = pd.DataFrame([_row(trial, space) for trial in study.get_trials()])
            with atomic_write(out / "trials.csv", overwrite=True) as draft:
                draft.write(csv_bytes(table))
        result = _result(study, config, space, table)
        best = {"trial": result.number, "metric": metric, "value": result.value}
        best |= {"params": result.params, "config": result.config.as_dict()}
        write_json(out / "best.json", {**best, **(finish(result) if finish else {})})
    return result


def _check_study_folder(out: Path, study_name: str) -> None:
    """Refuse a folder that is neither new nor used by this study before."""
    marker = out / _STUDY_FILE
    try:
        name = read_object(marker).get("study_name")
    except FileNotFoundError:
        # A search that was killed before it noted its study has only its database.
        check_content(out, known=(_DATABASE, f"{_DATABASE}-journal"))
        return
    except ValueError as error:
        message = f"{marker} cannot be read ({error}). Remove it or use another folder."
        raise ValueError(message) from error
    if name != study_name:
        raise ValueError(
            f"'out' must be a folder of the study {study_name!r} ({out} belongs to {name!r}). "
            "Choose another folder."
        )


@dataclass
class _Search:
    """Runs the trials that Optuna proposes."""

    study: Any
    splits: Splits
    frozen: Mapping[str, Tensor] | None
    encoder_factory: Callable[[], TextEncoder]
    config: TrainConfig
    space: Mapping[str, Dimension]
    metric: str
    bar: TrialBar
    folder: Path
    keep_runs: bool
    #: A full disk, which stops every trial.
    stopped: BaseException | None = None
    #: Number of the trial that was begun last, -1 if none was in this turn.
    begun: int = -1

    def run(self, turns: Iterable[None], patience: int) -> None:
        """Run a trial in every turn, until so many fail one after another."""
        failures = 0
        self.bar.finished(engine.count_trials(self.study))
        for _ in turns:
            self.begun = -1
            try:
                self.study.optimize(self.trial, n_trials=1, catch=(Exception,), gc_after_trial=True)
            except ValueError:
                # Another worker may have taken this one for dead and does its trial again.
                if self.begun < 0 or not self.study.get_trials()[self.begun].state.is_finished():
                    raise
                message = f"Trial {self.begun} was silent for too long and is done again."
                warnings.warn(message, UserWarning, stacklevel=3)
                continue
            if self.stopped is not None:
                raise self.stopped
            trial = self.study.get_trials()[self.begun]
            state, error = trial.state.name.lower(), trial.user_attrs.get("error")
            done = engine.count_trials(self.study)
            self.bar.ended(trial.number, error or state, trial.value, _used_params(trial), done)
            failures = failures + 1 if state == "fail" else 0
            if error is not None and not self.bar.shown:
                warnings.warn(f"Trial {trial.number} failed: {error}", UserWarning, stacklevel=3)
            if failures == patience:
                which = f"The last {failures} trials" if done else "All trials"
                raise RuntimeError(
                    f"{which} failed, trial {trial.number} by {error}. Fix the cause and run the "
                    f"same command again; it goes on from {done} finished trials."
                )

    def trial(self, trial: Any) -> float:
        """Train with the drawn settings; the folder is removed unless it is kept."""
        self.begun = trial.number
        folder, kept = self.folder / f"{trial.number:04d}", False
        try:
            drawn: dict[str, Any] = engine.begin_proposal(trial, self.space)
            trial.set_user_attr("params", drawn)
            metrics = train_text(
                self.splits,
                self.encoder_factory(),
                replace(self.config, **drawn, pictures=False),
                folder,
                frozen=self.frozen,
                callbacks=[_Evaluations(trial, self.metric, self.bar)],
                save_steps=0,
            ).metrics
            value = float(metrics.get(self.metric, math.nan))
            if math.isnan(value):
                raise ValueError(f"the training gave no {self.metric!r}.")
            finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
            trial.set_user_attr("metrics", finite)
            kept = self.keep_runs
            return value
        except engine.require_optuna().TrialPruned:
            raise
        except BaseException as error:
            trial.set_user_attr("error", error_text(error))
            if is_full_disk(error):
                self.stopped = error
            raise
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)


class _Evaluations(TrainerCallback):
    """Reports every evaluation of a training to its trial, and ends it where others did better."""

    def __init__(self, trial: Any, metric: str, bar: TrialBar) -> None:
        # Propagation and silhouette are known only at the end.
        self._key = metric.replace("val.", "eval_", 1)
        self._trial, self._bar, self._count = trial, bar, 0

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self._bar.steps(self._trial.number, state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Report the score; evaluations are numbered, since steps need not be comparable."""
        value = kwargs["metrics"].get(self._key)
        if value is None or math.isnan(value):
            return
        self._count += 1
        self._trial.report(value, self._count)
        self._trial.set_user_attr("steps", state.global_step)
        # A trial that has run to its end keeps its full score.
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise engine.require_optuna().TrialPruned(f"after {state.global_step} steps")


def _drop_partial_runs(study: Any, folder: Path, keep_runs: bool) -> None:
    """Remove folders that killed trials left behind."""
    whole = {"RUNNING", "COMPLETE"} if keep_runs else {"RUNNING"}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in whole:
            shutil.rmtree(folder / f"{trial.number:04d}", ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _result(
    study: Any, config: TrainConfig, space: Mapping[str, Dimension], table: pd.DataFrame
) -> TuneResult:
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        raise ValueError(
            f"No trial was complete ({len(trials)} begun). Allow more trials or time; the same "
            "command goes on where this one ended."
        )
    best = max(complete, key=lambda trial: (trial.value, -trial.number))
    params: dict[str, Any] = {name: _used_params(best)[name] for name in space}
    shares = {}
    if len(complete) > 1:
        importance = engine.require_optuna().importance
        evaluator = importance.FanovaImportanceEvaluator(seed=0)
        with suppress(RuntimeError):  # all scores equal
            shares = importance.get_param_importances(study, evaluator=evaluator)
    shares = {name: float(share) for name, share in shares.items()}
    return TuneResult(replace(config, **params), best.value, best.number, params, table, shares)


def _row(trial: Any, space: Mapping[str, Dimension]) -> dict[str, Any]:
    attributes, params = trial.user_attrs, _used_params(trial)
    metrics = {"steps": attributes.get("steps"), **attributes.get("metrics", {})}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        **{name: params.get(name) for name in space},
        "steps": metrics.pop("steps"),
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 2),
        "worker": attributes.get("worker", ""),
        "retry_of": trial.system_attrs.get("failed_trial"),
        "error": attributes.get("error") or ("killed" if trial.state.name == "FAIL" else ""),
        **metrics,
    }


def _used_params(trial: Any) -> dict[str, Scalar]:
    """Values as they were used; the database holds them with all digits."""
    return {**trial.params, **trial.user_attrs.get("params", {})}
