r"""The gradient of a linear solve without unrolling it.

For \(A X = B\), \(A = \mathrm{diag}(a) - W\), one adjoint solve \(A Z = \partial L/\partial X\)
gives everything: \(\partial L/\partial B = Z\), \(\partial L/\partial a_i = -Z_i \cdot X_i\),
\(\partial L/\partial w_{ij} = Z_i \cdot X_j\). Memory O(E + n C), whatever the iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gloss_graph.propagation.operators import Operator
from gloss_graph.propagation.solve import System

Solve = Callable[[System, Tensor], Tensor]


class _ImplicitSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, diagonal: Tensor, right: Tensor, operator: Operator, solve: Solve
    ) -> Tensor:
        ctx.operator = operator.with_weight(weight.detach())
        solution = solve(System(ctx.operator, diagonal), right)
        ctx.save_for_backward(weight, diagonal, solution)
        ctx.solve = solve
        return solution

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, diagonal, solution = ctx.saved_tensors
        operator = ctx.operator.with_weight(weight)
        adjoint = ctx.solve(System(operator, diagonal), grad.contiguous())
        needs = ctx.needs_input_grad
        grad_weight = operator.outer(adjoint, solution) if needs[0] else None
        grad_diagonal = -(adjoint * solution).sum(dim=1) if needs[1] else None
        return grad_weight, grad_diagonal, adjoint if needs[2] else None, None, None


def implicit_solve(system: System, right: Tensor, solve: Solve) -> Tensor:
    """Solve and attach the adjoint gradient.

    Args:
        system: The symmetric matrix.
        right: (n, C).
        solve: `(system, right) -> solution`, called once forward and once backward, without
            autograd.

    Returns:
        (n, C), differentiable once in weights, diagonal and right side.
    """
    operator, diagonal = system
    return _ImplicitSolve.apply(operator.weight, diagonal, right, operator, solve)
