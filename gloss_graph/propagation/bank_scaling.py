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
from torch.autograd.function import once_differentiable

from gloss_graph._precision import full_precision
from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator
from gloss_graph.propagation.normalize import NORMALIZATIONS, Scaling, safe_degrees


class _HubScaling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: BankOperator) -> tuple[Tensor, Tensor]:
        operator = operator.with_weight(weight.detach())
        degree = _product(operator, weight.new_ones(operator.num_nodes))
        pulled = _product(operator, safe_degrees(degree).rsqrt())
        factor = 1.0 / safe_degrees(pulled)
        mass = _product(operator, factor)
        diagonal = safe_degrees(mass) / factor
        ctx.operator = operator
        ctx.save_for_backward(degree, pulled, factor, mass, diagonal)
        return factor, diagonal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_factor: Tensor, grad_diagonal: Tensor) -> tuple[Tensor, None]:
        degree, pulled, factor, mass, diagonal = ctx.saved_tensors
        operator: BankOperator = ctx.operator
        ends = operator.nodes
        with full_precision(degree.device.type):
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


def _product(operator: BankOperator, x: Tensor) -> Tensor:
    return operator.multiply(x.unsqueeze(1)).squeeze(1)


def node_scaling(name: str, operator: AnyOperator, ones: Tensor) -> Scaling:
    """The scaling `name` of any operator, differentiable once in its weights.

    Args:
        name: A key of `NORMALIZATIONS`.
        operator: W.
        ones: (N,) ones.
    """
    if name == "hub" and isinstance(operator, BankOperator):
        factor, diagonal = _HubScaling.apply(operator.weight, operator)
        return Scaling(factor, diagonal, factor)
    return NORMALIZATIONS[name](lambda v: operator.times(v.unsqueeze(1)).squeeze(1), ones)
