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


def class_factors(prior: Tensor, mass: Tensor, power: float) -> Tensor:
    r"""\((\pi_c / m_c)^p\) of every class, 0 for a class without mass; see `align_classes`."""
    tiny = torch.finfo(mass.dtype).tiny
    return torch.where(mass > 0, prior / mass.clamp(min=tiny), 0.0) ** power


def align_classes(shares: Tensor, prior: Tensor, mass: Tensor, power: float) -> Tensor:
    r"""Class-mass alignment (Zhu et al., 2003, sec. 4, tempered).

    \(q_{ic} \propto h_{ic} (\pi_c / m_c)^p\), rows summing to 1. To be applied to hit mass h,
    never to values that already contain a uniform part.

    Args:
        shares: (N, C) rows of hit mass from `row_shares`.
        prior: \(\pi\) (C,), expected class shares; or (N, C), those of every row.
        mass: m (C,), mean of `shares` over many unlabeled rows; or (N, C).
        power: p in [0, 1]; 0 leaves the rows as they are.

    Returns:
        (N, C); a row without mass stays 0, a class without mass too.
    """
    return row_shares(shares * class_factors(prior, mass, power).to(shares))


def score_spread(scores: Tensor) -> Tensor:
    """Root mean square of signed scores (N, C), rows of zeros left out; 0 without any other."""
    reached = (scores != 0).any(dim=1)
    count = reached.count_nonzero() * scores.size(1)
    # Relative to the largest, so that no square leaves the range of the dtype.
    top = scores.abs().amax() if scores.numel() else scores.new_zeros(())
    unit = torch.where(top > 0, top, 1.0)
    return top * ((scores / unit).square().sum() / count.clamp(min=1)).sqrt()


def score_probabilities(scores: Tensor, spread: Tensor) -> Tensor:
    r"""Class probabilities of signed scores, as `rule="poisson"` gives them.

    \(q_{ic} = \mathrm{softmax}_c(u_{ic} / \tau)\), \(\tau\) the root mean square of the scores of
    unlabeled documents (`score_spread`). The decision is the largest score, as of Calder et al.
    (2020, sec. 2), who weigh the classes by \(u_{ic} s_c\) and give no probabilities; the softmax
    keeps it, makes equal scores equally likely, and \(\tau\) makes it independent of the unit of
    scores and weights. Scores of a usual size give 0.88 for two classes.

    Args:
        scores: (N, C), classes weighed already.
        spread: \(\tau\), a scalar.

    Returns:
        (N, C), rows summing to 1; a row of zeros (nothing reached it) stays 0.
    """
    reached = (scores != 0).any(dim=1, keepdim=True)
    shares = (scores / torch.where(spread > 0, spread, 1.0)).softmax(dim=1)
    return torch.where(reached, shares, 0.0)


def with_mass(targets: Tensor, seeds: Tensor) -> Tensor:
    """Label sets (N, C) next to a column that is 1 in the `seeds` (N,) bool: (N, C + 1).

    The last column propagates to the mass of labels that arrives, whatever their classes.
    """
    return torch.cat([targets, seeds.to(targets).unsqueeze(1)], dim=1)


def target_means(targets: Tensor, seeds: Tensor) -> Tensor:
    """Mean (C,) of the label sets (N, C) of the `seeds` (N,) bool; 1/2 without any."""
    some = targets[seeds]
    return some.mean(dim=0) if some.size(0) else torch.full_like(targets[:0].sum(dim=0), 0.5)


def arrival_shares(values: Tensor, fallback: Tensor) -> Tensor:
    r"""Probability (N, C) that an arriving label holds class c: \(F_{ic} / F_{i, C + 1}\).

    Linear rules give a column of seeds that are all p the value p times the mass column, on any
    normalization and under any damping, so the ratio is p exactly.

    Args:
        values: (N, C + 1), propagated from `with_mass`.
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
