"""Settings of a training run, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from gloss_graph._checks import check_choice, check_positive_int, check_range
from gloss_graph.graph.bandwidth import check_bandwidth
from gloss_graph.propagation import NORMALIZATIONS, RULES

LOSSES = {
    "ce": "cross-entropy",
    "gloss": "graph-guided loss over the memory bank",
    "gloss-published": "the paper's in-batch form",
    "gloss-released": "the in-batch form of the paper's released code",
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    r"""Everything a run depends on besides data and encoder.

    Attributes:
        loss: One of `LOSSES`.
        epochs: Passes over the training documents.
        max_steps: Optimiser steps, overriding `epochs`; None = by epochs.
        batch_size: Documents a step.
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
        k: Neighbours a row in the graph.
        bandwidth: \(\sigma\): a number or rule name.
        visible_fraction: \(\gamma\).
        graph_weight: \(\lambda\).
        eta: Leak of the harmonic rule; None = the rule's own.
        rule: Propagation rule.
        normalization: Propagation normalisation.
    """

    loss: str = "gloss"
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
    k: int = 16
    bandwidth: float | str = "sqrt"
    visible_fraction: float = 0.5
    graph_weight: float = 0.3
    eta: float | None = None
    rule: str = "harmonic"
    normalization: str = "hub"

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        check_range("epochs", self.epochs, 0, math.inf, open_low=True, open_high=True)
        for name in ("batch_size", "eval_batch_size", "gradient_accumulation", "patience", "k"):
            check_positive_int(name, getattr(self, name))
        for name in ("max_steps", "eval_steps"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        if self.memory_size is not None:
            check_positive_int("memory_size", self.memory_size, minimum=0)
        for name in ("learning_rate", "head_learning_rate"):
            check_range(name, getattr(self, name), 0, 1, open_low=True)
        for name in ("warmup", "weight_decay", "visible_fraction", "graph_weight"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("dropout", self.dropout, 0, 1, open_high=True)
        check_positive_int("seed", self.seed, minimum=0)
        if callable(self.bandwidth):
            raise ValueError(
                f"'bandwidth' must be a number or a rule name here (got {self.bandwidth!r}). Give "
                "a rule of your own to GraphGuidedObjective."
            )
        check_bandwidth(self.bandwidth)
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

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
