r"""Solvers for the symmetric positive (semi)definite system \((\mathrm{diag}(a) - W) X = B\)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gloss_graph.propagation.bank_operator import AnyOperator
from gloss_graph.propagation.operators import MaskedOperator

SOLVERS = ("auto", "cg", "iterate", "dense")
# Unknowns up to which a factorisation beats the iterations.
DENSE_LIMIT = 512
# How many tolerances an estimate of the error may be off.
_NEAR = 4.0

Product = Callable[[Tensor], Tensor]
Null: TypeAlias = tuple[Tensor, Tensor]


class SolverReport(NamedTuple):
    """How a propagation was solved.

    `residual` is the largest column's residual norm relative to the largest column of the right
    side, both divided node by node by the node's own coefficient, so that weakly tied nodes count
    like the others; `unreachable` counts unseeded nodes that no seed can reach.
    """

    solver: str
    iterations: int
    residual: float
    converged: bool
    unreachable: int = 0


class Propagation(NamedTuple):
    """Result of a propagation.

    `values` (N, C); `reached` (N,) bool, nodes joined to a seed (seeds included); `report`.
    """

    values: Tensor
    reached: Tensor
    report: SolverReport


def warn_unconverged(report: SolverReport, tol: float, warned: bool) -> bool:
    """Warn, for the caller of `LabelPropagation.propagate_labels`, unless it was done before.

    Returns:
        Whether the warning has been given by now.
    """
    if report.converged or warned:
        return warned
    warnings.warn(
        f"Label propagation ({report.solver}) stopped after {report.iterations} iterations at "
        f"a relative residual of {report.residual:.1e} (tol={tol:.0e}). Raise 'max_iter' "
        "or 'eta', or loosen 'tol'.",
        UserWarning,
        stacklevel=4,
    )
    return True


class System(NamedTuple):
    """The matrix diag(`diagonal`) - W on n unknowns G = s F.

    `diagonal` (n,); `factor` (n,), the s that makes errors of G errors of F; `null`, the unit null
    vectors of a singular matrix, one a component, as values (n,) and component (n,), or None.
    """

    operator: AnyOperator | MaskedOperator
    diagonal: Tensor
    factor: Tensor
    null: Null | None


def relative_residual(residual: Tensor, right: Tensor, system: System) -> float:
    """Largest column norm of `residual` over that of `right`, (n, C), in units of F."""
    if right.numel() == 0:
        return 0.0
    own = (system.diagonal * system.factor).detach().unsqueeze(1)
    unit = 1.0 / own.clamp(min=torch.finfo(own.dtype).tiny)
    scale = torch.linalg.vector_norm(unit * right.detach(), dim=0).amax()
    worst = torch.linalg.vector_norm(unit * residual.detach(), dim=0).amax()
    return float(worst / scale) if float(scale) > 0 else float(worst)


def _in_range(x: Tensor, null: Null | None) -> Tensor:
    """Take the null vectors' share out of x (n, C): rounding puts it there, no solve removes it.

    The share is zero but for rounding, so gradients pass by it.
    """
    if null is None:
        return x
    values, part = null[0].unsqueeze(1), null[1]
    share = x.new_zeros(int(part.max()) + 1, x.size(1)).index_add(0, part, values * x)
    return x - (values * share[part]).detach()


def conjugate_gradient(
    times: Product,
    system: System,
    right: Tensor,
    tol: float,
    max_iter: int,
    start: Tensor | None = None,
) -> tuple[Tensor, int, float]:
    """Jacobi-preconditioned conjugate gradients on all columns at once.

    The stopping rule is relative to the largest column: a class without a label has a zero right
    side and could never meet a tolerance of its own. Where a gradient is recorded no operation is
    in place, so the iterations can be differentiated through.

    Args:
        times: W x for x (n, C).
        system: The matrix; its diagonal and scales are used.
        right: (n, C).
        tol: Relative residual to stop at.
        max_iter: Largest number of iterations.
        start: (n, C) first guess, by default 0. Without gradient.

    Returns:
        Solution (n, C), iterations, relative residual.
    """
    a = system.diagonal.unsqueeze(1)
    right = _in_range(right, system.null)
    if start is None:
        x, residual = torch.zeros_like(right), right
    else:
        x, residual = start, _in_range(right - (a * start - times(start)), system.null)
    recorded = torch.is_grad_enabled() and any(part.requires_grad for part in (a, residual))
    recorded = recorded or (torch.is_grad_enabled() and system.operator.weight.requires_grad)
    if not recorded:
        return _conjugate_gradient_in_place(times, system, right, x, residual, tol, max_iter)
    z = residual / a
    direction = z
    rho = (residual * z).sum(dim=0)
    error = relative_residual(residual, right, system)
    steps = 0
    while error > tol and steps < max_iter:
        image = a * direction - times(direction)
        curvature = (direction * image).sum(dim=0)
        active = curvature > 0
        alpha = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
        x = x + alpha * direction
        residual = _in_range(residual - alpha * image, system.null)
        z = residual / a
        fresh = (residual * z).sum(dim=0)
        beta = torch.where(rho > 0, fresh / torch.where(rho > 0, rho, 1.0), 0.0)
        direction = z + beta * direction
        rho = fresh
        steps += 1
        error = relative_residual(residual, right, system)
        if not bool(active.any()):
            break
    return x, steps, error


def _conjugate_gradient_in_place(
    times: Product,
    system: System,
    right: Tensor,
    x: Tensor,
    residual: Tensor,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, int, float]:
    """The iterations of `conjugate_gradient` on all columns as one vector, in place.

    The matrix is the same for every column, so one step length serves them all within an iteration
    or so, and every pass over memory is one over plain vectors: a quarter of the time.
    """
    if right.numel() == 0:
        return x, 0, 0.0
    a = system.diagonal.unsqueeze(1).expand_as(right).contiguous()
    inverse = a.reciprocal()
    # What `relative_residual` divides by, once.
    unit = system.factor.unsqueeze(1).reciprocal()
    scale = float(torch.linalg.vector_norm(right * inverse * unit, dim=0).amax())
    x, residual = x.clone(), residual.clone()
    z = residual * inverse
    direction = z.clone()
    spare = torch.empty_like(z)

    def dot(left: Tensor, right: Tensor) -> float:
        return float(torch.dot(left.view(-1), right.view(-1)))

    def relative() -> float:
        worst = float(torch.linalg.vector_norm(torch.mul(z, unit, out=spare), dim=0).amax())
        return worst / scale if scale > 0 else worst

    rho, error, steps = dot(residual, z), relative(), 0
    # The error follows the square root of rho, which is at hand: it is measured when that is near.
    unit_error = error / math.sqrt(rho) if rho > 0 else 0.0
    while error > tol and steps < max_iter:
        image = times(direction).neg_().addcmul_(a, direction)
        curvature = dot(direction, image)
        if not curvature > 0:
            error = relative()
            break
        alpha = rho / curvature
        x.add_(direction, alpha=alpha)
        residual.add_(image, alpha=-alpha)
        if system.null is not None:
            residual = _in_range(residual, system.null)
        torch.mul(residual, inverse, out=z)
        fresh = dot(residual, z)
        steps += 1
        if steps == max_iter or unit_error * math.sqrt(max(fresh, 0.0)) <= _NEAR * tol:
            error = relative()
        beta, rho = (fresh / rho if rho > 0 else 0.0), fresh
        torch.add(z, direction, alpha=beta, out=direction)
    return x, steps, error


def fixed_point(
    times: Product, system: System, right: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, int, float]:
    """The textbook iteration X <- (W X + B) / a: one message-passing step a time.

    Arguments and results as `conjugate_gradient`; `tol=0` runs exactly `max_iter` steps.
    """
    a = system.diagonal.unsqueeze(1)
    right = _in_range(right, system.null)
    x = right / a
    steps = 0
    while True:
        image = times(x)
        residual = _in_range(right + image - a * x, system.null)
        error = relative_residual(residual, right, system)
        if (error <= tol and tol > 0) or steps == max_iter:
            return x, steps, error
        x = (image + right) / a
        steps += 1


def dense_system(system: System) -> tuple[Tensor, Tensor]:
    """R (diag(a) - W) R as a dense float64 (n, n) matrix and R = diag(a)^(-1/2) (n, 1).

    Both differentiable. Scaled to a unit diagonal, since pivoting cannot cope with weakly tied
    nodes, whose rows are smaller by powers of ten. The null space of a singular matrix is filled,
    which leaves the solution of a consistent system as it is, up to null vectors.
    """
    diagonal = system.diagonal.double()
    matrix = system.operator.to_full().double().neg()
    matrix.diagonal().add_(diagonal)
    scale = diagonal.rsqrt().unsqueeze(1)
    matrix = matrix * (scale * scale.T)
    if system.null is not None:
        # In the scaled coordinates, so that every component counts alike.
        part = system.null[1]
        values = system.null[0].double() / scale.detach().squeeze(1)
        squares = values.new_zeros(int(part.max()) + 1).index_add(0, part, values.square())
        values = values / squares.sqrt()[part]
        same = part.unsqueeze(0) == part.unsqueeze(1)
        matrix = matrix + torch.outer(values, values) * same
    return matrix, scale


def dense_solution(system: System, right: Tensor) -> Tensor:
    """Closed form by factorisation, in float64 on n x n: O(n³) time, O(n²) memory."""
    matrix, scale = dense_system(system)
    return (scale * torch.linalg.solve(matrix, scale * right.double())).to(right.dtype)


class DenseFactor:
    """A solve by factorisation that the adjoint solve of the same matrix reuses."""

    def __init__(self) -> None:
        self._factor: tuple[Tensor, Tensor] | None = None
        self._scale: Tensor | None = None

    def __call__(self, system: System, right: Tensor) -> Tensor:
        """Solution (n, C) for a right side (n, C)."""
        if self._factor is None or self._scale is None:
            matrix, self._scale = dense_system(system)
            self._factor = torch.linalg.lu_factor(matrix)
        scaled = torch.linalg.lu_solve(*self._factor, self._scale * right.double())
        return (self._scale * scaled).to(right.dtype)
