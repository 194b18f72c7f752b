"""What an interrupted run goes on from: its settings, its finished stages, its last checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gloss_graph._internal.files import atomic_path
from gloss_graph._internal.folders import write_json
from gloss_graph._internal.processes import is_main, launched
from gloss_graph._internal.timing import StageClock
from gloss_graph.runs import RunFolder
from gloss_graph.runs.provenance import documents_digest, weights_digest
from gloss_graph.text import FeatureEncoder, Splits, TextEncoder
from gloss_graph.training.config import DEFAULTS, TrainConfig

EXTRAS_FILE = "extras.safetensors"
_SETTINGS = "run.json"
_SHOWN = 6


def run_settings(
    config: TrainConfig,
    encoder: TextEncoder | FeatureEncoder,
    splits: Splits,
    device: torch.device,
) -> dict[str, Any]:
    """Everything the numbers of a run depend on, documents and weights as digests, as JSON has it.

    Args:
        config: Settings.
        encoder: As it is before training.
        splits: The documents.
        device: What the run is trained on.
    """
    documents = {f"{name} documents": documents_digest([p]) for name, p in splits.parts.items()}
    settings = {
        **config.as_dict(),
        **encoder.describe(),
        "encoder weights": weights_digest(encoder),
        **documents,
        "device": device.type,
        "processes": launched(),
    }
    # A path is no setting: the weights are.
    del settings["encoder_name"]
    return json.loads(json.dumps(settings))


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ, by name and with both values; empty where none does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shown = [
        f"'{name}' was {old.get(name, 'absent')!r:.60}, is {new.get(name, 'absent')!r:.60}"
        for name in names[:_SHOWN]
    ]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "; ".join([*shown, *more])


class Checkpoints:
    """`checkpoints/` of a run folder, which lives there until the run is finished.

    Args:
        out: The run folder.
    """

    def __init__(self, out: str | Path) -> None:
        self.folder = RunFolder(out).checkpoints

    @property
    def begun(self) -> bool:
        """Whether a run was begun here that can be gone on with."""
        return (self.folder / _SETTINGS).is_file()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note the settings of a run that begins."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / _SETTINGS, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings.

        Raises:
            ValueError: Names those that differ, or a file that is damaged.
        """
        file = self.folder / _SETTINGS
        try:
            # A setting that did not exist then has its default, one that is gone had none.
            begun = DEFAULTS | json.loads(file.read_text(encoding="utf-8"))
            begun = {k: v for k, v in begun.items() if k in settings or v is not None}
            changes = different(begun, settings)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"The interrupted run cannot be read ({file}: {error}). Remove its folder and "
                "train again."
            ) from error
        if changes:
            raise ValueError(
                f"'resume' must find the settings of the interrupted run ({changes}). Give the "
                f"same ones to go on with {self.folder.parent}, or train into another folder."
            )

    def latest(self) -> Path | None:
        """The newest whole checkpoint of the training."""
        return next(reversed(whole_checkpoints(self.folder)), None) if self.begun else None

    def kept(self) -> str:
        """What of an interrupted run is kept and how to go on with it, as a sentence."""
        latest, stages = self.latest(), sorted(self.folder.glob("*.safetensors"))
        if latest is not None:
            kept = f"The run up to step {latest.name.rpartition('-')[2]}"
        elif stages:
            kept = "What was done before the training"
        else:
            return "Nothing of the run was kept yet: run the same command again."
        return f"{kept} is kept in {self.folder.parent}: add --resume to the command to go on."

    # ------------------------------------------------------------------ stages

    def save_stage(
        self, name: str, encoder: nn.Module, losses: list[float], seconds: float
    ) -> None:
        """Keep the encoder as it is after a stage, so that the stage is not done again."""
        if not self.begun or not is_main():
            return
        notes = {"losses": json.dumps(losses), "seconds": json.dumps(seconds)}
        with atomic_path(self._stage(name), overwrite=True) as draft:
            save_model(encoder, str(draft), metadata=notes)

    def load_stage(self, name: str, encoder: nn.Module | None) -> tuple[list[float], float] | None:
        """Take the encoder from after a stage; its losses and seconds, None where it never ended.

        Without `encoder` the losses and seconds alone are read.

        Raises:
            ValueError: The file is damaged.
        """
        file = self._stage(name)
        if not self.begun or not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as content:
                notes = content.metadata()
            losses, seconds = json.loads(notes["losses"]), float(json.loads(notes["seconds"]))
            if encoder is not None:
                load_model(encoder, str(file))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"The interrupted run cannot be read ({file}: {error}). Remove the file to do this "
                "stage again."
            ) from error
        return losses, seconds

    def _stage(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a training that have all their files, the oldest first."""
    found = {
        int(number): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (number := path.name.rpartition("-")[2]).isdigit()
        # Written last and removed first.
        and (path / TRAINER_STATE_NAME).is_file()
    }
    return [found[number] for number in sorted(found)]


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, so that it is none at once, or its draft."""
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class Checkpointed(Protocol):
    """What has a part in the checkpoints of a training besides model and objective."""

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors to keep, and notes as JSON has them."""

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Take both back."""


def save_extras(extras: Mapping[str, Checkpointed], folder: Path) -> None:
    """Write the parts of a checkpoint, by name, into one file of its folder."""
    tensors: dict[str, Tensor] = {}
    notes: dict[str, str] = {}
    for name, part in extras.items():
        found, noted = part.checkpoint()
        tensors |= {f"{name}.{key}": value.clone() for key, value in found.items()}
        notes[name] = json.dumps(noted)
    with atomic_path(folder / EXTRAS_FILE, overwrite=True) as draft:
        save_file(tensors, draft, metadata=notes)


def load_extras(extras: Mapping[str, Checkpointed], folder: Path) -> None:
    """Give every part back what `save_extras` wrote of it.

    Raises:
        ValueError: The file is missing, damaged, or lacks a part.
    """
    file = folder / EXTRAS_FILE
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as content:
            notes = {name: json.loads(text) for name, text in content.metadata().items()}
        for name, part in extras.items():
            start = f"{name}."
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            part.restore(own, notes[name])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The checkpoint cannot be read ({file}: {type(error).__name__}: {error}). Remove its "
            "folder to go on from an earlier one."
        ) from error


class RunClock:
    """Seconds of a run and of its stages, those before an interruption included.

    Args:
        clocks: Seconds by stage, of which the checkpoints keep the values.
    """

    def __init__(self) -> None:
        self.clocks: list[StageClock] = []
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start of the run; of an interrupted one up to its last checkpoint."""
        return time.perf_counter() - self._start

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `Checkpointed`."""
        return {}, {"seconds": self.seconds, "clocks": [dict(clock) for clock in self.clocks]}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """See `Checkpointed`."""
        # What was done again to come here counts once.
        self._start = time.perf_counter() - float(notes["seconds"])
        for clock, stored in zip(self.clocks, notes["clocks"], strict=True):
            clock.clear()
            clock.update(stored)


class SavePoints(TrainerCallback):
    """Logs whenever a checkpoint is saved, and saves more of them.

    The loss that is logged is a mean since the last time, which a checkpoint does not hold: logged
    at every checkpoint it is the same after a resume.

    Args:
        every: Steps between checkpoints besides those of the evaluations; None = only those.
    """

    def __init__(self, every: int | None = None) -> None:
        self._every = every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the step, unless the end of the epoch follows, which is evaluated."""
        evaluated_next = args.eval_strategy == "epoch" and ends_epoch(state)
        if self._every and state.global_step % self._every == 0 and not evaluated_next:
            control.should_save = True
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log."""
        control.should_log = control.should_log or control.should_save


def ends_epoch(state: TrainerState) -> bool:
    """Whether the last step was that of an epoch."""
    return state.epoch is not None and state.global_step > 0 and state.epoch % 1 == 0


def has_ended(state: TrainerState) -> bool:
    """Whether the training of a checkpoint was over: all steps done, or patience at its end."""
    if state.global_step >= state.max_steps:
        return True
    stored = state.stateful_callbacks.get("EarlyStoppingCallback") or {}
    for found in stored if isinstance(stored, list) else [stored]:
        counter = found.get("attributes", {}).get("early_stopping_patience_counter", 0)
        if found and counter >= found["args"]["early_stopping_patience"]:
            return True
    return False
