"""What a bank holds, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gloss_graph.memory.drift import Drift
from gloss_graph.memory.labels import is_labeled

if TYPE_CHECKING:
    from gloss_graph.memory.bank import MemoryBank

# Cosine of rows that count as the same document under another id, from here to 1.
_TWIN = 1e-6


class BankStats(NamedTuple):
    """What the bank holds; `class_counts` maps a label to its rows, -1 to the unlabeled ones.

    Of label sets a row counts for every class with a target of at least 0.5. `fill` is size /
    capacity, `age_quartiles` are those of the ages. `duplicates` are rows with a stored neighbour
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


def bank_stats(bank: MemoryBank) -> BankStats:
    """Statistics of the stored rows; cost O(M k), with a bank that does not normalise O(M D)."""
    size, labels, age = len(bank), bank.labels, bank.age
    if labels.dim() == 2:
        unlabeled = (~is_labeled(labels)).nonzero().squeeze(1)
        members = (labels >= 0.5).nonzero()[:, 1]
        labels = torch.cat([torch.full_like(unlabeled, -1), members])
    values, counts = labels.unique(return_counts=True)
    links = bank.edges()
    declined = getattr(bank.eviction, "declined", None)
    return BankStats(
        size=size,
        capacity=bank.capacity,
        class_counts=dict(zip(values.tolist(), counts.tolist(), strict=True)),
        mean_age=float(age.double().mean()) if size else 0.0,
        max_age=int(age.max()) if size else 0,
        mean_degree=links[0].numel() / size if size else 0.0,
        anonymous=int((bank.ids < 0).sum()),
        fill=size / bank.capacity if bank.capacity else 0.0,
        age_quartiles=_quartiles(age),
        duplicates=_duplicates(bank, *links),
        # A slot's stamp counts its tenants.
        evicted=int(bank.links.stamps.sum()) - size,
        declined=None if declined is None else int(declined),
        drift=bank.last_drift,
    )


def _quartiles(age: Tensor) -> tuple[float, float, float]:
    """Exact also of more values than `torch.quantile` takes."""
    if age.numel() == 0:
        return 0.0, 0.0, 0.0
    ordered = age.sort().values.double()
    place = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double) * (age.numel() - 1)
    below = ordered[place.floor().long()].cpu()
    above = ordered[place.ceil().long()].cpu()
    low, middle, high = torch.lerp(below, above, place.frac()).tolist()
    return low, middle, high


def _duplicates(bank: MemoryBank, source: Tensor, target: Tensor, squared: Tensor) -> int:
    if bank.normalize:
        cosine = 1.0 - squared / 2.0
    else:
        norm = torch.linalg.vector_norm(bank.embeddings.float(), dim=1)
        product = norm[source] * norm[target]
        inner = (norm[source].square() + norm[target].square() - squared) / 2.0
        cosine = inner / torch.where(product > 0, product, torch.inf)
    twins = cosine >= 1.0 - _TWIN
    return int(torch.cat([source[twins], target[twins]]).unique().numel())
