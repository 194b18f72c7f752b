r"""Normalisations of a graph; the hub's of a bank with a gradient only where the border reads it.

\(d = W 1,\ t = W d^{-1/2},\ s = 1 / t,\ m = W s / s\), see `hub_scaling`. Backward, with the
adjoint vectors \(\bar s, \bar m\) of the two results:

\[\bar v = \bar m / s,\quad \bar t = -s^2 (\bar s - \bar m m / s + W \bar v),\quad
\bar d = -\tfrac12 d^{-3/2} \, W \bar t,\quad
\bar w_{ij} = \bar v_i s_j + \bar t_i d_j^{-1/2} + \bar d_i.\]

A weight of the border needs the last line at its own ends only, and so \(\bar t\) at these and
their neighbours: nothing else of the bank is visited.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order
from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator
from gloss_graph.propagation.normalize import NORMALIZATIONS, Scaling, safe_degrees


class _HubScaling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: BankOperator) -> tuple[Tensor, ...]:
        operator = operator.with_weight(weight.detach())
        degree = _product(operator, weight.new_ones(operator.num_nodes))
        pulled = _product(operator, safe_degrees(degree).rsqrt())
        factor = 1.0 / safe_degrees(pulled)
        mass = _product(operator, factor)
        diagonal = safe_degrees(mass) / factor
        ctx.operator = operator
        ctx.save_for_backward(degree, pulled, factor, mass, diagonal)
        ctx.mark_non_differentiable(degree)
        return factor, diagonal, degree

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_factor: Tensor, grad_diagonal: Tensor, _: Tensor
    ) -> tuple[Tensor, None]:
        degree, pulled, factor, mass, diagonal = ctx.saved_tensors
        operator: BankOperator = ctx.operator
        ends = operator.nodes
        # What is no node's neighbour has 1 in place of a sum: a constant.
        grad_mass = torch.where(mass > 0, grad_diagonal / factor, 0.0)
        spread = operator.pull(grad_mass.unsqueeze(1)).squeeze(1)
        grad_pulled = grad_diagonal * diagonal - factor * (grad_factor + spread)
        grad_pulled = torch.where(pulled > 0, factor * grad_pulled, 0.0)
        spread = operator.multiply_at(grad_pulled.unsqueeze(1), ends, keep=False).squeeze(1)
        own = degree[ends]
        grad_degree = torch.where(own > 0, -0.5 * spread * safe_degrees(own).pow(-1.5), 0.0)
        left = torch.stack([grad_mass[ends], grad_pulled[ends], grad_degree], dim=1)
        root = safe_degrees(own).rsqrt()
        right = torch.stack([factor[ends], root, torch.ones_like(root)], dim=1)
        return operator.border.outer(left, right), None


# Smallest degree relative to the largest at which products of degrees are safe in float32.
_NARROWEST = 1e-10


def _product(operator: BankOperator, x: Tensor) -> Tensor:
    return operator.multiply(x.unsqueeze(1)).squeeze(1)


def node_scaling(name: str, operator: AnyOperator) -> tuple[Scaling, Tensor]:
    """The scaling `name` of any operator, differentiable once in its weights, and the degrees.

    Args:
        name: A key of `NORMALIZATIONS`.
        operator: W.
    """

    def times(x: Tensor) -> Tensor:
        return operator.times(x.unsqueeze(1)).squeeze(1)

    if name == "hub" and isinstance(operator, BankOperator):
        factor, diagonal, degree = _HubScaling.apply(operator.weight, operator)
        return Scaling(factor, diagonal, factor), degree
    degree = times(operator.weight.new_ones(operator.num_nodes))
    return NORMALIZATIONS[name](times, degree), degree.detach()


def scaled(name: str, operator: AnyOperator) -> tuple[AnyOperator, Scaling]:
    r"""W and its scaling, both in float64 where float32 is too narrow.

    The diagonal of `hub` and `column` holds products of two degrees, so degrees that span more
    than ten powers of ten could leave the range of float32, whose own weights reach over eighty.
    Float64 holds those products, and their products, for every weight that float32 can hold.
    """
    scaling, degree = node_scaling(name, operator)
    if degree.dtype == torch.float64 or degree.numel() == 0:
        return operator, scaling
    low = torch.where(degree > 0, degree, torch.inf).amin()
    if bool(low >= _NARROWEST * degree.amax()) or not bool((degree > 0).any()):
        return operator, scaling
    operator = operator.double()
    return operator, node_scaling(name, operator)[0]
