"""PyG's graph convolution over one fixed symmetric matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import GCNConv

__all__ = ["SymmetricGCNConv"]


class SymmetricGCNConv(GCNConv):
    """`GCNConv` over a symmetric sparse matrix that is normalised already.

    The backward pass multiplies by the same matrix, where PyG's transposes it every time: a third
    of the time of a step at three million edges.

    Args:
        in_channels: D. None leaves the weight out: the input is what is propagated, as in a layer
            on one-hot features, whose weight is a row per node.
        out_channels: D'.
        bias: Add a bias.

    Shapes: x (n, D) float32, the matrix (n, n) sparse CSR; the result (n, D').

    Example:
        >>> matrix = torch.eye(2).to_sparse_csr()
        >>> SymmetricGCNConv(3, 4)(torch.ones(2, 3), matrix).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_channels: int | None, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels or out_channels, out_channels, bias=bias, normalize=False)
        if in_channels is None:
            self.lin: Any = torch.nn.Identity()

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        """Sum of the neighbours' rows."""
        return _SymmetricProduct.apply(adj_t, x)


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix @ gradient.contiguous()
