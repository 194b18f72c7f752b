"""Rows age while the encoder learns: how far they have drifted, and how to correct for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A row this many half-lives old decays no further, so that no node loses all its weight.
OLDEST = 30.0
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

    `rows` compared, the `mean`, the least (`min`), the three `quartiles`, and up to four groups of
    about equal size `by_age`, the youngest first.
    """

    rows: int
    mean: float
    min: float
    quartiles: tuple[float, float, float]
    by_age: tuple[AgeGroup, ...]


def age_decay(age: Tensor, half_life: float) -> Tensor:
    r"""\(2^{-\mathrm{age} / h}\) for ages (n,) in enqueue calls, float32, >= 2^-30."""
    return torch.exp2(-(age.float() / half_life).clamp(max=OLDEST))


def measure_drift(stored: Tensor, fresh: Tensor, age: Tensor) -> Drift:
    """Compare stored rows (n, D) of some ages (n,) with their new embeddings (n, D)."""
    cosine = F.cosine_similarity(fresh.double(), stored.double(), dim=1).cpu()
    marks = torch.tensor([0.25, 0.5, 0.75], dtype=cosine.dtype)
    low, middle, high = cosine.quantile(marks).tolist()
    return Drift(
        cosine.numel(),
        float(cosine.mean()),
        float(cosine.min()),
        (low, middle, high),
        _by_age(age.cpu(), cosine),
    )


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


def restandardize_rows(rows: Tensor, batch: Tensor, *, keep_norms: bool) -> None:
    r"""Give `rows` the mean and spread of a batch, changing them.

    Cross-batch normalization (Ajanthan et al., 2023): per dimension
    \(r' = \mu_B + (r - \mu_M)\,\sigma_B / \sigma_M\).

    Args:
        rows: (M, D) float32, written to.
        batch: (B, D) float32, at least two rows.
        keep_norms: Scale every row back to the norm it had.
    """
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
