"""One trial of a search: settings drawn, a training watched, its score."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gloss_graph._internal.files import is_full_disk
from gloss_graph._internal.search_space import Choice, Dimension, Scalar
from gloss_graph.studies.tune_storage import require_optuna, worker_name
from gloss_graph.text import Splits, TextEncoder
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.progress import TrialBar
from gloss_graph.training.run import train_text


class TrialObjective:
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
                # Nobody looks at the pictures of a trial.
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


def suggest(trial: Any, name: str, tried: Dimension) -> Scalar:
    """The value an Optuna trial draws for a setting."""
    if isinstance(tried, Choice):
        return trial.suggest_categorical(name, list(tried.values))
    if tried.integer:
        return trial.suggest_int(name, tried.low, tried.high, step=tried.step or 1, log=tried.log)
    value = trial.suggest_float(name, tried.low, tried.high, step=tried.step, log=tried.log)
    return tried.tidy(value)


def used_params(trial: Any) -> dict[str, Scalar]:
    """As they were used; the database holds them with all digits."""
    return {**trial.params, **trial.user_attrs.get("params", {})}


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in metrics.items()}
