"""Drift of stored rows while the encoder learns: its measures, and an encoder that slows it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gloss_graph._internal.checks import check_range
from gloss_graph.memory.batch import is_labeled
from gloss_graph.memory.storage import check_entries, check_keys

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


def measure_drift(stored: Tensor, fresh: Tensor, age: Tensor) -> Drift:
    """Compare stored rows (n, D) of some ages (n,) with their new embeddings (n, D)."""
    cosine = F.cosine_similarity(fresh.double(), stored.double(), dim=1).cpu()
    mean, least = float(cosine.mean()), float(cosine.min())
    return Drift(cosine.numel(), mean, least, quartiles(cosine), _by_age(age.cpu(), cosine))


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


def class_counts(labels: Tensor) -> dict[int, int]:
    """The `class_counts` of `BankStats` from labels (M,) or targets (M, C)."""
    if labels.dim() == 2:
        unlabeled = (~is_labeled(labels)).nonzero().squeeze(1)
        members = (labels >= 0.5).nonzero()[:, 1]
        labels = torch.cat([torch.full_like(unlabeled, -1), members])
    values, counts = labels.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def quartiles(values: Tensor) -> tuple[float, float, float]:
    """Quartiles of values (M,), 0 without any; of more values than `torch.quantile` takes too."""
    if values.numel() == 0:
        return 0.0, 0.0, 0.0
    low, middle, high = np.quantile(values.double().cpu().numpy(), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def twin_rows(source: Tensor, target: Tensor, squared: Tensor, rows: Tensor | None) -> int:
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


def _follow(momentum: float, *args: Any) -> None:
    """Move as torch does; its own function is a closure, which cannot be pickled."""
    get_ema_multi_avg_fn(momentum)(*args)


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder that follows it slowly, so that rows it wrote stay comparable longer.

    \(\bar\theta \leftarrow m \bar\theta + (1 - m) \theta\) (He et al., 2020, arXiv 1911.05722).
    Its embeddings drift 1 / (1 - m) times slower than those of the encoder. Call it for the
    objective's `target_embeddings` and `update()` after every step of the optimizer. Parameters are
    averaged, buffers copied; it is always in eval mode and takes no gradient.

    Args:
        module: The encoder that is trained; `state_dict()` holds the copy alone.
        momentum: m in [0, 1).

    Raises:
        TypeError: Not a module.
        ValueError: `momentum` out of range.

    Example:
        >>> import torch
        >>> encoder = torch.nn.Linear(2, 2, bias=False)
        >>> slow = MomentumEncoder(encoder, momentum=0.5)
        >>> before = encoder.weight.detach().clone()
        >>> _ = torch.nn.init.zeros_(encoder.weight)
        >>> slow.update()
        >>> torch.equal(slow(torch.eye(2)).T, before / 2)
        True
    """

    _source: nn.Module

    def __init__(self, module: nn.Module, momentum: float = 0.999) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"'module' must be a torch.nn.Module (got {type(module).__name__}).")
        check_range("momentum", momentum, 0.0, 1.0, open_high=True)
        self.momentum = float(momentum)
        # Past nn.Module, which would take the encoder in as a part.
        object.__setattr__(self, "_source", module)
        average = AveragedModel(module, multi_avg_fn=partial(_follow, self.momentum))
        self.average = average.requires_grad_(False)
        # Its first call copies; an average that starts at the encoder begins with the second.
        self.average.update_parameters(module)
        self.eval()

    def extra_repr(self) -> str:
        """The momentum."""
        return f"momentum={self.momentum}"

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stays in eval mode whatever `mode` is."""
        return super().train(False)

    @torch.no_grad()
    def update(self) -> None:
        """Move toward the current encoder.

        Raises:
            ValueError: The encoder has other weights than when it was copied; nothing is changed.
        """
        forms = [
            {n: tuple(x.shape) for n, x in (*m.named_parameters(), *m.named_buffers())}
            for m in (self.average.module, self._source)
        ]
        for name in sorted(forms[0].keys() | forms[1].keys()):
            was, now = (form.get(name) for form in forms)
            if was != now:
                raise ValueError(
                    f"'module' must keep the shapes it was copied with ('{name}' was {was}, is "
                    f"{now}). Make a new MomentumEncoder."
                )
        self.average.update_parameters(self._source)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`, but checked first: if it raises nothing changed."""
        if strict:
            check_keys(self, state_dict.keys())
        check_entries(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the copy for the inputs, without gradient."""
        return self.average(*args, **kwargs)
