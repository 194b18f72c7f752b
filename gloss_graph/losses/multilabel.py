r"""The terms of label sets: one binary problem a class, over the same graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph.graph.bandwidth import BandwidthRule, needs_labels
from gloss_graph.losses.graph import EPSILON
from gloss_graph.memory import MemoryBank

# A solve that is far from converged may leave [0, 1]; nothing else comes this low.
_LEAST = EPSILON / 100.0


def class_mean(losses: Tensor, class_weight: Tensor | None) -> Tensor:
    """Mean of `losses` (n, C) over rows and classes, classes weighted; 0 without rows."""
    if losses.size(0) == 0:
        return losses.sum()
    if class_weight is None:
        return losses.mean()
    weight = class_weight.to(losses)
    return (losses * weight).sum() / (weight.sum() * losses.size(0))


def binary_nll(values: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""\(-\mathrm{mean}_{ic} [y \log p + (1 - y) \log(1 - p)]\), a binary likelihood.

    With \(p = (1 - \epsilon) q + \epsilon / 2\). Equal to the mean over classes of `graph_nll`
    with two classes each. The mixed-in prior (\(\epsilon = 10^{-3}\)) keeps the logarithm finite
    without cutting its gradient.

    Args:
        values: q (n, C), the probability that class c arrives.
        target: y (n, C) in [0, 1].
        class_weight: (C,), relative weights of the classes.

    Returns:
        Scalar, differentiable in `values`.
    """
    present = ((1.0 - EPSILON) * values + EPSILON / 2.0).clamp(min=_LEAST)
    absent = ((1.0 - EPSILON) * (1.0 - values) + EPSILON / 2.0).clamp(min=_LEAST)
    target = target.to(values)
    return class_mean(-(target * present.log() + (1.0 - target) * absent.log()), class_weight)


def labeled_binary_cross_entropy(
    logits: Tensor, labels: Tensor, targets: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of the labeled rows in float32 at least; a differentiable 0 without any.

    Args:
        logits: (B, C).
        labels: (B,) long, -1 = unlabeled.
        targets: (B, C) in [0, 1].
        class_weight: (C,), relative weights of the classes.
    """
    known = labels >= 0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[known]
    losses = F.binary_cross_entropy_with_logits(logits, targets[known].to(logits), reduction="none")
    return class_mean(losses, class_weight)


def soft_binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    r"""\(\frac{1}{n} \sum_i w_i\, \mathrm{mean}_c\, \mathrm{BCE}(p_{ic}, q_{ic})\); 0 without rows.

    Args:
        logits: (n, C).
        target: q (n, C), constants.
        weight: w (n,), constants.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return (weight.to(logits) * losses.mean(dim=1)).sum() / max(1, losses.size(0))


def check_multilabel(
    multilabel: bool,
    num_classes: int,
    memory: MemoryBank | None,
    rule: str,
    loss: str | None,
    bandwidth: float | str | BandwidthRule,
) -> None:
    """Raise where a setting has no meaning for label sets, or the bank holds the other kind.

    Raises:
        ValueError: Names the setting.
    """
    wanted = num_classes if multilabel else None
    if memory is not None and memory.num_classes != wanted:
        raise ValueError(
            f"'memory' must be made with num_classes={wanted} for multilabel={multilabel} "
            f"(got num_classes={memory.num_classes})."
        )
    if not multilabel:
        return
    if rule == "poisson":
        raise ValueError(
            "'rule' must be 'harmonic' or 'spreading' with multilabel=True (got 'poisson', whose "
            "scores are no probabilities)."
        )
    if loss not in (None, "nll"):
        raise ValueError(
            f"'loss' must be 'nll' with multilabel=True, the binary likelihood of every class "
            f"(got {loss!r})."
        )
    if needs_labels(bandwidth):
        raise ValueError(
            f"'bandwidth' must not be {bandwidth!r} with multilabel=True: label sets overlap. "
            "Use 'sqrt' or a number."
        )
