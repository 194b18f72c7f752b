"""Sparse rows with int32 indices, and their product with node values as one autograd step."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Torch announces once a process that CSR is in beta; the products used here are tested against
# dense ones.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), [], size=(1, 1))


class Rows(NamedTuple):
    """Pattern of a symmetric sparse matrix, row by row.

    `pointer` (N + 1,) and `column` (E,) int32 as in CSR; `row` (E,) and `target` (E,) long, the
    same ends for gathers; `order` (E,) long sorts an edge list into this pattern, None if it was
    sorted already.
    """

    pointer: Tensor
    column: Tensor
    row: Tensor
    target: Tensor
    order: Tensor | None

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pointer.numel() - 1


def rows_of(edge_index: Tensor, num_nodes: int) -> Rows:
    """Pattern of an undirected edge list (2, E); either end may be the sorted one.

    Cost O(E), with a sort of E keys only if neither end is sorted.
    """
    row, target = edge_index
    order = None
    if not _is_sorted(row):
        if _is_sorted(target):
            row, target = target, row
        else:
            row, order = row.sort(stable=True)
            target = target[order]
    pointer = torch.zeros(num_nodes + 1, dtype=torch.int32, device=row.device)
    pointer[1:] = torch.bincount(row, minlength=num_nodes).cumsum(0)
    return Rows(pointer, target.to(torch.int32), row, target, order)


def _is_sorted(index: Tensor) -> bool:
    return index.numel() < 2 or bool((index[1:] >= index[:-1]).all())


def multiply(rows: Rows, weight: Tensor, x: Tensor) -> Tensor:
    """W x for node values x (N, C), without autograd. Repeated edges add up."""
    size = (rows.num_nodes, x.size(0))
    if weight.numel() == 0:
        return x.new_zeros(rows.num_nodes, x.size(1))
    matrix = torch.sparse_csr_tensor(
        rows.pointer, rows.column, weight, size=size, check_invariants=False
    )
    return matrix @ x


class _Product(torch.autograd.Function):
    """y = W x for symmetric W: dL/dx = W g, dL/dw_e = g[row_e] · x[target_e].

    Torch's own CSR autograd densifies and fails on repeated edges; PyG's scatter path is an order
    of magnitude slower on CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, x: Tensor, rows: Rows, trainable: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.rows, ctx.trainable = rows, trainable
        return multiply(rows, weight, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weight, x = ctx.saved_tensors
        grad_weight = grad_x = None
        if ctx.needs_input_grad[0]:
            grad_weight = edge_products(ctx.rows, grad, x, ctx.trainable)
        if ctx.needs_input_grad[1]:
            grad_x = multiply(ctx.rows, weight, grad.contiguous())
        return grad_weight, grad_x, None, None


def edge_products(rows: Rows, left: Tensor, right: Tensor, trainable: Tensor | None) -> Tensor:
    """left[row_e] · right[target_e] for every edge (E,); 0 outside `trainable` (n,) edges."""
    if trainable is None:
        return (left[rows.row] * right[rows.target]).sum(dim=1)
    out = left.new_zeros(rows.row.numel())
    some = left[rows.row[trainable]] * right[rows.target[trainable]]
    out[trainable] = some.sum(dim=1)
    return out


def product(rows: Rows, weight: Tensor, x: Tensor, trainable: Tensor | None = None) -> Tensor:
    """W x, differentiable once in `weight` and `x`.

    Args:
        rows: Pattern of W, symmetric.
        weight: (E,) in the pattern's order; both directions of a pair carry the same value.
        x: (N, C).
        trainable: (n,) long, edges whose weights need a gradient; None = all. The others get 0,
            which saves gathering the constant edges of a large bank.

    Returns:
        (N, C).
    """
    return _Product.apply(weight, x, rows, trainable)


def submatrix(rows: Rows, keep: Tensor) -> tuple[Rows, Tensor]:
    """Rows and columns `keep` (N,) bool of a pattern, and the edges (E',) long it takes."""
    edges = (keep[rows.row] & keep[rows.target]).nonzero().squeeze(1)
    number = keep.cumsum(0) - 1
    row, target = number[rows.row[edges]], number[rows.target[edges]]
    size = int(keep.sum())
    pointer = torch.zeros(size + 1, dtype=torch.int32, device=row.device)
    pointer[1:] = torch.bincount(row, minlength=size).cumsum(0)
    return Rows(pointer, target.to(torch.int32), row, target, None), edges


def reachable(rows: Rows, weight: Tensor, seeds: Tensor, wanted: Tensor) -> Tensor:
    """Nodes (N,) bool joined to a seed by edges of positive weight.

    Breadth first from `seeds` (N,) bool, one product a hop, until nothing new is found or all
    `wanted` (N,) bool nodes are.
    """
    reach = seeds
    while True:
        spread = multiply(rows, weight, reach.to(weight.dtype).unsqueeze(1)).squeeze(1) > 0
        grown = reach | spread
        if bool((grown == reach).all()):
            return reach
        reach = grown
        if bool(reach[wanted].all()):
            return reach
