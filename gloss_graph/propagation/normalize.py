r"""Normalizations as node scalings of one symmetric matrix.

Every propagation matrix T offered here turns, by scaling nodes, into the same symmetric system:
with node factors s > 0, a diagonal m and values \(G = s F\),

    T F = F on hidden nodes   <=>   (diag(m) - W) G = 0 there,

so one weight matrix W serves them all and no reweighted copy of it is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order
from gloss_graph.propagation.operators import Operator

# Smallest degree relative to the largest at which products of degrees are safe in float32.
_NARROWEST = 1e-10

Product = Callable[[Tensor], Tensor]


class Scaling(NamedTuple):
    """Node factors s (N,), diagonal m (N,) and the vector v (N,) with W v = m v."""

    factor: Tensor
    diagonal: Tensor
    null: Tensor


def safe_degrees(x: Tensor) -> Tensor:
    """Degrees (N,) with every 0 replaced by 1: an isolated node gets an identity row."""
    return x.masked_fill(x <= 0, 1.0)


def _row(times: Product, degree: Tensor) -> Scaling:
    r"""\(T = D^{-1} W\), the random walk (Zhu & Ghahramani, 2002)."""
    ones = torch.ones_like(degree)
    return Scaling(ones, safe_degrees(degree), ones)


def _hub(times: Product, degree: Tensor) -> Scaling:
    r"""The random walk on \(S = sWs\), \(s = 1 / (W d^{-1/2})\).

    The paper's released code reaches it by symmetric, then column, then row normalization. It takes
    weight from hubs.
    """
    factor = safe_degrees(times(safe_degrees(degree).rsqrt())).reciprocal()
    return Scaling(factor, safe_degrees(times(factor)) / factor, factor)


def _symmetric(times: Product, degree: Tensor) -> Scaling:
    r"""\(T = D^{-1/2} W D^{-1/2}\) (Zhou et al., 2004). Rows of F need not sum to 1."""
    degree = safe_degrees(degree)
    return Scaling(degree.rsqrt(), degree, torch.ones_like(degree))


def _column(times: Product, degree: Tensor) -> Scaling:
    r"""\(T_{ij} = \tilde A_{ij} / \sum_m \tilde A_{mj}\), \(\tilde A = D^{-1/2} W D^{-1/2}\).

    The paper's Algorithm 1: column-stochastic, so rows of F need not sum to 1.
    """
    root = safe_degrees(degree).rsqrt()
    sums = safe_degrees(times(root))
    return Scaling(1.0 / sums, sums / root, root)


#: Each takes the product of W with a vector (N,) and the degrees W 1 (N,).
NORMALIZATIONS: dict[str, Callable[[Product, Tensor], Scaling]] = {
    "hub": _hub,
    "row": _row,
    "symmetric": _symmetric,
    "column": _column,
}


def _by_products(name: str, times: Product, ones: Tensor) -> tuple[Scaling, Tensor]:
    """The normalization `name` and the degrees (N,), where `times` gives W x for x (N, 1)."""

    def vector_times(x: Tensor) -> Tensor:
        return times(x.unsqueeze(1)).squeeze(1)

    degree = vector_times(ones)
    return NORMALIZATIONS[name](vector_times, degree), degree.detach()


class _HubScaling(torch.autograd.Function):
    r"""The hub's scaling, whose gradient takes two products and one outer product.

    With \(d = W 1,\ t = W d^{-1/2},\ s = 1 / t,\ m = W s / s\) and the adjoint vectors
    \(\bar s, \bar m\) of the two results:

    \[\bar v = \bar m / s,\quad \bar t = -s^2 (\bar s - \bar m m / s + W \bar v),\quad
    \bar d = -\tfrac12 d^{-3/2} \, W \bar t,\quad
    \bar w_{ij} = \bar v_i s_j + \bar t_i d_j^{-1/2} + \bar d_i.\]
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: Operator) -> tuple[Tensor, ...]:
        ctx.operator = operator.with_weight(weight.detach())
        ones = weight.new_ones(operator.num_nodes)
        found, degree = _by_products("hub", ctx.operator.multiply, ones)
        ctx.save_for_backward(weight, degree, found.factor, found.diagonal)
        ctx.mark_non_differentiable(degree)
        return found.factor, found.diagonal, degree

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_factor: Tensor, grad_diagonal: Tensor, _: Tensor
    ) -> tuple[Tensor, None]:
        weight, degree, factor, diagonal = ctx.saved_tensors
        operator: Operator = ctx.operator.with_weight(weight)
        grad_mass = grad_diagonal / factor
        spread = operator.multiply(grad_mass.unsqueeze(1)).squeeze(1)
        grad_pulled = grad_diagonal * diagonal - factor * (grad_factor + spread)
        grad_pulled.mul_(factor)
        spread = operator.multiply(grad_pulled.unsqueeze(1)).squeeze(1)
        root = safe_degrees(degree).rsqrt()
        grad_degree = -0.5 * spread * root.pow(3)
        left = torch.stack([grad_mass, grad_pulled, grad_degree], dim=1)
        # A node without neighbors has the constant 1 instead of a sum; no product reads it.
        left.masked_fill_((degree <= 0).unsqueeze(1), 0.0)
        right = torch.stack([factor, root, torch.ones_like(root)], dim=1)
        return operator.outer(left, right), None


def _scaling(name: str, operator: Operator) -> tuple[Scaling, Tensor]:
    """The normalization `name` of W, differentiable once, and the degrees (N,)."""
    if name != "hub" or operator.recorded:
        return _by_products(name, operator.times, operator.weight.new_ones(operator.num_nodes))
    factor, diagonal, degree = _HubScaling.apply(operator.weight, operator)
    return Scaling(factor, diagonal, factor), degree


def scaled(name: str, operator: Operator) -> tuple[Operator, Scaling]:
    r"""W and its scaling, both in float64 if float32 is too narrow.

    The diagonal of `hub` and `column` holds products of two degrees, so degrees that span more
    than ten powers of ten could leave the range of float32, whose weights reach over eighty.
    Float64 holds those products, and their products, for every weight that float32 can hold.
    """
    scaling, degree = _scaling(name, operator)
    if degree.dtype == torch.float64 or degree.numel() == 0:
        return operator, scaling
    low, top = map(float, torch.aminmax(degree))
    if low == 0.0:  # isolated nodes are no ties
        low = float(degree.masked_fill(degree <= 0, top).amin())
    if low >= _NARROWEST * top:
        return operator, scaling
    operator = operator.double()
    return operator, _scaling(name, operator)[0]
