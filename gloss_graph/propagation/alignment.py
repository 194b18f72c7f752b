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


def with_mass(targets: Tensor, seeds: Tensor) -> Tensor:
    """Label sets (N, C) beside a column that is 1 in the `seeds` (N,) bool: (N, C + 1).

    What the last column propagates to is the mass of labels that arrives, whatever they are.
    """
    return torch.cat([targets, seeds.to(targets).unsqueeze(1)], dim=1)


def target_means(targets: Tensor, seeds: Tensor) -> Tensor:
    """Mean (C,) of the label sets (N, C) of the `seeds` (N,) bool; 1/2 without any."""
    some = targets[seeds]
    return some.mean(dim=0) if some.size(0) else torch.full_like(targets[:0].sum(dim=0), 0.5)


def arrival_shares(values: Tensor, fallback: Tensor) -> Tensor:
    r"""Probability (N, C) that an arriving label holds class c: \(F_{ic} / F_{i, C + 1}\).

    Linear rules give a column of seeds that are all p the value p times the mass column, on any
    normalisation and under any damping, so the ratio is p exactly.

    Args:
        values: (N, C + 1), what was propagated from `with_mass`.
        fallback: (C,), for rows that nothing reaches.
    """
    mass = values[:, -1:]
    some = mass > torch.finfo(values.dtype).tiny
    return torch.where(some, values[:, :-1] / torch.where(some, mass, 1.0), fallback.to(values))


def binary_confidence(probabilities: Tensor) -> Tensor:
    r"""Mean over classes (N,) of \(1 - H_b(q) / \log 2\) of probabilities (N, C)."""
    q = probabilities.clamp(0.0, 1.0)
    entropy = torch.special.entr(q) + torch.special.entr(1.0 - q)
    return (1.0 - entropy / math.log(2.0)).mean(dim=1)


def arrival_confidence(values: Tensor, probabilities: Tensor) -> Tensor:
    """`binary_confidence` (N,) of the shares of values (N, C + 1); 0 where no mass arrives."""
    arrived = values[:, -1] > torch.finfo(values.dtype).tiny
    return torch.where(arrived, binary_confidence(probabilities), 0.0)


def entropy_confidence(probabilities: Tensor) -> Tensor:
    r"""\(1 - H(q) / \log C\) (N,) of rows (N, C): 1 for a certain row, 0 for a uniform one.

    Rows of zeros (nothing known) get 0.
    """
    entropy = torch.special.entr(probabilities).sum(dim=1)
    confidence = (1.0 - entropy / math.log(max(probabilities.size(1), 2))).clamp(0.0, 1.0)
    return torch.where(probabilities.sum(dim=1) > 0, confidence, 0.0)
