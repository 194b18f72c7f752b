"""The Hugging Face Trainer with a graph-guided objective."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from gloss_graph._internal.checks import check_range
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.files import atomic_path, full_disk_named, sync_folder
from gloss_graph._internal.folders import swap
from gloss_graph._internal.processes import launched, mean_over_processes, wait_for_all
from gloss_graph._internal.timing import StageClock
from gloss_graph.losses import MetricLoss, PseudoLabelLoss, labeled_binary_cross_entropy
from gloss_graph.memory.distributed import share_state
from gloss_graph.memory.incoming import is_labeled
from gloss_graph.training.checkpoints import (
    Checkpointed,
    drop_checkpoint,
    has_ended,
    load_extras,
    save_extras,
    whole_checkpoints,
)
from gloss_graph.training.losses import LossModule
from gloss_graph.training.state import load_objective, save_objective

OBJECTIVE_FILE = "objective.safetensors"
TEACHER_FILE = "teacher.safetensors"
# Where a checkpoint is until it is whole.
_DRAFT = ".checkpoint.draft"


class GraphGuidedTrainer(Trainer):
    """`transformers.Trainer` whose loss is a `GraphGuidedObjective`.

    One forward pass a step feeds graph loss and cross-entropy. Under gradient accumulation the
    bank grows with every micro-batch, so later micro-batches see the earlier ones. The objective,
    bank and generator included, is saved with every checkpoint and restored on resume and with
    the best model: training on from a checkpoint gives the same numbers as never stopping.

    Batches hold the model's inputs, `labels` (B,), or (B, C) float of label sets, and `ids` (B,),
    the stable document identities; collators must pass both on. Evaluation uses the classifier
    alone.

    Under `torchrun` or `accelerate launch` (on CPUs with `TrainingArguments(use_cpu=True)`) every
    process sees batches of its own, the loss and its gradient are means over the processes of
    the means over their batches, and every bank takes the rows of all. Cross-entropy and the
    unlabeled documents' term then train as one process with the joined batch does, if the batches
    hold equally many labeled (unlabeled) rows and no class weights; the graph of a step joins the
    batch of one process to the bank, in which the others' documents are as of an earlier step, so
    the graph loss differs from that of the joined batch.

    Args:
        model: Returns `embeddings` (B, D) and `logits` (B, C) as attributes or keys, as
            `TextClassifier` does, or anything `embed` understands. Without logits the objective
            runs standalone.
        args: Training arguments.
        objective: The objective, a `MetricLoss`, or a `PseudoLabelLoss` (with `reference=True`).
            None trains by
            cross-entropy alone, through the same loop.
        embed: `(outputs, inputs) -> embeddings (B, D)` for models of other shape, for example
            `lambda out, inputs: out.hidden_states[-1][:, 0]`.
        reference: Make one more forward pass a step, without dropout and gradient, for what the
            bank stores and targets are made from. With unlabeled documents it pays.
        teacher_decay: Decay of a moving average of the weights that makes this pass; 0 = the
            model itself.
        train_sampler: Order of the training documents, for example a `MixedSampler`.
        **kwargs: Everything else `Trainer` takes.

    Raises:
        ValueError: A model without embeddings and no `embed`; a batch without labels; no
            objective and no logits; label smoothing or a `compute_loss_func`.

    Example:
        See `examples/03_hf_trainer.py`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: LossModule | None,
        embed: Callable[[Any, dict[str, Any]], Tensor] | None = None,
        reference: bool = False,
        teacher_decay: float = 0.0,
        train_sampler: Sampler[int] | None = None,
        **kwargs: Any,
    ) -> None:
        if args.label_smoothing_factor or kwargs.get("compute_loss_func"):
            raise ValueError(
                "'label_smoothing_factor' and 'compute_loss_func' have no place here, the "
                "objective is the loss. Leave them out, or use transformers.Trainer."
            )
        if launched() > 1 and args.world_size == 1:
            raise ValueError(
                f"'args' make every one of the {launched()} launched processes train alone. Pass "
                "TrainingArguments(use_cpu=True) where there is no GPU."
            )
        super().__init__(model=model, args=args, **kwargs)
        self.objective = None if objective is None else objective.to(self.args.device)
        self.embed, self.reference, self.train_sampler = embed, reference, train_sampler
        self.teacher: nn.Module | None = None
        if teacher_decay:
            self.use_teacher(teacher_decay)
        if not self.args.label_names:
            self.label_names = ["labels"]
        # The loss is a mean over the micro-batch, so the Trainer must divide it by their number.
        self.model_accepts_loss_kwargs = False
        self._drafting = False
        #: Seconds spent in each stage of the training steps so far.
        self.seconds = StageClock()
        #: What else checkpoints keep and a resumed training takes back, by name.
        self.extras: dict[str, Checkpointed] = {}
        self._parts: dict[str, list[Tensor]] = {}
        self.add_callback(_OptimizerClock(self.seconds))
        self.add_callback(_SharedStart(self))

    def use_teacher(self, decay: float) -> None:
        """Let a moving average of the weights make the reference pass from now on."""
        check_range("teacher_decay", decay, 0.0, 1.0, open_low=True, open_high=True)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.add_callback(_TeacherUpdate(self.teacher, self.model, decay))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Objective while training, cross-entropy of the classifier in evaluation."""
        del num_items_in_batch
        inputs = dict(inputs)
        labels, ids = inputs.pop("labels", None), inputs.pop("ids", None)
        frozen = inputs.pop("frozen", None)
        if labels is None:
            raise ValueError(
                "The batch has no 'labels'. The collator must pass 'labels' and 'ids' on."
            )
        start = time.perf_counter()
        outputs = model(**inputs)
        if model.training:
            self.seconds.spend("encoder", time.perf_counter() - start)
        logits = _part(outputs, "logits")
        if model.training and self.objective is not None:
            loss = self._graph_guided(model, outputs, inputs, labels, ids, frozen)
        elif logits is not None:
            loss = _cross_entropy(logits, labels)
        elif model.training:
            raise ValueError("The model returns no 'logits' and there is no 'objective'.")
        else:
            loss = torch.zeros((), device=labels.device)
        return (loss, {"logits": self._answer(outputs, inputs)}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One evaluation batch; documents without labels are predicted all the same."""
        if inputs.get("labels") is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        extra = ("ids", "frozen")
        inputs = self._prepare_inputs({k: v for k, v in inputs.items() if k not in extra})
        with torch.no_grad(), self.compute_loss_context_manager():
            answer = self._answer(model(**inputs), inputs)
        return None, None if prediction_loss_only else answer, None

    def _answer(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """What predictions are: the logits, or embeddings where there are none."""
        logits = _part(outputs, "logits")
        return self._embeddings(outputs, inputs) if logits is None else logits

    def _graph_guided(
        self,
        model: nn.Module,
        outputs: Any,
        inputs: dict[str, Any],
        labels: Tensor,
        ids: Tensor | None,
        frozen: Tensor | None,
    ) -> Tensor:
        objective = self.objective
        if objective is None:
            raise ValueError("'objective' must be set to train by it (got None).")
        objective.train()
        calm = self._calm_pass(model, inputs) if self.reference else None
        start = time.perf_counter()
        logits = _part(outputs, "logits")
        if isinstance(objective, PseudoLabelLoss):
            teacher_logits = None if calm is None else _part(calm, "logits")
            if logits is None or teacher_logits is None:
                raise ValueError("PseudoLabelLoss needs a model with 'logits' and reference=True.")
            loss = objective(logits, labels, teacher_logits)
        elif isinstance(objective, MetricLoss):
            rows = self._embeddings(outputs, inputs)
            loss = objective(rows, labels, ids=ids, logits=logits)
        else:
            loss = objective(
                self._embeddings(outputs, inputs),
                labels,
                ids=ids,
                logits=logits,
                target_embeddings=None if calm is None else self._embeddings(calm, inputs),
                frozen=frozen,
            )
        self.seconds.spend("objective", time.perf_counter() - start)
        for name, value in objective.parts.items():
            self._parts.setdefault(name, []).append(value)
        return loss

    def _calm_pass(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        start = time.perf_counter()
        outputs = self._calm_outputs(model, inputs)
        self.seconds.spend("reference", time.perf_counter() - start)
        return outputs

    @torch.no_grad()
    def _calm_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Outputs without dropout, of the teacher if there is one."""
        if self.teacher is not None:
            return self.teacher(**inputs)
        # Not through a wrapper for several processes, which would prepare a backward pass.
        plain = self.accelerator.unwrap_model(model)
        with evaluating(plain):
            return plain(**inputs)

    def calm_embeddings(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings (B, D) of a batch by the reference pass: no dropout, no gradient."""
        return self._embeddings(self._calm_outputs(self.model, inputs), inputs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.train_sampler is not None:
            return self.train_sampler
        return super()._get_train_sampler(train_dataset)

    def _embeddings(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        found = _part(outputs, "embeddings") if self.embed is None else self.embed(outputs, inputs)
        if not isinstance(found, Tensor):
            raise ValueError(
                "The model's output has no 'embeddings'. Pass embed=lambda outputs, inputs: ... "
                "to GraphGuidedTrainer, or return them from the model."
            )
        return found

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch, timed."""
        before = self._forward_seconds()
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        forward = self._forward_seconds() - before
        self.seconds.spend("backward", time.perf_counter() - start - forward)
        return loss

    def _forward_seconds(self) -> float:
        return sum(self.seconds.get(name, 0.0) for name in ("encoder", "reference", "objective"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss's parts since the last time, over all processes."""
        if "loss" in logs:
            for name, values in self._parts.items():
                if values:
                    logs[name] = float(mean_over_processes(torch.stack(values).mean()))
            self._parts.clear()
        super().log(logs, start_time)

    @property
    def clocks(self) -> list[StageClock]:
        """Those of the training steps and of the objective."""
        found = getattr(self.objective, "seconds", None)
        return [self.seconds, *([found] if isinstance(found, StageClock) else [])]

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage so far, the objective's own broken down."""
        seconds = dict(self.seconds)
        if self.objective is None or "objective" not in seconds:
            return seconds
        inner = getattr(self.objective, "seconds", {})
        rest = max(0.0, seconds.pop("objective") - sum(inner.values()))
        return {**seconds, **inner, "loss": rest}

    # ------------------------------------------------------------------ checkpoints

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, as `Trainer.train`; from the checkpoint of a training that was over, end it."""
        folder = resume_from_checkpoint
        if folder is True and (whole := whole_checkpoints(Path(self.args.output_dir))):
            folder = str(whole[-1])
        if isinstance(folder, str):
            file = Path(folder) / TRAINER_STATE_NAME
            state = TrainerState.load_from_json(str(file)) if file.is_file() else None
            # `Trainer` would do one step more.
            if state is not None and has_ended(state) and self._is_as_long_as(state):
                return self._end_from(folder, state)
        return super().train(folder, *args, **kwargs)

    def _is_as_long_as(self, state: TrainerState) -> bool:
        """Whether this training asks for the length of that one."""
        if self.args.max_steps > 0:
            return self.args.max_steps == state.max_steps
        return math.ceil(self.args.num_train_epochs) == state.num_train_epochs

    def _end_from(self, folder: str, state: TrainerState) -> TrainOutput:
        self._load_from_checkpoint(folder)
        state.is_world_process_zero = self.is_world_process_zero()
        state.is_local_process_zero = self.is_local_process_zero()
        self.state = state
        control = self.callback_handler.on_train_begin(self.args, state, TrainerControl())
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        self.control = self.callback_handler.on_train_end(self.args, state, control)
        logged = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return TrainOutput(state.global_step, logged[-1] if logged else 0.0, {})

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in ("labels", "ids", "frozen"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _get_output_dir(self, trial: Any) -> str:
        place = super()._get_output_dir(trial)
        return str(Path(place, _DRAFT)) if self._drafting else place

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint as a draft, which takes its name once it is whole and durable."""
        place = Path(self._get_output_dir(trial))
        draft, name = place / _DRAFT, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        main = self.args.should_save
        try:
            with full_disk_named(place / name):
                if main:
                    drop_checkpoint(draft)
                wait_for_all()
                self._drafting = True
                super()._save_checkpoint(model, trial, *args, **kwargs)
                wait_for_all()  # until all have written their part
                best = self.state.best_model_checkpoint
                if best is not None and Path(best).parent == draft:
                    self.state.best_model_checkpoint = str(place / Path(best).name)
                if main:
                    self.state.save_to_json(str(draft / name / TRAINER_STATE_NAME))
                    sync_folder(draft, deep=True)
                    swap(draft / name, place / name)
                    sync_folder(place)
        finally:
            self._drafting = False
            if main:
                drop_checkpoint(draft)
        if main and self.args.save_total_limit:
            kept = self.state.best_model_checkpoint
            for old in whole_checkpoints(place)[: -self.args.save_total_limit]:
                if kept is None or old.name != Path(kept).name:
                    drop_checkpoint(old)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in a checkpoint, the objective beside it."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if self.extras and _internal_call and self.args.should_save:
            save_extras(self.extras, Path(output_dir or self.args.output_dir))
        if self.objective is not None and _internal_call and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_objective(self.objective, folder / OBJECTIVE_FILE)
            if self.teacher is not None:
                with atomic_path(folder / TEACHER_FILE, overwrite=True) as draft:
                    safetensors.torch.save_model(self.teacher, str(draft))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if Path(resume_from_checkpoint).with_name(_DRAFT).exists():
            warnings.warn(
                "The training was killed while a checkpoint was written; it goes on from "
                f"{resume_from_checkpoint}, the newest whole one.",
                UserWarning,
                stacklevel=2,
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_objective(resume_from_checkpoint)
        if self.extras:
            load_extras(self.extras, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        wait_for_all()  # until process 0 has written it
        super()._load_best_model()
        self._load_objective(self.state.best_model_checkpoint)

    def _load_objective(self, folder: str) -> None:
        if self.objective is not None:
            load_objective(self.objective, Path(folder) / OBJECTIVE_FILE)
            if self.teacher is not None:
                safetensors.torch.load_model(self.teacher, str(Path(folder) / TEACHER_FILE))


class _SharedStart(TrainerCallback):
    """Starts every process with the objective of process 0, and finds the best checkpoint."""

    def __init__(self, trainer: GraphGuidedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a checkpoint was loaded, before the first batch."""
        if state.best_global_step:
            # The folder may have another name than when it was written.
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        if self._trainer.objective is not None:
            share_state(self._trainer.objective)


class _TeacherUpdate(TrainerCallback):
    """Moves the teacher's weights after every step of the optimizer."""

    def __init__(self, teacher: nn.Module, model: nn.Module, decay: float) -> None:
        self._teacher, self._model, self._decay = teacher, model, decay

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An average over all steps at first, then an exponential one."""
        decay = min(self._decay, state.global_step / (state.global_step + 1.0))
        pairs = zip(self._teacher.parameters(), self._model.parameters(), strict=True)
        for own, other in pairs:
            own.lerp_(other.to(own.dtype), 1.0 - decay)


class _OptimizerClock(TrainerCallback):
    """Times the optimizer's step."""

    def __init__(self, seconds: StageClock) -> None:
        self._seconds = seconds
        self._start = 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop it."""
        self._seconds.spend("optimizer", time.perf_counter() - self._start)


def _part(outputs: Any, name: str) -> Tensor | None:
    if isinstance(outputs, dict):
        return outputs.get(name)
    return getattr(outputs, name, None)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        known = is_labeled(labels).long() - 1
        return labeled_binary_cross_entropy(logits, known, labels.nan_to_num(0.0))
    if not bool((labels >= 0).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), labels, ignore_index=-1)
