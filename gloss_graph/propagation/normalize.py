r"""Normalizations as node scalings of one symmetric matrix.

Every propagation matrix T offered here turns, by scaling nodes, into the same symmetric system:
with node factors s > 0, a diagonal m and values \(G = s F\),

    T F = F on hidden nodes   <=>   (diag(m) - W) G = 0 there,

so one weight matrix W serves them all and no reweighted copy of it is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Scaling(NamedTuple):
    """Node factors s (N,), diagonal m (N,) and the vector v (N,) with W v = m v."""

    factor: Tensor
    diagonal: Tensor
    null: Tensor


def safe_degrees(x: Tensor) -> Tensor:
    """Degrees (N,) with every 0 replaced by 1: an isolated node gets an identity row."""
    return x.masked_fill(x <= 0, 1.0)


def row_scaling(times: Product, degree: Tensor) -> Scaling:
    r"""\(T = D^{-1} W\), the random walk (Zhu & Ghahramani, 2002)."""
    ones = torch.ones_like(degree)
    return Scaling(ones, safe_degrees(degree), ones)


def hub_scaling(times: Product, degree: Tensor) -> Scaling:
    r"""The random walk on \(S = sWs\), \(s = 1 / (W d^{-1/2})\).

    The paper's released code reaches it by symmetric, then column, then row normalization. It takes
    weight from hubs.
    """
    factor = safe_degrees(times(safe_degrees(degree).rsqrt())).reciprocal()
    return Scaling(factor, safe_degrees(times(factor)) / factor, factor)


def symmetric_scaling(times: Product, degree: Tensor) -> Scaling:
    r"""\(T = D^{-1/2} W D^{-1/2}\) (Zhou et al., 2004). Rows of F need not sum to 1."""
    degree = safe_degrees(degree)
    return Scaling(degree.rsqrt(), degree, torch.ones_like(degree))


def column_scaling(times: Product, degree: Tensor) -> Scaling:
    r"""\(T_{ij} = \tilde A_{ij} / \sum_m \tilde A_{mj}\), \(\tilde A = D^{-1/2} W D^{-1/2}\).

    The paper's Algorithm 1: column-stochastic, so rows of F need not sum to 1.
    """
    root = safe_degrees(degree).rsqrt()
    sums = safe_degrees(times(root))
    return Scaling(1.0 / sums, sums / root, root)


#: Each takes the product with W and the degrees W 1 (N,).
NORMALIZATIONS: dict[str, Callable[[Product, Tensor], Scaling]] = {
    "hub": hub_scaling,
    "row": row_scaling,
    "symmetric": symmetric_scaling,
    "column": column_scaling,
}


def node_scaling(name: str, times: Product, ones: Tensor) -> tuple[Scaling, Tensor]:
    """The scaling `name` and the degrees (N,) of a graph.

    Args:
        name: A key of `NORMALIZATIONS`.
        times: W x for x (N, 1), differentiable.
        ones: (N,) ones.
    """

    def vector_times(x: Tensor) -> Tensor:
        return times(x.unsqueeze(1)).squeeze(1)

    degree = vector_times(ones)
    return NORMALIZATIONS[name](vector_times, degree), degree.detach()
