"""Losses to compare with: metric learning and pseudo-labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gloss_graph._internal.checks import (
    check_choice,
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_range,
)
from gloss_graph._internal.extras import require
from gloss_graph._internal.processes import any_process, gather_rows, share_of_mean
from gloss_graph.losses.graph import (
    is_seen,
    labeled_cross_entropy,
    ramped,
    unseen_mean,
    updated_mean,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.propagation.alignment import align_classes, class_shares

METRIC_LOSSES = ("scl", "triplet", "cosine", "xbm-scl")
"""Names that `MetricLoss` takes."""


def pair_cosine_loss(embeddings: Tensor, labels: Tensor, *, balanced: bool = True) -> Tensor:
    r"""SetFit's contrastive loss (Tunstall et al., 2022) over all pairs of a batch.

    The mean of \((1 - \cos_{ij})^2\) over pairs of one class and the mean of \(\cos_{ij}^2\) over
    pairs of two classes count half each, since SetFit draws both equally often; 0 without pairs.

    Args:
        embeddings: (B, D).
        labels: (B,) long, -1 = unlabeled, left out.
        balanced: False takes the mean over all pairs.
    """
    check_matrix("embeddings", embeddings, normalized=True)
    known = labels >= 0
    x = F.normalize(embeddings[known].float(), dim=1)
    same = labels[known].unsqueeze(0) == labels[known].unsqueeze(1)
    upper = torch.ones_like(same).triu(diagonal=1)
    cosine = x @ x.T
    alike, other = same & upper, ~same & upper
    if not balanced:
        return (cosine - same.to(cosine))[upper].square().sum() / upper.sum().clamp(min=1)
    pull = (1.0 - cosine[alike]).square().sum() / alike.sum().clamp(min=1)
    push = cosine[other].square().sum() / other.sum().clamp(min=1)
    return 0.5 * (pull + push)


class MetricLoss(nn.Module):
    r"""A supervised metric-learning loss, alone or with cross-entropy.

    - `scl`: supervised contrastive loss (Khosla et al., 2020, eq. 2) over the batch.
    - `xbm-scl`: the same with remembered rows as further positives and negatives (Wang et al.,
      2020). Stored copies of the batch's documents are left out.
    - `triplet`: batch-all triplet margin loss (Hermans et al., 2017) of Euclidean distances between
      unit rows, mean over the triplets that violate the margin.
    - `cosine`: mean \((\cos_{ij} - [y_i = y_j])^2\) over all pairs, as sentence-transformers.

    The first three are pytorch-metric-learning's. With `logits` the loss is \(\lambda L +
    (1 - \lambda) L_{CE}\), as in `GraphGuidedObjective`; without them \(L\).

    Args:
        kind: One of `METRIC_LOSSES`.
        weight: \(\lambda\) in [0, 1].
        memory: The bank of `xbm-scl`; make it with `k=0`, it needs no neighbor lists.
        temperature: Of the contrastive losses, above 0.
        margin: Of the triplet loss, above 0.

    Raises:
        ValueError: An unknown kind, a setting out of range, `xbm-scl` without a memory.

    Cost O(B (B + M) D) for B rows and M rows of the bank; triplets O(B³).

    Example:
        >>> import torch
        >>> loss = MetricLoss("scl")
        >>> x = torch.eye(4, requires_grad=True)
        >>> bool(loss(x, torch.tensor([0, 0, 1, 1])) > 0)
        True

    See also: `GraphGuidedObjective`, which learns from unlabeled rows too.
    """

    def __init__(
        self,
        kind: str,
        *,
        weight: float = 0.5,
        memory: MemoryBank | None = None,
        temperature: float = 0.1,
        margin: float = 0.2,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, METRIC_LOSSES)
        check_range("weight", weight, 0.0, 1.0)
        check_range("temperature", temperature, 0.0, float("inf"), open_low=True, open_high=True)
        check_range("margin", margin, 0.0, float("inf"), open_low=True, open_high=True)
        if (kind == "xbm-scl") != (memory is not None):
            raise ValueError(
                f"'memory' must be a MemoryBank for kind='xbm-scl' and None for the others "
                f"(got {memory!r} for {kind!r})."
            )
        if memory is not None and memory.num_classes is not None:
            raise ValueError(
                "'memory' must hold class numbers (got a bank made with num_classes="
                f"{memory.num_classes}); label sets have no positive pairs."
            )
        require("pytorch_metric_learning", extra="text")
        # Slow to import, and only these losses need it.
        from pytorch_metric_learning import losses

        self.kind, self.weight, self.memory = kind, float(weight), memory
        self._metric: Any = None
        if kind in ("scl", "xbm-scl"):
            self._metric = losses.SupConLoss(temperature=temperature)
        elif kind == "triplet":
            self._metric = losses.TripletMarginLoss(margin=margin)
        #: The unweighted terms of the last call: `metric_loss`, `cross_entropy`.
        self.parts: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """Settings that are not part of a sub-module."""
        return f"kind={self.kind!r}, weight={self.weight}"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch, 0 without a pair; `xbm-scl` remembers it afterward when training.

        Args:
            embeddings: (B, D) floating.
            labels: (B,) integer, -1 = unlabeled, left out.
            ids: (B,) integer >= 0, document identities, for `xbm-scl`.
            logits: (B, C) of a classifier head; adds its cross-entropy.
        """
        check_matrix("embeddings", embeddings, normalized=True)
        check_index_vector("labels", labels, embeddings.size(0))
        if ids is not None:
            check_index_vector("ids", ids, embeddings.size(0))
        known = labels >= 0
        x = embeddings[known].to(torch.promote_types(embeddings.dtype, torch.float32))
        ids = None if ids is None else ids[known]
        metric = self._compare(x, labels[known].long(), ids)
        loss, cross_entropy = metric, torch.zeros_like(metric)
        if logits is not None:
            check_matrix("logits", logits)
            cross_entropy = labeled_cross_entropy(logits, labels.long())
            loss = self.weight * metric + (1.0 - self.weight) * cross_entropy
        if self.memory is not None and self.training:
            self.memory.store(self.memory.checked(x, labels[known], ids), of_all=True)
        self.parts = {"metric_loss": metric.detach(), "cross_entropy": cross_entropy.detach()}
        return loss

    def _compare(self, x: Tensor, labels: Tensor, ids: Tensor | None) -> Tensor:
        if x.size(0) == 0:
            return x.sum() * 0.0
        if self.kind == "cosine":
            return pair_cosine_loss(x, labels, balanced=False)
        if self.memory is None:
            return self._metric(x, labels)
        rows, known = self.memory.embeddings, self.memory.labels
        if ids is not None:
            new = ~torch.isin(self.memory.ids, ids)
            rows, known = rows[new], known[new]
        stored = torch.cat([F.normalize(x, dim=1), rows.to(x)])
        others = torch.cat([labels, known])
        allowed = torch.ones(x.size(0), others.numel(), dtype=torch.bool, device=x.device)
        allowed.fill_diagonal_(False)
        same = labels.unsqueeze(1) == others.unsqueeze(0)
        pairs = (
            *(same & allowed).nonzero(as_tuple=True),
            *(~same & allowed).nonzero(as_tuple=True),
        )
        return self._metric(x, labels, pairs, stored, others)


class PseudoLabelLoss(nn.Module):
    """Cross-entropy of labeled rows plus that of confident pseudo-labels of unlabeled ones.

    FixMatch (Sohn et al., 2020) without text augmentation, with the distribution alignment of
    ReMixMatch (Berthelot et al., 2020); the caller passes the logits of a teacher (an exponential
    moving average of the model, Tarvainen & Valpola, 2017).

    Args:
        num_classes: C.
        prior: (C,) class shares of the labeled documents.
        threshold: Smallest aligned probability a pseudo-label needs.
        weight: Weight of the pseudo-label term.
        start: Training steps before it.
        ramp: Steps in which its weight then rises.
    """

    mass: Tensor
    prior: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        prior: Tensor | None = None,
        *,
        threshold: float = 0.8,
        weight: float = 1.0,
        start: int = 40,
        ramp: int = 40,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes, minimum=2)
        check_range("threshold", threshold, 0.0, 1.0)
        self.threshold, self.weight = threshold, weight
        self.start, self.ramp = start, ramp
        if prior is None:
            prior = class_shares(torch.empty(0, dtype=torch.long), num_classes)
        self.register_buffer("prior", prior.float())
        self.register_buffer("mass", unseen_mean(num_classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.parts: dict[str, Tensor] = {}

    def forward(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of one batch; labels (B,) are -1 for unlabeled rows, teacher logits constants."""
        check_matrix("logits", logits)
        check_matrix("teacher_logits", teacher_logits)
        cross_entropy = labeled_cross_entropy(logits, labels)
        unlabeled = labels < 0
        pseudo = logits.sum().float() * 0.0
        some = bool(unlabeled.any())
        if any_process(some, labels.device) if self.training else some:
            target = self._aligned(teacher_logits[unlabeled].float().softmax(dim=1))
            confident = target.amax(dim=1) >= self.threshold
            losses = F.cross_entropy(
                logits[unlabeled].float(), target.argmax(dim=1), reduction="none"
            )
            strength = ramped(int(self.steps), self.start, self.ramp)
            if self.training:
                strength *= share_of_mean(losses.numel(), labels.device)
            pseudo = pseudo + strength * (losses * confident).sum() / max(1, losses.numel())
        if self.training:
            self.steps += 1
        self.parts = {"cross_entropy": cross_entropy.detach(), "consistency": pseudo.detach()}
        return cross_entropy + self.weight * pseudo

    @torch.no_grad()
    def _aligned(self, probabilities: Tensor) -> Tensor:
        # With several processes the running mean is that of the rows of all.
        rows = gather_rows(probabilities) if self.training else probabilities
        mean = rows.mean(dim=0)
        if self.training:
            self.mass = updated_mean(self.mass, mean)
        mass = self.mass if is_seen(self.mass) else mean
        return align_classes(probabilities, self.prior, mass, 1.0)
