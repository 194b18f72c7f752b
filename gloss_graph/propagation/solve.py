r"""Solvers for the symmetric positive (semi)definite system \((\mathrm{diag}(a) - W) X = B\).

The gradient is not unrolled. With \(A = \mathrm{diag}(a) - W\) one adjoint solve \(A Z = \partial
L/\partial X\) gives everything: \(\partial L/\partial B = Z\), \(\partial L/\partial a_i = -Z_i
\cdot X_i\), \(\partial L/\partial w_{ij} = Z_i \cdot X_j\). Memory O(E + n C), whatever the
iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order
from gloss_graph.propagation.operators import Operator

SOLVERS = ("auto", "cg", "iterate", "dense")
# Unknowns up to which a factorization beats the iterations.
DENSE_LIMIT = 512
# How many tolerances an estimate of the error may be off.
_NEAR = 4.0


class SolverReport(NamedTuple):
    """How a propagation was solved.

    `residual` is the largest column's residual norm relative to the largest column of the right
    side (what the labels add to the prior, where there is a leak), both divided node by node by
    the node's own coefficient, so that weakly tied nodes count like the others. Where next to
    nothing damps the system (`harmonic` with `eta` below 0.01) it is at least the error of the
    solution that is known to be 1, and under `spreading` relative to the mass of every row.
    `unreachable` counts unseeded nodes that no seed can reach.
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


def _product(operator: Operator, x: Tensor) -> Tensor:
    return operator.times(x)


class System(NamedTuple):
    """The matrix diag(`diagonal`) - W on n unknowns G = s F.

    With v, the `null` vector (n,) of the whole graph, and S = vWv, v diag v - S is a Laplacian
    plus `excess()` (n,) >= 0: what a node is tied to besides the other unknowns (seeds, the leak).
    Its share of the diagonal is at least `damping` / (1 + `damping`).
    `factor` (n,) is the s that makes errors of G errors of F. `basis`: the unit null vectors of a
    singular matrix, one per component, as values (n,) and component (n,), or None. `fixed` (f,)
    long: nodes that are no unknown, where all is zero, or None. `size` (n,): how large a value is
    expected at each node where values have no bound, else None. `adjoint`: the solution is that of
    the backward pass. `product` multiplies the operator by x (n, C).
    """

    operator: Operator
    diagonal: Tensor
    factor: Tensor
    null: Tensor
    excess: Callable[[], Tensor]
    damping: float
    basis: tuple[Tensor, Tensor] | None = None
    adjoint: bool = False
    fixed: Tensor | None = None
    size: Tensor | None = None
    product: Callable[[Operator, Tensor], Tensor] = _product

    def times(self, x: Tensor) -> Tensor:
        """W x for x (n, C)."""
        return self.product(self.operator, x)

    @property
    def unit(self) -> Tensor:
        """What makes a residual (n,) an error that counts alike at every node.

        Forward that of F = G / s, relative to its `size`. Backward, where Z is read as the products
        Z_i w_ij s_j F_j, that of Z times the row sum m s and the `size` of F.
        """
        own = self.factor.detach()
        if not self.adjoint:
            own = own * self.diagonal.detach()
        if self.size is not None:
            own = own * self.size
        return own if self.adjoint else own.clamp(min=torch.finfo(own.dtype).tiny).reciprocal()


def relative_residual(residual: Tensor, right: Tensor, system: System) -> float:
    """Largest column norm of `residual` over that of `right`, (n, C), in units of the system."""
    if right.numel() == 0:
        return 0.0
    both = torch.cat([right.detach(), residual.detach().to(right.dtype)], dim=1)
    both *= system.unit.unsqueeze(1)
    scale, worst = torch.linalg.vector_norm(both, dim=0).view(2, -1).amax(dim=1).tolist()
    return worst / (scale or 1.0)


def _in_range(x: Tensor, system: System) -> Tensor:
    """Take the null vectors' share out of x (n, C): rounding puts it there, no solve removes it.

    The share is zero but for rounding, so gradients pass by it.
    """
    if system.basis is None:
        return x
    values, part = system.basis[0].unsqueeze(1), system.basis[1]
    share = x.new_zeros(int(part.max()) + 1, x.size(1)).index_add(0, part, values * x)
    return x - (values * share[part]).detach()


def conjugate_gradient(
    system: System, right: Tensor, tol: float, max_iter: int, start: Tensor | None = None
) -> tuple[Tensor, int, float]:
    """Solution (n, C) for `right` (n, C), iterations and relative residual, without autograd.

    Jacobi-preconditioned conjugate gradients on all columns as one vector: the matrix is the same
    for every column, so one step length serves them all within an iteration or so, and every pass
    over memory is one over plain vectors, a quarter of the time. The stopping rule is relative to
    the largest column: a class without a label has a zero right side and could never meet a
    tolerance of its own. `start` (n, C) is a first guess, by default 0.
    """
    if right.numel() == 0:
        return torch.zeros_like(right), 0, 0.0
    a = system.diagonal.unsqueeze(1).expand_as(right).contiguous()
    right = _in_range(right, system)
    if start is None:
        x, residual = torch.zeros_like(right), right.clone()
    else:
        x = start.clone()
        residual = _in_range(right - (a * start - system.times(start)), system)
    inverse = a.reciprocal()
    # What `relative_residual` divides by, once.
    unit = (system.unit * system.diagonal).unsqueeze(1)
    spare = torch.empty_like(right)

    def largest_column(x: Tensor) -> float:
        # A fifth of the time of `vector_norm` over the first dimension.
        return math.sqrt(torch.mul(x, unit, out=spare).square_().sum(dim=0).amax())

    def dot(left: Tensor, right: Tensor) -> float:
        return float(torch.dot(left.view(-1), right.view(-1)))

    z = residual * inverse
    scale = largest_column(z if start is None else right * inverse) or 1.0
    direction = z.clone()
    # The inverse of a step's length lies between the smallest and the largest eigenvalue of the
    # matrix with a unit diagonal: below that it is rounding, and the step would end nowhere.
    least = torch.finfo(z.dtype).eps / 16.0
    rho, error, steps = dot(residual, z), largest_column(z) / scale, 0
    # The error follows the square root of rho, which is at hand: it is measured when that is near.
    unit_error = error / math.sqrt(rho) if rho > 0 else 0.0
    while error > tol and steps < max_iter:
        image = system.times(direction).neg_().addcmul_(a, direction)
        curvature = dot(direction, image)
        if not curvature > least * rho:
            error = largest_column(z) / scale
            break
        alpha = rho / curvature
        x.add_(direction, alpha=alpha)
        residual.add_(image, alpha=-alpha)
        residual = _in_range(residual, system)
        torch.mul(residual, inverse, out=z)
        fresh = dot(residual, z)
        steps += 1
        if steps == max_iter or unit_error * math.sqrt(max(fresh, 0.0)) <= _NEAR * tol:
            error = largest_column(z) / scale
        beta, rho = (fresh / rho if rho > 0 else 0.0), fresh
        torch.add(z, direction, alpha=beta, out=direction)
    return x, steps, error


def fixed_point(
    system: System, right: Tensor, tol: float, max_iter: int, start: Tensor | None = None
) -> tuple[Tensor, int, float]:
    """The textbook iteration X <- (W X + B) / a: one message-passing step at a time.

    Arguments and results as `conjugate_gradient`; `tol=0` runs exactly `max_iter` steps.
    """
    a = system.diagonal.unsqueeze(1)
    right = _in_range(right, system)
    x = right / a if start is None else start
    steps = 0
    while True:
        image = system.times(x)
        residual = _in_range(right + image - a * x, system)
        error = relative_residual(residual, right, system)
        if (error <= tol and tol > 0) or steps == max_iter:
            return x, steps, error
        x = (image + right) / a
        steps += 1


def positive_fixed_point(
    system: System, right: Tensor, reached: Tensor, rate: float, tol: float, max_iter: int
) -> tuple[Tensor, int, float]:
    """As `fixed_point` for a right side >= 0: an iteration that only adds resolves every row.

    A row far from every seed has a mass smaller by powers of ten, which a residual relative to the
    largest column does not see; its share of classes matters as much.

    `reached` (n,) bool are the rows whose mass is above 0, `rate` the factor in (0, 1) by which an
    iteration reduces the error. Errors, `tol` too, are relative to the mass of every row.
    """
    a = system.diagonal.unsqueeze(1)
    x = right / a
    mass = x.sum(dim=1)[reached]
    error, steps = torch.inf, 0
    while error > tol and steps < max_iter:
        x = (system.times(x) + right) / a
        grown = x.sum(dim=1)[reached]
        change = torch.where(grown > 0, (grown - mass) / grown, 1.0)
        error = float(change.amax()) * rate / (1.0 - rate)
        mass, steps = grown, steps + 1
    return x, steps, error


class _ImplicitSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, diagonal: Tensor, right: Tensor, system: System, solve: Any
    ) -> Tensor:
        # Without the graph: what is kept must not hold on to it.
        ctx.system = system._replace(
            operator=system.operator.with_weight(weight.detach()),
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
        adjoint = ctx.solve(ctx.system._replace(adjoint=True), grad.contiguous())
        grad_weight = ctx.system.operator.outer(adjoint, solution) if needs[0] else None
        grad_diagonal = -(adjoint * solution).sum(dim=1) if needs[1] else None
        return grad_weight, grad_diagonal, adjoint if needs[2] else None, None, None


def implicit_solve(
    system: System, right: Tensor, solve: Callable[[System, Tensor], Tensor]
) -> Tensor:
    """The solution (n, C), differentiable once in weights, diagonal and right side.

    `solve` is called without autograd, once forward and once, for the adjoint system, backward.
    """
    return _ImplicitSolve.apply(system.operator.weight, system.diagonal, right, system, solve)
