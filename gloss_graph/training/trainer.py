"""The Hugging Face Trainer with a graph-guided objective."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from gloss_graph._internal import processes
from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.files import atomic_path, full_disk_named, sync_folder
from gloss_graph._internal.folders import swap
from gloss_graph._internal.timing import StageClock
from gloss_graph.losses import MetricLoss, PseudoLabelLoss, labeled_binary_cross_entropy
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import is_labeled, joint_view
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.training import checkpoints

LossModule = GraphGuidedObjective | MetricLoss | PseudoLabelLoss
"""A loss that a trainer can train with."""

_TEACHER_FILE = "teacher.safetensors"
# Folder of a checkpoint until it is complete.
_DRAFT = ".checkpoint.draft"
_NOT_INPUTS = ("labels", "ids", "frozen")


class GraphGuidedTrainer(Trainer):
    """`transformers.Trainer` whose loss is a `GraphGuidedObjective`.

    One forward pass per step feeds graph loss and cross-entropy. Under gradient accumulation the
    bank grows with every micro-batch. Every checkpoint holds the objective with its bank and
    generator: training on from a checkpoint gives the same numbers as never stopping.

    Batches hold the model's inputs, `labels` (B,), or (B, C) float of label sets, and `ids` (B,),
    the stable document identities. Evaluation uses the classifier alone.

    Under `torchrun` or `accelerate launch` (on CPUs with `TrainingArguments(use_cpu=True)`) every
    process trains on different batches, the loss is the mean over the processes, and every bank
    takes the rows of all. The graph of a step joins the batch of one process to the bank, which
    knows the documents of the others as of an earlier step.

    Args:
        model: Returns `embeddings` (B, D) and `logits` (B, C) as attributes or keys, or anything
            that `embed` understands. Without logits the objective runs standalone.
        args: Training arguments.
        objective: The objective, a `MetricLoss`, or a `PseudoLabelLoss` (with `reference=True`);
            None trains by cross-entropy alone.
        embed: `(outputs, inputs) -> embeddings (B, D)` for other models, for example
            `lambda out, inputs: out.hidden_states[-1][:, 0]`.
        reference: Make one more forward pass per step, without dropout and gradient, for the rows
            of the bank and the targets. With unlabeled documents it pays.
        teacher_decay: Decay of a moving average of the weights that makes this pass; 0 = the
            model itself.
        train_sampler: Order of the training documents, for example a `MixedSampler`.
        **kwargs: Of `Trainer`.

    See also: `examples/03_hf_trainer.py`.
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
        if processes.launched() > 1 and args.world_size == 1:
            raise ValueError(
                f"'args' make every one of the {processes.launched()} launched processes train "
                "alone. Pass TrainingArguments(use_cpu=True) where there is no GPU."
            )
        super().__init__(model=model, args=args, **kwargs)
        self.objective = None if objective is None else objective.to(self.args.device)
        self.embed, self.reference, self.train_sampler = embed, reference, train_sampler
        #: Seconds spent in each stage of the training steps so far.
        self.seconds = StageClock()
        found = getattr(objective, "seconds", None)
        #: Clocks of the training steps and of the objective.
        self.clocks = [self.seconds, *([found] if isinstance(found, StageClock) else [])]
        #: Other parts that checkpoints keep, by name, see `checkpoints.save_extras`.
        self.extras: dict[str, Any] = {}
        self.teacher: nn.Module | None = None
        self.teacher_decay = teacher_decay
        if teacher_decay:
            self.use_teacher(teacher_decay)
        if not self.args.label_names:
            self.label_names = ["labels"]
        # The loss is a mean over the micro-batch, so the Trainer must divide it by their number.
        self.model_accepts_loss_kwargs = False
        self._drafting = False
        self._parts: dict[str, list[Tensor]] = {}
        self.add_callback(_Steps(self))

    def use_teacher(self, decay: float) -> None:
        """Let a moving average of the weights make the reference pass from now on."""
        check_range("teacher_decay", decay, 0.0, 1.0, open_low=True, open_high=True)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.teacher_decay = decay

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
        labels, ids, frozen = (inputs.pop(name, None) for name in _NOT_INPUTS)
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
            calm = None
            if self.reference:
                with self.seconds.timed("reference"):
                    calm = self._calm_outputs(model, inputs)
            with self.seconds.timed("objective"):
                loss = self._objective_loss(outputs, calm, inputs, labels, ids, frozen)
            for name, value in self.objective.parts.items():
                self._parts.setdefault(name, []).append(value)
        elif logits is not None:
            loss = _cross_entropy(logits, labels)
        elif model.training:
            raise ValueError("The model returns no 'logits' and there is no 'objective'.")
        else:
            loss = torch.zeros((), device=labels.device)
        return (loss, {"logits": self._prediction(outputs, inputs)}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One evaluation batch, with or without labels."""
        if inputs.get("labels") is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(_model_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            answer = self._prediction(model(**inputs), inputs)
        return None, None if prediction_loss_only else answer, None

    def _prediction(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """The logits, or embeddings where there are none."""
        logits = _part(outputs, "logits")
        return self._embeddings(outputs, inputs) if logits is None else logits

    def _objective_loss(
        self,
        outputs: Any,
        calm: Any,
        inputs: dict[str, Any],
        labels: Tensor,
        ids: Tensor | None,
        frozen: Tensor | None,
    ) -> Tensor:
        """Loss of the outputs of a training pass and of the `calm` ones of the reference pass."""
        objective, logits = cast(LossModule, self.objective).train(), _part(outputs, "logits")
        if isinstance(objective, PseudoLabelLoss):
            teacher_logits = None if calm is None else _part(calm, "logits")
            if logits is None or teacher_logits is None:
                raise ValueError("PseudoLabelLoss needs a model with 'logits' and reference=True.")
            return objective(logits, labels, teacher_logits)
        rows = self._embeddings(outputs, inputs)
        if isinstance(objective, MetricLoss):
            return objective(rows, labels, ids=ids, logits=logits)
        target = None if calm is None else self._embeddings(calm, inputs)
        return objective(
            rows, labels, ids=ids, logits=logits, target_embeddings=target, frozen=frozen
        )

    @torch.no_grad()
    def _calm_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Outputs without dropout, of the teacher if there is one."""
        if self.teacher is not None:
            return self.teacher(**inputs)
        # Not through a wrapper for several processes, which would prepare a backward pass.
        plain = self.accelerator.unwrap_model(model)
        with evaluating(plain):
            return plain(**inputs)

    def embed_documents(self, places: list[int]) -> Tensor:
        """Rows (n, D) of the bank for training documents, as the reference pass makes them now."""
        items = [self.train_dataset[place] for place in places]
        batch = self._prepare_inputs(self.data_collator(items))
        inputs = _model_inputs(batch)
        with self.compute_loss_context_manager():
            rows = self._embeddings(self._calm_outputs(self.model, inputs), inputs).float()
        weight = getattr(self.objective, "frozen_weight", 0.0)
        return joint_view(rows, batch.get("frozen"), weight)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        return self.train_sampler or super()._get_train_sampler(train_dataset)

    def _embeddings(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        found = _part(outputs, "embeddings") if self.embed is None else self.embed(outputs, inputs)
        if not isinstance(found, Tensor):
            raise ValueError(
                "The model's output has no 'embeddings'. Pass embed=lambda outputs, inputs: ... "
                "to GraphGuidedTrainer, or return them from the model."
            )
        return found

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One micro-batch, timed."""
        before, start = sum(self.seconds.values()), time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        forward = sum(self.seconds.values()) - before
        self.seconds.spend("backward", time.perf_counter() - start - forward)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss's parts since the last time, over all processes."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[name] = float(processes.mean_over_processes(torch.stack(values).mean()))
            self._parts.clear()
        super().log(logs, start_time)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage so far, with those inside the objective."""
        seconds, inner = dict(self.seconds), getattr(self.objective, "seconds", {})
        if "objective" in seconds:
            rest = max(0.0, seconds.pop("objective") - sum(inner.values()))
            seconds |= {**inner, "loss": rest}
        return seconds

    # ------------------------------------------------------------------ checkpoints

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, as `Trainer.train`; from the checkpoint of a training that was over, end it."""
        folder = resume_from_checkpoint
        if folder is True and (whole := checkpoints.whole_checkpoints(Path(self.args.output_dir))):
            folder = str(whole[-1])
        if isinstance(folder, str) and (file := Path(folder, TRAINER_STATE_NAME)).is_file():
            state = TrainerState.load_from_json(str(file))
            epochs, steps = math.ceil(self.args.num_train_epochs), self.args.max_steps
            same = steps == state.max_steps if steps > 0 else epochs == state.num_train_epochs
            if same and checkpoints.has_ended(state):
                return self._end_from(folder, state)
        return super().train(folder, *args, **kwargs)

    def _end_from(self, folder: str, state: TrainerState) -> TrainOutput:
        """End a training that was over; `Trainer.train` would do one step more."""
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
        columns = self._signature_columns
        columns += [name for name in _NOT_INPUTS if name not in columns]

    def _get_output_dir(self, trial: Any) -> str:
        place = super()._get_output_dir(trial)
        return str(Path(place, _DRAFT)) if self._drafting else place

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint as a draft, which takes its name once it is complete and durable."""
        place = Path(self._get_output_dir(trial))
        draft, name = place / _DRAFT, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        main = self.args.should_save
        try:
            with full_disk_named(place / name):
                if main:
                    checkpoints.drop_checkpoint(draft)
                processes.wait_for_all()
                self._drafting = True
                super()._save_checkpoint(model, trial, *args, **kwargs)
                processes.wait_for_all()  # until all have written their part
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
                checkpoints.drop_checkpoint(draft)
        if main and self.args.save_total_limit:
            kept = self.state.best_model_checkpoint
            for old in checkpoints.whole_checkpoints(place)[: -self.args.save_total_limit]:
                if kept is None or old.name != Path(kept).name:
                    checkpoints.drop_checkpoint(old)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; into a checkpoint also objective, teacher and extras."""
        super().save_model(output_dir, _internal_call=_internal_call)
        if not (_internal_call and self.args.should_save):
            return
        folder = Path(output_dir or self.args.output_dir)
        if self.extras:
            checkpoints.save_extras(self.extras, folder)
        if self.objective is not None:
            checkpoints.save_objective(self.objective, folder / checkpoints.OBJECTIVE_FILE)
            if self.teacher is not None:
                with atomic_path(folder / _TEACHER_FILE, overwrite=True) as draft:
                    save_model(self.teacher, str(draft))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if Path(resume_from_checkpoint).with_name(_DRAFT).exists():
            warnings.warn(
                "The training was killed while it wrote a checkpoint; it continues from "
                f"{resume_from_checkpoint}, the newest complete one.",
                UserWarning,
                stacklevel=2,
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_objective(Path(resume_from_checkpoint))
        if self.extras:
            checkpoints.load_extras(self.extras, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        processes.wait_for_all()  # until process 0 has written it
        super()._load_best_model()
        self._load_objective(Path(self.state.best_model_checkpoint))

    def _load_objective(self, folder: Path) -> None:
        if self.objective is not None:
            checkpoints.load_objective(self.objective, folder / checkpoints.OBJECTIVE_FILE)
            if self.teacher is not None:
                load_model(self.teacher, str(folder / _TEACHER_FILE))


class _Steps(TrainerCallback):
    """Shares the objective at the start, times the optimizer and moves the teacher's weights."""

    def __init__(self, trainer: GraphGuidedTrainer) -> None:
        self._trainer = trainer
        self._start = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:
            # The folder may have another name than when it was written.
            best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        if self._trainer.objective is not None:
            processes.share_state(self._trainer.objective)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._start = time.perf_counter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._trainer.seconds.spend("optimizer", time.perf_counter() - self._start)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Average all steps at first, then exponentially."""
        trainer = self._trainer
        if trainer.teacher is not None:
            decay = min(trainer.teacher_decay, state.global_step / (state.global_step + 1.0))
            pairs = zip(trainer.teacher.parameters(), trainer.model.parameters(), strict=True)
            for average, value in pairs:
                average.lerp_(value.to(average.dtype), 1.0 - decay)


class BankRefresh(TrainerCallback):
    """Encodes the stalest `rows` of the bank again after `every` steps, see `MemoryBank.refresh`.

    The model, or its teacher, encodes the training documents without dropout. It draws no random
    number and depends only on the count of steps, so a resumed training gives the same numbers.
    With several processes each encodes a share and every bank takes the rows of all. Give it to
    `trainer.add_callback`.
    """

    def __init__(self, trainer: GraphGuidedTrainer, rows: int, every: int) -> None:
        check_positive_int("rows", rows)
        check_positive_int("every", every)
        memory = getattr(trainer.objective, "memory", None)
        if not isinstance(memory, MemoryBank):
            raise ValueError("'trainer' must have an objective with a memory bank (got none).")
        self._trainer, self._bank, self._rows, self._every = trainer, memory, rows, every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """After the optimizer's step, before a checkpoint is written."""
        if state.global_step % self._every == 0:
            with self._trainer.seconds.timed("refresh"):
                self._bank.refresh(self.encode, self._rows)

    def encode(self, ids: Tensor) -> Tensor:
        """Rows (n, D) of the bank for training documents with these ids (n,), as of now."""
        bank, size = self._bank, self._trainer.args.per_device_eval_batch_size
        share = ids.tensor_split(processes.world_size())[processes.rank()].tolist()
        if unknown := [name for name in share if name not in self._places]:
            raise ValueError(
                f"The bank holds document {unknown[0]}, which is none of the training documents, "
                "so it cannot be encoded again. Fill the bank with training documents only."
            )
        rows = [torch.empty(0, bank.dim, dtype=torch.float32, device=bank.rows.device)]
        for start in range(0, len(share), size):
            places = [self._places[name] for name in share[start : start + size]]
            rows.append(self._trainer.embed_documents(places).to(bank.rows.device))
        return processes.gather_rows(torch.cat(rows))

    @cached_property
    def _places(self) -> dict[int, int]:
        """Position of every training document by its id."""
        documents = self._trainer.train_dataset
        corpus = getattr(documents, "corpus", None)
        ids = [int(item["ids"]) for item in documents] if corpus is None else corpus.ids
        return {name: place for place, name in enumerate(ids)}


def _model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in _NOT_INPUTS}


def _part(outputs: Any, name: str) -> Tensor | None:
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        known = is_labeled(labels).long() - 1
        return labeled_binary_cross_entropy(logits, known, labels.nan_to_num(0.0))
    if not bool((labels >= 0).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), labels, ignore_index=-1)
