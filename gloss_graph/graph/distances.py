"""Squared distances with gradient: all pairs of a batch, or along a list of links."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of the (links, D) difference held at a time.
_CHUNK_ENTRIES = 8_000_000


# exp(-x) leaves the normal range of float32 from about here.
_FLOAT32_EXPONENT = 80.0


def unit_rows(x: Tensor) -> Tensor:
    """L2-normalised rows of x (B, D); a zero row stays zero, with an ordinary gradient."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > torch.finfo(x.dtype).tiny, norm, 1.0)


def in_range(squared: Tensor, squared_bandwidth: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where a Gaussian that narrow would underflow in float32."""
    if squared.dtype == torch.float64 or squared.numel() == 0:
        return squared, squared_bandwidth
    exponent = (squared.detach() / (2.0 * squared_bandwidth)).amax()
    if float(exponent) < _FLOAT32_EXPONENT:
        return squared, squared_bandwidth
    return squared.double(), squared_bandwidth.double()


def batch_squared_distances(x: Tensor) -> Tensor:
    """Squared distances (B, B) between all rows of `x` (B, D), through one matrix product.

    The diagonal is not exactly zero; callers leave it out.
    """
    gram = x @ x.T
    norms = gram.diagonal()
    return (norms.unsqueeze(1) + norms.unsqueeze(0) - 2.0 * gram).clamp(min=0.0)


class _LinkDistances(torch.autograd.Function):
    """Chunked forward and backward: O(L D) time, O(N D + L) memory, never (L, D) at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, source, target)
        out = x.new_empty(source.numel())
        for part in _parts(source.numel(), x.size(1)):
            out[part] = (x[source[part]] - x[target[part]]).square().sum(dim=1)
        return out

    @staticmethod
    @once_differentiable
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
