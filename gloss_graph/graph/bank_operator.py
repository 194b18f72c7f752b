"""W of a step over a bank: constant rows among remembered nodes, a small border with gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from gloss_graph._internal.precision import first_order, widen
from gloss_graph.propagation.inputs import is_extreme, largest_weight
from gloss_graph.propagation.operators import Operator, SparseOperator, csr_product, rows_of

# Rows of a bank are cut out again when less than one in this many of the last cut is left.
_CUT_AGAIN = 8
_NEEDS_LIST = "rule='poisson' needs the edges of the whole graph in one list."


class ConstantRows(NamedTuple):
    """Rows of a sparse matrix without gradient: CSR in int32, and the owner of its memory."""

    pointer: Tensor
    column: Tensor
    weight: Tensor
    columns: int
    owner: object = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.pointer.numel() - 1

    def times(self, x: Tensor) -> Tensor:
        """Product with x (columns, C)."""
        return csr_product(self.pointer, self.column, self.weight.to(x.dtype), x)

    def _scipy(self) -> Any:
        parts = (self.weight.numpy(), self.column.numpy(), self.pointer.numpy())
        return sparse.csr_matrix(parts, shape=(self.size, self.columns), copy=False)

    def double(self) -> ConstantRows:
        """The same in float64."""
        return self._replace(weight=self.weight.double())

    def take(self, where: Tensor) -> ConstantRows:
        """Rows `where` (n,) long."""
        return _constant(self._scipy()[where.numpy()])

    def take_columns(self, where: Tensor) -> ConstantRows:
        """Columns `where` (n,) long, sorted, renumbered."""
        return _constant(self._scipy()[:, where.numpy()])


def _constant(matrix: Any) -> ConstantRows:
    return ConstantRows(
        torch.from_numpy(matrix.indptr.astype(np.int32, copy=False)),
        torch.from_numpy(matrix.indices.astype(np.int32, copy=False)),
        torch.from_numpy(matrix.data),
        matrix.shape[1],
    )


class CutRows:
    """Rows of the constant part that were cut out before, to be used again within a step."""

    rows: tuple[Tensor, ConstantRows] | None = None


@dataclass
class BankOperator(Operator):
    """W of a graph whose nodes are `offset` batch rows and M remembered ones (CPU).

    `border` are the edges that touch the batch, among the sorted `nodes` (T,), the only ones with a
    gradient; `memory` those among remembered nodes (M, M); `absent` (n,) nodes without edges that
    are no part of the graph; `cut` rows of `memory` that were cut out before.
    """

    border: SparseOperator
    nodes: Tensor
    memory: ConstantRows
    offset: int
    absent: Tensor
    cut: CutRows

    def __post_init__(self) -> None:
        self.weight, self.num_absent = self.border.weight, self.absent.numel()

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.offset + self.memory.size

    def with_weight(self, weight: Tensor) -> BankOperator:
        """Another border."""
        return replace(self, border=self.border.with_weight(weight))

    def double(self) -> BankOperator:
        """The same in float64."""
        border = self.border.with_weight(widen(self.weight))
        return replace(self, border=border, memory=self.memory.double(), cut=CutRows())

    def multiply(self, x: Tensor) -> Tensor:
        """W x for x (N, C), without autograd."""
        out = x.new_empty(x.shape)
        out[: self.offset] = 0.0
        out[self.offset :] = self.memory.times(x[self.offset :])
        edge = self.border.multiply(x.index_select(0, self.nodes))
        return out.index_add_(0, self.nodes, edge)

    def multiply_at(self, x: Tensor, where: Tensor, *, keep: bool = True) -> Tensor:
        """Rows `where` (n,) long, sorted, of W x; `keep` says to keep the rows cut out."""
        first = int(torch.searchsorted(where, self.offset))
        inner = where[first:] - self.offset
        rows = self._rows(inner) if keep else self.memory.take(inner)
        out = x.new_empty(where.numel(), x.size(1))
        out[:first] = 0.0
        out[first:] = rows.times(x[self.offset :])
        edge = self.border.multiply(x.index_select(0, self.nodes))
        place = torch.searchsorted(where, self.nodes).clamp(max=max(0, where.numel() - 1))
        hit = (where[place] == self.nodes) if where.numel() else torch.zeros_like(place).bool()
        return out.index_add_(0, place[hit], edge[hit])

    def _rows(self, where: Tensor) -> ConstantRows:
        known = self.cut.rows
        if known is None or not torch.equal(known[0], where):
            known = self.cut.rows = where, self.memory.take(where)
        return known[1]

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """left[row_e] · right[target_e] for every edge of the border."""
        return self.border.outer(
            left.index_select(0, self.nodes), right.index_select(0, self.nodes)
        )

    def known_at(self, factor: Tensor, labels: Tensor, where: Tensor) -> Tensor:
        """See `Operator`; the labels of a bank are constants."""
        return _KnownProduct.apply(self.weight, factor, labels, self, where)

    def components(self) -> Tensor:
        """Raise ValueError: the rows of a bank are not searched for components."""
        raise ValueError(_NEEDS_LIST)

    def without_loose_edges(self) -> BankOperator:
        """Raise ValueError, as `components`."""
        raise ValueError(_NEEDS_LIST)

    def reach(self, seeds: Tensor) -> Tensor:
        """See `Operator`; every hop multiplies rows that were cut out as not reached yet.

        They are cut out again when few of them are left, so that the end of a long chain is cheap.
        """
        operator, left = self.with_weight(self.weight.detach()), ~seeds
        left[self.absent] = False
        where = left.nonzero().squeeze(1)
        reach = seeds.clone()
        while True:
            x = reach.to(self.weight.dtype).unsqueeze(1)
            hit = where[operator.multiply_at(x, where).squeeze(1) > 0]
            new = hit[left[hit]]
            reach[new], left[new] = True, False
            rest = int(left.count_nonzero())
            if new.numel() == 0 or rest == 0:
                return reach
            if rest * _CUT_AGAIN < where.numel():
                operator, where = replace(operator, cut=CutRows()), left.nonzero().squeeze(1)

    def restrict(self, keep: Tensor) -> BankOperator:
        """Rows and columns `keep` (N,) bool."""
        inner = keep[self.offset :].nonzero().squeeze(1)
        ends = keep[self.nodes]
        number = keep.cumsum(0) - 1
        return BankOperator(
            self.border.restrict(ends),
            number[self.nodes[ends]],
            self._rows(inner).take_columns(inner),
            int(keep[: self.offset].sum()),
            self.nodes[:0],
            CutRows(),
        )

    def to_full(self) -> Tensor:
        """W as an (N, N) matrix, differentiable in the border's weights."""
        n = self.num_nodes
        rows = self.border.rows
        flat = self.nodes[rows.row] * n + self.nodes[rows.target]
        full = self.weight.new_zeros(n * n).index_add(0, flat, self.weight).view(n, n)
        inner = torch.from_numpy(self.memory._scipy().toarray()).to(full)
        return full + torch.nn.functional.pad(inner, (self.offset, 0, self.offset, 0))


def bank_operator(
    edge_index: Tensor,
    edge_weight: Tensor,
    nodes: Tensor,
    memory: ConstantRows,
    size: int,
    absent: Tensor,
) -> BankOperator:
    """W of the edges of `size` batch rows and a bank; weights of an extreme unit are scaled.

    The border (2, E), sorted, in both directions, has its ends as positions in `nodes`.
    """
    top = max(largest_weight(edge_weight), largest_weight(memory.weight))
    # No propagation depends on the unit: one pass less where it does no harm.
    if is_extreme(top):
        edge_weight = widen(edge_weight) / top
        memory = memory._replace(weight=memory.weight.double() / top)
    border = SparseOperator(rows_of(edge_index, nodes.numel()), edge_weight)
    return BankOperator(border, nodes, memory, size, absent, CutRows())


class _KnownProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        factor: Tensor,
        labels: Tensor,
        operator: BankOperator,
        where: Tensor,
    ) -> Tensor:
        ctx.operator, ctx.where = operator.with_weight(weight.detach()), where
        ctx.save_for_backward(factor, labels)
        return ctx.operator.multiply_at(factor.unsqueeze(1) * labels, where)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, labels = ctx.saved_tensors
        operator: BankOperator = ctx.operator
        nodes = operator.nodes
        spread = torch.zeros_like(labels).index_copy_(0, ctx.where, grad)
        known = factor[nodes].unsqueeze(1) * labels.index_select(0, nodes)
        grad_weight = operator.border.outer(spread.index_select(0, nodes), known)
        wanted = ctx.needs_input_grad[1]
        grad_factor = operator.multiply(spread).mul_(labels).sum(dim=1) if wanted else None
        return grad_weight, grad_factor, None, None, None
