"""What autograd differentiates: never in half precision, never twice in silence, never NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off where it is on; to enter it for nothing costs more than a product."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class _NoSecondDerivative(torch.autograd.Function):
    """Return the first argument; raise when a gradient with respect to the others is asked for."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, *anchors: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(
            "gloss_graph's graphs and solves are differentiable once: a second derivative "
            "(create_graph=True, torch.autograd.functional.hessian) is not defined."
        )


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of a Function that is differentiable once and in full precision.

    Unlike with torch's `once_differentiable`, a second derivative raises also if the incoming
    gradient is a constant, where torch would leave out the share that passes through the saved
    tensors, which must hold an input or output of the Function.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> Any:
        first = grads[0] if grads[0] is not None else next(x for x in grads if x is not None)
        with full_precision(first.device.type):
            if not torch.is_grad_enabled():
                return backward(ctx, *grads)
            with torch.no_grad():
                found = backward(ctx, *grads)
        behind = [*ctx.saved_tensors, *grads]
        anchors = [x for x in behind if x is not None and x.requires_grad]
        return tuple(
            None if part is None else _NoSecondDerivative.apply(part.detach(), *anchors)
            for part in (found if isinstance(found, tuple) else (found,))
        )

    return guarded


def narrowed(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient in `dtype`, cut at its range with room for the sum over shared weights."""
    if grad.dtype == dtype:
        return grad
    limit = torch.finfo(dtype).max / 2**16
    return grad.clamp(-limit, limit).to(dtype)


class _Widen(torch.autograd.Function):
    """To float64; the gradient comes back within the range of the narrow dtype, never as inf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return x.double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return narrowed(grad, ctx.dtype)


def widen(x: Tensor) -> Tensor:
    """`x` in float64. A gradient beyond the range of x's dtype is cut at that range."""
    return x if x.dtype == torch.float64 else _Widen.apply(x)


class _UnitRows(torch.autograd.Function):
    """Two passes over x each way; autograd's division takes seven backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        norm.masked_fill_(norm <= torch.finfo(x.dtype).tiny, 1.0)
        unit = x / norm
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        unit, norm = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, unit).unsqueeze(1)
        found = torch.addcmul(grad, unit, along, value=-1.0).div_(norm)
        _check_finite(found)
        return found


def unit_rows(x: Tensor) -> Tensor:
    """L2-normalized rows of x (B, D), differentiable once; a zero row stays zero.

    The backward pass raises a `FloatingPointError` if the gradient is NaN or inf.
    """
    return _UnitRows.apply(x)


def finite_gradient(x: Tensor) -> Tensor:
    """`x`; the backward pass raises a `FloatingPointError` unless its gradient is finite."""
    if not x.requires_grad:
        return x
    # Another tensor: a hook on the caller's would see other gradients, and stay there.
    x = x.view_as(x)
    x.register_hook(_check_finite)
    return x


def _check_finite(grad: Tensor) -> None:
    if math.isfinite(grad.sum()):  # one pass; a finite gradient whose sum is not is looked at
        return
    rows = (~torch.isfinite(grad).flatten(1).all(dim=1)).nonzero().squeeze(1)
    if rows.numel():
        raise FloatingPointError(
            f"The gradient of the graph terms is NaN or inf in rows {rows[:5].tolist()} of "
            "'embeddings'. Check the scale of the loss (a gradient scaler that grew without "
            "limit) and 'embeddings' for values near the limit of their dtype."
        )
