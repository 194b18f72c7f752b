"""The symmetric weight matrix W of a graph as an operator: sparse rows, or full where that pays.

Rules and solvers know only the protocols `SystemOperator` (a matrix that is solved for) and
`Operator` (the graph it is cut from). `SparseOperator` and `FullOperator` are those of an edge
list and a matrix; `gloss_graph.graph` has a third one, for the graph of a batch and a bank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order, full_precision, widen
from gloss_graph.propagation.normalize import Scaling, node_scaling, safe_degrees
from gloss_graph.propagation.reach import connected_parts, spread_reach

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
# Smallest degree relative to the largest at which products of degrees are safe in float32.
_NARROWEST = 1e-10

#: Sends messages x over edges (2, E) of weights (E,) and sums them up per node.
SendMessages = Callable[[Tensor, Tensor, Tensor], Tensor]


class SystemOperator(Protocol):
    """W of a linear system on n unknowns."""

    @property
    def weight(self) -> Tensor:
        """The weights that get a gradient, of any shape."""
        ...

    def times(self, x: Tensor) -> Tensor:
        """W x for x (n, C), differentiable once in `weight` and x."""
        ...

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """As `times`, by explicit messages if W is a list of edges."""
        ...

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """The gradient of `weight` for left, right (n, C): left_i · right_j for every w_ij."""
        ...

    def with_weight(self, weight: Tensor) -> SystemOperator:
        """The same graph with other weights."""
        ...

    def to_full(self) -> Tensor:
        """W as an (n, n) matrix, differentiable in `weight`."""
        ...


class Operator(SystemOperator, Protocol):
    """W of a graph of N nodes."""

    @property
    def num_nodes(self) -> int:
        """N."""
        ...

    @property
    def num_absent(self) -> int:
        """Number of nodes that are no part of the graph."""
        ...

    def multiply(self, x: Tensor) -> Tensor:
        """W x for x (N, C), without autograd."""
        ...

    def pull(self, grad: Tensor) -> Tensor:
        """W grad (N, C) of a backward pass, at least where the gradient of `weight` reads it."""
        ...

    def known_at(self, factor: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """Rows `where` (n,) long, sorted, of W diag(`factor`) `labels`, (n, C), differentiable."""
        ...

    def restrict(self, keep: Tensor) -> SystemOperator:
        """Rows and columns `keep` (N,) bool."""
        ...

    def masked(self, fixed: Tensor) -> MaskedOperator | None:
        """W with zeros in the rows and columns `fixed` (n,) long; None if `restrict` is better."""
        ...

    def scaling(self, name: str) -> tuple[Scaling, Tensor]:
        """The normalization `name`, differentiable once in `weight`, and the degrees (N,)."""
        ...

    def reach(self, seeds: Tensor) -> Tensor:
        """Nodes (N,) bool joined to one of the `seeds` (N,) bool by edges of positive weight."""
        ...

    def components(self) -> Tensor:
        """Connected component (N,) long of every node over edges of positive weight."""
        ...

    def without_loose_edges(self) -> Operator:
        r"""W without the edges \(w_{ij} \le 10^{-4} \sqrt{d_i d_j}\), no ties for `poisson`.

        Behind an edge of next to no weight a source would lift all values by the inverse of that
        weight, so the parts that such edges join are solved and balanced separately.
        """
        ...

    def unrolled(self) -> Operator:
        """The operator for iterations that autograd records step by step."""
        ...

    def with_weight(self, weight: Tensor) -> Operator:
        """The same graph with other weights."""
        ...

    def double(self) -> Operator:
        """The same in float64."""
        ...


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

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pointer.numel() - 1


def rows_of(edge_index: Tensor, num_nodes: int) -> Rows:
    """Pattern of an undirected edge list (2, E); either end may be the sorted one.

    Cost O(E), with a sort of E keys only if neither end is sorted.
    """
    # Strided index columns (`pairs.t()`) would be read as if they were dense.
    row, target = edge_index.contiguous()
    order = None
    if not _is_sorted(row):
        if _is_sorted(target):
            row, target = target, row
        else:
            row, order = row.sort(stable=True)
            target = target[order]
    return Rows(_pointer(row, num_nodes), target.to(torch.int32), row, target, order)


def _pointer(row: Tensor, num_nodes: int) -> Tensor:
    # As PyG's index2ptr: a tenth of counting the rows and summing up.
    return torch._convert_indices_from_coo_to_csr(row, num_nodes, out_int32=True)


def _is_sorted(index: Tensor) -> bool:
    return index.numel() < 2 or bool((index[1:] >= index[:-1]).all())


def csr_product(matrix: Tensor, x: Tensor) -> Tensor:
    """CSR `matrix` (N, M) times x (M, C)."""
    if x.size(1) == 1:
        # Two thirds of the time of a product with one column.
        return (matrix @ x.squeeze(1)).unsqueeze(1)
    return matrix @ x


class SparseOperator(NamedTuple):
    """W as sparse rows. Repeated edges add up.

    `weight` (E,) in the order of `rows`, both directions of a pair equal; `trainable` (n,) long
    names the edges whose weight needs a gradient (None = all), the others get 0, which saves
    gathering the constant edges of a large bank.
    """

    rows: Rows
    weight: Tensor
    trainable: Tensor | None

    @property
    def num_absent(self) -> int:
        """0: every node is part of the graph."""
        return 0

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.rows.num_nodes

    def multiply(self, x: Tensor) -> Tensor:
        """W x for x (N, C), without autograd."""
        if self.weight.numel() == 0:
            return x.new_zeros(self.num_nodes, x.size(1))
        matrix = torch.sparse_csr_tensor(
            self.rows.pointer,
            self.rows.column,
            self.weight,
            size=(self.num_nodes, self.num_nodes),
            check_invariants=False,
        )
        return csr_product(matrix, x)

    def pull(self, grad: Tensor) -> Tensor:
        """W grad: W is symmetric."""
        return self.multiply(grad)

    def times(self, x: Tensor) -> Tensor:
        """W x for x (N, C), differentiable once in `weight` and x."""
        return symmetric_product(self, x)

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """As `times`, by messages along the edges."""
        return messages(torch.stack([self.rows.target, self.rows.row]), self.weight, x)

    def known_at(self, factor: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """See `Operator`; differentiable in the labels too."""
        return self.times(factor.unsqueeze(1) * labels).index_select(0, where)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """left[row_e] · right[target_e] for every edge (E,): the gradient shape of `weight`."""
        row, target = self.rows.row, self.rows.target
        if self.trainable is None:
            return (left[row] * right[target]).sum(dim=1)
        out = left.new_zeros(row.numel())
        some = left[row[self.trainable]] * right[target[self.trainable]]
        out[self.trainable] = some.sum(dim=1)
        return out

    def restrict(self, keep: Tensor) -> SparseOperator:
        """Rows and columns `keep` (N,) bool."""
        rows = self.rows
        edges = (keep[rows.row] & keep[rows.target]).nonzero().squeeze(1)
        number = keep.cumsum(0) - 1
        row, target = number[rows.row[edges]], number[rows.target[edges]]
        pointer = _pointer(row, int(keep.sum()))
        trainable = None
        if self.trainable is not None:
            mask = torch.zeros(rows.row.numel(), dtype=torch.bool, device=row.device)
            mask[self.trainable] = True
            trainable = mask[edges].nonzero().squeeze(1)
        part = Rows(pointer, target.to(torch.int32), row, target, None)
        return SparseOperator(part, self.weight.index_select(0, edges), trainable)

    def masked(self, fixed: Tensor) -> MaskedOperator | None:
        """See `Operator`."""
        return MaskedOperator(self, fixed)

    def scaling(self, name: str) -> tuple[Scaling, Tensor]:
        """See `Operator`."""
        return scaling_of(name, self)

    def reach(self, seeds: Tensor) -> Tensor:
        """See `Operator`."""
        bare = self.with_weight(self.weight.detach())
        return spread_reach(bare.multiply, seeds, self.weight.dtype, self.components)

    def components(self) -> Tensor:
        """See `Operator`."""
        live = self.weight.detach() > 0
        return connected_parts(self.rows.row[live], self.rows.target[live], self.num_nodes)

    def without_loose_edges(self) -> SparseOperator:
        """See `Operator`."""
        bare = self.with_weight(self.weight.detach())
        root = bare.multiply(bare.weight.new_ones(self.num_nodes, 1)).squeeze(1).sqrt()
        loose = bare.weight <= _LOOSE * root[self.rows.row] * root[self.rows.target]
        return self.with_weight(torch.where(loose, 0.0, self.weight))

    def unrolled(self) -> SparseOperator:
        """This operator itself."""
        return self

    def to_full(self) -> Tensor:
        """W as an (N, N) matrix, differentiable in `weight`."""
        n = self.num_nodes
        flat = self.rows.row * n + self.rows.target
        return self.weight.new_zeros(n * n).index_add(0, flat, self.weight).view(n, n)

    def with_weight(self, weight: Tensor) -> SparseOperator:
        """The same pattern with other weights."""
        return self._replace(weight=weight)

    def double(self) -> SparseOperator:
        """The same in float64."""
        return self._replace(weight=widen(self.weight))


class FullOperator(NamedTuple):
    """W as a full matrix `weight` (N, N); `recorded` leaves everything to autograd."""

    weight: Tensor
    recorded: bool = False

    @property
    def num_absent(self) -> int:
        """0: every node is part of the graph."""
        return 0

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.weight.size(0)

    def multiply(self, x: Tensor) -> Tensor:
        """W x for x (N, C)."""
        return self.weight @ x

    def pull(self, grad: Tensor) -> Tensor:
        """W grad: W is symmetric."""
        return self.multiply(grad)

    def times(self, x: Tensor) -> Tensor:
        """W x for x (N, C), differentiable."""
        if x.size(1) == 1:
            # Element by element, which autocast leaves alone, and no Python in the backward pass.
            return (self.weight * x.squeeze(1)).sum(dim=1, keepdim=True)
        return _FullProduct.apply(self.weight, x)

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """As `times`: a matrix has no edges to send messages along."""
        return self.times(x)

    def known_at(self, factor: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """See `Operator`; differentiable in the labels too."""
        return self.times(factor.unsqueeze(1) * labels).index_select(0, where)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Left rightᵀ (N, N): the gradient shape of `weight`."""
        return left @ right.T

    def is_complete(self) -> bool:
        """Whether every pair of distinct nodes has a positive weight (W >= 0, zero diagonal)."""
        n = self.num_nodes
        return n > 1 and int(self.weight.count_nonzero()) == n * (n - 1)

    def restrict(self, keep: Tensor) -> FullOperator:
        """Rows and columns `keep` (N,) bool."""
        where = keep.nonzero().squeeze(1)
        return self._replace(weight=self.weight.index_select(0, where).index_select(1, where))

    def masked(self, fixed: Tensor) -> MaskedOperator | None:
        """None: a full matrix is cut down."""
        return None

    def scaling(self, name: str) -> tuple[Scaling, Tensor]:
        """See `Operator`."""
        return _recorded_scaling(name, self) if self.recorded else scaling_of(name, self)

    def reach(self, seeds: Tensor) -> Tensor:
        """See `Operator`."""
        if self.is_complete():
            return seeds.any().expand_as(seeds)
        bare = self.with_weight(self.weight.detach())
        return spread_reach(bare.multiply, seeds, self.weight.dtype, self.components)

    def components(self) -> Tensor:
        """See `Operator`."""
        row, column = self.weight.detach().nonzero(as_tuple=True)
        return connected_parts(row, column, self.num_nodes)

    def without_loose_edges(self) -> FullOperator:
        """See `Operator`."""
        weight = self.weight.detach()
        root = (weight @ weight.new_ones(self.num_nodes, 1)).squeeze(1).sqrt()
        loose = weight <= _LOOSE * torch.outer(root, root)
        return self._replace(weight=torch.where(loose, 0.0, self.weight))

    def unrolled(self) -> FullOperator:
        """The same, differentiable more than once."""
        return self._replace(recorded=True)

    def to_full(self) -> Tensor:
        """W itself."""
        return self.weight

    def with_weight(self, weight: Tensor) -> FullOperator:
        """Another matrix."""
        return self._replace(weight=weight)

    def double(self) -> FullOperator:
        """The same in float64."""
        return self._replace(weight=widen(self.weight))


class MaskedOperator(NamedTuple):
    """W with the rows and columns `fixed` (n,) long set to zero, for x that are zero there.

    The same matrix as `restrict` gives, without the copy of W: cheaper if few nodes are left out.
    """

    whole: SparseOperator
    fixed: Tensor

    @property
    def weight(self) -> Tensor:
        """Weights (E,) of the whole matrix."""
        return self.whole.weight

    def times(self, x: Tensor) -> Tensor:
        """W x for x (N, C) that is zero at the fixed nodes, differentiable as of the whole."""
        return self.clear(self.whole.times(x))

    def send(self, messages: SendMessages, x: Tensor) -> Tensor:
        """As `times`, by messages along the edges."""
        return self.clear(self.whole.send(messages, x))

    def clear(self, x: Tensor) -> Tensor:
        """Set the fixed rows of x (N, C) to zero; without a copy if autograd records nothing."""
        if x.requires_grad:
            return x.index_fill(0, self.fixed, 0.0)
        return x.index_fill_(0, self.fixed, 0.0)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """As `SparseOperator.outer` for left and right that are zero at the fixed nodes."""
        return self.whole.outer(left, right)

    def with_weight(self, weight: Tensor) -> MaskedOperator:
        """Other weights on the same edges."""
        return self._replace(whole=self.whole.with_weight(weight))

    def to_full(self) -> Tensor:
        """The masked W as an (N, N) matrix, differentiable in `weight`."""
        full = self.whole.to_full().index_fill(0, self.fixed, 0.0)
        return full.index_fill(1, self.fixed, 0.0)


def operator_of(rows: Rows, weight: Tensor, trainable: Tensor | None) -> Operator:
    """The cheaper operator for a pattern and its weights (E,)."""
    sparse = SparseOperator(rows, weight, trainable)
    n = rows.num_nodes
    if n <= _FULL_NODES and n * n <= _FULL_RATIO * weight.numel():
        return FullOperator(sparse.to_full())
    return sparse


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
        grad_x = operator.pull(grad.contiguous()) if ctx.needs_input_grad[1] else None
        return grad_weight, grad_x, None


def symmetric_product(operator: Operator, x: Tensor) -> Tensor:
    """W x for x (N, C) by `multiply`, differentiable once by `outer` and `pull`."""
    return _SymmetricProduct.apply(operator.weight, x, operator)


class _HubScaling(torch.autograd.Function):
    r"""The hub's scaling, whose gradient takes two products and one outer product.

    With \(d = W 1,\ t = W d^{-1/2},\ s = 1 / t,\ m = W s / s\) and the adjoint vectors
    \(\bar s, \bar m\) of the two results:

    \[\bar v = \bar m / s,\quad \bar t = -s^2 (\bar s - \bar m m / s + W \bar v),\quad
    \bar d = -\tfrac12 d^{-3/2} \, W \bar t,\quad
    \bar w_{ij} = \bar v_i s_j + \bar t_i d_j^{-1/2} + \bar d_i.\]
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: Operator) -> tuple[Tensor, ...]:
        ctx.operator = operator.with_weight(weight.detach())
        ones = weight.new_ones(operator.num_nodes)
        found, degree = node_scaling("hub", ctx.operator.multiply, ones)
        ctx.save_for_backward(weight, degree, found.factor, found.diagonal)
        ctx.mark_non_differentiable(degree)
        return found.factor, found.diagonal, degree

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_factor: Tensor, grad_diagonal: Tensor, _: Tensor
    ) -> tuple[Tensor, None]:
        weight, degree, factor, diagonal = ctx.saved_tensors
        operator: Operator = ctx.operator.with_weight(weight)
        grad_mass = grad_diagonal / factor
        spread = operator.pull(grad_mass.unsqueeze(1)).squeeze(1)
        grad_pulled = grad_diagonal * diagonal - factor * (grad_factor + spread)
        grad_pulled.mul_(factor)
        spread = operator.pull(grad_pulled.unsqueeze(1)).squeeze(1)
        root = safe_degrees(degree).rsqrt()
        grad_degree = -0.5 * spread * root.pow(3)
        left = torch.stack([grad_mass, grad_pulled, grad_degree], dim=1)
        # A node without neighbors has the constant 1 instead of a sum; no product reads it.
        left.masked_fill_((degree <= 0).unsqueeze(1), 0.0)
        right = torch.stack([factor, root, torch.ones_like(root)], dim=1)
        return operator.outer(left, right), None


def scaling_of(name: str, operator: Operator) -> tuple[Scaling, Tensor]:
    """The normalization `name` of W, differentiable once, and the degrees (N,)."""
    if name != "hub":
        return _recorded_scaling(name, operator)
    factor, diagonal, degree = _HubScaling.apply(operator.weight, operator)
    return Scaling(factor, diagonal, factor), degree


def _recorded_scaling(name: str, operator: Operator) -> tuple[Scaling, Tensor]:
    return node_scaling(name, operator.times, operator.weight.new_ones(operator.num_nodes))


def scaled(name: str, operator: Operator) -> tuple[Operator, Scaling]:
    r"""W and its scaling, both in float64 if float32 is too narrow.

    The diagonal of `hub` and `column` holds products of two degrees, so degrees that span more
    than ten powers of ten could leave the range of float32, whose weights reach over eighty.
    Float64 holds those products, and their products, for every weight that float32 can hold.
    """
    scaling, degree = operator.scaling(name)
    if degree.dtype == torch.float64 or degree.numel() == 0:
        return operator, scaling
    low, top = map(float, torch.aminmax(degree))
    if low == 0.0:  # isolated nodes are no ties
        low = float(degree.masked_fill(degree <= 0, top).amin())
    if low >= _NARROWEST * top:
        return operator, scaling
    operator = operator.double()
    return operator, operator.scaling(name)[0]
