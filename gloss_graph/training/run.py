"""One training run: splits and an encoder in, a trained classifier and a run folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.files import utf8_folder
from gloss_graph._internal.folders import Claim
from gloss_graph._internal.labels import seeded_sample
from gloss_graph._internal.processes import is_main, wait_for_all
from gloss_graph.inference import GraphSkill, graph_skill
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.runs import RunFolder
from gloss_graph.text import Adapters, Corpus, FeatureEncoder, Splits, TextEncoder, add_lora
from gloss_graph.training import outcome, setup, stages
from gloss_graph.training.checkpoints import Checkpoints, RunClock, run_settings, save_objective
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import DEFAULTS, TrainConfig, check_multilabel
from gloss_graph.training.data import with_few_labels
from gloss_graph.training.snapshots import Snapshots
from gloss_graph.training.trainer import LossModule


@dataclass(frozen=True)
class RunResult:
    """A trained classifier and its scores.

    Attributes:
        model: The trained classifier, of the best step or the last one.
        objective: An objective whose bank holds the training documents, for `predict`.
        metrics: Flat numbers: `test.macro_f1`, `test_propagation.macro_f1`, `seconds.encoder`, ...
        history: Rows of step, losses and validation scores.
        predictions: Split name -> predicted class (N,) of its documents, or set (N, C) bool.
        embeddings: Split name -> embeddings (N, D) of its documents.
        skill: The expected gain of the graph before training, None with too few labels to tell.
    """

    model: TextClassifier
    objective: GraphGuidedObjective
    metrics: dict[str, float]
    history: list[dict[str, float]]
    predictions: dict[str, np.ndarray]
    embeddings: dict[str, Tensor]
    skill: GraphSkill | None = None


def train_text(
    splits: Splits,
    encoder: TextEncoder | FeatureEncoder,
    config: TrainConfig,
    out: str | Path,
    *,
    frozen: Mapping[str, Tensor] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = False,
    description: str = "Training",
    finish: Callable[[Path, RunResult], object] | None = None,
    resume: bool = False,
    save_steps: int | None = None,
) -> RunResult:
    """Fine-tune an encoder with a linear head and score it; `Run(out)` then predicts.

    Writes `config.json`, `metrics.json`, `history.csv`, `classes.csv`, `labels_used.csv`, `model/`,
    `memory/` and the data of the pictures into `out`, all at once when they are complete. A run
    that was interrupted in `out` starts over; with `resume=True` it continues and comes to the same
    weights, memory and metrics, bit for bit, as one that was not interrupted (times aside). Under
    `torchrun` every process trains on different batches and computes the same scores.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        encoder: Fine-tuned in place.
        config: Settings.
        out: New or empty folder, or that of a run that did not finish.
        frozen: Embeddings of the untrained encoder for `"train"`, `"val"` and `"test"`, if known
            from an earlier run.
        callbacks: Added to the Trainer.
        progress: Show progress bars.
        description: Text of the bar.
        finish: Adds files to the run folder before it is complete: the first process calls it with
            the folder as it is then, and the result.
        resume: Continue the run that was interrupted in `out`, if there is one.
        save_steps: Steps between checkpoints, besides those at the evaluations of a run that keeps
            its best step; None = at every evaluation, or as often as one would be; 0 = no
            checkpoints to resume from.

    Raises:
        ValueError: Labels or a validation split are missing; the device or the adapters cannot be
            had; settings, documents or weights differ from those of the interrupted run.
        FileExistsError: `out` holds files.
        BlockingIOError: Another process trains into `out`.
    """
    if splits.train.multilabel:
        check_multilabel(config)
        # Pictures color documents by their one class.
        config = replace(config, pictures=False)
    splits = with_few_labels(
        splits, fraction=config.label_fraction, per_class=config.labels_per_class, seed=config.seed
    )
    standalone = config.mode == "standalone"
    check_labels(splits, picks_step=not config.keeps_last, by_silhouette=standalone)
    device = setup.check_run(config, on_features=isinstance(encoder, FeatureEncoder))
    setup.join_processes(config.device)
    if save_steps is not None:
        check_positive_int("save_steps", save_steps, minimum=0)
    out = Path(out)
    settings = run_settings(config, encoder, splits, device)
    setup.check_same_everywhere({**settings, "out": str(out)})
    checkpoints = Checkpoints(out)
    going_on = resume and checkpoints.begun
    if going_on:
        checkpoints.check(settings)
    wait_for_all()  # before process 0 changes what all have looked at
    with ExitStack() as stack:
        owned: list[Claim] = []

        def begin() -> None:
            owned.append(stack.enter_context(RunFolder(out).claim(resume=going_on)))
            if not going_on and save_steps != 0:
                checkpoints.begin(settings)

        setup.on_main(begin)
        bar = outcome.ProgressBar(description) if progress and is_main() else None
        # Weights cannot be written below a name that is not UTF-8.
        run = _TextRun(splits, encoder, config, utf8_folder(out), device, frozen, bar, stack)
        run.start()
        run.train(callbacks, save_steps)
        result = run.score()
        wait_for_all()  # the checkpoints are read by all
        if owned:
            run.write(owned[0].draft, result)
            if finish is not None:
                finish(owned[0].draft, result)
    wait_for_all()  # until the folder is complete
    return result


class _TextRun:
    """A run with checkpoints in `out`: `start`, `train`, `score`, then `write` on process 0."""

    def __init__(
        self,
        splits: Splits,
        encoder: TextEncoder | FeatureEncoder,
        config: TrainConfig,
        out: Path,
        device: torch.device,
        frozen: Mapping[str, Tensor] | None,
        bar: outcome.ProgressBar | None,
        stack: ExitStack,
    ) -> None:
        set_seed(config.seed)
        self.splits, self.encoder, self.config, self.out = splits, encoder, config, out
        self.corpus, self.bar, self.checkpoints = splits.train, bar, Checkpoints(out)
        self.metrics: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.classes = outcome.ClassReport()
        self.loss: LossModule | None = None
        #: Embeddings (N, D) of the training documents at the end, if known.
        self.final: Tensor | None = None
        names = self.corpus.label_names
        self.classifier = TextClassifier(encoder, names, dropout=config.dropout, seed=config.seed)
        self.adapters: Adapters | None = None
        if isinstance(encoder, TextEncoder):
            encoder.freeze(config.freeze_layers)
            if config.lora_rank:
                self.adapters = add_lora(
                    encoder,
                    config.lora_rank,
                    alpha=config.lora_alpha,
                    dropout=config.lora_dropout,
                    targets=config.lora_targets,
                    seed=config.seed,
                )
                self.metrics["lora.parameters"] = float(self.adapters.size)
        encoder.to(device)
        self.clock, size = RunClock(), config.eval_batch_size
        if isinstance(encoder, TextEncoder) and not config.bf16:
            stack.enter_context(encoder.keeping_states(self.corpus, batch_size=size))
        self.views = stages.SplitEmbeddings(encoder, splits, config, frozen, bar is not None)
        self.snapshots: Snapshots | None = None
        if config.pictures:
            self.snapshots = Snapshots(
                encoder,
                splits,
                self.views.frozen,
                warm_start=config.warm_start_steps > 0 or config.spreads,
                batch_size=size,
                seed=config.seed,
            )
        self.skill = self._skill()

    def _skill(self) -> GraphSkill | None:
        """The expected gain of the graph on the embeddings before training, where it is known."""
        config, rows, labels = self.config, self.views.before, torch.tensor(self.corpus.labels)
        counts = labels[labels >= 0].unique(return_counts=True)[1]
        if rows is None or len(counts) < 2 or int(counts.max()) < 2:
            return None
        skill = graph_skill(
            rows,
            labels,
            k=config.k,
            align=config.align,
            seed=config.seed,
            # The contrast asks other views too, a linear classifier among them.
            warn=config.loss_spec.over_bank and config.trains,
        )
        self.metrics |= {f"graph_skill.{key}": float(v) for key, v in skill._asdict().items()}
        return skill

    @property
    def objective(self) -> GraphGuidedObjective | None:
        """The loss, if it is a graph-guided one."""
        return self.loss if isinstance(self.loss, GraphGuidedObjective) else None

    @cached_property
    def start_rows(self) -> Tensor:
        """Embeddings (N, D) of the training documents after the contrastive stages."""
        return self.views.rows("train") if self.start_losses else self.views.start_rows

    def start(self) -> None:
        """Run the contrastive stages and make the loss, its bank filled where it helps."""
        config, train, spec = self.config, self.corpus, self.config.loss_spec
        self.start_losses, seconds = stages.run_start_stages(self.views, self.checkpoints)
        self.metrics |= seconds
        sample = words = None
        if spec.in_batch and isinstance(config.bandwidth, str):
            some = train.select(seeded_sample(len(train), 1024).tolist())
            sample = self.encoder.embed(some, progress=self.bar is not None)
        if config.contrast_weight > 0 and spec.over_bank and min(train.labels) < 0:
            words = stages.shared_words(train, config)
        self.loss = setup.make_loss(
            config,
            train.num_classes,
            self.encoder.dim,
            train.labels,
            frozen_dim=self.views.dim,
            sample=sample,
            multilabel=train.multilabel,
            views=() if words is None else [(torch.tensor(train.ids), words)],
        )
        # Frozen features fill the bank together with the learned ones, before any step.
        if self.objective and self.views.dim > 0 and self.checkpoints.latest() is None:
            stages.fill_bank(self.objective, self.views, self.start_rows)
            if self.start_losses and config.trains:
                stages.fit_head(self.classifier, self.views, self.start_rows)

    def train(self, callbacks: Sequence[TrainerCallback], save_steps: int | None) -> None:
        """Train head and encoder together, or fit the head where nothing is to be trained."""
        config, metrics = self.config, self.metrics
        if config.trains:
            self._train_together(callbacks, save_steps)
        else:
            metrics["steps"] = float(len(self.start_losses))
            self.history = [{"step": i + 1, "loss": v} for i, v in enumerate(self.start_losses)]
        if self.adapters is not None:
            # What follows uses the weights that are saved.
            self.adapters.merge()
        if not config.trains or config.mode == "standalone" or config.refit_head:
            self.classifier.standalone = False
            self.final = self.views.rows("train") if config.trains else self.start_rows
            metrics |= stages.fit_head(self.classifier, self.views, self.final)
        recording = 0.0 if self.snapshots is None else self.snapshots.seconds
        metrics["seconds.train"] = self.clock.seconds - recording

    def _train_together(self, callbacks: Sequence[TrainerCallback], save_steps: int | None) -> None:
        splits, bar, snapshots = self.splits, self.bar, self.snapshots
        if not self.config.loss_spec.uses_unlabeled:
            known = np.asarray(self.corpus.labels) >= 0
            splits = replace(splits, train=self.corpus.select(known))
        trainer = setup.make_trainer(
            self.classifier,
            self.loss,
            splits,
            self.config,
            self.out,
            frozen=None if self.objective is None else self.views.frozen.get("train"),
            save_steps=save_steps,
        )
        self.clock.clocks = trainer.clocks
        trainer.extras = {"clock": self.clock}
        if snapshots is not None:
            trainer.extras["pictures"] = snapshots.batch
            trainer.add_callback(snapshots.batch)
        for callback in (*callbacks, *([] if bar is None else [bar])):
            trainer.add_callback(callback)
        latest = self.checkpoints.latest()
        with nullcontext() if bar is None else bar.display:
            trainer.train(None if latest is None else str(latest))
        state = trainer.state
        self.history = outcome.history_rows(state.log_history)
        self.metrics |= {
            "steps": float(state.global_step),
            "epochs_to_stop": float(state.epoch or 0.0),
            "best_step": float(state.best_global_step or state.global_step),
            **{f"seconds.{name}": s for name, s in trainer.stage_seconds().items()},
        }

    def _predictor(self) -> GraphGuidedObjective:
        """The trained objective, or another one whose bank holds the training documents."""
        config, train, objective = self.config, self.corpus, self.objective
        if objective is None or config.loss_spec.frozen_targets or not objective.memory:
            # The bank of another loss lacks documents or their learned rows: fill one to predict.
            objective = setup.make_objective(
                replace(config, loss="gloss", memory_size=len(train)),
                train.num_classes,
                self.encoder.dim,
                len(train),
                frozen_dim=self.views.dim,
                targets=False,
                multilabel=train.multilabel,
            )
            rows = self.views.rows("train") if self.final is None else self.final
            stages.fill_bank(objective, self.views, rows)
        return objective.cpu().eval()

    def score(self) -> RunResult:
        """Predict the held-out splits by both heads and score the predictions."""
        objective, metrics = self._predictor(), self.metrics
        predictions, embeddings = {}, {}
        memory = objective.memory
        propagates = memory is not None and len(memory) > 0 and bool(memory.labeled.any())
        for name, corpus in self.splits.parts.items():
            if name == "train":
                continue
            embeddings[name] = rows = self.views.rows(name)
            predictions[name] = _answer(self.classifier.head_logits(rows), corpus, 0.0)
            metrics |= outcome.split_scores(name, predictions[name], rows, corpus)
            self.classes.add(name, "linear", predictions[name], corpus)
            if propagates:
                frozen = self.views.frozen.get(name)
                spread = objective.predict(rows, frozen=frozen, mode="transductive")
                answer = _answer(spread, corpus, outcome.THRESHOLD)
                self.classes.add(name, "propagation", answer, corpus)
                # The embeddings are scored with the linear head.
                metrics |= outcome.split_scores(f"{name}_propagation", answer, None, corpus)
        metrics["seconds.total"] = self.clock.seconds
        model = self.classifier.eval().to("cpu")
        return RunResult(
            model, objective, metrics, self.history, predictions, embeddings, self.skill
        )

    def write(self, draft: Path, result: RunResult) -> None:
        """Write the files of the run, those that mark it as finished last."""
        folder, memory = RunFolder(draft), result.objective.memory
        result.model.save(folder.model)
        folder.objective.parent.mkdir()
        save_objective(result.objective, folder.objective)
        self.classes.write(folder.classes)
        if self.snapshots is not None:
            self.snapshots.write(draft, result.embeddings, result.metrics)
        settings = {
            **self.config.flat(),
            **self.encoder.describe(),
            "data": outcome.describe(self.splits),
            "bank": {
                "capacity": 0 if memory is None else memory.capacity,
                "frozen_dim": self.views.dim,
                "targets": result.objective.consistency.refresh_every > 0,
                **({"multilabel": True} if self.corpus.multilabel else {}),
            },
            # Of this version: comparisons of runs leave out what was not changed.
            "defaults": DEFAULTS,
        }
        folder.write(settings, result.metrics, result.history, self.corpus)


def _answer(scores: Tensor, corpus: Corpus, threshold: float) -> np.ndarray:
    """Classes (N,) of the highest score, or sets (N, C) of the scores from `threshold` on."""
    return (scores >= threshold if corpus.multilabel else scores.argmax(dim=1)).numpy()


def check_labels(splits: Splits, *, picks_step: bool, by_silhouette: bool = False) -> None:
    """Raise if the splits lack labels that a run needs, and warn about classes without any."""
    train, val = splits.train, splits.val if picks_step else None
    if picks_step and val is None:
        raise ValueError("'splits' must have a validation part, which picks the best step.")
    for part, corpus in (("train", train), ("val", val)):
        if corpus is not None and not sum(corpus.class_counts):
            raise ValueError(
                f"'splits.{part}' must hold a labeled document (got none of {len(corpus)}). Label "
                "some, or check the column of the labels."
            )
    counts = val.class_counts if by_silhouette and val is not None else [2, 2]
    if sum(count > 0 for count in counts) < 2 or max(counts) < 2:
        raise ValueError(
            "'splits.val' must hold two classes, one of them twice, for mode='standalone', which "
            "takes the step of the best silhouette. Label more, or take select='last'."
        )
    named = zip(train.label_names, train.class_counts, strict=True)
    missing = [repr(name) for name, count in named if not count]
    if missing:
        warnings.warn(
            f"No training document is labeled {', '.join(missing[:5])}; such a class cannot be "
            "predicted.",
            UserWarning,
            stacklevel=3,
        )
