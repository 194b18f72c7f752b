"""Stages before joint training: contrast by class, the bank filled, the head fitted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from gloss_graph.graph.bandwidth import scaled_bandwidth
from gloss_graph.inference import GraphClassifier, PropagationHead
from gloss_graph.inference.agreement import trusted_labels
from gloss_graph.losses import pair_cosine_loss
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import joint_view
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation.alignment import row_shares
from gloss_graph.step.settings import Consistency
from gloss_graph.text import Corpus, FeatureEncoder, Splits, TextEncoder, lexical_rows
from gloss_graph.training.checkpoints import Checkpoints
from gloss_graph.training.classifier import TextClassifier, fit_balanced_head, fit_propagated_head
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.data import MixedSampler, TextCollator, TextDataset, label_tensor


class SplitEmbeddings:
    """Documents of a run and their embeddings: `frozen`, before training, and `rows(name)`, now.

    Frozen ones exist only where `config.anchor` uses them. Those of before the training may be
    `given` by split.
    """

    def __init__(
        self,
        encoder: TextEncoder | FeatureEncoder,
        splits: Splits,
        config: TrainConfig,
        given: Mapping[str, Tensor] | None,
        progress: bool,
    ) -> None:
        self.encoder, self.splits, self.config = encoder, splits, config
        self.progress, self.train = progress, splits.train
        self.frozen: dict[str, Tensor] = {}
        #: Embeddings (N, D) of the training documents before training, where they are used.
        self.before: Tensor | None = None
        if config.loss_spec.in_batch or min(self.train.labels) >= 0:
            return
        names = list(splits.parts) if config.anchor > 0 else ["train"] if config.spreads else []
        known = given or {}
        before = {n: known[n] if n in known else self.rows(n) for n in names}
        for name, rows in before.items():
            if len(rows) != (size := len(splits.parts[name])):
                raise ValueError(f"'frozen' must hold {size} rows for {name!r} (got {len(rows)}).")
        self.before = before.get("train")
        if config.anchor > 0:
            self.frozen = before

    @property
    def dim(self) -> int:
        """Width of the frozen features, 0 without."""
        return self.frozen["train"].size(1) if self.frozen else 0

    @property
    def start_rows(self) -> Tensor:
        """Embeddings (N, D) of the training documents before training."""
        return self.rows("train") if self.before is None else self.before

    def rows(self, name: str) -> Tensor:
        """Embeddings (N, D) of a split by the encoder as it is now, on the CPU."""
        corpus, size = self.splits.parts[name], self.config.eval_batch_size
        device = next(self.encoder.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.bf16):
            return self.encoder.embed(corpus, batch_size=size, progress=self.progress)


# ------------------------------------------------------------------ contrast


def contrastive_warm_start(
    encoder: TextEncoder | FeatureEncoder,
    corpus: Corpus,
    *,
    steps: int = 60,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    seed: int = 0,
    bf16: bool = False,
    progress: bool = False,
) -> list[float]:
    """Pull documents of one class together and push others apart, as SetFit does.

    Args:
        encoder: Fine-tuned in place, on its device; only parameters that require a gradient.
        corpus: Documents; unlabeled ones are left out.
        steps: Steps of AdamW, with 10 % warm-up, then linear decay.
        batch_size: Labeled documents per step, classes in equal shares.
        learning_rate: Highest learning rate.
        seed: Seed of the batches and of dropout.
        bf16: Autocast the encoder to bfloat16.
        progress: Show a progress bar.

    Returns the loss of every step; raises a `ValueError` without a labeled document.
    """
    # One at a time, so that classes and documents take turns whatever the size of a batch.
    sampler = MixedSampler(corpus.labels, labeled=1, unlabeled=0, balanced=True, seed=seed)
    return _contrast(
        encoder,
        corpus,
        lambda rows, labels, _: pair_cosine_loss(rows, labels),
        drawn_batches(sampler, batch_size, steps),
        learning_rate=learning_rate,
        seed=seed,
        bf16=bf16,
        progress=progress,
    )


def contrast_over_bank(
    views: SplitEmbeddings, rows: Tensor, words: Tensor | None, steps: int
) -> list[float]:
    """Train on the contrast of a `GraphGuidedObjective` alone, over a bank of all documents.

    Their embeddings `rows` (N, D) fill the bank; their `words` (N, D'') are one more view for the
    classes. Returns the loss of every step.
    """
    encoder, train, config = views.encoder, views.train, views.config
    ids, labels = torch.tensor(train.ids), label_tensor(train)
    bank = MemoryBank(len(train), encoder.dim, k=0, normalize=config.graph.normalize)
    bank.enqueue(rows, labels, ids)
    settings = head_settings(config, train.num_classes)
    objective = GraphGuidedObjective(
        train.num_classes,
        memory=bank,
        graph=settings.graph,
        graph_weight=0.0,
        consistency=Consistency(weight=0.0, align=settings.align),
        contrast=replace(config.contrast, weight=1.0),
        views=() if words is None else [(ids, words)],
        seed=config.seed,
        **asdict(settings.propagation),
    )
    objective.to(next(encoder.parameters()).device)
    sampler = MixedSampler(
        train.labels,
        labeled=config.batch_size,
        unlabeled=config.unlabeled_batch_size,
        balanced=True,
        seed=config.seed,
    )
    return _contrast(
        encoder,
        train,
        lambda rows, labels, ids: objective(rows, labels, ids=ids),
        drawn_batches(sampler, sampler.labeled + sampler.unlabeled, steps),
        learning_rate=config.graph_start_rate or 2.0 * config.warm_start_rate,
        seed=config.seed,
        bf16=config.bf16,
        progress=views.progress,
    )


def corpus_steps(train: Corpus, config: TrainConfig) -> int:
    """Steps of the stage over the corpus: more labels and classes take longer to learn."""
    if config.graph_start_steps is not None:
        return config.graph_start_steps
    passes, fewest, most = 5, 80, 400
    labeled = sum(label >= 0 for label in train.labels)
    return min(max(math.ceil(passes * labeled / config.batch_size), fewest), most)


def drawn_batches(sampler: MixedSampler, size: int, count: int) -> list[list[int]]:
    """`count` batches of `size` documents, over as many epochs of a sampler as that takes."""
    drawn: list[int] = []
    while len(drawn) < count * size:
        drawn.extend(sampler)
        sampler.set_epoch(sampler.epoch + 1)
    return [drawn[i * size : (i + 1) * size] for i in range(count)]


def _contrast(
    encoder: TextEncoder | FeatureEncoder,
    corpus: Corpus,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    batches: Sequence[Sequence[int]],
    *,
    learning_rate: float,
    seed: int,
    bf16: bool,
    progress: bool,
) -> list[float]:
    """Minimize a loss of embeddings, labels and ids, one batch per step; returns its values."""
    dataset, collate = TextDataset(corpus, encoder), TextCollator(encoder)
    parameters = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    steps, warmup = len(batches), max(1, math.ceil(0.1 * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    device = next(encoder.parameters()).device
    was_training, losses = encoder.training, []
    encoder.train()
    torch.manual_seed(seed)
    console = Console(stderr=True)
    bar = track(batches, "Contrast", console=console, transient=True, disable=not progress)
    try:
        for chosen in bar:
            batch = {k: v.to(device) for k, v in collate([dataset[i] for i in chosen]).items()}
            labels, ids = batch.pop("labels"), batch.pop("ids")
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                embeddings = encoder(**batch)
            loss = loss_of(embeddings, labels, ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
    finally:
        encoder.train(was_training)
    return losses


def shared_words(train: Corpus, config: TrainConfig) -> Tensor | None:
    """Rows of the documents by their words (N, D''), where the classes of the graph use them."""
    chosen = config.graph_start_classes
    # The texts of features may be mere names.
    if chosen == "agreed" or (chosen == "auto" and train.features is not None):
        return None
    words = lexical_rows(train, seed=config.seed)
    if chosen == "co-training" and words is None:
        raise ValueError(
            "'graph_start_classes' is \"co-training\", which needs texts that share words (there "
            'are features only, or next to no words). Choose "agreed".'
        )
    return words


# ------------------------------------------------------------------ stages of a run


def run_start_stages(
    views: SplitEmbeddings, checkpoints: Checkpoints
) -> tuple[list[float], dict[str, float]]:
    """Run the contrastive stages of a configuration; returns losses, and seconds as metrics.

    The first stage uses the labels, the second one the contrast of the objective over a bank of all
    documents. A stage that ended before an interruption is loaded from the `checkpoints`.
    """
    encoder, train, config = views.encoder, views.train, views.config
    stages: dict[str, Callable[[], list[float]]] = {}
    steps = config.warm_start_steps
    if config.loss_spec.warm_start_steps:
        steps = steps or config.max_steps or config.loss_spec.warm_start_steps
    if steps > 0:
        stages["warm-start"] = lambda: contrastive_warm_start(
            encoder,
            train,
            steps=steps,
            batch_size=config.batch_size,
            learning_rate=config.warm_start_rate,
            seed=config.seed,
            bf16=config.bf16,
            progress=views.progress,
        )
    if config.spreads and min(train.labels) < 0:
        # Before the first step, so that what cannot be done is said at once.
        words, count = shared_words(train, config), corpus_steps(train, config)
        stages["graph-start"] = lambda: contrast_over_bank(
            views, views.rows("train") if steps else views.start_rows, words, count
        )
    losses: list[float] = []
    metrics: dict[str, float] = {}
    for name, stage in stages.items():
        start, done = time.perf_counter(), checkpoints.load_stage(name, encoder)
        if done is None:
            found = stage()
            done = found, time.perf_counter() - start
            checkpoints.save_stage(name, encoder, *done)
        losses += done[0]
        metrics[f"seconds.{name.replace('-', '_')}"] = done[1]
    return losses, metrics


def head_settings(config: TrainConfig, num_classes: int) -> GraphClassifier:
    """Settings of graph and propagation over the corpus, as the objective has them."""
    bandwidth = scaled_bandwidth(config.bandwidth, config.bandwidth_scale)
    return GraphClassifier(
        num_classes=num_classes,
        graph=replace(config.graph, bandwidth=bandwidth),
        propagation=config.propagation,
        align=config.align,
    )


def fill_bank(objective: GraphGuidedObjective, views: SplitEmbeddings, rows: Tensor) -> None:
    """Store every training document, labeled ones last: a small bank forgets the others first."""
    if objective.memory is None or objective.memory.capacity == 0:
        return
    view = joint_view(rows, views.frozen.get("train"), objective.frozen_weight)
    labels, ids = label_tensor(views.train), torch.tensor(views.train.ids)
    order = (torch.tensor(views.train.labels) >= 0).int().argsort(stable=True)
    objective.memory.prefill([(view[order], labels[order], ids[order])], lambda rows: rows)


def fit_head(classifier: TextClassifier, views: SplitEmbeddings, rows: Tensor) -> dict[str, float]:
    """Fit the linear head to embeddings (N, D), and return its strength as a metric.

    A class-balanced logistic regression on the labeled documents; where the graph takes part, then
    one on all documents, by the geometric mean of the first and of propagation.
    """
    config, labels = views.config, torch.tensor(views.train.labels)
    known = labels >= 0
    strength = fit_balanced_head(classifier, rows[known], labels[known], seed=config.seed)
    if (config.loss_spec.head_from_graph or config.refit_head) and not bool(known.all()):
        view = joint_view(rows, views.frozen.get("train"), config.anchor)
        solved = PropagationHead(view, labels, head_settings(config, views.train.num_classes))
        spread = solved.probabilities(solved.hits)
        fitted = classifier.head_logits(rows).softmax(dim=1)
        found, trust = trusted_labels(row_shares((fitted * spread.to(fitted)).sqrt()), labels)
        fit_propagated_head(classifier, rows, found, trust)
    return {"head.C": strength}
