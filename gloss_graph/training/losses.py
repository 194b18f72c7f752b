"""The losses of a training run: what each of them needs, learns from and reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


class LossSettings(Protocol):
    """Settings of `TrainConfig` that decide which others a loss reads."""

    mode: str
    ids: bool
    memory_size: int | None
    refresh_rows: int


# Settings of the bank's part in the graph of a step.
_BANK_GRAPH = frozenset(
    (
        *("search", "hops", "half_life", "memory_start", "memory_ramp"),
        *("restandardize", "memory_visible_fraction"),
    )
)


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Properties of a loss, so that code never compares names.

    Attributes:
        help: A line for people.
        module: Kind of its module; None = the classifier's cross-entropy alone.
        form: Constructor of the in-batch objective, which has a fixed bandwidth.
        settings: Settings that its steps always read.
        needs_head: It trains a classifier, so it has no standalone mode.
        trains: Head and encoder are trained together; otherwise only the contrastive stages run.
        fits_head: Without a training step the head can be fitted to the embeddings.
        head_from_graph: A fitted head also learns from propagated labels.
        weighted: `graph_weight` weighs it against cross-entropy.
        uses_unlabeled: Unlabeled documents take part in its steps.
        label_sets: It is defined for documents of several classes.
        over_bank: Its graph holds the bank.
        fills_bank: Every step writes its bank.
        frozen_targets: Targets are solved once, over the embeddings before training, so that its
            bank cannot predict after training.
        reference: When to make a second forward pass without dropout: "never", "unlabeled" = with
            unlabeled documents, "always".
        teacher_decay: Default decay of the teacher; 0 = no teacher.
        warm_start_steps: Default number of contrastive steps.
        searched: Settings that a search tries by default.
    """

    help: str
    module: Literal["objective", "metric", "pseudo-labels"] | None = None
    form: Literal["published", "released"] | None = None
    settings: tuple[str, ...] = ()
    needs_head: bool = False
    trains: bool = True
    fits_head: bool = False
    head_from_graph: bool = False
    weighted: bool = False
    uses_unlabeled: bool = False
    label_sets: bool = False
    over_bank: bool = False
    fills_bank: bool = False
    frozen_targets: bool = False
    reference: str = "never"
    teacher_decay: float = 0.0
    warm_start_steps: int = 0
    searched: tuple[str, ...] = ("bandwidth", "visible_fraction", "graph_weight", "learning_rate")

    @property
    def in_batch(self) -> bool:
        """Whether its graph holds one batch and no bank."""
        return self.form is not None

    def reads(self, config: LossSettings, *, unlabeled: bool) -> set[str]:
        """Settings that its training steps read, with or without unlabeled documents."""
        integrated, used = config.mode == "integrated", set(self.settings)
        if integrated and self.weighted:
            used.add("graph_weight")
        if unlabeled and self.uses_unlabeled:
            used |= {"unlabeled_batch_size"} | ({"consistency_weight"} if integrated else set())
        if unlabeled and self.reference != "never":
            used.add("teacher_decay")
        if not (self.fills_bank or (self.frozen_targets and unlabeled)):
            return used
        used.add("memory_size")
        if config.memory_size == 0:
            return used
        used |= {"eviction", "ids"}
        if self.frozen_targets and config.ids:
            return used  # the bank is solved once and looked up by id from then on
        # Rows are encoded again by the teacher, if there is one.
        refreshed = {"teacher_decay", "refresh_rows_every"} if config.refresh_rows else set()
        used |= {"refresh_rows", *refreshed} | (_BANK_GRAPH if self.over_bank else set())
        if self.frozen_targets:
            used.discard("memory_visible_fraction")
        elif self.over_bank and unlabeled and integrated and config.ids:
            used.add("refresh_every")
        return used


LOSSES: Mapping[str, LossSpec] = {
    "ce": LossSpec(
        help="cross-entropy",
        needs_head=True,
        fits_head=True,
        label_sets=True,
        searched=("learning_rate",),
    ),
    "gloss": LossSpec(
        help="graph-guided loss over the memory bank",
        module="objective",
        settings=("visible_fraction",),
        fits_head=True,
        head_from_graph=True,
        weighted=True,
        uses_unlabeled=True,
        label_sets=True,
        over_bank=True,
        fills_bank=True,
        reference="unlabeled",
    ),
    "static-lp": LossSpec(
        help="labels propagated once over frozen embeddings, then soft-label training",
        module="objective",
        needs_head=True,
        uses_unlabeled=True,
        over_bank=True,
        frozen_targets=True,
        searched=("bandwidth", "learning_rate", "consistency_weight"),
    ),
    "pseudo-label": LossSpec(
        help="confident predictions of a moving-average teacher",
        module="pseudo-labels",
        needs_head=True,
        uses_unlabeled=True,
        reference="always",
        teacher_decay=0.98,
        searched=("learning_rate", "consistency_weight"),
    ),
    "scl": LossSpec(
        help="supervised contrastive loss",
        module="metric",
        settings=("temperature",),
        weighted=True,
    ),
    "triplet": LossSpec(
        help="batch-all triplet margin loss", module="metric", settings=("margin",), weighted=True
    ),
    "cosine": LossSpec(
        help="squared error of the cosine of all pairs", module="metric", weighted=True
    ),
    "xbm-scl": LossSpec(
        help="supervised contrastive loss over a cross-batch memory",
        module="metric",
        settings=("temperature",),
        weighted=True,
        fills_bank=True,
    ),
    "setfit": LossSpec(
        help="contrastive warm start, then a balanced logistic head",
        needs_head=True,
        trains=False,
        fits_head=True,
        warm_start_steps=60,
        searched=("warm_start_rate",),
    ),
    "gloss-published": LossSpec(
        help="the paper's in-batch form",
        module="objective",
        form="published",
        settings=("visible_fraction",),
        weighted=True,
    ),
    "gloss-released": LossSpec(
        help="the in-batch form of the paper's released code",
        module="objective",
        form="released",
        settings=("visible_fraction",),
        weighted=True,
    ),
}
"""Properties of every loss by name."""
