"""Settings of a training run, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.search_space import Dimension, Range
from gloss_graph.graph.bandwidth import check_bandwidth, check_fits_bank
from gloss_graph.memory import EVICTIONS
from gloss_graph.propagation import NORMALIZATIONS, RULES
from gloss_graph.step import Staleness

LOSSES = {
    "ce": "cross-entropy",
    "gloss": "graph-guided loss over the memory bank",
    "static-lp": "labels propagated once over frozen embeddings, then soft-label training",
    "pseudo-label": "confident predictions of a moving-average teacher",
    "scl": "supervised contrastive loss",
    "triplet": "batch-all triplet margin loss",
    "cosine": "squared error of the cosine of all pairs",
    "xbm-scl": "supervised contrastive loss over a cross-batch memory",
    "setfit": "contrastive warm start, then a balanced logistic head",
    "gloss-published": "the paper's in-batch form",
    "gloss-released": "the in-batch form of the paper's released code",
}

MODES = {
    "integrated": "λ L + (1 - λ) cross-entropy, best validation macro-F1",
    "standalone": "L alone, best validation macro-silhouette, then a linear probe",
}
DEVICES = ("auto", "cpu", "cuda", "mps")
GRAPH_CLASSES = ("auto", "co-training", "agreed", "propagated")
BANK_SEARCHES = ("auto", "exact", "descent", "ivf")
_JOINT_ONLY = ("ce", "static-lp", "pseudo-label", "setfit")
# What the paper searches.
SEARCH_SPACE: dict[str, Dimension] = {"learning_rate": Range(1e-5, 5e-5, step=1e-5)}


def check_label_draw(label_fraction: float | None, labels_per_class: int | None) -> None:
    """Raise unless at most one is given, and in its range.

    Raises:
        ValueError: Names the setting.
    """
    if label_fraction is not None and labels_per_class is not None:
        raise ValueError("Give either 'label_fraction' or 'labels_per_class' (got both).")
    if label_fraction is not None:
        check_range("label_fraction", label_fraction, 0, 1, open_low=True)
    if labels_per_class is not None:
        check_positive_int("labels_per_class", labels_per_class)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""Everything a run depends on besides data and encoder.

    Attributes:
        loss: One of `LOSSES`.
        mode: One of `MODES`.
        epochs: Passes over the training documents.
        max_steps: Optimiser steps, overriding `epochs`; None = by epochs; 0 = none: the linear head
            is fitted to the embeddings as they are after the contrastive stages (`ce`, `gloss`).
        batch_size: Documents a step, of each process where there are several.
        eval_batch_size: Documents a forward pass in evaluation.
        gradient_accumulation: Micro-batches a step.
        learning_rate: Of the encoder (AdamW, linear decay after warm-up).
        head_learning_rate: Of the linear head.
        warmup: Share of the steps with rising learning rate.
        weight_decay: AdamW's.
        dropout: On the embedding before the head.
        patience: Evaluations without a better validation macro-F1 before stopping.
        eval_steps: Steps between evaluations; None = every epoch.
        seed: Of initial head, data order, dropout and visibility splits.
        bf16: Autocast the encoder to bfloat16; the objective stays in float32.
        gradient_checkpointing: Recompute activations in the backward pass.
        memory_size: Rows of the bank; None = one a training document, at most 65,536.
        search: How the bank is searched: "exact", "descent", "ivf" or "auto", exact below
            32,768 rows. See `MemoryBank`.
        hops: A step propagates over remembered rows within so many links of the batch; None = over
            the whole bank. 2 suits large banks, 1 is too coarse.
        eviction: Who leaves a full bank, one of `gloss_graph.memory.EVICTIONS`.
        half_life: Steps in which the edges of a remembered row lose half; None = never.
        memory_start: Steps before remembered rows take part in the graph of a step.
        memory_ramp: Steps in which the weight of their edges then rises to 1.
        restandardize: Move remembered rows to the batch's mean and spread before they are searched.
        refresh_rows: Stalest rows of the bank that are encoded again every `refresh_rows_every`
            steps; 0 = none.
        refresh_rows_every: See `refresh_rows`.
        k: Neighbours a row in the graph.
        bandwidth: \(\sigma\): a number or rule name.
        bandwidth_scale: What the bandwidth is multiplied by.
        visible_fraction: \(\gamma\).
        memory_visible_fraction: Share of the bank's labels that a step shows.
        ids: Tell the bank which document a row is. False shows what that is for: documents then
            meet their own past copy, label included.
        graph_weight: \(\lambda\), weight of the graph or metric loss beside cross-entropy.
        temperature: Of the contrastive losses.
        margin: Of the triplet loss.
        eta: Leak of the harmonic rule; None = the rule's own.
        rule: Propagation rule.
        normalization: Propagation normalisation.
        label_fraction: Share of the training labels that is used, a seeded draw; the others are
            hidden. None = all.
        labels_per_class: The same as a number a class.
        unlabeled_batch_size: Unlabeled documents a step, beside `batch_size` labeled ones, where
            there are any.
        consistency_weight: Weight of the unlabeled documents' term.
        refresh_every: Steps between solves over the bank; 0 = targets of each step's own graph,
            None = 40, or a sixth of the steps if that is less.
        anchor: Weight of the similarity of the embeddings before training (frozen) in the graph,
            for documents without label; 0 = the learned similarity alone.
        align: Power of the class-mass alignment.
        warm_start_steps: Contrastive steps on the labeled documents before training; 0 = none.
        graph_start_steps: Contrastive steps on the whole corpus after them, the classes of
            unlabeled documents as the next says; 0 = none.
        graph_start_classes: "propagated" over the graph of the corpus; "agreed": what propagation,
            Poisson learning and a logistic regression on the embeddings agree on; "co-training":
            what these and both propagations over the words of the documents agree on; "auto": the
            third for texts, of features the second from three labels a class on, else the first.
        warm_start_rate: Learning rate of the first of both.
        graph_start_rate: Of the second; None = twice that, as there are more labels to learn from.
        refit_head: Fit the linear head anew after training, whatever the loss: a class-balanced
            logistic regression on the labeled documents, then one on all documents with the classes
            that the graph and the first agree on for the others. `gloss` with `max_steps=0` does so
            anyway.
        class_balance: Draw labeled documents with equal shares of the classes.
        freeze_layers: Embedding layer and first layers of the encoder that are not trained.
        lora_rank: Rank of low-rank adapters that are trained in place of the encoder's weights,
            which they are merged into at the end; 0 = none. Layers that `freeze_layers` freezes
            get none. Adapters take larger steps than weights: a `learning_rate` of about 1e-3.
        lora_alpha: Scale of the adapters, divided by their rank.
        lora_dropout: On the input of the adapters.
        lora_targets: Layers with adapters, comma-separated ends of their names, or "all-linear";
            None = what the family is known for, query and value projections in most.
        teacher_decay: Decay of a moving-average copy of the model that makes references and
            pseudo-labels; 0 = the model itself.
        select: "best" validation step, "last" step, or "auto": last with few labels.
        device: One of `DEVICES`; "auto" = the fastest there is.
        pictures: Record what pictures and report are drawn from: up to 1,000 documents embedded
            before training, 64 a few times on the way.
    """

    loss: str = "gloss"
    mode: str = "integrated"
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 64
    gradient_accumulation: int = 1
    learning_rate: float = 5e-5
    head_learning_rate: float = 5e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: float = 0.1
    patience: int = 10
    eval_steps: int | None = None
    seed: int = 0
    bf16: bool = False
    gradient_checkpointing: bool = False
    memory_size: int | None = None
    search: str = "auto"
    hops: int | None = None
    eviction: str = "fifo"
    half_life: float | None = None
    memory_start: int = 0
    memory_ramp: int = 0
    restandardize: bool = False
    refresh_rows: int = 0
    refresh_rows_every: int = 10
    k: int = 16
    bandwidth: float | str = "sqrt"
    bandwidth_scale: float = 1.0
    visible_fraction: float = 0.5
    memory_visible_fraction: float = 1.0
    ids: bool = True
    graph_weight: float = 0.3
    temperature: float = 0.1
    margin: float = 0.2
    eta: float | None = None
    rule: str = "harmonic"
    normalization: str = "hub"
    label_fraction: float | None = None
    labels_per_class: int | None = None
    unlabeled_batch_size: int = 32
    consistency_weight: float = 1.0
    refresh_every: int | None = None
    anchor: float = 0.5
    align: float = 0.5
    warm_start_steps: int = 0
    graph_start_steps: int = 0
    graph_start_classes: str = "auto"
    warm_start_rate: float = 2e-5
    graph_start_rate: float | None = None
    refit_head: bool = False
    class_balance: bool = False
    freeze_layers: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.1
    lora_targets: str | None = None
    teacher_decay: float = 0.0
    select: str = "auto"
    device: str = "auto"
    pictures: bool = True

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        check_choice("mode", self.mode, MODES)
        if self.mode == "standalone" and self.loss in _JOINT_ONLY:
            raise ValueError(
                f"'mode' must be 'integrated' for loss={self.loss!r}, which trains a classifier "
                f"(got {self.mode!r})."
            )
        for name in ("temperature", "margin", "bandwidth_scale"):
            value = getattr(self, name)
            check_range(name, value, 0, math.inf, open_low=True, open_high=True)
        check_range("epochs", self.epochs, 0, math.inf, open_low=True, open_high=True)
        for name in ("batch_size", "eval_batch_size", "gradient_accumulation", "patience", "k"):
            check_positive_int(name, getattr(self, name))
        if self.eval_steps is not None:
            check_positive_int("eval_steps", self.eval_steps)
        if self.max_steps is not None:
            fits = self.loss in ("ce", "gloss", "setfit")
            check_positive_int("max_steps", self.max_steps, minimum=0 if fits else 1)
        if self.memory_size is not None:
            check_positive_int("memory_size", self.memory_size, minimum=0)
        self._check_memory()
        for name in ("learning_rate", "head_learning_rate"):
            check_range(name, getattr(self, name), 0, 1, open_low=True)
        shares = ("warmup", "weight_decay", "graph_weight")
        for name in (*shares, "visible_fraction", "memory_visible_fraction"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("dropout", self.dropout, 0, 1, open_high=True)
        self._check_few_labels()
        self._check_adapters()
        check_choice("device", self.device, DEVICES)
        check_choice("search", self.search, BANK_SEARCHES)
        check_positive_int("seed", self.seed, minimum=0)
        if callable(self.bandwidth):
            raise ValueError(
                f"'bandwidth' must be a number or a rule name here (got {self.bandwidth!r}). Give "
                "a rule of your own to GraphGuidedObjective."
            )
        check_bandwidth(self.bandwidth)
        if self.memory_size != 0 and self.loss in ("gloss", "static-lp"):
            check_fits_bank(self.bandwidth)
        if self.bandwidth == "local" and self.bandwidth_scale != 1:
            raise ValueError(
                f"'bandwidth_scale' must be 1 for bandwidth='local' (got {self.bandwidth_scale})."
            )
        check_choice("rule", self.rule, RULES)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        if self.eta is not None:
            check_range("eta", self.eta, 0, math.inf, open_high=True)
        in_batch = self.loss in ("gloss-published", "gloss-released")
        if in_batch and isinstance(self.bandwidth, str) and self.bandwidth != "sqrt":
            raise ValueError(
                f"'bandwidth' of loss={self.loss!r} must be a number or 'sqrt' "
                f"(got {self.bandwidth!r})."
            )

    def _check_memory(self) -> None:
        if self.hops is not None:
            check_positive_int("hops", self.hops)
        check_choice("eviction", self.eviction, EVICTIONS)
        Staleness(
            half_life=self.half_life,
            restandardize=self.restandardize,
            warmup_steps=self.memory_start,
            ramp_steps=self.memory_ramp,
        )
        check_positive_int("refresh_rows", self.refresh_rows, minimum=0)
        check_positive_int("refresh_rows_every", self.refresh_rows_every)

    def _check_few_labels(self) -> None:
        check_label_draw(self.label_fraction, self.labels_per_class)
        for name in (
            "unlabeled_batch_size",
            "warm_start_steps",
            "graph_start_steps",
            "freeze_layers",
        ):
            check_positive_int(name, getattr(self, name), minimum=0)
        if self.refresh_every is not None:
            check_positive_int("refresh_every", self.refresh_every, minimum=0)
        check_range("consistency_weight", self.consistency_weight, 0, math.inf, open_high=True)
        check_range("anchor", self.anchor, 0, 1)
        check_range("align", self.align, 0, 1)
        check_range("warm_start_rate", self.warm_start_rate, 0, 1, open_low=True)
        if self.graph_start_rate is not None:
            check_range("graph_start_rate", self.graph_start_rate, 0, 1, open_low=True)
        check_range("teacher_decay", self.teacher_decay, 0, 1, open_high=True)
        check_choice("graph_start_classes", self.graph_start_classes, GRAPH_CLASSES)
        check_choice("select", self.select, ("auto", "best", "last"))

    def _check_adapters(self) -> None:
        check_positive_int("lora_rank", self.lora_rank, minimum=0)
        check_range("lora_alpha", self.lora_alpha, 0, math.inf, open_low=True, open_high=True)
        check_range("lora_dropout", self.lora_dropout, 0, 1, open_high=True)
        targets = self.lora_targets
        if targets is not None and (not isinstance(targets, str) or not targets.strip(" ,")):
            raise ValueError(
                "'lora_targets' must be names of layers, comma-separated, or None for the "
                f"family's own (got {targets!r})."
            )

    @property
    def few_labels(self) -> bool:
        """Whether only a draw of the labels is used."""
        return self.label_fraction is not None or self.labels_per_class is not None

    @property
    def trains(self) -> bool:
        """Whether head and encoder are trained together, after the contrastive stages."""
        return self.loss != "setfit" and self.max_steps != 0

    @property
    def fits_on_graph(self) -> bool:
        """Whether a head that is fitted learns from what the graph propagates, too."""
        return self.loss == "gloss" or self.refit_head

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last step are kept."""
        few = self.few_labels or not self.trains
        return self.select == "last" or (self.select == "auto" and few)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
