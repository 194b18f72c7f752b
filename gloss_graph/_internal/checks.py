"""Argument checks shared by every room, in one wording: name, rule, value, next step.

Nothing here imports torch before it is needed, so that settings can be read without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Squared distances of longer rows leave the range of float32.
_LONGEST_ROW = 2.0**63
# Shorter rows than this are not brought to length 1 (`torch.nn.functional.normalize`).
_SHORTEST_ROW = 1e-12
#: Classes a graph of documents may number.
MOST_CLASSES = 100_000


def misfit(name: str, rule: str, got: Any, advice: str = "") -> ValueError:
    """The error of an argument that breaks a rule, with the next step."""
    return ValueError(f"'{name}' must {rule} (got {got}). {advice}".rstrip())


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless `value` is one of the `known` names."""
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
    """Raise unless `low <= value <= high` (with open ends where asked)."""
    try:
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        inside = bool(above) and bool(below) and not isinstance(value, bool)
    except (TypeError, ValueError, RuntimeError):  # no number, or many
        raise ValueError(f"'{name}' must be a number (got {value!r}).") from None
    if not inside:
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"'{name}' must be in {left}{low}, {high}{right} (got {value}).")


def check_positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """Raise unless `value` is an `int` of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"'{name}' must be an integer of at least {minimum} (got {value!r}).")


def check_seed(name: str, value: Any) -> None:
    """Raise unless `value` is an integer that every random generator takes."""
    fine = isinstance(value, Integral) and not isinstance(value, bool)
    if not fine or not 0 <= value < 2**63:
        raise ValueError(f"'{name}' must be an integer from 0 to 2**63 - 1 (got {value!r}).")


def check_class_numbers(name: str, largest: int) -> None:
    """Raise if class numbers are so large that a column for each would fill the memory."""
    if largest >= MOST_CLASSES:
        raise ValueError(
            f"'{name}' must hold class numbers below {MOST_CLASSES:,} (got {largest}). Number the "
            "classes from 0: labels.unique(return_inverse=True)[1], with -1 put back."
        )


def check_tensor(name: str, value: Any) -> None:
    """Raise unless `value` is a dense tensor."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"'{name}' must be a torch.Tensor (got {type(value).__name__}).")
    if value.layout != torch.strided:
        raise ValueError(f"'{name}' must be dense (got {value.layout}). Call .to_dense() first.")


def check_device(name: str, value: Tensor, other: str, device: torch.device) -> None:
    """Raise unless `value` lies on the `device` of `other`."""
    if value.device != device:
        raise ValueError(
            f"{name} is on {value.device} but {other} is on {device}. "
            "Move one of them with .to(device)."
        )


def check_matrix(
    name: str,
    value: Any,
    columns: int | None = None,
    *,
    normalized: bool = False,
    compared: bool = True,
) -> None:
    """Raise unless `value` is a floating tensor (N, D), D >= 1, whose rows float32 can compare.

    Entries must be finite and lengths at most 9.2e18. With `normalized`, rows will be divided by
    their length, which must be 0 or at least 1e-12. Without `compared`, any finite rows are fine.
    """
    import torch

    check_tensor(name, value)
    if value.dim() != 2 or value.size(1) == 0:
        raise ValueError(f"'{name}' must have shape (N, D) (got {tuple(value.shape)}).")
    if not value.is_floating_point():
        raise ValueError(
            f"'{name}' must be a floating point tensor (got {value.dtype}). Call .float() first."
        )
    if columns is not None and value.size(1) != columns:
        raise ValueError(f"'{name}' must have {columns} columns (got {value.size(1)}).")
    if value.size(0) == 0:
        return
    # One reduction decides; the search for the bad row is paid for only on failure.
    value = value.detach()
    wide = torch.promote_types(value.dtype, torch.float32)
    length = torch.linalg.vector_norm(value, dim=1, dtype=wide)
    low, high = map(float, torch.aminmax(length))
    # False for NaN too, which is what aminmax gives if there is one.
    longest = _LONGEST_ROW if compared else torch.finfo(wide).max
    if high <= longest and (low >= _SHORTEST_ROW or not normalized):
        return
    advice = "Check the encoder's output and the learning rate."
    faults = [("be finite (got NaN or inf", ~torch.isfinite(value).all(dim=1), advice)]
    if compared:
        rule = f"have rows of a length of at most {_LONGEST_ROW:.1e}, whose squares float32 holds"
        faults.append((f"{rule} (got up to {high:.1e}", length > _LONGEST_ROW, advice))
        short = (length < _SHORTEST_ROW) & (value != 0).any(dim=1)
        rule = f"have rows of zeros or of a length of at least {_SHORTEST_ROW:.0e} (got less"
        faults.append((rule, short, "Scale all rows, or check the encoder."))
    for rule, bad, advice in faults:
        rows = bad.nonzero()
        if rows.numel():
            raise ValueError(
                f"'{name}' must {rule} in {rows.size(0)} of {bad.numel()} rows, the first is row "
                f"{int(rows[0])}). {advice}"
            )


def is_integer(value: Tensor) -> bool:
    """Whether a tensor holds integers that fit int64."""
    import torch

    return value.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_index_vector(name: str, value: Any, length: int) -> None:
    """Raise unless `value` is an integer tensor of shape (length,)."""
    check_tensor(name, value)
    if value.dim() != 1 or value.size(0) != length:
        raise ValueError(
            f"'{name}' must have shape ({length},), one entry per row of the embeddings "
            f"(got {tuple(value.shape)})."
        )
    if not is_integer(value):
        if str(value.dtype) == "torch.uint64":
            raise ValueError(
                f"'{name}' must fit int64 (got torch.uint64, which goes beyond). Number them "
                "below 2**63 and call .long()."
            )
        raise ValueError(f"'{name}' must be an integer tensor (got {value.dtype}).")


def check_mask(name: str, value: Any, length: int) -> None:
    """Raise unless `value` is a bool tensor of shape (length,)."""
    import torch

    check_tensor(name, value)
    if value.dtype != torch.bool or value.dim() != 1 or value.size(0) != length:
        raise ValueError(
            f"'{name}' must be a bool tensor of shape ({length},) "
            f"(got {value.dtype} {tuple(value.shape)})."
        )
