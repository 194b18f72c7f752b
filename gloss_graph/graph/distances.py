"""Squared distances with gradient: all pairs of a batch, or along a list of links."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gloss_graph._internal.precision import first_order
from gloss_graph.graph.kernels import Kernel
from gloss_graph.neighbors.exact import pair_distances

# Entries of the (links, D) difference held at a time.
_CHUNK_ENTRIES = 8_000_000


# exp(-x) leaves the normal range of float32 from about here.
_FLOAT32_EXPONENT = 80.0
_NO_TIE = 1e-100


def weigh(kernel: Kernel, squared: Tensor, squared_bandwidth: Tensor) -> Tensor:
    """Edge weights, in float64 where a Gaussian that narrow would underflow in float32.

    There weights below 1e-100 become 0, no tie at all: the products of two such weights, which a
    solve and its gradient take, leave the range of float64 too.
    """
    if squared.numel() == 0:
        return kernel(squared, squared_bandwidth)
    if squared_bandwidth.numel() == 1:
        wide = squared.detach().amax() < 2.0 * _FLOAT32_EXPONENT * squared_bandwidth
    else:
        wide = (squared.detach() / squared_bandwidth).amax() < 2.0 * _FLOAT32_EXPONENT
    if bool(wide):
        return kernel(squared, squared_bandwidth)
    weight = kernel(squared.double(), squared_bandwidth.double())
    return torch.where(weight > _NO_TIE, weight, 0.0)


def discounted(weight: Tensor, factor: Tensor) -> Tensor:
    """Edge weights (E,) times factors (E,) in (0, 1], in float64 where float32 is too narrow.

    As in `weigh`, weights below 1e-100 become 0 there.
    """
    product = weight * factor
    if not bool((product.detach() < torch.finfo(product.dtype).tiny).any()):
        return product
    product = weight.double() * factor.double()
    return torch.where(product > _NO_TIE, product, 0.0)


class _BatchDistances(torch.autograd.Function):
    """One matrix product each way; the chain of small operations would cost more than they do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gram = x @ x.T
        norms = gram.diagonal().clone()
        # In this order (i, j) and (j, i) are equal bit for bit.
        squared = (norms.unsqueeze(1) + norms).sub_(gram, alpha=2.0).clamp_(min=0.0)
        # Callers leave the diagonal out; an ordinary value keeps kernels that are singular at 0
        # finite there.
        squared.fill_diagonal_(1.0)
        ctx.save_for_backward(x)
        return squared

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        pull = -2.0 * (grad + grad.T)
        pull.diagonal().sub_(pull.sum(dim=1))
        return pull @ x


def batch_squared_distances(x: Tensor) -> Tensor:
    """Squared distances (B, B) between all rows of `x` (B, D), through one matrix product.

    Differentiable once in `x`, at coinciding rows too (gradient 0). The diagonal holds ones;
    callers must leave it out, and its gradient must be 0.
    """
    return _BatchDistances.apply(x)


class _LinkDistances(torch.autograd.Function):
    """Chunked forward and backward: O(L D) time, O(N D + L) memory, never (L, D) at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, source, target)
        out = x.new_empty(source.numel())
        for part in _parts(source.numel(), x.size(1)):
            out[part] = pair_distances(x, source[part], x, target[part])
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, source, target = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        for part in _parts(source.numel(), x.size(1)):
            delta = 2.0 * grad[part].unsqueeze(1) * (x[source[part]] - x[target[part]])
            grad_x.index_add_(0, source[part], delta)
            grad_x.index_add_(0, target[part], delta, alpha=-1.0)
        return grad_x, None, None


def _parts(length: int, dim: int) -> list[slice]:
    step = max(1, _CHUNK_ENTRIES // dim)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def link_squared_distances(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Squared distances (L,) between rows `source` (L,) and `target` (L,) of `x` (N, D).

    Differentiable once in `x`; memory stays O(N D + L).
    """
    return _LinkDistances.apply(x, source, target)


class _RowDistances(torch.autograd.Function):
    """The differences are kept: their weighted sum is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        difference = rows.sub_(x.unsqueeze(1))
        ctx.save_for_backward(difference, x)
        return torch.linalg.vector_norm(difference, dim=2).square_()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        difference, _ = ctx.saved_tensors
        return torch.bmm(grad.unsqueeze(1), difference).squeeze(1).mul_(-2.0), None


def row_squared_distances(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Squared distances (B, k) between row i of `x` (B, D) and the rows `index[i]` (B, k).

    Of negative indices anything. Differentiable once in `x`; O(B k D) time and memory.
    """
    return _RowDistances.apply(x, rows[index.clamp(min=0)].to(x.dtype))
