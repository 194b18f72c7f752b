"""One training run: splits and an encoder in, a trained classifier and a run folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from gloss_graph.text import Adapters, Corpus, FeatureEncoder, Splits, TextEncoder
from gloss_graph.training.checkpoints import Checkpoints, RunClock, run_settings
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import DEFAULTS, TrainConfig
from gloss_graph.training.labels import draw_labels, hide_labels
from gloss_graph.training.multilabel import THRESHOLD, check_multilabel
from gloss_graph.training.objectives import make_loss, make_objective
from gloss_graph.training.outcome import (
    ClassReport,
    describe,
    history_rows,
    predict_classes,
    predict_sets,
    split_scores,
)
from gloss_graph.training.parameters import adapt, check_run
from gloss_graph.training.processes import check_same_everywhere, join_processes, on_main
from gloss_graph.training.progress import ProgressBar
from gloss_graph.training.setup import make_trainer
from gloss_graph.training.snapshots import Snapshots
from gloss_graph.training.stages import fill_bank, fit_head, run_start_stages
from gloss_graph.training.state import save_objective
from gloss_graph.training.views import Views

_SIGMA_SAMPLE = 1024


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Attributes:
        model: The trained classifier (best validation macro-F1, or last step).
        objective: An objective whose bank holds the training documents, for `predict`.
        metrics: Flat numbers: `test.macro_f1`, `test_propagation.macro_f1`, `seconds.encoder`, ...
        history: Rows of step, losses and validation scores.
        predictions: Split name -> predicted class (N,) of its documents, or set (N, C) bool.
        embeddings: Split name -> embeddings (N, D) of its documents.
        skill: What the graph promised before training, None with too few labels to tell.
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
    """Fine-tune an encoder with a linear head and score it.

    Writes `config.json`, `metrics.json`, `history.csv`, `classes.csv`, `labels_used.csv`, `model/`,
    `memory/` and what pictures are drawn from into `out`, all at once when they are whole;
    `checkpoints/` lives there until then. A run that was interrupted in `out` starts over; with
    `resume=True` it goes on and comes to the same weights, memory and metrics, bit for bit, as one
    that was not interrupted (times aside). Under `torchrun` every process trains on batches of its
    own and computes the same scores; the first one writes and speaks.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        encoder: Fine-tuned in place.
        config: Settings.
        out: New or empty folder, or that of a run that did not finish.
        frozen: Embeddings of the encoder as given, for `"train"`, `"val"` and `"test"`, where they
            are at hand from an earlier run; computed otherwise.
        callbacks: Added to the Trainer, for example to watch its evaluations.
        progress: Show progress bars.
        description: What the bar says.
        finish: Adds files to the run folder before it is whole: called by the first process with
            the folder as it is then, and the result.
        resume: Go on with the run that was interrupted in `out`, if there is one.
        save_steps: Steps between checkpoints, besides those at the evaluations of a run that keeps
            its best step; None = at every evaluation, or as often as one would be; 0 = nothing is
            kept to go on from.

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
        splits,
        fraction=config.label_fraction,
        per_class=config.labels_per_class,
        seed=config.seed,
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
        # Weights cannot be written below a name that is not UTF-8.
        place = utf8_folder(out)
        checkpoints = Checkpoints(place)
        result = _train(
            splits,
            encoder,
            config,
            place,
            owned[0].draft if owned else None,
            device,
            frozen=frozen,
            callbacks=callbacks,
            progress=progress and is_main(),
            description=description,
            checkpoints=checkpoints,
            save_steps=save_steps,
        )
        if owned and finish is not None:
            finish(owned[0].draft, result)
    wait_for_all()  # until the folder is whole
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
    progress: bool,
    description: str,
    checkpoints: Checkpoints,
    save_steps: int | None,
) -> RunResult:
    """Train with checkpoints in `out`, and write the run into `draft`, of the first process."""
    set_seed(config.seed)
    train = splits.train
    labels = torch.tensor(train.labels)
    classifier = TextClassifier(
        encoder, train.label_names, dropout=config.dropout, seed=config.seed
    )
    adapters = adapt(encoder, config)
    encoder.to(device)
    clock = RunClock()
    metrics: dict[str, float] = {}
    if adapters is not None:
        metrics["lora.parameters"] = float(adapters.size)
    views = Views(encoder, splits, config, frozen, progress)
    snapshots = Snapshots(
        encoder,
        splits,
        views.frozen,
        pictures=config.pictures,
        warm_start=config.warm_start_steps > 0 or config.graph_start_steps > 0,
        batch_size=config.eval_batch_size,
        seed=config.seed,
    )
    skill = _skill(views.frozen.get("train"), labels, config)
    if skill is not None:
        metrics |= {f"graph_skill.{key}": float(value) for key, value in skill._asdict().items()}
    started = run_start_stages(
        encoder, train, views, config, checkpoints=checkpoints, progress=progress
    )
    metrics |= started.metrics
    loss = make_loss(
        config,
        train.num_classes,
        encoder.dim,
        train.labels,
        frozen_dim=views.dim,
        sample=_sigma_sample(encoder, train, config, progress),
        multilabel=train.multilabel,
    )
    joint = isinstance(loss, GraphGuidedObjective) and views.dim > 0

    @cache
    def start_rows() -> Tensor:
        # Of the training documents, after the contrastive stages.
        return views.rows("train") if started.losses else views.start_rows

    # The same by the encoder as it is at the end, where they are at hand.
    final: Tensor | None = None
    latest = checkpoints.latest()
    if latest is None and isinstance(loss, GraphGuidedObjective) and joint:
        fill_bank(loss, train, start_rows(), views)
        if started.losses and config.trains:
            fit_head(classifier, train, start_rows(), views, config)
    if config.trains:
        corpus = train if config.loss_spec.uses_unlabeled else train.select(labels.numpy() >= 0)
        part = views.frozen.get("train") if joint else None
        trainer = make_trainer(
            classifier,
            loss,
            replace(splits, train=corpus),
            config,
            out,
            frozen=part,
            save_steps=save_steps,
        )
        clock.clocks = trainer.clocks
        trainer.extras = {"clock": clock, **snapshots.parts}
        trainer.add_callback(snapshots.batch)
        bar = ProgressBar(description)
        for callback in (*callbacks, *((bar,) if progress else ())):
            trainer.add_callback(callback)
        try:
            trainer.train(None if latest is None else str(latest))
        finally:
            bar.stop()
        history = history_rows(trainer.state.log_history)
        metrics["steps"] = float(trainer.state.global_step)
        metrics["epochs_to_stop"] = float(trainer.state.epoch or 0.0)
        best = trainer.state.best_global_step or trainer.state.global_step
        metrics["best_step"] = float(best)
        metrics |= {f"seconds.{name}": s for name, s in trainer.stage_seconds().items()}
        _merge(adapters)
        if config.mode == "standalone" or config.refit_head:
            classifier.standalone = False
            final = views.rows("train")
            metrics |= fit_head(classifier, train, final, views, config)
    else:
        _merge(adapters)
        final = start_rows()
        metrics |= fit_head(classifier, train, final, views, config)
        metrics["steps"] = float(len(started.losses))
        history = [{"step": step + 1, "loss": v} for step, v in enumerate(started.losses)]
    metrics["seconds.train"] = clock.seconds - snapshots.seconds

    objective = loss if isinstance(loss, GraphGuidedObjective) else None
    memory = None if objective is None else objective.memory
    stored = memory is not None and len(memory) > 0
    if objective is None or not stored or config.loss_spec.frozen_targets:
        # Another loss's bank lacks documents or their learned rows: fill one to predict over.
        plain = replace(config, loss="gloss", memory_size=len(train))
        objective = make_objective(
            plain,
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
    for name, held_out in (("val", splits.val), ("test", splits.test)):
        if held_out is None:
            continue
        rows = views.rows(name)
        predict = predict_sets if train.multilabel else predict_classes
        predictions[name], embeddings[name] = predict(classifier, rows), rows
        metrics |= split_scores(name, predictions[name], rows, held_out)
        classes.add(name, "linear", predictions[name], held_out)
        part = views.frozen.get(name)
        metrics |= _propagation_scores(name, objective, rows, part, held_out, classes)
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
        # Of this version: those who compare runs leave them out.
        "defaults": DEFAULTS,
    }
    folder.write(settings, metrics, history)
    return result


def _merge(adapters: Adapters | None) -> None:
    """All that comes after training is made with the weights that are saved."""
    if adapters is not None:
        adapters.merge()


def with_few_labels(
    splits: Splits, *, fraction: float | None, per_class: int | None, seed: int
) -> Splits:
    """The splits with all training labels hidden but those that are drawn; see `draw_labels`."""
    if fraction is None and per_class is None:
        return splits
    kept = draw_labels(splits.train, fraction=fraction, per_class=per_class, seed=seed)
    return replace(splits, train=hide_labels(splits.train, kept))


def check_labels(splits: Splits, *, picks_step: bool, by_silhouette: bool = False) -> None:
    """Raise if the splits lack labels that a run needs, and warn about classes without any.

    Args:
        splits: The documents.
        picks_step: The validation part picks the best step.
        by_silhouette: It does so by the silhouette of its classes.
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
    missing = [
        name
        for name, count in zip(splits.train.label_names, splits.train.class_counts, strict=True)
        if not count
    ]
    if missing:
        warnings.warn(
            f"No training document is labeled {', '.join(map(repr, missing[:5]))}; such a class "
            "cannot be predicted.",
            UserWarning,
            stacklevel=3,
        )


def _skill(rows: Tensor | None, labels: Tensor, config: TrainConfig) -> GraphSkill | None:
    """The graph's prospects on the embeddings before training, where they can be told."""
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


def _propagation_scores(
    name: str,
    objective: GraphGuidedObjective,
    rows: Tensor,
    frozen: Tensor | None,
    corpus: Corpus,
    classes: ClassReport,
) -> dict[str, float]:
    memory = objective.memory
    if memory is None or not len(memory) or not bool(memory.labeled.any()):
        return {}
    spread = objective.predict(rows, frozen=frozen, mode="transductive")
    answer = (spread >= THRESHOLD if corpus.multilabel else spread.argmax(dim=1)).numpy()
    classes.add(name, "propagation", answer, corpus)
    # The embeddings are scored with the linear head.
    return split_scores(f"{name}_propagation", answer, None, corpus)
