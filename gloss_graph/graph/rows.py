"""Rows as they are compared and stored: of length 1, with frozen features, in float32 at least."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_matrix, check_range
from gloss_graph._internal.precision import finite_gradient, unit_rows


def normalized_rows(
    embeddings: Tensor, frozen: Tensor | None, frozen_weight: float, normalize: bool
) -> Tensor:
    """Checked rows as they are compared and stored: (B, D) in float32 at least, or joint views."""
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if frozen is not None:
        return joint_view(x, frozen, frozen_weight)
    return unit_rows(x) if normalize else finite_gradient(x)


def joint_view(x: Tensor, frozen: Tensor | None, frozen_weight: float) -> Tensor:
    r"""Rows whose inner product is \((1 - a) \cos_{learned} + a \cos_{frozen}\).

    Args:
        x: (B, D) learned embeddings; gradients pass through.
        frozen: (B, D') features of the untrained encoder, constants; None returns x itself.
        frozen_weight: a in [0, 1].

    Returns:
        (B, D + D') rows of norm 1 (0 where both parts are zero).

    Raises:
        ValueError: Another number of rows, another device, non-finite features.
    """
    if frozen is None:
        return x
    check_matrix("frozen", frozen, normalized=True)
    if frozen.size(0) != x.size(0) or frozen.device != x.device:
        raise ValueError(
            f"'frozen' must hold one row per embedding on the same device (got "
            f"{tuple(frozen.shape)} on {frozen.device} for {tuple(x.shape)} on {x.device})."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    learned = math.sqrt(1.0 - frozen_weight) * unit_rows(x)
    features = unit_rows(frozen.detach().to(x.dtype))
    return torch.cat([learned, math.sqrt(frozen_weight) * features], dim=1)


def reweighted(rows: Tensor, learned: int, old: float, new: float) -> Tensor:
    """Stored joint rows (M, D + D') with another weight of the frozen columns after `learned`.

    Raises:
        ValueError: A view is asked for that was stored with weight 0.
    """
    check_range("frozen_weight", new, 0.0, 1.0)
    if new == old:
        return rows
    if (old == 0.0 < new) or (old == 1.0 > new):
        raise ValueError(
            f"'frozen_weight' cannot be changed from {old} to {new}: the rows were stored without "
            f"the view that it weights. Use frozen_weight={old}, or fill the bank again."
        )
    first = rows[:, :learned] * math.sqrt((1.0 - new) / (1.0 - old) if new < 1.0 else 0.0)
    second = rows[:, learned:] * math.sqrt(new / old if new > 0.0 else 0.0)
    return torch.cat([first, second], dim=1)
