"""Kernels: squared distance -> edge weight in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gloss_graph._internal.checks import check_choice

Kernel = Callable[[Tensor, Tensor], Tensor]


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
        squared: (E,) squared distances of L2-normalised rows.
        squared_bandwidth: Not used; the kernel has no scale.

    Returns:
        (E,) weights, differentiable in `squared`.
    """
    del squared_bandwidth
    return (1.0 - squared / 2.0).clamp(min=0.0) ** 3


KERNELS: dict[str, Kernel] = {"gaussian": gaussian_kernel, "cosine": cosine_kernel}


def resolve_kernel(kernel: str | Kernel) -> Kernel:
    """Look a kernel up by name, or pass a callable `(squared, squared_bandwidth) -> weight` on.

    Raises:
        ValueError: Unknown name; lists the known ones.
    """
    if callable(kernel):
        return kernel
    check_choice("kernel", kernel, KERNELS)
    return KERNELS[kernel]
