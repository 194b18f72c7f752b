"""Two views of a document in one row: learned embedding and frozen features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_matrix, check_range
from gloss_graph._internal.precision import unit_rows


def joint_view(x: Tensor, frozen: Tensor | None, anchor: float) -> Tensor:
    r"""Rows whose inner product is \((1 - a) \cos_{learned} + a \cos_{frozen}\).

    Args:
        x: (B, D) learned embeddings; gradients pass through.
        frozen: (B, D') features of the untrained encoder, constants; None gives x itself.
        anchor: a in [0, 1], weight of the frozen similarity.

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
            f"'frozen' must hold one row an embedding on the same device (got "
            f"{tuple(frozen.shape)} on {frozen.device} for {tuple(x.shape)} on {x.device})."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    parts = (math.sqrt(1.0 - anchor) * unit_rows(x), math.sqrt(anchor) * _unit(frozen, x))
    return torch.cat(parts, dim=1)


def reweighted(rows: Tensor, learned: int, old: float, new: float) -> Tensor:
    """Stored joint rows (M, D + D') with another anchor; the first `learned` columns are learned.

    Raises:
        ValueError: A view that `old` has weighted with 0 is asked for.
    """
    check_range("anchor", new, 0.0, 1.0)
    if new == old:
        return rows
    if (old == 0.0 < new) or (old == 1.0 > new):
        raise ValueError(
            f"'anchor' cannot be changed from {old} to {new}: rows were stored without that view."
        )
    first = rows[:, :learned] * math.sqrt((1.0 - new) / (1.0 - old) if new < 1.0 else 0.0)
    second = rows[:, learned:] * math.sqrt(new / old if new > 0.0 else 0.0)
    return torch.cat([first, second], dim=1)


def _unit(frozen: Tensor, like: Tensor) -> Tensor:
    return unit_rows(frozen.detach().to(like.dtype))
