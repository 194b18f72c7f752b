"""PyG's graph convolution over one fixed symmetric matrix, or a block of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.nn import GCNConv

__all__ = ["Block", "SymmetricGCNConv", "csr_tensor", "cut_rows"]


class Block(NamedTuple):
    """A sparse CSR matrix (n, m) and its transpose (m, n), which the backward pass wants."""

    matrix: Tensor
    transposed: Tensor

    @property
    def turned(self) -> Block:
        """The other way round."""
        return Block(self.transposed, self.matrix)


def csr_tensor(matrix: sparse.csr_matrix) -> Tensor:
    """A SciPy matrix as torch's sparse CSR, float32, sharing nothing."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype("int64")),
        torch.from_numpy(matrix.indices.astype("int64")),
        torch.from_numpy(matrix.data.astype("float32")),
        size=matrix.shape,
        check_invariants=False,
    )


def cut_rows(matrix: sparse.csr_matrix, rows: Tensor, device: torch.device | None = None) -> Block:
    """The given rows (b,) long of a matrix (n, n): what is propagated to these nodes alone.

    Example:
        >>> block = cut_rows(sparse.identity(3, format="csr"), torch.tensor([2]))
        >>> block.matrix.to_dense(), tuple(block.transposed.shape)
        (tensor([[0., 0., 1.]]), (3, 1))
    """
    cut = matrix[rows.cpu().numpy()]
    return Block(csr_tensor(cut).to(device), csr_tensor(cut.T.tocsr()).to(device))


class SymmetricGCNConv(GCNConv):
    """`GCNConv` over a symmetric sparse matrix that is normalised already.

    The backward pass multiplies by the same matrix, where PyG's transposes it every time: a third
    of the time of a step at three million edges.

    Args:
        in_channels: D. None leaves the weight out: the input is what is propagated, as in a layer
            on one-hot features, whose weight is a row per node.
        out_channels: D'.
        bias: Add a bias.

    Shapes: x (n, D) float32, the matrix (n, n) sparse CSR; the result (n, D'). With a `Block` of
    (b, n) in place of the matrix the result is (b, D').

    Example:
        >>> matrix = torch.eye(2).to_sparse_csr()
        >>> SymmetricGCNConv(3, 4)(torch.ones(2, 3), matrix).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_channels: int | None, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels or out_channels, out_channels, bias=bias, normalize=False)
        if in_channels is None:
            self.lin: Any = torch.nn.Identity()

    def forward(self, x: Tensor, adj_t: Any, edge_weight: Tensor | None = None) -> Tensor:
        """See the class."""
        if not isinstance(adj_t, Block):
            return super().forward(x, adj_t, edge_weight)
        out: Tensor = _Product.apply(*adj_t, self.lin(x))
        return out if self.bias is None else out + self.bias

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        """Sum of the neighbours' rows."""
        return _Product.apply(adj_t, adj_t, x)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradient.contiguous()
