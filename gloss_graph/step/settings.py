"""The settings of a training step: consistency of unlabeled rows, staleness of stored rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.settings import Range, setting

# What needs torch is imported on first use, so that settings are read without.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Consistency:
    r"""The term of unlabeled rows: their logits follow what the graph propagates to them.

    \(L_C\) is the mean over unlabeled batch rows of \(c_i\) times the cross-entropy of their
    logits with the target \(q_i\), where \(c_i = 1 - H(q_i) / \log C\).

    Attributes:
        weight: Weight of \(L_C\) in the loss; needs `logits`.
        start: Training steps before the first target is used.
        ramp: Steps in which the weight then rises to its full value.
        refresh_every: With `ids`, targets come from one solve over the whole bank every so many
            steps. 0, or without bank or ids: from each step's own graph, all labels shown (with
            several processes, that of all their batches).
        align: Power in [0, 1] of the class-mass alignment of targets and predictions.

    Raises:
        ValueError: A setting out of range.

    Example:
        >>> Consistency(start=20)
        Consistency(weight=1.0, start=20, ramp=40, refresh_every=40, align=0.5)
    """

    weight: float = setting(
        1.0, "Weight of the unlabeled documents' term.", search=Range(0.1, 10.0, log=True)
    )
    start: int = setting(40, "Steps before the first target is used.")
    ramp: int = setting(40, "Steps in which the weight of the term then rises.")
    refresh_every: int = setting(
        40, "Steps between solves over the bank; 0 = targets of each step's own graph."
    )
    align: float = setting(0.5, "Power of the class-mass alignment.")

    def __post_init__(self) -> None:
        check_range("consistency_weight", self.weight, 0.0, float("inf"), open_high=True)
        check_positive_int("consistency_start", self.start, minimum=0)
        check_positive_int("consistency_ramp", self.ramp, minimum=0)
        check_positive_int("refresh_every", self.refresh_every, minimum=0)
        check_range("align", self.align, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class GraphContrast:
    r"""The term that pulls documents of one class together, over the classes the graph finds.

    Batch rows are compared with each other and with rows drawn from the bank, by the supervised
    contrastive loss (Khosla et al., 2020, eq. 2) over a cross-batch memory (Wang et al., 2020),
    weighted by trust:

    \[ \ell_i = -\frac{1}{\sum_{j \in P_i} \omega_j} \sum_{j \in P_i} \omega_j \log
    \frac{\omega_j e^{\cos_{ij} / T}}{\sum_{k \ne i} \omega_k e^{\cos_{ik} / T}} \]

    \(P_i\) are the other documents of the class of i, which for a document without a label is the
    one that several views of the bank agree on. \(\omega\) is the trust in the class of a batch
    row, and 1 for rows of the bank, which are drawn by trust with equal shares of all classes. The
    loss is the mean of \(\ell_i\) over the batch rows, weighted by their trust.

    Attributes:
        weight: Weight of the term in the loss.
        start: Training steps before the classes are found; until then only labels count.
        refresh_every: Steps between searches for the classes, each one over the whole bank.
        rows: Rows of the bank in a step; 0 compares within the batch.
        temperature: T, at least 0.001. Lower ones look at the nearest documents only.

    Raises:
        ValueError: A setting out of range.

    Example:
        >>> GraphContrast(rows=256)
        GraphContrast(weight=1.0, start=0, refresh_every=20, rows=256, temperature=0.1)
    """

    weight: float = setting(
        1.0, "Weight of the contrast over the graph's classes.", search=Range(0.1, 10.0, log=True)
    )
    start: int = setting(0, "Steps before classes are found for unlabeled documents.")
    refresh_every: int = setting(20, "Steps between searches for the classes.")
    rows: int = setting(512, "Rows of the bank that a step contrasts with.", search=Range(64, 4096))
    temperature: float = setting(
        0.1, "Temperature of the contrast.", search=Range(0.02, 0.5, log=True)
    )

    def __post_init__(self) -> None:
        check_range("contrast_weight", self.weight, 0.0, float("inf"), open_high=True)
        check_positive_int("contrast_start", self.start, minimum=0)
        check_positive_int("contrast_refresh_every", self.refresh_every)
        check_positive_int("contrast_rows", self.rows, minimum=0)
        check_range("contrast_temperature", self.temperature, 1e-3, float("inf"), open_high=True)


@dataclass(frozen=True, kw_only=True)
class Staleness:
    r"""How a step treats remembered rows that an older encoder wrote.

    Attributes:
        half_life: Steps in which the edges of a remembered row lose half their weight: an edge has
            the factor \(2^{-\mathrm{age}/h}\) for each remembered end. None: age does not count.
        restandardize: Move remembered rows to the batch's mean and spread before search and graph
            (Ajanthan et al., 2023). Inherited links keep the lengths of the stored rows.
        warmup_steps: Training steps before remembered rows take part in the graph; until then the
            batch is connected to itself only, and the bank fills.
        ramp_steps: Steps in which the weight of their edges then rises to 1.

    Raises:
        ValueError: A setting out of range.

    Example:
        >>> Staleness(half_life=200)
        Staleness(half_life=200, restandardize=False, warmup_steps=0, ramp_steps=0)
    """

    half_life: float | None = setting(
        None,
        "Steps in which the edges of a remembered row lose half their weight; none = never.",
        search=Range(10.0, 10_000.0, log=True),
    )
    restandardize: bool = setting(
        False, "Move remembered rows to the batch's mean and spread before they are searched."
    )
    warmup_steps: int = setting(0, "Steps before remembered rows take part in a step's graph.")
    ramp_steps: int = setting(0, "Steps in which the weight of their edges then rises to 1.")

    def __post_init__(self) -> None:
        if self.half_life is not None:
            check_range(
                "half_life", self.half_life, 0.0, float("inf"), open_low=True, open_high=True
            )
        if not isinstance(self.restandardize, bool):
            raise ValueError(f"'restandardize' must be True or False (got {self.restandardize!r}).")
        check_positive_int("warmup_steps", self.warmup_steps, minimum=0)
        check_positive_int("ramp_steps", self.ramp_steps, minimum=0)

    def strength(self, step: Tensor) -> float:
        """Factor in [0, 1] of the edges that touch a remembered row."""
        if not self.warmup_steps and not self.ramp_steps:
            return 1.0
        from gloss_graph.losses.graph import ramped

        return ramped(int(step), self.warmup_steps, self.ramp_steps)
