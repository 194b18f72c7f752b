"""One training run: splits and an encoder in, a trained classifier and a run folder out."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import set_seed

from gloss_graph._processes import is_main, wait_for_all
from gloss_graph.graph.views import joint_view
from gloss_graph.inference import GraphSkill, PropagationHead, graph_skill
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import entropy_confidence
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.folders import new_folder, write_json
from gloss_graph.training.labels import draw_labels, hide_labels, write_labels_used
from gloss_graph.training.outcome import (
    describe,
    fit_balanced_head,
    fit_propagated_head,
    history_rows,
    predict_classes,
    split_scores,
)
from gloss_graph.training.processes import join_processes, on_main
from gloss_graph.training.progress import ProgressBar
from gloss_graph.training.provenance import provenance
from gloss_graph.training.setup import (
    USES_UNLABELED,
    freeze_layers,
    make_loss,
    make_objective,
    make_trainer,
)
from gloss_graph.training.state import save_objective
from gloss_graph.training.warmstart import contrastive_warm_start

_SIGMA_SAMPLE = 1024
_SETFIT_STEPS = 60


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Attributes:
        model: The trained classifier (best validation macro-F1, or last step).
        objective: An objective whose bank holds the training documents, for `predict`.
        metrics: Flat numbers: `test.macro_f1`, `test_propagation.macro_f1`, `seconds.encoder`, ...
        history: Rows of step, losses and validation scores.
        predictions: Split name -> predicted class (N,) of its documents.
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
    encoder: TextEncoder,
    config: TrainConfig,
    out: str | Path,
    *,
    frozen: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    description: str = "Training",
) -> RunResult:
    """Fine-tune an encoder with a linear head and score it.

    Writes `config.json`, `metrics.json`, `history.csv`, `labels_used.csv`, `model/` and `memory/`
    into `out`; `checkpoints/` lives there while training runs. Under `torchrun` every process
    trains on batches of its own and computes the same scores; the first one writes and speaks.

    Args:
        splits: Training, validation and test documents; training documents may lack labels.
        encoder: Fine-tuned in place.
        config: Settings.
        out: New or empty folder.
        frozen: Embeddings of the encoder as given, for `"train"`, `"val"` and `"test"`, where they
            are at hand from an earlier run; computed otherwise.
        progress: Show progress bars.
        description: What the bar says.

    Raises:
        ValueError: No labeled document in training; no validation split with labels where it
            picks the best step.
        FileExistsError: `out` holds files.
    """
    splits = _few_labels(splits, config)
    _check_labels(splits, config)
    join_processes()
    out = Path(out)
    on_main(lambda: new_folder(out))
    progress = progress and is_main()
    set_seed(config.seed)
    train = splits.train
    labels = torch.tensor(train.labels)
    classifier = TextClassifier(
        encoder, train.label_names, dropout=config.dropout, seed=config.seed
    )
    freeze_layers(encoder, config.freeze_layers)
    start = time.perf_counter()
    metrics: dict[str, float] = {}
    views = _Views(encoder, splits, config, frozen, progress)
    skill = _skill(views.frozen.get("train"), labels, config)
    if skill is not None:
        metrics |= {f"graph_skill.{key}": float(value) for key, value in skill._asdict().items()}
    warm_steps, losses = config.warm_start_steps, []
    if config.loss == "setfit":
        warm_steps = warm_steps or config.max_steps or _SETFIT_STEPS
    if warm_steps:
        losses = contrastive_warm_start(
            encoder,
            train,
            steps=warm_steps,
            batch_size=config.batch_size,
            learning_rate=config.warm_start_rate,
            seed=config.seed,
            bf16=config.bf16,
            progress=progress,
        )
        metrics["seconds.warm_start"] = time.perf_counter() - start
    loss = make_loss(
        config,
        train.num_classes,
        encoder.dim,
        train.labels,
        frozen_dim=views.dim,
        sample=_sigma_sample(encoder, train, config, progress),
    )
    joint = isinstance(loss, GraphGuidedObjective) and views.dim > 0
    # Rows of the training documents by the encoder as it is at the end, where they are at hand.
    final: Tensor | None = None
    if isinstance(loss, GraphGuidedObjective) and joint:
        rows = views.rows("train") if warm_steps else views.frozen["train"]
        _fill(loss, train, rows, views)
        if warm_steps:
            _start_head(classifier, loss, rows, train)
    history: list[dict[str, float]] = []
    if config.loss == "setfit":
        final = views.rows("train")
        known = labels >= 0
        metrics["head.C"] = fit_balanced_head(
            classifier, final[known], labels[known], seed=config.seed
        )
        metrics["steps"] = float(warm_steps)
        history = [{"step": step + 1, "loss": value} for step, value in enumerate(losses)]
    else:
        corpus = train if config.loss in USES_UNLABELED else train.select(labels.numpy() >= 0)
        part = views.frozen.get("train") if joint else None
        trainer = make_trainer(
            classifier, loss, replace(splits, train=corpus), config, out, frozen=part
        )
        bar = ProgressBar(description)
        if progress:
            trainer.add_callback(bar)
        try:
            trainer.train()
        finally:
            bar.stop()
        history = history_rows(trainer.state.log_history)
        metrics["steps"] = float(trainer.state.global_step)
        metrics["epochs_to_stop"] = float(trainer.state.epoch or 0.0)
        best = trainer.state.best_global_step or trainer.state.global_step
        metrics["best_step"] = float(best)
        metrics |= {f"seconds.{name}": s for name, s in trainer.stage_seconds().items()}
    metrics["seconds.train"] = time.perf_counter() - start

    objective = loss if isinstance(loss, GraphGuidedObjective) else None
    memory = None if objective is None else objective.memory
    if objective is None or memory is None or not memory.capacity or config.loss == "static-lp":
        # Another loss's bank lacks documents or their learned rows: fill one to predict over.
        plain = replace(config, loss="gloss", memory_size=len(train))
        objective = make_objective(
            plain,
            train.num_classes,
            encoder.dim,
            len(train),
            frozen_dim=views.dim,
            targets=False,
        )
        _fill(objective, train, views.rows("train") if final is None else final, views)
    objective = objective.cpu().eval()
    predictions, embeddings = {}, {}
    for name, held_out in (("val", splits.val), ("test", splits.test)):
        if held_out is None:
            continue
        rows = views.rows(name)
        predictions[name], embeddings[name] = predict_classes(classifier, rows), rows
        metrics |= split_scores(name, predictions[name], rows, held_out)
        metrics |= _propagation_scores(name, objective, rows, views.frozen.get(name), held_out)
    metrics["seconds.total"] = time.perf_counter() - start

    classifier.eval().to("cpu")
    result = RunResult(classifier, objective, metrics, history, predictions, embeddings, skill)
    wait_for_all()  # the checkpoints are read by all
    if not is_main():
        wait_for_all()  # until the folder is whole
        return result
    classifier.save(out / "model")
    (out / "memory").mkdir()
    save_objective(objective, out / "memory" / "objective.safetensors")
    write_labels_used(train, out / "labels_used.csv")
    memory = objective.memory
    settings = {
        **config.as_dict(),
        "encoder": repr(encoder),
        "encoder_name": encoder.source,
        "max_length": encoder.max_length,
        "pooling": encoder.pooling,
        "data": describe(splits),
        "bank": {
            "capacity": 0 if memory is None else memory.capacity,
            "frozen_dim": views.dim,
            "targets": objective.targets.refresh_every > 0,
        },
    }
    write_json(out / "config.json", {**settings, **provenance()})
    write_json(out / "metrics.json", metrics)
    pd.DataFrame(history).to_csv(out / "history.csv", index=False)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    wait_for_all()
    return result


class _Views:
    """Embeddings of the splits: `frozen`, before training, and `rows(name)`, as of now."""

    def __init__(
        self,
        encoder: TextEncoder,
        splits: Splits,
        config: TrainConfig,
        given: Mapping[str, Tensor] | None,
        progress: bool,
    ) -> None:
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        self._corpora = {name: part for name, part in parts.items() if part is not None}
        self._encoder, self._config, self._progress = encoder, config, progress
        self.frozen: dict[str, Tensor] = {}
        unlabeled = any(label < 0 for label in splits.train.labels)
        if config.anchor > 0 and unlabeled and not config.loss.startswith("gloss-"):
            for name, corpus in self._corpora.items():
                rows = (given or {}).get(name)
                if rows is not None and rows.size(0) != len(corpus):
                    raise ValueError(
                        f"'frozen' must hold {len(corpus)} rows for {name!r} (got {rows.size(0)})."
                    )
                self.frozen[name] = self.rows(name) if rows is None else rows

    @property
    def dim(self) -> int:
        """Width of the frozen features, 0 where there are none."""
        return self.frozen["train"].size(1) if self.frozen else 0

    def rows(self, name: str) -> Tensor:
        """Embeddings (N, D) of a split by the encoder as it is now, on the CPU."""
        corpus = self._corpora[name]
        return self._encoder.encode(
            corpus.texts,
            corpus.texts_b,
            batch_size=self._config.eval_batch_size,
            progress=self._progress,
        )


def _few_labels(splits: Splits, config: TrainConfig) -> Splits:
    if not config.few_labels:
        return splits
    kept = draw_labels(
        splits.train,
        fraction=config.label_fraction,
        per_class=config.labels_per_class,
        seed=config.seed,
    )
    return replace(splits, train=hide_labels(splits.train, kept))


def _check_labels(splits: Splits, config: TrainConfig) -> None:
    needed = {"train": splits.train}
    if not config.keeps_last:
        if splits.val is None:
            raise ValueError("'splits' must have a validation part, which picks the best step.")
        needed["val"] = splits.val
    for part, corpus in needed.items():
        if not sum(corpus.class_counts):
            raise ValueError(
                f"'splits.{part}' must hold a labeled document (got none of {len(corpus)}). Label "
                "some, or check the column of the labels."
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
    warn = config.loss in ("gloss", "static-lp")
    return graph_skill(rows, labels, k=config.k, align=config.align, seed=config.seed, warn=warn)


def _sigma_sample(
    encoder: TextEncoder, train: Corpus, config: TrainConfig, progress: bool
) -> Tensor | None:
    if not (config.loss.startswith("gloss-") and isinstance(config.bandwidth, str)):
        return None
    step = max(1, len(train) // _SIGMA_SAMPLE)
    some = train.select(range(0, len(train), step)[:_SIGMA_SAMPLE])
    return encoder.encode(some.texts, some.texts_b, progress=progress)


def _fill(objective: GraphGuidedObjective, train: Corpus, rows: Tensor, views: _Views) -> None:
    """Store every training document, labeled ones last: a small bank forgets the others first."""
    if objective.memory is None or objective.memory.capacity == 0:
        return
    view = joint_view(rows, views.frozen.get("train"), objective.anchor)
    labels, ids = torch.tensor(train.labels), torch.tensor(train.ids)
    order = (labels >= 0).int().argsort(stable=True)
    objective.memory.prefill([(view[order], labels[order], ids[order])], lambda rows: rows)


def _start_head(
    classifier: TextClassifier, objective: GraphGuidedObjective, rows: Tensor, train: Corpus
) -> None:
    """A head for warm-started embeddings: fitted to what they propagate, weighted by trust."""
    memory = objective.memory
    if memory is None or memory.capacity < len(train):
        return
    solved = PropagationHead(memory.embeddings, memory.labels, objective.targets.settings)
    places = memory.slots_of(torch.tensor(train.ids))
    target = solved.probabilities(solved.hits)[places]
    labels = torch.tensor(train.labels)
    known = labels >= 0
    weights = torch.where(known, 1.0, entropy_confidence(target))
    fit_propagated_head(classifier, rows, torch.where(known, labels, target.argmax(dim=1)), weights)


def _propagation_scores(
    name: str,
    objective: GraphGuidedObjective,
    rows: Tensor,
    frozen: Tensor | None,
    corpus: Corpus,
) -> dict[str, float]:
    memory = objective.memory
    if memory is None or not len(memory) or not bool((memory.labels >= 0).any()):
        return {}
    answer = objective.predict(rows, frozen=frozen, mode="transductive")
    scores = split_scores(f"{name}_propagation", answer.argmax(dim=1).numpy(), rows, corpus)
    return {key: value for key, value in scores.items() if "silhouette" not in key}
