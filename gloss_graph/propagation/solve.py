r"""Solvers for the symmetric positive (semi)definite system \((\mathrm{diag}(a) - W) X = B\)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph.propagation.operators import Operator

SOLVERS = ("auto", "cg", "iterate", "dense")
# Unknowns up to which a factorisation beats the iterations.
DENSE_LIMIT = 512

Product = Callable[[Tensor], Tensor]


class SolverReport(NamedTuple):
    """How a propagation was solved.

    `residual` is the largest column's residual norm relative to the largest column of the right
    side; `unreachable` counts unseeded nodes that no seed can reach.
    """

    solver: str
    iterations: int
    residual: float
    converged: bool
    unreachable: int = 0


class System(NamedTuple):
    """The matrix diag(`diagonal`) - W on n unknowns, `diagonal` (n,)."""

    operator: Operator
    diagonal: Tensor


def relative_residual(residual: Tensor, right: Tensor) -> float:
    """Largest column norm of `residual` over that of `right`, both (n, C); 0 for a zero side."""
    if right.numel() == 0:
        return 0.0
    scale = torch.linalg.vector_norm(right, dim=0).amax()
    worst = torch.linalg.vector_norm(residual, dim=0).amax()
    return float(worst / scale) if float(scale) > 0 else float(worst)


def conjugate_gradient(
    times: Product, diagonal: Tensor, right: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, int, float]:
    """Jacobi-preconditioned conjugate gradients on all columns at once.

    The stopping rule is relative to the largest column: a class without a label has a zero right
    side and could never meet a tolerance of its own. No operation is in place, so the iterations
    can be differentiated through.

    Args:
        times: W x for x (n, C).
        diagonal: (n,) > 0.
        right: (n, C).
        tol: Relative residual to stop at.
        max_iter: Largest number of iterations.

    Returns:
        Solution (n, C), iterations, relative residual.
    """
    a = diagonal.unsqueeze(1)
    x = torch.zeros_like(right)
    residual = right
    z = residual / a
    direction = z
    rho = (residual * z).sum(dim=0)
    error = relative_residual(residual.detach(), right.detach())
    steps = 0
    while error > tol and steps < max_iter:
        image = a * direction - times(direction)
        curvature = (direction * image).sum(dim=0)
        active = curvature > 0
        alpha = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
        x = x + alpha * direction
        residual = residual - alpha * image
        z = residual / a
        fresh = (residual * z).sum(dim=0)
        beta = torch.where(rho > 0, fresh / torch.where(rho > 0, rho, 1.0), 0.0)
        direction = z + beta * direction
        rho = fresh
        steps += 1
        error = relative_residual(residual.detach(), right.detach())
        if not bool(active.any()):
            break
    return x, steps, error


def fixed_point(
    times: Product, diagonal: Tensor, right: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, int, float]:
    """The textbook iteration X <- (W X + B) / a: one message-passing step a time.

    Arguments and results as `conjugate_gradient`; `tol=0` runs exactly `max_iter` steps.
    """
    a = diagonal.unsqueeze(1)
    x = right / a
    steps = 0
    while True:
        image = times(x)
        error = relative_residual((right + image - a * x).detach(), right.detach())
        if (error <= tol and tol > 0) or steps == max_iter:
            return x, steps, error
        x = (image + right) / a
        steps += 1


Null = tuple[Tensor, Tensor]


def dense_matrix(system: System, null: Null | None) -> Tensor:
    """diag(a) - W as a dense float64 (n, n) matrix, differentiable.

    `null` (unit values (n,), component (n,)) fills the null space of a singular matrix, which
    leaves the solution of a consistent system as it is, up to null vectors.
    """
    matrix = torch.diag(system.diagonal.double()) - system.operator.to_full().double()
    if null is not None:
        values, part = null[0].double(), null[1]
        same = part.unsqueeze(0) == part.unsqueeze(1)
        scale = system.diagonal.detach().double().mean()
        matrix = matrix + scale * torch.outer(values, values) * same
    return matrix


def dense_solution(system: System, right: Tensor, null: Null | None = None) -> Tensor:
    """Closed form by factorisation, in float64 on n x n: O(n³) time, O(n²) memory."""
    matrix = dense_matrix(system, null)
    return torch.linalg.solve(matrix, right.double()).to(right.dtype)


class DenseFactor:
    """A solve by factorisation that the adjoint solve of the same matrix reuses."""

    def __init__(self, null: Null | None = None) -> None:
        self.null = null
        self._factor: tuple[Tensor, Tensor] | None = None

    def __call__(self, system: System, right: Tensor) -> Tensor:
        """Solution (n, C) for a right side (n, C)."""
        if self._factor is None:
            self._factor = torch.linalg.lu_factor(dense_matrix(system, self.null))
        return torch.linalg.lu_solve(*self._factor, right.double()).to(right.dtype)
