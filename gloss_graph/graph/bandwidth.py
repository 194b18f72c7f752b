"""Bandwidth rules: how wide the Gaussian kernel is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_range
from gloss_graph._internal.labels import seeded_sample, stratified_sample

BandwidthRule = Callable[[Tensor, Tensor | None], Tensor]

# Points that the rules look at; medians of more move by less than the rules differ.
SAMPLE_ROWS = 1024
# Remembered rows that they look at, with the batch of a step.
_REMEMBERED_ROWS = 384
# Keeps exp(-0 / 2σ²) = 1 when all points coincide.
_SMALLEST = 1e-6
# Medians below this share of the longest row are lost in the rounding of a matrix product.
_CLOSE = 0.01
# Differences, not a matrix product: exactly 0 where two points coincide.
_EXACT = "donot_use_mm_for_euclid_dist"
# Points closer than this many units in the last place of the longest one are one point.
_SAME_POINT = 8.0


def _median_distance(x: Tensor, squared: Tensor | None) -> Tensor:
    """Median of the whole matrix of distances with its zero diagonal, as published."""
    if squared is None:
        squared = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist_if_necessary").square_()
    median = _median_of(squared).sqrt()
    if float(median) < _CLOSE * float(torch.linalg.vector_norm(x, dim=1).amax()):
        return _median_of(torch.cdist(x, x, compute_mode=_EXACT))
    return median


def _median_of(matrix: Tensor) -> Tensor:
    """Median of a symmetric matrix (N, N) whose diagonal counts as zeros."""
    size = matrix.size(0)
    # Every pair occurs twice in the matrix, so half of it holds the median, at another position.
    place = ((size * size - 1) // 2 - size) // 2
    if place < 0:
        return matrix.new_zeros(())
    pairs = matrix.reshape(-1)[_pairs(size).to(matrix.device)]
    if matrix.device.type != "cpu":
        return pairs.kthvalue(place + 1).values
    return matrix.new_tensor(np.partition(pairs.numpy(), place)[place])


@lru_cache(maxsize=8)
def _pairs(size: int) -> Tensor:
    """Positions of the upper triangle in a flat square matrix. Cached: not to be written to."""
    row, column = torch.triu_indices(size, size, 1)
    return row * size + column


def _interclass_min(x: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None or labels[labels >= 0].unique().numel() < 2:
        raise ValueError(
            "bandwidth='interclass_min' needs labels of at least two classes. Pass labels, use a "
            "larger batch, or use bandwidth='sqrt'."
        )
    labeled = labels >= 0
    x, labels = x[labeled], labels[labeled]
    distance = torch.cdist(x, x, compute_mode=_EXACT)
    least = _SAME_POINT * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=1).amax()
    between = (labels.unsqueeze(0) != labels.unsqueeze(1)) & (distance > least)
    return distance[between].min() / 3.0 if bool(between.any()) else distance.new_zeros(())


_OF_MEDIAN: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": lambda median: (median / 3.0).sqrt(),
    "inflection": lambda median: median / math.sqrt(3.0),
}
# `local` scales every edge by its own two nodes, so it is not a function of a sample.
BANDWIDTH_NAMES = (*_OF_MEDIAN, "interclass_min", "local")


@dataclass(frozen=True)
class ScaledBandwidth:
    """The bandwidth of a named rule times a factor above 0."""

    rule: str
    factor: float

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, [name for name in BANDWIDTH_NAMES if name != "local"])

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Bandwidth of points (S, D)."""
        return estimate_bandwidth(self, x, labels)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.rule}"


def scaled_bandwidth(bandwidth: float | str, factor: float) -> float | str | BandwidthRule:
    """A number or rule times `factor`; `local` is left alone.

    Example:
        >>> scaled_bandwidth(0.5, 2.0), scaled_bandwidth("sqrt", 2.0), scaled_bandwidth("sqrt", 1.0)
        (1.0, 2 * sqrt, 'sqrt')
    """
    if not isinstance(bandwidth, str):
        return factor * bandwidth
    if factor == 1.0 or bandwidth not in BANDWIDTH_NAMES or bandwidth == "local":
        return bandwidth
    return ScaledBandwidth(bandwidth, factor)


def needs_labels(bandwidth: float | str | BandwidthRule) -> bool:
    """Whether a bandwidth is made from labels, so that it needs at least two classes."""
    rule = bandwidth.rule if isinstance(bandwidth, ScaledBandwidth) else bandwidth
    return rule == "interclass_min"


def reads_labels(bandwidth: float | str | BandwidthRule) -> bool:
    """Whether a bandwidth may depend on labels, as a function passed by the user may."""
    scaled = isinstance(bandwidth, ScaledBandwidth)
    return needs_labels(bandwidth) or (callable(bandwidth) and not scaled)


def check_fits_bank(bandwidth: float | str | BandwidthRule) -> None:
    """Raise ValueError if `bandwidth` cannot serve propagation over a whole corpus."""
    if needs_labels(bandwidth):
        raise ValueError(
            f"'bandwidth' must not be {bandwidth!r} where labels propagate over a whole corpus: "
            "that rule is made from labels, so every answer about a document would depend on "
            "the document's own label. Use 'sqrt', 'inflection', 'local' or a number."
        )


def check_bandwidth(bandwidth: float | str | BandwidthRule) -> None:
    """Raise ValueError unless `bandwidth` is a positive number, a rule name or a callable."""
    if isinstance(bandwidth, str):
        if bandwidth not in BANDWIDTH_NAMES:
            raise ValueError(
                f"'bandwidth' must be a positive number, a callable or one of "
                f"{sorted(BANDWIDTH_NAMES)} (got {bandwidth!r})."
            )
    elif not callable(bandwidth):
        check_range("bandwidth", bandwidth, 0.0, math.inf, open_low=True, open_high=True)


@torch.no_grad()
def estimate_bandwidth(
    bandwidth: float | str | BandwidthRule,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    squared: Tensor | None = None,
) -> Tensor:
    r"""Bandwidth \(\sigma\) of a set of points, without gradient.

    - `"sqrt"`: \(\sqrt{\mathrm{median}(d) / 3}\), the paper's G-Loss-SQRT rule.
    - `"inflection"`: \(\mathrm{median}(d) / \sqrt 3\), where the Gaussian's curvature is largest.
    - `"interclass_min"`: the smallest distance between different labels / 3 (the released code's
      "mst"). Repeated points with different labels are left out.

    Args:
        bandwidth: A number, a rule name other than `"local"`, or a callable
            `(sample (S, D), labels (S,) or None) -> scalar`.
        x: (N, D) points. A rule sees a fixed random sample of at most 1,024 of them;
            `"interclass_min"` sees labeled ones only, of every class.
        labels: (N,) long, -1 = unlabeled.
        squared: (N, N) squared distances, if they are known; the diagonal is not read.

    Returns:
        Scalar tensor of x's dtype and device, at least 1e-6.

    Raises:
        ValueError: Unknown rule; a rule that yields no positive finite number.

    Example:
        >>> import torch
        >>> estimate_bandwidth("sqrt", torch.tensor([[0.0], [3.0], [6.0]]))
        tensor(1.)
    """
    check_bandwidth(bandwidth)
    if not isinstance(bandwidth, str) and not callable(bandwidth):
        return torch.as_tensor(float(bandwidth), dtype=x.dtype, device=x.device)
    if bandwidth == "local":
        raise ValueError("bandwidth='local' has no single value; use local_scales().")
    if x.size(0) > SAMPLE_ROWS:
        keep = drawn_rows(bandwidth, x.size(0), labels, SAMPLE_ROWS).to(x.device)
        x, labels, squared = x[keep], None if labels is None else labels[keep], None
    rule: str | BandwidthRule = bandwidth
    factor = 1.0
    if isinstance(bandwidth, ScaledBandwidth):
        rule, factor = bandwidth.rule, bandwidth.factor
    if callable(rule):
        sigma = torch.as_tensor(rule(x, labels), dtype=x.dtype, device=x.device)
    elif rule == "interclass_min":
        sigma = _interclass_min(x, labels)
    else:
        sigma = _OF_MEDIAN[rule](_median_distance(x, squared))
    if sigma.dim() != 0 or not 0.0 <= float(sigma) < math.inf:
        raise ValueError(f"'bandwidth' rule must return one number >= 0 (got {sigma.tolist()}).")
    return (factor * sigma).clamp(min=_SMALLEST)


def drawn_rows(
    bandwidth: float | str | BandwidthRule, total: int, labels: Tensor | None, size: int
) -> Tensor:
    """The rows that a bandwidth is estimated on: a fixed draw of at most `size` positions (n,).

    A rule made from labels gets labeled rows only, of every class.
    """
    if labels is None or not needs_labels(bandwidth):
        return torch.from_numpy(seeded_sample(total, size))
    labeled = (labels >= 0).nonzero().squeeze(1).cpu()
    if labeled.numel() <= size:
        return labeled
    return labeled[torch.from_numpy(stratified_sample(labels.cpu()[labeled], size))]


def bandwidth_over(
    bandwidth: float | str | BandwidthRule,
    x: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    slots: Tensor,
    squared: Tensor | None = None,
) -> Tensor:
    """Bandwidth (NaN for "local") of x (B, D) and a draw of the remembered `rows` in `slots` (n,).

    `labels` (B + n,) are those it may be made from; `squared` distances (B, B) may be known.
    """
    x, size = x.detach(), x.size(0)
    if bandwidth == "local":
        return x.new_tensor(torch.nan)
    seen = labels if reads_labels(bandwidth) else None
    if rows is None or slots.numel() == 0:
        return estimate_bandwidth(bandwidth, x, seen, squared=squared)
    if slots.numel() > _REMEMBERED_ROWS:
        keep = drawn_rows(bandwidth, slots.numel(), labels[size:], _REMEMBERED_ROWS).to(x.device)
        slots = slots[keep]
        seen = None if seen is None else torch.cat([labels[:size], labels[size:][keep]])
    return estimate_bandwidth(bandwidth, torch.cat([x, rows[slots].to(x.dtype)]), seen)


def local_scales(squared: Tensor) -> Tensor:
    r"""Self-tuning scales \(\sigma_i\) = distance to the last listed neighbor.

    Zelnik-Manor & Perona (2004), with \(\sigma^2\) of the Gaussian replaced by
    \(\sigma_i\sigma_j\).

    Args:
        squared: (N, k) squared distances to the neighbors, `inf` where there is none.

    Returns:
        (N,) scales, at least 1e-6; 1 for a row without neighbors.
    """
    if squared.size(1) == 0:
        return squared.new_ones(squared.size(0))
    last = squared.masked_fill(torch.isinf(squared), -1.0).amax(dim=1)
    return torch.where(last >= 0, last.clamp(min=0.0).sqrt(), 1.0).clamp(min=_SMALLEST)
