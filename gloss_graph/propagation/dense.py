r"""Closed-form solves by factorization, accurate however weak the ties to the seeds are.

In units of the null vector v of the whole graph every system is \((\mathrm{diag}(e + S1) - S) U =
R\) with \(S = vWv \ge 0\) and \(e \ge 0\): a Laplacian plus an excess. A factorization of the
matrix itself loses the excess where it is smaller than the rounding of the diagonal (two texts
tied to each other at 1 and to every seed at 1e-20). Elimination in terms of S and e never
subtracts, and is accurate entry by entry (Grassmann, Taksar & Heyman, 1985; Alfa, Xue & Ye, 2002).
It takes n small steps, so it is used only where the plain factorization is found wrong: \(U = 1\)
solves the system with right side e.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order, narrowed, widen
from gloss_graph.propagation.normalize import safe_degrees
from gloss_graph.propagation.solve import System

# Damping from which the matrix itself holds its excess well enough.
_SAFE_DAMPING = 1e-3
# Error of the solution that is known to be 1, beyond which elimination without subtraction is used.
_WRONG = 5e-10
# Solutions this small relative to the largest are no longer accurate entry by entry.
_SMALL = 1e-9


class _Factor:
    """The factorized matrix diag(e + S1) - S, n x n in float64.

    `part` (n,) long names the component of every row of a singular matrix (e = 0): its null space,
    a constant per component, is filled, which leaves the solution of a consistent system as it is,
    up to constants per component.

    `known` (n,) is the excess, or with `whole` the diagonal e + S1, from which it follows.
    """

    def __init__(self, weight: Tensor, known: Tensor, part: Tensor | None, whole: bool) -> None:
        self.weight, self.known, self.part, self.whole = weight, known, part, whole
        # Nodes that are no unknown: rows of their own, solved to 0.
        self.sums = safe_degrees(known if whole else known + weight.sum(dim=1))
        self.exact: tuple[Tensor, Tensor] | None = None
        self.scale = self.sums.rsqrt().unsqueeze(1)
        matrix = torch.diag(self.sums) - weight
        # To a unit diagonal: pivoting cannot cope with rows that are smaller by powers of ten.
        matrix = matrix.mul_(self.scale).mul_(self.scale.T)
        if part is not None:
            matrix += _null_fill(self.sums.sqrt(), part)
        factor, pivots, info = torch.linalg.lu_factor_ex(matrix)
        self.plain = factor, pivots
        if part is None and not whole:
            ones = self.solve(known.unsqueeze(1)).squeeze(1)
            near = ((ones - 1.0).abs() <= _WRONG) | (known + weight.sum(dim=1) == 0)
            if int(info) != 0 or not bool(near.all()):
                self._eliminate()

    def _eliminate(self) -> None:
        excess = self.known
        if self.whole:
            excess = (self.known - self.weight.sum(dim=1)).clamp(min=0.0)
        self.exact = _eliminated(self.weight, excess)

    def solve(self, right: Tensor, positive: bool = False) -> Tensor:
        """Solution (n, C) for a right side (n, C).

        With `positive`, right sides >= 0, it is accurate in every entry, however small.
        """
        if self.exact is None:
            solution = self.scale * torch.linalg.lu_solve(*self.plain, self.scale * right)
            rows = solution.sum(dim=1)
            if (
                not positive
                or self.part is not None
                or rows.numel() == 0
                or bool((rows > _SMALL * rows.amax()).all())
            ):
                return solution
            self._eliminate()
            return self.solve(right)
        lower, sums = self.exact
        # Triangular matrices with entries <= 0: substitution adds, and never subtracts.
        right = torch.linalg.solve_triangular(lower.T, right, upper=True, unitriangular=True)
        right = right / sums.unsqueeze(1)
        return torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)


def _null_fill(values: Tensor, part: Tensor) -> Tensor:
    squares = values.new_zeros(int(part.max()) + 1).index_add(0, part, values.square())
    values = values / squares.sqrt()[part]
    return torch.outer(values, values) * (part.unsqueeze(0) == part.unsqueeze(1))


def _eliminated(weight: Tensor, excess: Tensor) -> tuple[Tensor, Tensor]:
    """Unit lower triangle (n, n) and pivots (n,): every node's ties are handed to its neighbors.

    The last node is removed first. What it was tied to, the excess too, is shared among the nodes
    it was tied to, so that row sums and excess stay what they are: sums of values >= 0.
    """
    weight, excess = weight.clone(), excess.clone()
    lower = torch.eye(weight.size(0), dtype=weight.dtype, device=weight.device)
    sums = torch.ones_like(excess)
    for last in range(weight.size(0) - 1, -1, -1):
        ties = weight[last, :last]
        sums[last] = excess[last] + ties.sum()
        share = ties / sums[last]
        lower[last, :last] = -share
        excess[:last].add_(share * excess[last])
        weight[:last, :last].addr_(ties, share)
    return lower, sums


class _DenseSolve(torch.autograd.Function):
    r"""U for \((\mathrm{diag}(e + S1) - S) U = R\), S = vWv, with the adjoint gradient.

    By e and S: dL/dS_ij = Z_i · (U_j - U_i), the difference and not each term by itself, which can
    be larger by the inverse of the weakest tie. Where the diagonal is given as a `whole`, each term
    goes its own way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        null: Tensor,
        known: Tensor,
        right: Tensor,
        part: Tensor | None,
        whole: bool,
        positive: bool,
    ) -> tuple[Tensor, Tensor]:
        scaled = (weight * null).mul_(null.unsqueeze(1))
        factor = _Factor(scaled, known, part, whole)
        solution = factor.solve(right, positive)
        residual = right - (factor.sums.unsqueeze(1) * solution - scaled @ solution)
        ctx.factor = factor
        ctx.save_for_backward(weight, null, solution)
        ctx.mark_non_differentiable(residual)
        return solution, residual

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weight, null, solution = ctx.saved_tensors
        adjoint = ctx.factor.solve(grad.contiguous())
        along = (adjoint * solution).sum(dim=1)
        grad_weight = grad_null = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            if ctx.factor.whole:
                pull = adjoint @ solution.T
            elif ctx.factor.exact is None:
                pull = torch.addmm(along.neg().unsqueeze(1), adjoint, solution.T)
            else:
                pull = _pull_of_differences(adjoint, solution)
            if ctx.needs_input_grad[1]:
                moved = pull * weight
                grad_null = moved @ null + moved.T @ null
            grad_weight = pull.mul_(null).mul_(null.unsqueeze(1)).fill_diagonal_(0.0)
        return grad_weight, grad_null, -along, adjoint, None, None, None


class _DampedSolve(torch.autograd.Function):
    r"""F for \((\mathrm{diag}(d) - W) F = R\) in float64, where damping makes d clearly dominant.

    Scaled to a unit diagonal: pivoting cannot cope with rows that are smaller by powers of ten.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, diagonal: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        # Nodes that are no unknown: rows of their own, solved to 0.
        scale = safe_degrees(diagonal.double()).rsqrt_().unsqueeze(1)
        matrix = (weight.double() * -scale).mul_(scale.T).fill_diagonal_(1.0)
        factor, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        given = scale * right
        solution = torch.linalg.lu_solve(factor, pivots, given)
        residual = given.addmm_(matrix, solution, alpha=-1.0).div_(scale)
        solution.mul_(scale)
        ctx.factor = factor, pivots, scale
        ctx.save_for_backward(weight, solution)
        ctx.dtypes = weight.dtype, diagonal.dtype, right.dtype
        ctx.mark_non_differentiable(residual)
        return solution.to(right.dtype), residual

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        _, solution = ctx.saved_tensors
        factor, pivots, scale = ctx.factor
        adjoint = scale * torch.linalg.lu_solve(factor, pivots, scale * grad.double())
        grad_weight = grad_diagonal = None
        if ctx.needs_input_grad[0]:
            grad_weight = (adjoint @ solution.T).fill_diagonal_(0.0)
        if ctx.needs_input_grad[1]:
            grad_diagonal = -(adjoint * solution).sum(dim=1)
        grads = zip((grad_weight, grad_diagonal, adjoint), ctx.dtypes, strict=True)
        return tuple(None if part is None else narrowed(part, dtype) for part, dtype in grads)


def _pull_of_differences(adjoint: Tensor, solution: Tensor) -> Tensor:
    """Sum over classes of Z_i (U_j - U_i), with differences at the size of rounding taken as 0.

    Nodes that are tied to each other more strongly than to all else by more powers of ten than
    float64 has digits are solved to the same value. The rounding between them times an adjoint
    value as large as their outside ties are weak would drown every other gradient; the true product
    is as small as the ratio of those ties.
    """
    least = 8.0 * torch.finfo(solution.dtype).eps
    pull = adjoint.new_zeros(solution.size(0), solution.size(0))
    for column in range(solution.size(1)):
        value = solution[:, column]
        gap = value.unsqueeze(0) - value.unsqueeze(1)
        size = torch.maximum(value.abs().unsqueeze(0), value.abs().unsqueeze(1))
        gap = torch.where(gap.abs() > least * size, gap, 0.0)
        pull.addcmul_(adjoint[:, column].unsqueeze(1), gap)
    return pull


def dense_solve(
    system: System, right: Tensor, *, implicit: bool, positive: bool
) -> tuple[Tensor, Tensor]:
    """Solution (n, C) in the dtype of `right` and residual, by factorization in float64.

    `implicit` attaches the adjoint gradient; else the factorization is left to autograd, which can
    differentiate it more than once. `positive`: `right` and so the solution are >= 0, and small
    entries matter. Cost O(n³) time, O(n²) memory.

    Raises:
        ValueError: `implicit=False` and a matrix too near to singular for it.
    """
    whole = system.damping >= _SAFE_DAMPING
    weight = system.operator.to_full()
    if implicit and whole and not positive:
        return _DampedSolve.apply(weight, system.diagonal, right)
    null = widen(system.null)
    weight, scaled = widen(weight), null.unsqueeze(1) * widen(right)
    part = None if system.basis is None else system.basis[1]
    if implicit:
        # A product less where the diagonal itself will do.
        known = widen(system.diagonal) * null.square() if whole else widen(system.excess())
        solution, residual = _DenseSolve.apply(weight, null, known, scaled, part, whole, positive)
    else:
        solution, residual = _recorded_solve(weight, null, widen(system.excess()), scaled, part)
    return (null.unsqueeze(1) * solution).to(right.dtype), residual / null.detach().unsqueeze(1)


def _recorded_solve(
    weight: Tensor, null: Tensor, excess: Tensor, right: Tensor, part: Tensor | None
) -> tuple[Tensor, Tensor]:
    scaled = weight * torch.outer(null, null)
    sums = excess + scaled.sum(dim=1)
    scale = sums.rsqrt().unsqueeze(1)
    matrix = (torch.diag(sums) - scaled) * (scale * scale.T)
    if part is not None:
        matrix = matrix + _null_fill(sums.detach().sqrt(), part)
    solution, info = torch.linalg.solve_ex(matrix, scale * right)
    solution, singular = scale * solution, bool(info > 0)
    if part is None:
        with torch.no_grad():
            ones = scale * torch.linalg.solve_ex(matrix, scale * excess.unsqueeze(1)).result
        singular = singular or not bool(((ones - 1.0).abs() <= _WRONG).all())
    if singular:
        raise ValueError(
            "gradient='unrolled' with solver='dense' cannot solve this graph: some nodes are tied "
            "to each other so much more strongly than to any seed that the matrix is singular to "
            "working precision. Use gradient='implicit', or raise 'eta' or 'bandwidth'."
        )
    residual = right - (sums.unsqueeze(1) * solution - scaled @ solution)
    return solution, residual.detach()
