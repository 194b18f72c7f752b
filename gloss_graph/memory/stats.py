"""Statistics of the rows that a bank holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph.memory.drift import Drift
from gloss_graph.memory.labels import is_labeled

# Cosine of rows that count as the same document under another id, from here to 1.
_TWIN = 1e-6


class BankStats(NamedTuple):
    """Statistics of a bank; `class_counts` maps a label to its rows, -1 to the unlabeled ones.

    With label sets a row counts for every class with a target of at least 0.5. `fill` is size /
    capacity, `age_quartiles` are those of the ages. `duplicates` are rows with a stored neighbor
    of another id at a cosine of 1 within 1e-6: the same text twice, or an encoder that collapsed.
    `evicted` documents had to leave since the last `reset()`; `declined` came and were not stored
    (None where the policy does not count). `drift` is what `MemoryBank.drift` measured last.
    """

    size: int
    capacity: int
    class_counts: dict[int, int]
    mean_age: float
    max_age: int
    mean_degree: float
    anonymous: int
    fill: float = 0.0
    age_quartiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    duplicates: int = 0
    evicted: int = 0
    declined: int | None = None
    drift: Drift | None = None


def class_counts(labels: Tensor) -> dict[int, int]:
    """Rows per class of labels (M,) or targets (M, C); -1 counts the unlabeled ones."""
    if labels.dim() == 2:
        unlabeled = (~is_labeled(labels)).nonzero().squeeze(1)
        members = (labels >= 0.5).nonzero()[:, 1]
        labels = torch.cat([torch.full_like(unlabeled, -1), members])
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def quartiles(age: Tensor) -> tuple[float, float, float]:
    """Quartiles of ages (M,), 0 without any; of more values than `torch.quantile` takes too."""
    if age.numel() == 0:
        return 0.0, 0.0, 0.0
    ordered = age.sort().values.double()
    place = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double) * (age.numel() - 1)
    below = ordered[place.floor().long()].cpu()
    above = ordered[place.ceil().long()].cpu()
    low, middle, high = torch.lerp(below, above, place.frac()).tolist()
    return low, middle, high


def twin_rows(source: Tensor, target: Tensor, squared: Tensor, rows: Tensor | None) -> int:
    """Number of rows with a link of cosine 1 within 1e-6.

    Args:
        source: (E,) long.
        target: (E,) long.
        squared: (E,) squared lengths of the links.
        rows: (M, D) stored rows, None if all have norm 1.
    """
    if rows is None:
        cosine = 1.0 - squared / 2.0
    else:
        norm = torch.linalg.vector_norm(rows.float(), dim=1)
        product = norm[source] * norm[target]
        inner = (norm[source].square() + norm[target].square() - squared) / 2.0
        cosine = inner / torch.where(product > 0, product, torch.inf)
    twins = cosine >= 1.0 - _TWIN
    return int(torch.cat([source[twins], target[twins]]).unique().numel())
