"""Argument checks shared by every room, in one wording: name, rule, what was got, next step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless `value` is one of the `known` names.

    Raises:
        ValueError: Lists the known names.
    """
    names = sorted(known)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"'{name}' must be one of {names} (got {value!r}).")


def check_range(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise unless `low <= value <= high` (with open ends where asked).

    Raises:
        ValueError: Names the bounds and the value; NaN is outside every range.
    """
    try:
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
    except TypeError:
        raise ValueError(f"'{name}' must be a number (got {value!r}).") from None
    if isinstance(value, bool) or not (above and below):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"'{name}' must be in {left}{low}, {high}{right} (got {value}).")


def check_positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """Raise unless `value` is an `int` of at least `minimum`.

    Raises:
        ValueError: Names the minimum and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"'{name}' must be an integer of at least {minimum} (got {value!r}).")


def check_tensor(name: str, value: Any) -> None:
    """Raise unless `value` is a tensor.

    Raises:
        TypeError: Names the argument and the type it has.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"'{name}' must be a torch.Tensor (got {type(value).__name__}).")


def check_device(name: str, value: Tensor, other: str, device: torch.device) -> None:
    """Raise unless `value` lies on the `device` of `other`.

    Raises:
        ValueError: Names both.
    """
    if value.device != device:
        raise ValueError(
            f"{name} is on {value.device} but {other} is on {device}. "
            "Move one of them with .to(device)."
        )


def check_matrix(name: str, value: Any, columns: int | None = None) -> None:
    """Raise unless `value` is a finite floating tensor of shape (N, D) with D >= 1.

    Raises:
        TypeError: Not a tensor.
        ValueError: Wrong shape, dtype or NaN/inf entries (with the first bad row).
    """
    check_tensor(name, value)
    if value.dim() != 2 or value.size(1) == 0:
        raise ValueError(f"'{name}' must have shape (N, D) (got {tuple(value.shape)}).")
    if not value.is_floating_point():
        raise ValueError(
            f"'{name}' must be a floating point tensor (got {value.dtype}). Call .float() first."
        )
    if columns is not None and value.size(1) != columns:
        raise ValueError(f"'{name}' must have {columns} columns (got {value.size(1)}).")
    # One reduction decides; the search for the bad row is paid for only on failure. The sum of
    # finite values may overflow, so a bad sum alone is no verdict.
    if not torch.isfinite(value.detach().sum()):
        bad = (~torch.isfinite(value.detach())).any(dim=1).nonzero()
        if bad.numel():
            raise ValueError(
                f"'{name}' must be finite (got NaN or inf in {bad.size(0)} of {value.size(0)} "
                f"rows, the first is row {int(bad[0])}). Check the encoder's output and the "
                "learning rate."
            )


def check_index_vector(name: str, value: Any, length: int) -> None:
    """Raise unless `value` is an integer tensor of shape (length,).

    Raises:
        TypeError: Not a tensor.
        ValueError: Wrong shape or dtype.
    """
    check_tensor(name, value)
    if value.dim() != 1 or value.size(0) != length:
        raise ValueError(
            f"'{name}' must have shape ({length},), one entry a row of the embeddings "
            f"(got {tuple(value.shape)})."
        )
    if value.dtype not in INTEGER_DTYPES:
        if value.dtype == torch.uint64:
            raise ValueError(
                f"'{name}' must fit int64 (got torch.uint64, which goes beyond). Number them "
                "below 2**63 and call .long()."
            )
        raise ValueError(f"'{name}' must be an integer tensor (got {value.dtype}).")


def check_mask(name: str, value: Any, length: int) -> None:
    """Raise unless `value` is a bool tensor of shape (length,).

    Raises:
        TypeError: Not a tensor.
        ValueError: Wrong shape or dtype.
    """
    check_tensor(name, value)
    if value.dtype != torch.bool or value.dim() != 1 or value.size(0) != length:
        raise ValueError(
            f"'{name}' must be a bool tensor of shape ({length},) "
            f"(got {value.dtype} {tuple(value.shape)})."
        )
