"""One training run: splits and an encoder in, a trained classifier and a run folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.files import utf8_folder
from gloss_graph._internal.folders import Claim
from gloss_graph._internal.processes import is_main, wait_for_all
from gloss_graph._internal.sampling import seeded_sample
from gloss_graph.inference import GraphSkill, graph_skill
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.runs import RunFolder
from gloss_graph.text import Adapters, Corpus, FeatureEncoder, Splits, TextEncoder, add_lora
from gloss_graph.training.checkpoints import Checkpoints, RunClock, run_settings, save_objective
from gloss_graph.training.classifier import TextClassifier, freeze_layers
from gloss_graph.training.config import DEFAULTS, TrainConfig, check_multilabel
from gloss_graph.training.data import with_few_labels
from gloss_graph.training.objectives import make_loss, make_objective
from gloss_graph.training.outcome import (
    THRESHOLD,
    ClassReport,
    describe,
    history_rows,
    split_scores,
)
from gloss_graph.training.processes import check_run, check_same_everywhere, join_processes, on_main
from gloss_graph.training.progress import ProgressBar
from gloss_graph.training.setup import make_trainer
from gloss_graph.training.snapshots import Snapshots
from gloss_graph.training.stages import SplitEmbeddings, fill_bank, fit_head, run_start_stages

_SIGMA_SAMPLE = 1024


@dataclass(frozen=True)
class RunResult:
    """A trained classifier and its scores.

    Attributes:
        model: The trained classifier (best validation macro-F1, or last step).
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
    `memory/` and the data of the pictures into `out`, all at once when they are complete;
    `checkpoints/` exists until then. A run that was interrupted in `out` starts over; with
    `resume=True` it continues and comes to the same weights, memory and metrics, bit for bit, as
    one that was not interrupted (times aside). Under `torchrun` every process trains on different
    batches and computes the same scores; the first one writes and prints.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        encoder: Fine-tuned in place.
        config: Settings.
        out: New or empty folder, or that of a run that did not finish.
        frozen: Embeddings of the untrained encoder for `"train"`, `"val"` and `"test"`, if known
            from an earlier run; computed otherwise.
        callbacks: Added to the Trainer, for example to watch its evaluations.
        progress: Show progress bars.
        description: Text of the bar.
        finish: Adds files to the run folder before it is complete: the first process calls it with
            the folder as it is then, and the result.
        resume: Continue the run that was interrupted in `out`, if there is one.
        save_steps: Steps between checkpoints, besides those at the evaluations of a run that keeps
            its best step; None = at every evaluation, or as often as one would be; 0 = no
            checkpoints to resume from.

    Raises:
        ValueError: No labeled document in training; no validation split with labels where it
            picks the best step; a device this machine does not have; adapters of features, or
            without peft; `resume` with other settings, documents or weights than those of the
            interrupted run, named; processes that were started with different ones.
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
    check_labels(
        splits, picks_step=not config.keeps_last, by_silhouette=config.mode == "standalone"
    )
    device = check_run(config, on_features=isinstance(encoder, FeatureEncoder))
    join_processes(config.device)
    if save_steps is not None:
        check_positive_int("save_steps", save_steps, minimum=0)
    out = Path(out)
    settings = run_settings(config, encoder, splits, device)
    check_same_everywhere({**settings, "out": str(out)})
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

        on_main(begin)
        result = _train(
            splits,
            encoder,
            config,
            # Weights cannot be written below a name that is not UTF-8.
            utf8_folder(out),
            owned[0].draft if owned else None,
            device,
            frozen=frozen,
            callbacks=callbacks,
            bar=ProgressBar(description) if progress and is_main() else None,
            save_steps=save_steps,
        )
        if owned and finish is not None:
            finish(owned[0].draft, result)
    wait_for_all()  # until the folder is complete
    return result


def _train(
    splits: Splits,
    encoder: TextEncoder | FeatureEncoder,
    config: TrainConfig,
    out: Path,
    draft: Path | None,
    device: torch.device,
    *,
    frozen: Mapping[str, Tensor] | None,
    callbacks: Sequence[TrainerCallback],
    bar: ProgressBar | None,
    save_steps: int | None,
) -> RunResult:
    """Train with checkpoints in `out`; process 0 writes the run into `draft`."""
    set_seed(config.seed)
    train, checkpoints, progress = splits.train, Checkpoints(out), bar is not None
    labels = torch.tensor(train.labels)
    classifier = TextClassifier(
        encoder, train.label_names, dropout=config.dropout, seed=config.seed
    )
    adapters = _adapt(encoder, config)
    encoder.to(device)
    clock = RunClock()
    metrics: dict[str, float] = {}
    if adapters is not None:
        metrics["lora.parameters"] = float(adapters.size)
    views = SplitEmbeddings(encoder, splits, config, frozen, progress)
    snapshots = None
    if config.pictures:
        snapshots = Snapshots(
            encoder,
            splits,
            views.frozen,
            warm_start=config.warm_start_steps > 0 or config.graph_start_steps > 0,
            batch_size=config.eval_batch_size,
            seed=config.seed,
        )
    skill = _skill(views.frozen.get("train"), labels, config)
    if skill is not None:
        metrics |= {f"graph_skill.{key}": float(value) for key, value in skill._asdict().items()}
    start_losses, start_seconds = run_start_stages(
        encoder, train, views, config, checkpoints=checkpoints, progress=progress
    )
    metrics |= start_seconds
    loss = make_loss(
        config,
        train.num_classes,
        encoder.dim,
        train.labels,
        frozen_dim=views.dim,
        sample=_sigma_sample(encoder, train, config, progress),
        multilabel=train.multilabel,
    )
    objective = loss if isinstance(loss, GraphGuidedObjective) else None
    joint = objective is not None and views.dim > 0

    @cache
    def start_rows() -> Tensor:
        # Of the training documents, after the contrastive stages.
        return views.rows("train") if start_losses else views.start_rows

    # Of the training documents by the encoder as it is at the end, if known.
    final: Tensor | None = None
    latest = checkpoints.latest()
    if latest is None and objective is not None and joint:
        fill_bank(objective, train, start_rows(), views)
        if start_losses and config.trains:
            fit_head(classifier, train, start_rows(), views, config)
    if config.trains:
        corpus = train if config.loss_spec.uses_unlabeled else train.select(labels.numpy() >= 0)
        trainer = make_trainer(
            classifier,
            loss,
            replace(splits, train=corpus),
            config,
            out,
            frozen=views.frozen.get("train") if joint else None,
            save_steps=save_steps,
        )
        clock.clocks = trainer.clocks
        trainer.extras = {"clock": clock}
        if snapshots is not None:
            trainer.extras["pictures"] = snapshots.batch
            trainer.add_callback(snapshots.batch)
        for callback in (*callbacks, *([] if bar is None else [bar])):
            trainer.add_callback(callback)
        with nullcontext() if bar is None else bar.bar:
            trainer.train(None if latest is None else str(latest))
        history = history_rows(trainer.state.log_history)
        metrics["steps"] = float(trainer.state.global_step)
        metrics["epochs_to_stop"] = float(trainer.state.epoch or 0.0)
        metrics["best_step"] = float(trainer.state.best_global_step or trainer.state.global_step)
        metrics |= {f"seconds.{name}": s for name, s in trainer.stage_seconds().items()}
    else:
        metrics["steps"] = float(len(start_losses))
        history = [{"step": step + 1, "loss": v} for step, v in enumerate(start_losses)]
    if adapters is not None:
        # What follows uses the weights that are saved.
        adapters.merge()
    if not config.trains or config.mode == "standalone" or config.refit_head:
        classifier.standalone = False
        final = views.rows("train") if config.trains else start_rows()
        metrics |= fit_head(classifier, train, final, views, config)
    recording = 0.0 if snapshots is None else snapshots.seconds
    metrics["seconds.train"] = clock.seconds - recording

    memory = None if objective is None else objective.memory
    stored = memory is not None and len(memory) > 0
    if objective is None or not stored or config.loss_spec.frozen_targets:
        # Another loss's bank lacks documents or their learned rows: fill one to predict over.
        objective = make_objective(
            replace(config, loss="gloss", memory_size=len(train)),
            train.num_classes,
            encoder.dim,
            len(train),
            frozen_dim=views.dim,
            targets=False,
            multilabel=train.multilabel,
        )
        fill_bank(objective, train, views.rows("train") if final is None else final, views)
    objective = objective.cpu().eval()
    predictions, embeddings, classes = {}, {}, ClassReport()
    for name, held_out in splits.parts.items():
        if name == "train":
            continue
        embeddings[name] = rows = views.rows(name)
        predictions[name] = _answer(classifier.head_logits(rows), held_out, 0.0)
        metrics |= split_scores(name, predictions[name], rows, held_out)
        classes.add(name, "linear", predictions[name], held_out)
        memory = objective.memory
        if memory is None or not len(memory) or not bool(memory.labeled.any()):
            continue
        spread = objective.predict(rows, frozen=views.frozen.get(name), mode="transductive")
        answer = _answer(spread, held_out, THRESHOLD)
        classes.add(name, "propagation", answer, held_out)
        # The embeddings are scored with the linear head.
        metrics |= split_scores(f"{name}_propagation", answer, None, held_out)
    metrics["seconds.total"] = clock.seconds

    classifier.eval().to("cpu")
    result = RunResult(classifier, objective, metrics, history, predictions, embeddings, skill)
    wait_for_all()  # the checkpoints are read by all
    if draft is None:
        return result
    folder = RunFolder(draft)
    classifier.save(folder.model)
    folder.objective.parent.mkdir()
    save_objective(objective, folder.objective)
    folder.write_labels_used(train)
    classes.write(folder.classes)
    if snapshots is not None:
        snapshots.write(draft, embeddings, metrics)
    memory = objective.memory
    settings = {
        **config.flat(),
        **encoder.describe(),
        "data": describe(splits),
        "bank": {
            "capacity": 0 if memory is None else memory.capacity,
            "frozen_dim": views.dim,
            "targets": objective.consistency.refresh_every > 0,
            **({"multilabel": True} if train.multilabel else {}),
        },
        # Of this version: comparisons of runs leave out what was not changed.
        "defaults": DEFAULTS,
    }
    folder.write(settings, metrics, history)
    return result


def _answer(scores: Tensor, corpus: Corpus, threshold: float) -> np.ndarray:
    """Classes (N,) of the highest score, or sets (N, C) of the scores from `threshold` on."""
    return (scores >= threshold if corpus.multilabel else scores.argmax(dim=1)).numpy()


def _adapt(encoder: TextEncoder | FeatureEncoder, config: TrainConfig) -> Adapters | None:
    """Freeze the first layers of an encoder and give the others adapters, if asked for."""
    freeze_layers(encoder, config.freeze_layers)
    if not config.lora_rank or isinstance(encoder, FeatureEncoder):
        return None
    return add_lora(
        encoder,
        config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        targets=config.lora_targets,
        seed=config.seed,
    )


def check_labels(splits: Splits, *, picks_step: bool, by_silhouette: bool = False) -> None:
    """Raise if the splits lack labels that a run needs, and warn about classes without any.

    With `picks_step` the validation part picks the best step, maybe by the silhouette of its
    classes.
    """
    needed = {"train": splits.train}
    if picks_step:
        if splits.val is None:
            raise ValueError("'splits' must have a validation part, which picks the best step.")
        needed["val"] = splits.val
    for part, corpus in needed.items():
        if not sum(corpus.class_counts):
            raise ValueError(
                f"'splits.{part}' must hold a labeled document (got none of {len(corpus)}). Label "
                "some, or check the column of the labels."
            )
    counts = needed["val"].class_counts if "val" in needed else []
    lone = counts and (sum(count > 0 for count in counts) < 2 or max(counts) < 2)
    if by_silhouette and lone:
        raise ValueError(
            "'splits.val' must hold two classes, one of them twice, for mode='standalone', which "
            "takes the step of the best silhouette. Label more, or take select='last'."
        )
    named = zip(splits.train.label_names, splits.train.class_counts, strict=True)
    missing = [name for name, count in named if not count]
    if missing:
        warnings.warn(
            f"No training document is labeled {', '.join(map(repr, missing[:5]))}; such a class "
            "cannot be predicted.",
            UserWarning,
            stacklevel=3,
        )


def _skill(rows: Tensor | None, labels: Tensor, config: TrainConfig) -> GraphSkill | None:
    """The expected gain of the graph on the embeddings before training, where it can be told."""
    if rows is None:
        return None
    counts = torch.bincount(labels[labels >= 0])
    if int((counts > 0).sum()) < 2 or int(counts.max()) < 2:
        return None
    return graph_skill(
        rows,
        labels,
        k=config.k,
        align=config.align,
        seed=config.seed,
        warn=config.loss_spec.over_bank,
    )


def _sigma_sample(
    encoder: TextEncoder | FeatureEncoder, train: Corpus, config: TrainConfig, progress: bool
) -> Tensor | None:
    if not (config.loss_spec.in_batch and isinstance(config.bandwidth, str)):
        return None
    some = train.select(seeded_sample(len(train), _SIGMA_SAMPLE).tolist())
    return encoder.embed(some, progress=progress)
