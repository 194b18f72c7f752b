"""The symmetric weight matrix W of a graph as an operator: sparse rows, or full where that pays.

Rules and solvers know only `Operator`; `gloss_graph.graph` has one more, for the graph of a batch
and a bank.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gloss_graph._internal.precision import first_order, full_precision, widen

# Torch announces once per process that CSR is in beta; the products used here are tested against
# dense ones.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], torch.empty(0, dtype=torch.int64), [], size=(1, 1))

# A graph of up to this many nodes with more than one in so many of all pairs is kept as a full
# matrix.
_FULL_NODES = 512
_FULL_RATIO = 8
# Weight of an edge relative to the mean of its ends' degrees, below which it is no tie for
# `poisson`.
_LOOSE = 1e-4
# Hops searched by one product each, before all components are found at once: a chain is long.
_HOPS = 16

#: Sends messages x over edges (2, E) of weights (E,) and sums them up per node.
SendMessages = Callable[[Tensor, Tensor, Tensor], Tensor]


class Operator(ABC):
    """W of a graph of N nodes; `weight`, of any shape, are the weights that get a gradient."""

    weight: Tensor
    #: Number of nodes that are no part of the graph.
    num_absent = 0
    #: Whether autograd records all products itself, so that it can differentiate them again.
    recorded = False

    @property
    @abstractmethod
    def num_nodes(self) -> int:
        """N."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """W x for x (N, C), without autograd."""

    def times(self, x: Tensor) -> Tensor:
        """W x for x (N, C) by `multiply`, differentiable once by `outer` and `multiply`."""
        return _SymmetricProduct.apply(self.weight, x, self)

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """As `times`, by explicit messages if W is a list of edges."""
        return self.times(x)

    @abstractmethod
    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """The gradient of `weight` for left, right (N, C): left_i · right_j for every w_ij."""

    def known_at(self, factor: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """Rows `where` (n,) long, sorted, of W diag(`factor`) `labels`, (n, C), differentiable."""
        return self.times(factor.unsqueeze(1) * labels).index_select(0, where)

    @abstractmethod
    def with_weight(self, weight: Tensor) -> Operator:
        """The same graph with other weights."""

    @abstractmethod
    def to_full(self) -> Tensor:
        """W as an (N, N) matrix, differentiable in `weight`."""

    @abstractmethod
    def restrict(self, keep: Tensor) -> Operator:
        """Rows and columns `keep` (N,) bool."""

    def masked(self, fixed: Tensor) -> MaskedOperator | None:
        """W with zeros in the rows and columns `fixed` (n,) long; None if `restrict` is better."""
        return None

    @torch.no_grad()
    def reach(self, seeds: Tensor) -> Tensor:
        """Nodes (N,) bool joined to one of the `seeds` (N,) bool by edges of positive weight."""
        reach = seeds
        for _ in range(_HOPS):
            spread = self.multiply(reach.to(self.weight.dtype).unsqueeze(1)).squeeze(1)
            grown = reach | (spread > 0)
            if bool((grown == reach).all()) or bool(grown.all()):
                return grown
            reach = grown
        part = self.components()
        return torch.isin(part, part[seeds].unique())

    @abstractmethod
    def components(self) -> Tensor:
        """Connected component (N,) long of every node over edges of positive weight."""

    @abstractmethod
    def without_loose_edges(self) -> Operator:
        r"""W without the edges \(w_{ij} \le 10^{-4} \sqrt{d_i d_j}\), no ties for `poisson`.

        Behind an edge of next to no weight a source would lift all values by the inverse of that
        weight, so the parts that such edges join are solved and balanced separately.
        """

    def unrolled(self) -> Operator:
        """The operator for iterations that autograd records step by step."""
        return self

    def double(self) -> Operator:
        """The same in float64."""
        return self.with_weight(widen(self.weight))


class Rows(NamedTuple):
    """Pattern of a symmetric sparse matrix, row by row.

    `pointer` (N + 1,) and `column` (E,) int32 as in CSR (half the memory traffic of int64); `row`
    (E,) and `target` (E,) long, the same ends for gathers; `order` (E,) long sorts an edge list
    into this pattern, None if it was sorted already.
    """

    pointer: Tensor
    column: Tensor
    row: Tensor
    target: Tensor
    order: Tensor | None


def rows_of(edge_index: Tensor, num_nodes: int) -> Rows:
    """Pattern of an undirected edge list (2, E); either end may be the sorted one.

    Cost O(E), with a sort of E keys only if neither end is sorted.
    """
    # Strided index columns (`pairs.t()`) would be read as if they were dense.
    row, target = edge_index.contiguous()
    for first, second in ((row, target), (target, row)):
        if bool((first[1:] >= first[:-1]).all()):
            return _sorted_rows(first, second, num_nodes)
    row, order = row.sort(stable=True)
    return _sorted_rows(row, target[order], num_nodes, order)


def _sorted_rows(row: Tensor, target: Tensor, size: int, order: Tensor | None = None) -> Rows:
    # As PyG's index2ptr: a tenth of counting the rows and summing up.
    pointer = torch._convert_indices_from_coo_to_csr(row, size, out_int32=True)
    return Rows(pointer, target.to(torch.int32), row, target, order)


def csr_product(pointer: Tensor, column: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """A CSR matrix (N, M) times x (M, C), without autograd."""
    rows = pointer.numel() - 1
    if weight.numel() == 0:
        return x.new_zeros(rows, x.size(1))
    matrix = torch.sparse_csr_tensor(
        pointer, column, weight, size=(rows, x.size(0)), check_invariants=False
    )
    if x.size(1) == 1:
        # Two thirds of the time of a product with one column.
        return (matrix @ x.squeeze(1)).unsqueeze(1)
    return matrix @ x


def _connected(row: Tensor, column: Tensor, num_nodes: int) -> Tensor:
    """Connected component (N,) long of every node over edges from `row` (E,) to `column` (E,)."""
    ends = (row.cpu().numpy(), column.cpu().numpy())
    ties = np.ones(row.numel(), dtype=bool)
    adjacency = sparse.coo_matrix((ties, ends), shape=(num_nodes, num_nodes))
    found = connected_components(adjacency, directed=False)[1]
    return torch.from_numpy(found).long().to(row.device)


@dataclass
class SparseOperator(Operator):
    """W as sparse rows. Repeated edges add up.

    `weight` (E,) in the order of `rows`, both directions of a pair equal; `trainable` (n,) long
    names the edges whose weight needs a gradient (None = all), the others get 0, which saves
    gathering the constant edges of a large bank.
    """

    rows: Rows
    weight: Tensor
    trainable: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.rows.pointer.numel() - 1

    def multiply(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        return csr_product(self.rows.pointer, self.rows.column, self.weight, x)

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """See `Operator`."""
        return messages(torch.stack([self.rows.target, self.rows.row]), self.weight, x)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Operator`."""
        row, target = self.rows.row, self.rows.target
        if self.trainable is None:
            return (left[row] * right[target]).sum(dim=1)
        out = left.new_zeros(row.numel())
        some = left[row[self.trainable]] * right[target[self.trainable]]
        out[self.trainable] = some.sum(dim=1)
        return out

    def restrict(self, keep: Tensor) -> SparseOperator:
        """See `Operator`."""
        rows = self.rows
        edges = (keep[rows.row] & keep[rows.target]).nonzero().squeeze(1)
        number = keep.cumsum(0) - 1
        row, target = number[rows.row[edges]], number[rows.target[edges]]
        trainable = None
        if self.trainable is not None:
            mask = torch.zeros(rows.row.numel(), dtype=torch.bool, device=row.device)
            mask[self.trainable] = True
            trainable = mask[edges].nonzero().squeeze(1)
        part = _sorted_rows(row, target, int(keep.sum()))
        return SparseOperator(part, self.weight.index_select(0, edges), trainable)

    def masked(self, fixed: Tensor) -> MaskedOperator | None:
        """See `Operator`."""
        return MaskedOperator(self.rows, self.weight, self.trainable, fixed=fixed)

    def components(self) -> Tensor:
        """See `Operator`."""
        live = self.weight.detach() > 0
        return _connected(self.rows.row[live], self.rows.target[live], self.num_nodes)

    def without_loose_edges(self) -> SparseOperator:
        """See `Operator`."""
        with torch.no_grad():
            root = self.multiply(self.weight.new_ones(self.num_nodes, 1)).squeeze(1).sqrt()
            loose = self.weight <= _LOOSE * root[self.rows.row] * root[self.rows.target]
        return self.with_weight(torch.where(loose, 0.0, self.weight))

    def to_full(self) -> Tensor:
        """See `Operator`."""
        n = self.num_nodes
        flat = self.rows.row * n + self.rows.target
        return self.weight.new_zeros(n * n).index_add(0, flat, self.weight).view(n, n)

    def cheaper(self) -> Operator:
        """This operator, or the full one where that is the cheaper."""
        n = self.num_nodes
        if n <= _FULL_NODES and n * n <= _FULL_RATIO * self.weight.numel():
            return FullOperator(self.to_full())
        return self

    def with_weight(self, weight: Tensor) -> SparseOperator:
        """See `Operator`."""
        return replace(self, weight=weight)


@dataclass
class MaskedOperator(SparseOperator):
    """W with the rows and columns `fixed` (n,) long set to zero, for x that are zero there.

    The same matrix as `restrict` gives, without the copy of W: cheaper if few nodes are left out.
    """

    fixed: Tensor = field(kw_only=True)

    def times(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        return self.clear(super().times(x))

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """See `Operator`."""
        return self.clear(super().send(messages, x))

    def clear(self, x: Tensor) -> Tensor:
        """Set the fixed rows of x (N, ...) to zero; in place if autograd records nothing."""
        if x.requires_grad:
            return x.index_fill(0, self.fixed, 0.0)
        return x.index_fill_(0, self.fixed, 0.0)

    def to_full(self) -> Tensor:
        """See `Operator`."""
        return super().to_full().index_fill(0, self.fixed, 0.0).index_fill(1, self.fixed, 0.0)


@dataclass
class FullOperator(Operator):
    """W as a full matrix `weight` (N, N)."""

    weight: Tensor
    recorded: bool = False

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.weight.size(0)

    def multiply(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        return self.weight @ x

    def times(self, x: Tensor) -> Tensor:
        """See `Operator`."""
        if x.size(1) == 1:
            # Element by element, which autocast leaves alone, and no Python in the backward pass.
            return (self.weight * x.squeeze(1)).sum(dim=1, keepdim=True)
        return _FullProduct.apply(self.weight, x)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """See `Operator`."""
        return left @ right.T

    def restrict(self, keep: Tensor) -> FullOperator:
        """See `Operator`."""
        where = keep.nonzero().squeeze(1)
        return self.with_weight(self.weight.index_select(0, where).index_select(1, where))

    def components(self) -> Tensor:
        """See `Operator`."""
        row, column = self.weight.detach().nonzero(as_tuple=True)
        return _connected(row, column, self.num_nodes)

    def without_loose_edges(self) -> FullOperator:
        """See `Operator`."""
        with torch.no_grad():
            root = self.multiply(self.weight.new_ones(self.num_nodes, 1)).squeeze(1).sqrt()
            loose = self.weight <= _LOOSE * torch.outer(root, root)
        return self.with_weight(torch.where(loose, 0.0, self.weight))

    def unrolled(self) -> FullOperator:
        """See `Operator`."""
        return replace(self, recorded=True)

    def to_full(self) -> Tensor:
        """See `Operator`."""
        return self.weight

    def with_weight(self, weight: Tensor) -> FullOperator:
        """See `Operator`."""
        return replace(self, weight=weight)


class _FullProduct(torch.autograd.Function):
    """y = W x, whose gradient is in full precision also where autocast is on backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return weight @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        with full_precision(grad.device.type):
            grad_weight = grad @ x.T if ctx.needs_input_grad[0] else None
            grad_x = weight.T @ grad if ctx.needs_input_grad[1] else None
        return grad_weight, grad_x


class _SymmetricProduct(torch.autograd.Function):
    """y = W x for symmetric W: dL/dx = W g, dL/dw_e = g[row_e] · x[target_e].

    Torch's own CSR autograd densifies and fails on repeated edges; PyG's scatter path is an order
    of magnitude slower on CPU.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, operator: Operator) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.operator = operator.with_weight(weight.detach())
        return ctx.operator.multiply(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, x = ctx.saved_tensors
        operator = ctx.operator.with_weight(weight)
        grad_weight = operator.outer(grad, x) if ctx.needs_input_grad[0] else None
        grad_x = operator.multiply(grad.contiguous()) if ctx.needs_input_grad[1] else None
        return grad_weight, grad_x, None
