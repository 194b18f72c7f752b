"""From propagated hit mass to class probabilities and how far to trust them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Shares (C,) of the classes among labels (N,) long, -1 left out; uniform without any."""
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    total = counts.sum()
    return counts / total if float(total) > 0 else torch.full_like(counts, 1.0 / num_classes)


def row_shares(hits: Tensor) -> Tensor:
    """Rows of hit mass (N, C), negative parts cut, scaled to sum 1; rows without mass stay 0."""
    mass = hits.clamp(min=0.0)
    total = mass.sum(dim=1, keepdim=True)
    return mass / torch.where(total > torch.finfo(mass.dtype).tiny, total, 1.0)


def align_classes(shares: Tensor, prior: Tensor, mass: Tensor, power: float) -> Tensor:
    r"""Class-mass alignment (Zhu et al., 2003, sec. 4, tempered).

    \(q_{ic} \propto h_{ic} (\pi_c / m_c)^p\), rows summing to 1. To be applied to hit mass h,
    never to values that already contain a uniform part.

    Args:
        shares: (N, C) rows of hit mass from `row_shares`.
        prior: \(\pi\) (C,), expected class shares.
        mass: m (C,), mean of `shares` over many unlabeled rows.
        power: p in [0, 1]; 0 leaves the rows as they are.

    Returns:
        (N, C); a row without mass stays 0, a class without mass too.
    """
    tiny = torch.finfo(shares.dtype).tiny
    scale = torch.where(mass > 0, prior / mass.clamp(min=tiny), 0.0) ** power
    return row_shares(shares * scale.to(shares))


def entropy_confidence(probabilities: Tensor) -> Tensor:
    r"""\(1 - H(q) / \log C\) (N,) of rows (N, C): 1 for a certain row, 0 for a uniform one.

    Rows of zeros (nothing known) get 0.
    """
    entropy = torch.special.entr(probabilities).sum(dim=1)
    confidence = (1.0 - entropy / math.log(max(probabilities.size(1), 2))).clamp(0.0, 1.0)
    return torch.where(probabilities.sum(dim=1) > 0, confidence, 0.0)
