"""Kernels: squared distance -> edge weight in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice

Kernel = Callable[[Tensor, Tensor], Tensor]

# exp(-x) leaves the normal range of float32 from about here.
_FLOAT32_EXPONENT = 80.0
# The product of two smaller weights, which a solve and its gradient take, leaves that of float64.
_NO_TIE = 1e-100


def gaussian_kernel(squared: Tensor, squared_bandwidth: Tensor) -> Tensor:
    r"""Gaussian similarity \(w = \exp(-d^2 / (2\sigma^2))\) (G-Loss, arXiv 2604.25853, eq. 2).

    Args:
        squared: (E,) squared distances.
        squared_bandwidth: Scalar \(\sigma^2\), or (E,) products \(\sigma_i\sigma_j\) for local
            scaling.

    Returns:
        (E,) weights, differentiable in `squared`.
    """
    # In place: a bank of a million rows has tens of millions of edges.
    return (squared * (-0.5 / squared_bandwidth)).exp_()


def cosine_kernel(squared: Tensor, squared_bandwidth: Tensor) -> Tensor:
    r"""Clipped cosine \(w = \max(0, 1 - d^2/2)^3\) of unit rows (Iscen et al., 2019, eq. 9).

    Args:
        squared: (E,) squared distances of L2-normalized rows.
        squared_bandwidth: Not used; the kernel has no scale.

    Returns:
        (E,) weights, differentiable in `squared`.
    """
    del squared_bandwidth
    return (1.0 - squared / 2.0).clamp(min=0.0) ** 3


KERNELS: dict[str, Kernel] = {"gaussian": gaussian_kernel, "cosine": cosine_kernel}


def resolve_kernel(kernel: str | Kernel) -> Kernel:
    """The kernel of a name (ValueError if unknown); a callable is returned as it is."""
    if callable(kernel):
        return kernel
    check_choice("kernel", kernel, KERNELS)
    return KERNELS[kernel]


def weigh(kernel: Kernel, squared: Tensor, squared_bandwidth: Tensor) -> Tensor:
    """Edge weights, in float64 where a narrow Gaussian would underflow in float32.

    In that case weights below 1e-100 become 0, which is no tie at all.
    """
    if squared.numel() == 0:
        return kernel(squared, squared_bandwidth)
    if squared_bandwidth.numel() == 1:
        largest = float(squared.detach().amax()) / float(squared_bandwidth)
    else:
        largest = float((squared.detach() / squared_bandwidth).amax())
    if largest < 2.0 * _FLOAT32_EXPONENT:
        return kernel(squared, squared_bandwidth)
    weight = kernel(squared.double(), squared_bandwidth.double())
    return torch.where(weight > _NO_TIE, weight, 0.0)


def discounted(weight: Tensor, factor: Tensor) -> Tensor:
    """Edge weights (E,) times factors (E,) in (0, 1], in float64 where `weigh` would use it."""
    product = weight * factor
    if not bool((product.detach() < torch.finfo(product.dtype).tiny).any()):
        return product
    product = weight.double() * factor.double()
    return torch.where(product > _NO_TIE, product, 0.0)
