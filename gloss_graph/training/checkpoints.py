"""Files that an interrupted run continues from: settings, stages, objective, Trainer state."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState
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

OBJECTIVE_FILE = "objective.safetensors"
_EXTRAS = "extras.safetensors"
_SETTINGS = "run.json"
# In the header of an objective's file: the weights of the model whose embeddings the bank holds.
_MODEL = "model_digest"


@contextmanager
def _reading(file: str | Path, what: str, advice: str) -> Iterator[None]:
    """Raise whatever a damaged file leads to as a `ValueError` that names it."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} ({file}: {problem}). {advice}") from error


def _header(file: str | Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as stored:
        return stored.metadata() or {}


# ------------------------------------------------------------------ the objective

_NO_OBJECTIVE = (
    "The checkpoint has no readable objective state",
    "It was not written by GraphGuidedTrainer with an objective, or is damaged.",
)


def save_objective(
    objective: nn.Module, file: str | Path, *, model: nn.Module | None = None
) -> Path:
    """Write `objective.state_dict()` atomically, with a digest of the model of its embeddings."""
    file = Path(file)
    state = {name: v.detach().cpu().contiguous() for name, v in objective.state_dict().items()}
    noted = {} if model is None else {_MODEL: weights_digest(model)}
    with atomic_path(file, overwrite=True) as draft:
        save_file(state, draft, metadata={"format": "pt", **noted})
    return file


def load_objective(objective: nn.Module, file: str | Path) -> None:
    """Restore what `save_objective` wrote; nothing is changed unless all of it fits."""
    with _reading(file, *_NO_OBJECTIVE):
        state = load_file(file)
    expected, found = (
        {
            name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
            for name, value in tensors.items()
        }
        for tensors in (objective.state_dict(), state)
    )
    names = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if names:
        details = ", ".join(
            f"{name}: {found.get(name, 'absent')} in the file, {expected.get(name, 'absent')} here"
            for name in names[:3]
        )
        raise ValueError(
            f"The objective state in {file} is of other settings ({details}). Make the objective "
            "and its bank with the sizes the checkpoint was written with."
        )
    with _reading(file, "The objective state is damaged", "Continue from another checkpoint."):
        objective.load_state_dict(state)


def check_model(model: nn.Module, file: str | Path) -> None:
    """Raise a `ValueError` if `save_objective` noted a model of other weights in the file."""
    with _reading(file, *_NO_OBJECTIVE):
        noted = _header(file).get(_MODEL)
    if noted is not None and noted != weights_digest(model):
        raise ValueError(
            f"The bank in {file} belongs to a model of other weights than the one that was loaded. "
            "Keep the two files of a checkpoint together: resume from the folder of this file, or "
            "put the file of the model's checkpoint here."
        )


# ------------------------------------------------------------------ the run


def run_settings(
    config: TrainConfig, encoder: TextEncoder | FeatureEncoder, splits: Splits, device: torch.device
) -> dict[str, Any]:
    """Everything that the numbers of a run depend on as JSON; documents and weights as digests."""
    described = encoder.describe()
    # The weights count, wherever they were loaded from.
    del described["encoder_name"]
    settings = {
        **config.flat(),
        **described,
        "encoder weights": weights_digest(encoder),
        **{f"{name} documents": documents_digest([part]) for name, part in splits.parts.items()},
        "device": device.type,
        "processes": launched(),
    }
    return json.loads(json.dumps(settings))


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ, by name and with both values; empty where none does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    told = [
        f"'{name}' was {old.get(name, 'absent')!r:.60}, is {new.get(name, 'absent')!r:.60}"
        for name in names
    ]
    most = 6
    return "; ".join([*told[:most], *([f"{len(told) - most} more"] if told[most:] else [])])


class Checkpoints:
    """`checkpoints/` of a run folder, which exists until the run is finished."""

    def __init__(self, out: str | Path) -> None:
        self.folder = RunFolder(out).checkpoints

    @property
    def begun(self) -> bool:
        """Whether a run began here that can be continued."""
        return (self.folder / _SETTINGS).is_file()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Note the settings of a run that begins."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / _SETTINGS, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a `ValueError` that names the settings that differ, or a damaged file."""
        file, advice = self.folder / _SETTINGS, "Remove its folder and train again."
        with _reading(file, "The interrupted run cannot be read", advice):
            # A setting that is newer than the run has its default, a removed one had none.
            begun = DEFAULTS | json.loads(file.read_text(encoding="utf-8"))
            begun = {k: v for k, v in begun.items() if k in settings or v is not None}
            changes = different(begun, settings)
        if changes:
            raise ValueError(
                f"'resume' must find the settings of the interrupted run ({changes}). Give the "
                f"same ones to continue {self.folder.parent}, or train into another folder."
            )

    def latest(self) -> Path | None:
        """The newest complete checkpoint of the training."""
        return next(reversed(whole_checkpoints(self.folder)), None) if self.begun else None

    def kept(self) -> str:
        """A sentence on what is kept of an interrupted run and how to continue it."""
        if (latest := self.latest()) is not None:
            kept = f"The run up to step {latest.name.rpartition('-')[2]}"
        elif any(self.folder.glob("*.safetensors")):
            kept = "What was done before the training"
        else:
            return "Nothing of the run was kept yet: run the same command again."
        return f"{kept} is kept in {self.folder.parent}: add --resume to the command to continue."

    def save_stage(
        self, name: str, encoder: nn.Module, losses: list[float], seconds: float
    ) -> None:
        """Keep the encoder as it is after a stage, so that the stage is not repeated."""
        if self.begun and is_main():
            notes = {"losses": json.dumps(losses), "seconds": json.dumps(seconds)}
            with atomic_path(self.folder / f"{name}.safetensors", overwrite=True) as draft:
                save_model(encoder, str(draft), metadata=notes)

    def load_stage(self, name: str, encoder: nn.Module) -> tuple[list[float], float] | None:
        """Losses and seconds of a stage, and its weights into `encoder`; None if it never ended."""
        file, advice = self.folder / f"{name}.safetensors", "Remove the file to do it again."
        if not self.begun or not file.is_file():
            return None
        with _reading(file, "A stage of the interrupted run cannot be read", advice):
            notes = _header(file)
            losses, seconds = json.loads(notes["losses"]), float(json.loads(notes["seconds"]))
            load_model(encoder, str(file))
        return losses, seconds


# ------------------------------------------------------------------ checkpoints of the Trainer


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
    """Remove a checkpoint or its draft; it stops counting as complete at once."""
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def save_extras(extras: Mapping[str, Any], folder: Path) -> None:
    """Write what `checkpoint()` of the named parts returns, tensors and JSON notes, into a file."""
    tensors: dict[str, Tensor] = {}
    notes: dict[str, str] = {}
    for name, part in extras.items():
        found, noted = part.checkpoint()
        tensors |= {f"{name}.{key}": value.clone() for key, value in found.items()}
        notes[name] = json.dumps(noted)
    with atomic_path(folder / _EXTRAS, overwrite=True) as draft:
        save_file(tensors, draft, metadata=notes)


def load_extras(extras: Mapping[str, Any], folder: Path) -> None:
    """Give each part back what `save_extras` wrote of it, by its `restore(tensors, notes)`."""
    file, advice = folder / _EXTRAS, "Remove its folder to continue from an earlier one."
    with _reading(file, "The checkpoint cannot be read", advice):
        tensors, notes = load_file(file), _header(file)
        for name, part in extras.items():
            start = f"{name}."
            found = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            part.restore(found, json.loads(notes[name]))


class RunClock:
    """Seconds of a run and, in `clocks`, of its stages, including those before an interruption."""

    def __init__(self) -> None:
        self.clocks: list[StageClock] = []
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start; of an interrupted run, up to its last checkpoint and since."""
        return time.perf_counter() - self._start

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keep the seconds so far."""
        return {}, {"seconds": self.seconds, "clocks": [dict(clock) for clock in self.clocks]}

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Go on from the seconds that were kept: work that is done again counts once."""
        self._start = time.perf_counter() - float(notes["seconds"])
        for clock, stored in zip(self.clocks, notes["clocks"], strict=True):
            clock.clear()
            clock.update(stored)


class SavePoints(TrainerCallback):
    """Saves a checkpoint after `every` steps, besides those of the evaluations, and logs at each.

    A checkpoint does not hold the losses since the last log.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Choose the step, unless the end of the epoch follows, which is evaluated."""
        evaluated_next = args.eval_strategy == "epoch" and ends_epoch(state)
        if self._every and state.global_step % self._every == 0 and not evaluated_next:
            control.should_save = True
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Log."""
        control.should_log = control.should_log or control.should_save


def ends_epoch(state: TrainerState) -> bool:
    """Whether the last step ended an epoch."""
    return state.epoch is not None and state.global_step > 0 and state.epoch % 1 == 0


def has_ended(state: TrainerState) -> bool:
    """Whether the training of a checkpoint was over: all steps done, or no patience left."""
    stored = state.stateful_callbacks.get("EarlyStoppingCallback") or []
    return state.global_step >= state.max_steps or any(
        found["attributes"].get("early_stopping_patience_counter", 0)
        >= found["args"]["early_stopping_patience"]
        for found in (stored if isinstance(stored, list) else [stored])
    )
