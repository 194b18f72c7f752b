"""Search for the settings that score best on validation documents."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.files import atomic_write, is_full_disk
from gloss_graph._internal.folders import check_content, hold, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph._internal.search_space import Dimension, Scalar
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.studies.engine import (
    HEARTBEAT,
    TrialBudget,
    open_storage,
    open_study,
    require_optuna,
    sqlite_url,
    suggest,
    this_process,
    worker_name,
)
from gloss_graph.studies.space import check_space
from gloss_graph.text import Splits, TextEncoder
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.progress import TrialBar
from gloss_graph.training.recorded import encoder_identity
from gloss_graph.training.run import train_text

__all__ = ["METRICS", "TuneResult", "tune_text"]

#: Scores of the validation documents a search can maximise.
METRICS = (
    "val.macro_f1",
    "val.accuracy",
    "val.macro_silhouette",
    "val_propagation.macro_f1",
    "val_propagation.accuracy",
)
_STUDY_FILE, _DATABASE = "study.json", "study.db"
# So many failures in a row are no matter of a setting.
_FAILURES = 5


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        config: The best settings.
        value: Their score on the validation documents.
        number: Of the best trial.
        params: Its values of the settings that were searched.
        trials: One row a trial: number, state, value, settings, metrics, seconds, worker, error.
        importance: Setting -> share of the spread of scores it explains (fANOVA); empty with fewer
            than two complete trials or without spread.
    """

    config: TrainConfig
    value: float
    number: int
    params: dict[str, Scalar]
    trials: pd.DataFrame
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
    heartbeat: int = HEARTBEAT,
    progress: bool = False,
    finish: Callable[[TuneResult], Mapping[str, Any]] | None = None,
) -> TuneResult:
    """Search settings by TPE, stopping trials below the median of the others (G-Loss-O).

    Call it again with the same arguments to go on after an interruption, or on several machines
    with one `storage` to work together: the budget is counted over the whole study, and a trial
    whose worker died is tried again. What trial n tries depends on the seed, n and the results of
    the others, not on interruptions. The test documents are given to no trial. Trials that keep
    the last step (`TrainConfig.select`) are not evaluated on the way and thus never stopped early.

    Writes `study.json`, `trials.csv` and `best.json` into `out`, and `study.db` without `storage`.

    Args:
        splits: Training and validation documents; a test part is ignored.
        encoder_factory: Makes the untrained encoder, once a trial.
        config: Settings that are not searched.
        out: New or empty folder, or that of the same search before.
        space: Setting of `TrainConfig` -> what to try, see `search_space`.
        trials: Finished (complete or pruned) trials wanted in all. Workers that take the last
            turns at the same moment may exceed it by one each.
        storage: Database URL; None = SQLite in `out`.
        study_name: Of the study in the database.
        timeout: Seconds after which no further trial starts; None = no limit.
        metric: One of `METRICS`, maximised.
        seed: Of what is tried; None = `config.seed`.
        keep_runs: Keep run folders of complete trials, `out/trials/NUMBER`.
        heartbeat: Seconds between signs of life; a trial silent for six times as long counts as
            killed.
        progress: Show progress on stderr.
        finish: Adds files to `out` while no other process may: called with the result, gives back
            what else `best.json` shall hold, which is written last.

    Raises:
        ValueError: No optuna; no labeled validation document; a space the training refuses; a
            database out of reach; a study begun with other settings; time over before the first
            trial was complete.
        FileExistsError: `out` holds other files.
        BlockingIOError: Another process searches in `out`.
        RuntimeError: Five trials in a row failed; names the last error.
    """
    if splits.train.multilabel:
        raise ValueError("'splits' must hold class numbers to tune on (got label sets).")
    check_positive_int("trials", trials)
    check_positive_int("heartbeat", heartbeat)
    check_choice("metric", metric, METRICS)
    if timeout is not None:
        check_range("timeout", timeout, 0, math.inf, open_low=True)
    check_space(config, space)
    if splits.val is None or not sum(splits.val.class_counts):
        raise ValueError(
            "'splits' must have a validation part with labels, which settings are chosen on."
        )
    require_optuna()
    seed = config.seed if seed is None else seed
    check_positive_int("seed", seed, minimum=0)
    splits = replace(splits, test=None)
    encoder = encoder_factory()
    attributes = _attributes(splits, encoder, config, space, metric)
    out = Path(out)
    _check_study_folder(out, study_name)
    url = sqlite_url(out / _DATABASE) if storage is None else storage
    with hold(out, "tune"), open_storage(url, heartbeat=heartbeat) as database:
        _check_study_folder(out, study_name)
        # Settings that are newer than the study have been at their defaults.
        known = {name: v for name, v in TrainConfig().as_dict().items() if name not in space}
        study = open_study(
            database, study_name, attributes, seed=seed, defaults={"settings": known}
        )
        write_json(out / _STUDY_FILE, {"study_name": study_name, "seed": seed, **attributes})
        objective = _TrialObjective(
            splits, encoder_factory, config, out / "trials", space, metric, keep_runs
        )
        objective.frozen = _frozen(splits, encoder, config)
        del encoder
        budget = TrialBudget(study, database, trials, timeout=timeout)
        try:
            with TrialBar(trials, show=progress) as objective.bar:
                _work(study, objective, budget, min(_FAILURES, trials))
        finally:
            _drop_partial_runs(study, out / "trials", keep_runs)
            table = pd.DataFrame([_row(trial, space) for trial in study.get_trials()])
            with atomic_write(out / "trials.csv", overwrite=True) as draft:
                draft.write(csv_bytes(table))
        result = _result(study, config, space, table)
        best = {
            "trial": result.number,
            "metric": metric,
            "value": result.value,
            "params": result.params,
            "config": result.config.as_dict(),
        }
        more = {} if finish is None else finish(result)
        write_json(out / "best.json", {**best, **more})
    return result


def _work(study: Any, objective: _TrialObjective, budget: TrialBudget, patience: int) -> None:
    """Run trials until the budget of the study is met."""
    objective.bar.finished(budget.finished())
    failures = 0
    ended: list[Any] = []
    while budget.next(objective.bar.waiting):
        objective.begun.clear()
        try:
            study.optimize(
                objective,
                n_trials=1,
                catch=(Exception,),
                callbacks=[lambda _, trial: ended.append(trial)],
                gc_after_trial=True,
            )
        except ValueError:
            # Another worker took this one for dead and has its trial done again.
            if not objective.begun or not _finished(study, objective.begun[0]):
                raise
            warnings.warn(
                f"Trial {objective.begun[0]} was silent for too long and is done again.",
                UserWarning,
                stacklevel=3,
            )
            continue
        if objective.stopped is not None:
            raise objective.stopped
        trial = ended.pop()
        state, error = trial.state.name.lower(), trial.user_attrs.get("error")
        finished = budget.finished()
        objective.bar.ended(
            trial.number, error or state, trial.value, _used_params(trial), finished
        )
        failures = failures + 1 if state == "fail" else 0
        if error is not None and not objective.bar.shown:
            warnings.warn(f"Trial {trial.number} failed: {error}", UserWarning, stacklevel=3)
        if failures == patience:
            which = f"The last {failures} trials" if finished else "All trials"
            raise RuntimeError(
                f"{which} failed, trial {trial.number} by {error}. Mend the cause and run the same "
                f"command again; it goes on from {finished} finished trials."
            )


def _finished(study: Any, number: int) -> bool:
    return study.get_trials()[number].state.is_finished()


def _attributes(
    splits: Splits,
    encoder: TextEncoder,
    config: TrainConfig,
    space: Mapping[str, Dimension],
    metric: str,
) -> dict[str, Any]:
    """What defines a study: trials under other conditions must not be mixed with it."""
    settings = {key: value for key, value in config.as_dict().items() if key not in space}
    return {
        "space": {name: tried.as_dict() for name, tried in space.items()},
        "settings": settings,
        "metric": metric,
        "encoder": repr(encoder),
        # Another checkpoint of the same shape looks the same.
        "encoder_source": encoder_identity(encoder.source) if encoder.source else {},
        "documents": documents_digest((splits.train, splits.val)),
    }


def _check_study_folder(out: Path, study_name: str) -> None:
    """Refuse what is neither a new folder nor one this study has used before."""
    marker = out / _STUDY_FILE
    if not marker.is_file():
        # A search that was killed before it noted its study has its database only.
        check_content(out, known=(_DATABASE, f"{_DATABASE}-journal"))
        return
    try:
        name = read_object(marker).get("study_name")
    except ValueError as error:
        raise ValueError(
            f"{marker} cannot be read ({error}). Remove it or use another folder."
        ) from (error)
    if name != study_name:
        raise ValueError(
            f"'out' must be a folder of the study {study_name!r} ({out} belongs to {name!r}). "
            "Choose another folder."
        )


def _frozen(splits: Splits, encoder: TextEncoder, config: TrainConfig) -> dict[str, Tensor] | None:
    """Embeddings before training: the same in every trial, so computed once."""
    if not config.few_labels and min(splits.train.labels) >= 0:
        return None
    size = config.eval_batch_size
    return {name: encoder.embed(part, batch_size=size) for name, part in splits.parts.items()}


def _drop_partial_runs(study: Any, folder: Path, keep_runs: bool) -> None:
    """Folders that killed trials left behind."""
    states = {f"{t.number:04d}": t.state.name for t in study.get_trials(deepcopy=False)}
    for run in folder.glob("*"):
        state = states.get(run.name, "RUNNING")
        if state not in ("RUNNING", "COMPLETE") or (state == "COMPLETE" and not keep_runs):
            shutil.rmtree(run, ignore_errors=True)
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
    return TuneResult(
        config=replace(config, **params),
        value=best.value,
        number=best.number,
        params=params,
        trials=table,
        importance=_importance(study, len(complete)),
    )


def _row(trial: Any, space: Mapping[str, Dimension]) -> dict[str, Any]:
    attributes, params = trial.user_attrs, _used_params(trial)
    error = attributes.get("error", "")
    if trial.state.name == "FAIL" and not error:
        error = "killed"
    metrics = dict(attributes.get("metrics", {}))
    steps = metrics.pop("steps", None)
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value,
        **{name: params.get(name) for name in space},
        "steps": attributes.get("steps") if steps is None else steps,
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 2),
        "worker": attributes.get("worker", ""),
        "retry_of": trial.system_attrs.get("failed_trial"),
        "error": error,
        **metrics,
    }


def _importance(study: Any, complete: int) -> dict[str, float]:
    if complete < 2:
        return {}
    optuna = require_optuna()
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # all scores equal
        return {}
    return {name: float(share) for name, share in found.items()}


class _TrialObjective:
    """What Optuna calls once a trial.

    Args:
        splits: Training and validation documents.
        encoder_factory: Makes the untrained encoder.
        config: Settings that are not searched.
        folder: Where run folders go.
        space: What to try.
        metric: What a trial is worth.
        keep_runs: Keep the run folders of complete trials.
    """

    bar: TrialBar
    frozen: dict[str, Tensor] | None

    def __init__(
        self,
        splits: Splits,
        encoder_factory: Callable[[], TextEncoder],
        config: TrainConfig,
        folder: Path,
        space: Mapping[str, Dimension],
        metric: str,
        keep_runs: bool,
    ) -> None:
        self._splits, self._encoder_factory, self._config = splits, encoder_factory, config
        self._folder, self._space, self._metric = folder, space, metric
        self._keep_runs = keep_runs
        #: What no further trial can mend: a full disk.
        self.stopped: BaseException | None = None
        #: Number of the trial that was begun last.
        self.begun: list[int] = []

    def __call__(self, trial: Any) -> float:
        """Train with what the trial draws; its folder is removed unless it is wanted."""
        self.begun.append(trial.number)
        trial.set_user_attr("process", this_process())
        trial.set_user_attr("worker", worker_name())
        out = self._folder / f"{trial.number:04d}"
        complete = False
        try:
            drawn: dict[str, Any] = {
                name: suggest(trial, name, tried) for name, tried in self._space.items()
            }
            trial.set_user_attr("params", drawn)
            watch = _Evaluations(trial, self._metric, self.bar)
            result = train_text(
                self._splits,
                self._encoder_factory(),
                # The pictures of a trial are not needed.
                replace(self._config, **drawn, pictures=False),
                out,
                frozen=self.frozen,
                callbacks=[watch],
                save_steps=0,
            )
            value = result.metrics.get(self._metric, math.nan)
            if math.isnan(value):
                raise ValueError(f"the training gave no {self._metric!r}.")
            trial.set_user_attr("metrics", _finite(result.metrics))
            complete = True
            return value
        except require_optuna().TrialPruned:
            raise
        except BaseException as error:
            text = " ".join(str(error).split()) or "no message"
            trial.set_user_attr("error", f"{type(error).__name__}: {text}")
            if is_full_disk(error):
                self.stopped = error
            raise
        finally:
            if not (complete and self._keep_runs):
                shutil.rmtree(out, ignore_errors=True)


class _Evaluations(TrainerCallback):
    """Reports every evaluation of a training to its trial, and ends it where others did better."""

    def __init__(self, trial: Any, metric: str, bar: TrialBar) -> None:
        part, _, score = metric.partition(".")
        # Propagation and silhouette are known at the end only.
        self._key = f"eval_{score}" if part == "val" else None
        self._trial, self._bar, self._count = trial, bar, 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        self._bar.steps(self._trial.number, state.global_step, state.max_steps)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report the score; evaluations are numbered, since steps need not be comparable."""
        value = (metrics or {}).get(self._key or "")
        if value is None or math.isnan(value):
            return
        self._count += 1
        self._trial.report(value, self._count)
        self._trial.set_user_attr("steps", state.global_step)
        # What has run to its end is worth its full score.
        if state.global_step < state.max_steps and self._trial.should_prune():
            raise require_optuna().TrialPruned(f"after {state.global_step} steps")


def _used_params(trial: Any) -> dict[str, Scalar]:
    """As they were used; the database holds them with all digits."""
    return {**trial.params, **trial.user_attrs.get("params", {})}


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
