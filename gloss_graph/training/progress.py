"""A rich progress bar for the Trainer."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):
    """Steps done, time left, latest loss and validation macro-F1, on stderr.

    Args:
        description: What the bar says.
    """

    def __init__(self, description: str = "Training") -> None:
        self._description = description
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(self._description, total=state.max_steps, scores="")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest numbers."""
        for key, name in (("loss", "loss"), ("eval_macro_f1", "val F1")):
            if logs and key in logs:
                self._shown[name] = f"{name} {logs[key]:.3f}"
        if self._bar is not None:
            self._bar.update(self._task, scores="  ".join(self._shown.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar."""
        self.stop()

    def stop(self) -> None:
        """Stop the bar and give the cursor back; call it too where training may raise."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
