"""Progress bars of a training and of a search over trainings, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState


class ProgressBar(TrainerCallback):
    """Steps done, time left, latest loss and validation macro-F1."""

    def __init__(self, description: str = "Training") -> None:
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=Console(stderr=True),
        )
        self._task = self.display.add_task(description, total=None, scores="")
        self._shown: dict[str, str] = {}

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self.display.update(self._task, completed=state.global_step, total=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest numbers."""
        for key, name in (("loss", "loss"), ("eval_macro_f1", "val F1")):
            if logs and key in logs:
                self._shown[name] = f"{name} {logs[key]:.3f}"
        self.display.update(self._task, scores="  ".join(self._shown.values()))


class TrialBar:
    """Trials done, best score and the steps of the running trial; a line per trial.

    Args:
        trials: Number of trials in the study.
        show: False shows nothing.
    """

    def __init__(self, trials: int, *, show: bool) -> None:
        self.shown = show
        self._best: float | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self._all = self._bar.add_task("Trials", total=trials, note="")
        self._one = self._bar.add_task("Steps", total=None, note="")

    def __enter__(self) -> TrialBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def finished(self, trials: int) -> None:
        """Show the finished trials of the study, including those of other workers."""
        self._bar.update(self._all, completed=trials)

    def steps(self, number: int, done: int, total: int) -> None:
        """Show the steps of the running trial."""
        self._bar.update(self._one, completed=done, total=total, note=f"trial {number}")

    def waiting(self, running: int) -> None:
        """Say that the last trials run on other workers, or on killed ones."""
        self._bar.update(self._one, note=f"waiting for {running} trials begun elsewhere")

    def ended(
        self,
        number: int,
        state: str,
        value: float | None,
        params: Mapping[str, object],
        finished: int,
    ) -> None:
        """Show a trial that has ended."""
        if value is not None and state == "complete":
            self._best = value if self._best is None else max(value, self._best)
        best = "" if self._best is None else f"best {self._best:.4f}"
        self._bar.update(self._all, completed=finished, note=best)
        if self.shown:
            score = "" if value is None else f" {value:.4f}"
            tried = ", ".join(f"{name} {setting}" for name, setting in params.items())
            self._bar.console.print(
                f"trial {number}: {state}{score} ({tried})",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
