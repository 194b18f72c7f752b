"""What a search may try for a setting; declared next to the component it tunes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Scalar: TypeAlias = float | int | str | bool | None

# Digits of a tried value: enough for any search, and short enough to be typed again.
_DIGITS = 6


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both ends are of type `int`.

    Args:
        low: Smallest value.
        high: Largest value, above `low`.
        log: Search the logarithm; needs `low` > 0 and no `step`.
        step: Distance between values, a divisor of `high - low`; None = any value between.

    Raises:
        ValueError: Ends reversed, equal or not finite; `log` with `step` or with `low` <= 0; a
            step that does not divide the range.

    Example:
        >>> str(Range(0.1, 10.0, log=True)), str(Range(4, 64, step=4))
        ('0.1 to 10 (log)', '4 to 64 (step 4)')
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"'{name}' must be a finite number (got {value!r}).")
        if self.low >= self.high:
            raise ValueError(
                f"'low' must be below 'high' (got {self.low:g} and {self.high:g}). Give the "
                "smaller end first."
            )
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(
                f"'log' must come with 'low' above 0 and no 'step' (got low {self.low:g}, step "
                f"{self.step}). Leave one of them out."
            )
        if self.step is not None:
            count = (self.high - self.low) / self.step if self.step > 0 else 0.0
            if count < 1 or abs(count - round(count)) > 1e-6 * count:
                raise ValueError(
                    f"'step' must divide the range from {self.low:g} to {self.high:g} (got "
                    f"{self.step:g}). Move an end, or leave it out."
                )

    @property
    def integer(self) -> bool:
        """Whether only whole numbers are meant."""
        ends = isinstance(self.low, int) and isinstance(self.high, int)
        return ends and (self.step is None or isinstance(self.step, int))

    def tidy(self, value: float) -> float:
        """A value of the range without needless digits."""
        if self.integer:
            return int(value)
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values a setting must accept for all of the range to be fine."""
        return (self.low, self.high)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}

    def __str__(self) -> str:
        note = "log" if self.log else "" if self.step is None else f"step {self.step:g}"
        return f"{self.low:g} to {self.high:g}" + (f" ({note})" if note else "")


@dataclass(frozen=True)
class Choice:
    """One of some values: strings, numbers, flags or None.

    Args:
        values: In any order, each once.

    Raises:
        ValueError: None at all, or one of them twice.

    Example:
        >>> str(Choice(["harmonic", "poisson"]))
        'harmonic, poisson'
    """

    values: Iterable[Scalar]

    def __post_init__(self) -> None:
        values = tuple(self.values)
        object.__setattr__(self, "values", values)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"'values' must be distinct, one or more (got {list(values)}).")
        wrong = [value for value in values if not isinstance(value, float | int | str | None)]
        if wrong:
            raise ValueError(
                f"'values' must be strings, numbers, flags or None (got {wrong[0]!r})."
            )

    def probes(self) -> tuple[Scalar, ...]:
        """Values a setting must accept for the choice to be fine."""
        return tuple(self.values)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {"values": list(self.values)}

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Dimension: TypeAlias = Range | Choice
