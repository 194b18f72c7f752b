"""What a bank holds, in numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph.memory.targets import is_labeled


class BankStats(NamedTuple):
    """What the bank holds; `class_counts` maps a label to its rows, -1 to the unlabeled ones.

    Of label sets a row counts for every class with a target of at least 0.5.
    """

    size: int
    capacity: int
    class_counts: dict[int, int]
    mean_age: float
    max_age: int
    mean_degree: float
    anonymous: int


def bank_stats(labels: Tensor, ids: Tensor, age: Tensor, links: int, capacity: int) -> BankStats:
    """Statistics of stored rows: labels (M,) or (M, C), ids and ages (M,), number of live links."""
    size = labels.size(0)
    if labels.dim() == 2:
        unlabeled = (~is_labeled(labels)).nonzero().squeeze(1)
        members = (labels >= 0.5).nonzero()[:, 1]
        labels = torch.cat([torch.full_like(unlabeled, -1), members])
    values, counts = labels.unique(return_counts=True)
    return BankStats(
        size=size,
        capacity=capacity,
        class_counts=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        mean_age=float(age.double().mean()) if size else 0.0,
        max_age=int(age.max()) if size else 0,
        mean_degree=links / size if size else 0.0,
        anonymous=int((ids < 0).sum()),
    )
