"""Bandwidth rules: how wide the Gaussian kernel is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_range
from gloss_graph._internal.sampling import seeded_sample, stratified_sample

BandwidthRule = Callable[[Tensor, "Tensor | None"], Tensor]

# Points the rules look at; medians of more move by less than the rules differ.
SAMPLE_ROWS = 1024
# Keeps exp(-0 / 2σ²) = 1 when all points coincide.
_SMALLEST = 1e-6
# Medians below so many times the longest row are lost in the rounding of a matrix product.
_CLOSE = 0.01
# Differences, not a matrix product: 0 where two points coincide.
_EXACT = "donot_use_mm_for_euclid_dist"
# Points closer than so many units in the last place of the longest one are one point.
_SAME_POINT = 8.0


def _median_distance(x: Tensor, squared: Tensor | None = None) -> Tensor:
    """Median of the whole matrix of distances with its zero diagonal, as published.

    `squared` are the squared distances (N, N) where they are known; its diagonal is not read.
    """
    if squared is None:
        squared = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist_if_necessary").square_()
    median = _median_of(squared).sqrt()
    if bool(median < _CLOSE * torch.linalg.vector_norm(x, dim=1).amax()):
        return _median_of(torch.cdist(x, x, compute_mode=_EXACT))
    return median


def _median_of(matrix: Tensor) -> Tensor:
    """Median of a symmetric matrix (N, N) whose diagonal counts as zeros."""
    size = matrix.size(0)
    # Every pair stands in the matrix twice, so half of it holds the median, at another place.
    place = ((size * size - 1) // 2 - size) // 2
    if place < 0:
        return matrix.new_zeros(())
    pairs = matrix.reshape(-1)[_pairs(size).to(matrix.device)]
    if matrix.device.type != "cpu":
        return pairs.kthvalue(place + 1).values
    return matrix.new_tensor(np.partition(pairs.numpy(), place)[place])


@lru_cache(maxsize=8)
def _pairs(size: int) -> Tensor:
    """Places of the upper triangle in a flat square matrix. Cached: not to be written to."""
    row, column = torch.triu_indices(size, size, 1)
    return row * size + column


def sqrt_bandwidth(x: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""\(\sigma = \sqrt{\mathrm{median}(d) / 3}\), the paper's G-Loss-SQRT rule."""
    del labels
    return (_median_distance(x) / 3.0).sqrt()


def inflection_bandwidth(x: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""\(\sigma = \mathrm{median}(d) / \sqrt 3\).

    The Gaussian's slope is steepest at \(d = \sigma\) and its curvature at \(d = \sqrt 3\sigma\);
    this is the dimensionally right reading of the `sqrt` rule (scaling the data scales it alike).
    """
    del labels
    return _median_distance(x) / math.sqrt(3.0)


def interclass_min_bandwidth(x: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""\(\sigma\) = smallest distance between different labels / 3 (the released code's "mst").

    Repeated points with different labels (distance 0 up to rounding) are left out.

    Raises:
        ValueError: Fewer than two labeled classes.
    """
    if labels is None or labels[labels >= 0].unique().numel() < 2:
        raise ValueError(
            "bandwidth='interclass_min' needs labels of at least two classes. Pass labels, use a "
            "larger batch, or use bandwidth='sqrt'."
        )
    labeled = labels >= 0
    x, labels = x[labeled], labels[labeled]
    distance = torch.cdist(x, x, compute_mode=_EXACT)
    same = _SAME_POINT * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x, dim=1).amax()
    between = (labels.unsqueeze(0) != labels.unsqueeze(1)) & (distance > same)
    if not bool(between.any()):
        return distance.new_zeros(())
    return distance[between].min() / 3.0


BANDWIDTH_RULES: dict[str, BandwidthRule] = {
    "sqrt": sqrt_bandwidth,
    "inflection": inflection_bandwidth,
    "interclass_min": interclass_min_bandwidth,
}


@dataclass(frozen=True)
class ScaledBandwidth:
    """A bandwidth rule times a factor.

    Args:
        rule: A key of `BANDWIDTH_RULES`.
        factor: Above 0.

    Example:
        >>> import torch
        >>> ScaledBandwidth("sqrt", 2.0)(torch.tensor([[0.0], [3.0], [6.0]]))
        tensor(2.)
    """

    rule: str
    factor: float

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Bandwidth of points (S, D)."""
        return self.factor * BANDWIDTH_RULES[self.rule](x, labels)

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
    if factor == 1.0 or bandwidth not in BANDWIDTH_RULES:
        return bandwidth
    return ScaledBandwidth(bandwidth, factor)


# `local` scales every edge by its own two nodes, so it is not a function of a sample.
BANDWIDTH_NAMES = (*BANDWIDTH_RULES, "local")


@torch.no_grad()
def bandwidth_of_distances(
    bandwidth: float | str | BandwidthRule, x: Tensor, squared: Tensor
) -> Tensor | None:
    """As `estimate_bandwidth`, from the squared distances (N, N) of all points, if it can be.

    Args:
        bandwidth: The rule.
        x: (N, D) points.
        squared: Their squared distances; the diagonal is not read.

    Returns:
        Scalar; None where the rule is not one of the median, or points are drawn for it.
    """
    rule: object = bandwidth
    factor = 1.0
    if isinstance(bandwidth, ScaledBandwidth):
        rule, factor = bandwidth.rule, bandwidth.factor
    if rule not in ("sqrt", "inflection") or x.size(0) > SAMPLE_ROWS:
        return None
    median = _median_distance(x, squared)
    sigma = (median / 3.0).sqrt() if rule == "sqrt" else median / math.sqrt(3.0)
    return (factor * sigma).clamp(min=_SMALLEST)


def needs_labels(bandwidth: float | str | BandwidthRule) -> bool:
    """Whether a bandwidth is made from labels, so that without two classes there is none.

    Example:
        >>> needs_labels("interclass_min"), needs_labels("sqrt"), needs_labels(0.5)
        (True, False, False)
    """
    rule = bandwidth.rule if isinstance(bandwidth, ScaledBandwidth) else bandwidth
    return rule == "interclass_min"


def reads_labels(bandwidth: float | str | BandwidthRule) -> bool:
    """Whether a bandwidth may depend on labels, as that of a function of the user's does."""
    if isinstance(bandwidth, ScaledBandwidth):
        return needs_labels(bandwidth)
    return callable(bandwidth) or needs_labels(bandwidth)


def check_fits_bank(bandwidth: float | str | BandwidthRule) -> None:
    """Raise if `bandwidth` cannot serve where a corpus is propagated over as a whole.

    Raises:
        ValueError: A rule made from labels.
    """
    if needs_labels(bandwidth):
        raise ValueError(
            f"'bandwidth' must not be {bandwidth!r} where labels propagate over a whole corpus: "
            "that rule is made from labels, so every answer about a document would depend on "
            "the document's own label. Use 'sqrt', 'inflection', 'local' or a number."
        )


def check_bandwidth(bandwidth: float | str | BandwidthRule) -> None:
    """Raise unless `bandwidth` is a positive number, a rule name or a callable.

    Raises:
        ValueError: Lists the known rules.
    """
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
    bandwidth: float | str | BandwidthRule, x: Tensor, labels: Tensor | None = None
) -> Tensor:
    r"""Bandwidth \(\sigma\) of a set of points, without gradient.

    Args:
        bandwidth: A number, a rule name other than `"local"`, or a callable
            `(sample (S, D), labels (S,) or None) -> scalar`.
        x: (N, D) points; of more than 1,024 as many are drawn, the same ones each time, so never
            N x N. `"interclass_min"` draws labeled ones, of every class.
        labels: (N,) long, -1 = unlabeled.

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
        x, labels = x[keep], None if labels is None else labels[keep]
    rule = BANDWIDTH_RULES[bandwidth] if isinstance(bandwidth, str) else bandwidth
    sigma = torch.as_tensor(rule(x, labels), dtype=x.dtype, device=x.device)
    if sigma.dim() != 0 or not bool(torch.isfinite(sigma)) or bool(sigma < 0):
        raise ValueError(f"'bandwidth' rule must return one number >= 0 (got {sigma.tolist()}).")
    return sigma.clamp(min=_SMALLEST)


def drawn_rows(
    bandwidth: float | str | BandwidthRule, total: int, labels: Tensor | None, size: int
) -> Tensor:
    """The rows a bandwidth is estimated on: a seeded draw of at most `size` positions (n,) long.

    Args:
        bandwidth: The rule; one made from labels gets labeled rows only, of every class.
        total: Rows there are.
        labels: (total,) long, -1 = unlabeled, or None.
        size: Rows wanted.
    """
    if labels is None or not needs_labels(bandwidth):
        return torch.from_numpy(seeded_sample(total, size))
    labeled = (labels >= 0).nonzero().squeeze(1).cpu()
    if labeled.numel() <= size:
        return labeled
    return labeled[torch.from_numpy(stratified_sample(labels.cpu()[labeled], size))]


def local_scales(squared: Tensor) -> Tensor:
    r"""Self-tuning scales \(\sigma_i\) = distance to the last listed neighbour.

    Zelnik-Manor & Perona (2004), with \(\sigma^2\) of the Gaussian replaced by
    \(\sigma_i\sigma_j\).

    Args:
        squared: (N, k) squared distances to the neighbours, `inf` where there is none.

    Returns:
        (N,) scales, at least 1e-6; 1 for a row without neighbours.
    """
    if squared.size(1) == 0:
        return squared.new_ones(squared.size(0))
    last = squared.masked_fill(torch.isinf(squared), -1.0).amax(dim=1)
    return torch.where(last >= 0, last.clamp(min=0.0).sqrt(), torch.ones_like(last)).clamp(
        min=_SMALLEST
    )
