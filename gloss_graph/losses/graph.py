r"""The forms of the graph loss \(L_G\): propagated labels of hidden rows against the truth."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Smallest probability the paper's forms take the logarithm of, as the released code does.
_FLOOR = 1e-12
# Share of the uniform prior mixed into a row before its logarithm is taken.
EPSILON = 1e-3


def weighted_mean(losses: Tensor, target: Tensor, class_weight: Tensor | None) -> Tensor:
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
        values: (n, C) propagated mass >= 0 of the hidden rows; rows are normalised to sum 1.
        target: (n,) long.
        class_weight: (C,), weights as in `torch.nn.functional.cross_entropy`.

    Returns:
        Scalar, differentiable in `values`.
    """
    mass = values.sum(dim=1, keepdim=True)
    mass = torch.where(mass > torch.finfo(values.dtype).tiny, mass, 1.0)
    true = values.gather(1, target.unsqueeze(1)) / mass
    probability = (1.0 - EPSILON) * true + EPSILON / values.size(1)
    return weighted_mean(-probability.squeeze(1).log(), target, class_weight)


def published_nll(values: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
    r"""\(-\mathrm{mean} \log \max(F_{i, y_i}, 10^{-12})\): the paper's eq. 1, rows as they are.

    Arguments and result as `graph_nll`.
    """
    true = values.gather(1, target.unsqueeze(1)).squeeze(1)
    return weighted_mean(-true.clamp(min=_FLOOR).log(), target, class_weight)


def released_cross_entropy(
    values: Tensor, target: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    r"""Cross-entropy of F taken as logits, divided by the number of rows: the released code.

    The second softmax has a floor of \(\ln((e + C - 1) / e)\) (1.27 at C = 8) and the second
    division weakens the term by the number of hidden rows. Kept for reproduction only.

    Arguments and result as `graph_nll`.
    """
    return score_cross_entropy(values, target, class_weight) / target.numel()


def score_cross_entropy(
    values: Tensor, target: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of signed scores taken as logits: the form for `rule="poisson"`.

    Arguments and result as `graph_nll`.
    """
    return weighted_mean(F.cross_entropy(values, target, reduction="none"), target, class_weight)


def labeled_cross_entropy(
    logits: Tensor, labels: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the labeled rows in float32 at least; a differentiable 0 without any.

    Args:
        logits: (B, C).
        labels: (B,) long, -1 = unlabeled.
        class_weight: (C,).
    """
    known = labels >= 0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))[known]
    losses = F.cross_entropy(logits, labels[known], reduction="none")
    return weighted_mean(losses, labels[known], class_weight)


def check_class_weight(class_weight: Tensor | None, num_classes: int) -> Tensor | None:
    """`class_weight` as a float32 vector (C,); raise unless it is one, >= 0 and not all 0."""
    if class_weight is None:
        return None
    weight = torch.as_tensor(class_weight, dtype=torch.float32)
    if weight.shape != (num_classes,) or not bool((weight >= 0).all()) or not float(weight.sum()):
        raise ValueError(
            f"'class_weight' must have shape ({num_classes},) with values >= 0, not all 0 "
            f"(got {tuple(weight.shape)})."
        )
    return weight


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "nll": graph_nll,
    "published": published_nll,
    "released": released_cross_entropy,
    "scores": score_cross_entropy,
}
