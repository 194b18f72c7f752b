"""Losses of pairs of labeled rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph._internal.checks import check_matrix


def pair_cosine_loss(embeddings: Tensor, labels: Tensor, *, balanced: bool = True) -> Tensor:
    r"""SetFit's contrastive loss (Tunstall et al., 2022) over all pairs of a batch.

    Mean of \((1 - \cos_{ij})^2\) over pairs of one class and of \(\cos_{ij}^2\) over pairs of two,
    both counting half, as SetFit's pairs are drawn in equal numbers.

    Args:
        embeddings: (B, D).
        labels: (B,) long, -1 = unlabeled, left out.
        balanced: False takes the mean over all pairs.

    Returns:
        Scalar; a kind of pair the batch lacks counts 0.

    Raises:
        ValueError: Non-finite embeddings, or rows too long or too short to be normalized.
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
