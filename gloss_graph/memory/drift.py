"""Statistics of the rows that a bank holds, and how far they drift while the encoder learns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph.memory.incoming import is_labeled

# A row this many half-lives old decays no further, so that no node loses all its weight.
OLDEST = 30.0
# Cosine of rows that count as the same document under another id, from here to 1.
_TWIN = 1e-6
_AGE_GROUPS = 4
_PART_ROWS = 1024


class AgeGroup(NamedTuple):
    """Sampled rows of one range of ages: `youngest` to `oldest`, their number, mean cosine."""

    youngest: int
    oldest: int
    rows: int
    mean: float


class Drift(NamedTuple):
    """Cosine between stored rows and new embeddings of the same documents.

    `by_age` are up to four groups of about equal size, the youngest first.
    """

    rows: int
    mean: float
    min: float
    quartiles: tuple[float, float, float]
    by_age: tuple[AgeGroup, ...]


def age_decay(age: Tensor, half_life: float) -> Tensor:
    r"""\(2^{-\mathrm{age} / h}\) for ages (n,) in enqueue calls, float32, >= 2^-30."""
    return torch.exp2(-(age.float() / half_life).clamp(max=OLDEST))


def drawn_slots(ids: Tensor, sample: int, generator: torch.Generator) -> Tensor:
    """A sample (n,) of the slots whose document has an id."""
    known = (ids >= 0).nonzero().squeeze(1)
    if known.numel() == 0:
        raise ValueError(
            "The memory holds no row with an id, so nothing can be encoded again. Enqueue "
            "documents with 'ids' first."
        )
    drawn = torch.randperm(known.numel(), generator=generator)[:sample]
    return known[drawn.to(known.device)]


def stalest_slots(ids: Tensor, written_at: Tensor, capacity: int, count: int) -> Tensor:
    """The `count` slots, or fewer, of documents with an id that were written longest ago."""
    known = (ids >= 0).nonzero().squeeze(1)
    # Of equal age the lowest slot first, on every device.
    order = written_at[known] * capacity + known
    return known[order.topk(min(count, known.numel()), largest=False).indices]


def measure_drift(stored: Tensor, fresh: Tensor, age: Tensor) -> Drift:
    """Compare stored rows (n, D) of some ages (n,) with their new embeddings (n, D)."""
    cosine = F.cosine_similarity(fresh.double(), stored.double(), dim=1).cpu()
    mean, least = float(cosine.mean()), float(cosine.min())
    return Drift(cosine.numel(), mean, least, _quartiles(cosine), _by_age(age.cpu(), cosine))


def _by_age(age: Tensor, cosine: Tensor) -> tuple[AgeGroup, ...]:
    """Groups of about equal size; rows of one age are never separated."""
    edges = torch.quantile(age.double(), torch.linspace(0, 1, _AGE_GROUPS + 1).double()[1:-1])
    group = torch.bucketize(age.double(), edges)
    found = []
    for number in group.unique().tolist():
        inside = group == number
        ages, mean = age[inside], float(cosine[inside].mean())
        found.append(AgeGroup(int(ages.min()), int(ages.max()), int(inside.sum()), mean))
    return tuple(found)


def restandardized_rows(stored: Tensor, batch: Tensor, *, keep_norms: bool) -> Tensor:
    r"""A float32 copy of `stored` rows whose first columns have the mean and spread of a batch.

    Cross-batch normalization (Ajanthan et al., 2023): per dimension
    \(r' = \mu_B + (r - \mu_M)\,\sigma_B / \sigma_M\).
    """
    whole = stored.to(torch.float32, copy=True)
    rows = whole[:, : batch.size(1)]
    wanted, mean = torch.std_mean(batch, dim=0, correction=0)
    # Parts that stay in the cache: whole passes would be bound by the memory.
    parts = rows.split(_PART_ROWS)
    center = torch.stack([part.sum(dim=0) for part in parts]).sum(dim=0) / rows.size(0)
    squares = [(part - center).square_().sum(dim=0) for part in parts]
    spread = (torch.stack(squares).sum(dim=0) / rows.size(0)).sqrt()
    # A dimension without spread among the stored rows is only shifted.
    scale = torch.where(spread > torch.finfo(spread.dtype).eps, wanted / spread, 1.0)
    shift = mean - center * scale
    for part in parts:
        norm = torch.linalg.vector_norm(part, dim=1, keepdim=True) if keep_norms else None
        part.mul_(scale).add_(shift)
        if norm is not None:
            now = torch.linalg.vector_norm(part, dim=1, keepdim=True)
            part.mul_(norm / torch.where(now > 0, now, 1.0))
    return whole


class BankStats(NamedTuple):
    """Statistics of a bank; `class_counts` maps a label to its rows, -1 to the unlabeled ones.

    With label sets a row counts for every class with a target of at least 0.5. `duplicates` are
    rows with a neighbor of another id at a cosine of 1 within 1e-6: the same text twice, or an
    encoder that collapsed. `evicted` documents had to leave since the last `reset()`; `declined`
    came and were not stored (None where the policy does not count). `drift` was measured last.
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


def describe_rows(
    labels: Tensor,
    ids: Tensor,
    age: Tensor,
    edges: tuple[Tensor, Tensor, Tensor],
    *,
    capacity: int,
    rows: Tensor | None,
    tenants: int,
    declined: Tensor | None,
    drift: Drift | None,
) -> BankStats:
    """Statistics of stored rows; `rows` (M, D) unless they have length 1."""
    size, (source, target, squared) = ids.numel(), edges
    return BankStats(
        size=size,
        capacity=capacity,
        class_counts=_class_counts(labels),
        mean_age=float(age.double().mean()) if size else 0.0,
        max_age=int(age.max()) if size else 0,
        mean_degree=source.numel() / size if size else 0.0,
        anonymous=int((ids < 0).sum()),
        fill=size / capacity if capacity else 0.0,
        age_quartiles=_quartiles(age),
        duplicates=_twin_rows(source, target, squared, rows),
        evicted=tenants - size,
        declined=None if declined is None else int(declined),
        drift=drift,
    )


def _class_counts(labels: Tensor) -> dict[int, int]:
    """Rows per class of labels (M,) or targets (M, C); -1 counts the unlabeled ones."""
    if labels.dim() == 2:
        unlabeled = (~is_labeled(labels)).nonzero().squeeze(1)
        members = (labels >= 0.5).nonzero()[:, 1]
        labels = torch.cat([torch.full_like(unlabeled, -1), members])
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    """Quartiles of values (M,), 0 without any; of more values than `torch.quantile` takes too."""
    if values.numel() == 0:
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(values.double().cpu().numpy(), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def _twin_rows(source: Tensor, target: Tensor, squared: Tensor, rows: Tensor | None) -> int:
    """Number of rows with a link of cosine 1 within 1e-6."""
    if rows is None:
        cosine = 1.0 - squared / 2.0
    else:
        norm = torch.linalg.vector_norm(rows.float(), dim=1)
        product = norm[source] * norm[target]
        inner = (norm[source].square() + norm[target].square() - squared) / 2.0
        cosine = inner / torch.where(product > 0, product, torch.inf)
    twins = cosine >= 1.0 - _TWIN
    return int(torch.cat([source[twins], target[twins]]).unique().numel())
