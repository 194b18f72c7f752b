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

from gloss_graph._internal.precision import first_order
from gloss_graph.propagation.solve import System

Solve = Callable[[System, Tensor], Tensor]


class _ImplicitSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, diagonal: Tensor, right: Tensor, system: System, solve: Solve
    ) -> Tensor:
        operator = system.operator.with_weight(weight.detach())
        # Without the graph: what is kept must not hold on to it.
        ctx.system = system._replace(
            operator=operator,
            diagonal=diagonal.detach(),
            factor=system.factor.detach(),
            null=system.null.detach(),
        )
        ctx.solve = solve
        solution = solve(ctx.system, right)
        ctx.save_for_backward(solution)
        return solution

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (solution,) = ctx.saved_tensors
        needs = ctx.needs_input_grad
        # A backward pass inside autocast must not compute in half precision.
        adjoint = ctx.solve(ctx.system._replace(adjoint=True), grad.contiguous())
        grad_weight = ctx.system.operator.outer(adjoint, solution) if needs[0] else None
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
    return _ImplicitSolve.apply(system.operator.weight, system.diagonal, right, system, solve)
