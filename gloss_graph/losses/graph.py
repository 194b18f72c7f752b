r"""The terms of a step: forms of the graph loss \(L_G\), cross-entropies, the ramp of a weight.

With label sets every class is a binary problem over the same graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph.graph.bandwidth import BandwidthRule, needs_labels
from gloss_graph.memory import MemoryBank

# Smallest probability that the paper's forms take the logarithm of, as in the released code.
_FLOOR = 1e-12
# Share of the uniform prior mixed into a row before its logarithm is taken.
EPSILON = 1e-3
# A solve that is far from converged may leave [0, 1]; nothing else comes this low.
_LEAST = EPSILON / 100.0


def _weighted_mean(losses: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
    """Mean of `losses` (n,) weighted by the class of their `target` (n,); 0 without any weight."""
    if class_weight is None:
        return losses.mean() if losses.numel() else losses.sum()
    weight = class_weight.to(losses)[target]
    total = weight.sum()
    return (weight * losses).sum() / torch.where(total > 0, total, 1.0)


def graph_nll(values: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""\(-\mathrm{mean} \log p_{i, y_i}\) with \(p = (1 - \epsilon) F / \sum_c F + \epsilon / C\).

    The mixed-in prior (\(\epsilon = 10^{-3}\)) keeps the logarithm finite without cutting its
    gradient where a class has no visible label.

    Args:
        values: (n, C) propagated mass >= 0 of the hidden rows; rows are normalized to sum 1.
        target: (n,) long.
        class_weight: (C,), weights as in `torch.nn.functional.cross_entropy`.

    Returns:
        Scalar, differentiable in `values`.
    """
    mass = values.sum(dim=1, keepdim=True)
    mass = mass.masked_fill(mass <= torch.finfo(values.dtype).tiny, 1.0)
    true = values.gather(1, target.unsqueeze(1)) / mass
    probability = (1.0 - EPSILON) * true + EPSILON / values.size(1)
    return _weighted_mean(-probability.squeeze(1).log(), target, class_weight)


def published_nll(values: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""\(-\mathrm{mean} \log \max(F_{i, y_i}, 10^{-12})\): the paper's eq. 1, rows as they are."""
    true = values.gather(1, target.unsqueeze(1)).squeeze(1)
    return _weighted_mean(-true.clamp(min=_FLOOR).log(), target, class_weight)


def released_cross_entropy(
    values: Tensor, target: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy of F taken as logits, divided by the number of rows: the released code.

    The second softmax has a floor of \(\ln((e + C - 1) / e)\) (1.27 at C = 8). For reproduction.
    """
    return score_cross_entropy(values, target, class_weight) / target.numel()


def score_cross_entropy(
    values: Tensor, target: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of signed scores taken as logits: the form for `rule="poisson"`."""
    return _weighted_mean(F.cross_entropy(values, target, reduction="none"), target, class_weight)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "nll": graph_nll,
    "published": published_nll,
    "released": released_cross_entropy,
    "scores": score_cross_entropy,
}


def _class_mean(losses: Tensor, class_weight: Tensor | None) -> Tensor:
    """Mean of `losses` (n, C) over rows and classes, classes weighted; 0 without rows."""
    if losses.size(0) == 0:
        return losses.sum()
    if class_weight is None:
        return losses.mean()
    weight = class_weight.to(losses)
    return (losses * weight).sum() / (weight.sum() * losses.size(0))


def binary_nll(values: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""\(-\mathrm{mean}_{ic} [y \log p + (1 - y) \log(1 - p)]\), a binary likelihood.

    With \(p = (1 - \epsilon) q + \epsilon / 2\), \(\epsilon = 10^{-3}\): the mean over classes of
    `graph_nll` with two classes each.

    Args:
        values: q (n, C), the probability that class c arrives.
        target: y (n, C) in [0, 1].
        class_weight: (C,), relative weights of the classes.
    """
    present = ((1.0 - EPSILON) * values + EPSILON / 2.0).clamp(min=_LEAST)
    absent = ((1.0 - EPSILON) * (1.0 - values) + EPSILON / 2.0).clamp(min=_LEAST)
    target = target.to(values)
    return _class_mean(-(target * present.log() + (1.0 - target) * absent.log()), class_weight)


def labeled_cross_entropy(
    logits: Tensor, labels: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the rows with labels (B,) >= 0, in float32 at least; 0 without any."""
    known = labels >= 0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[known]
    losses = F.cross_entropy(logits, labels[known], reduction="none")
    return _weighted_mean(losses, labels[known], class_weight)


def labeled_binary_cross_entropy(
    logits: Tensor, labels: Tensor, targets: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy with targets (B, C) of the rows with labels (B,) >= 0; 0 without any."""
    known = labels >= 0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[known]
    losses = F.binary_cross_entropy_with_logits(logits, targets[known].to(logits), reduction="none")
    return _class_mean(losses, class_weight)


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    r"""\(-\frac{1}{n} \sum_i w_i \sum_c q_{ic} \log p_{ic}\) for constant q and w; 0 if empty."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = -(target.to(logits) * logits.log_softmax(dim=1)).sum(dim=1)
    return (weight.to(logits) * losses).sum() / max(1, losses.numel())


def soft_binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    r"""\(\frac{1}{n} \sum_i w_i\, \mathrm{mean}_c\, \mathrm{BCE}(p_{ic}, q_{ic})\); 0 if empty."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")
    return (weight.to(logits) * losses.mean(dim=1)).sum() / max(1, losses.size(0))


def check_class_weight(class_weight: Tensor | None, num_classes: int) -> Tensor | None:
    """`class_weight` as a float32 vector (C,); ValueError unless it is >= 0 and not all 0."""
    if class_weight is None:
        return None
    weight = torch.as_tensor(class_weight, dtype=torch.float32)
    if weight.shape != (num_classes,) or not bool((weight >= 0).all()) or not float(weight.sum()):
        raise ValueError(
            f"'class_weight' must have shape ({num_classes},) with values >= 0, not all 0 "
            f"(got {tuple(weight.shape)})."
        )
    return weight


def check_multilabel(
    multilabel: bool,
    num_classes: int,
    memory: MemoryBank | None,
    rule: str,
    loss: str | None,
    bandwidth: float | str | BandwidthRule,
) -> None:
    """Raise ValueError if a setting does not suit label sets, or the bank holds the other kind."""
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


_MOMENTUM = 0.95


def ramped(step: int, start: int, ramp: int) -> float:
    """Weight in [0, 1]: 0 before `start`, then rising to 1 within `ramp` steps."""
    past = step - start
    return 0.0 if past < 0 else min(1.0, (past + 1) / max(1, ramp))


def unseen_mean(num_classes: int) -> Tensor:
    """A running mean (C,) of class shares before the first batch: negative."""
    return torch.full((num_classes,), -1.0, dtype=torch.float32)


def is_seen(mean: Tensor) -> bool:
    """Whether a running mean (C,) has taken a batch in."""
    return float(mean[0]) >= 0


def updated_mean(mean: Tensor, new: Tensor) -> Tensor:
    """A running mean (C,) moved toward `new` (C,); the first value replaces it."""
    return _MOMENTUM * mean + (1 - _MOMENTUM) * new if is_seen(mean) else new.clone()
