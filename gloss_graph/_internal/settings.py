"""The one home of a setting: a field of a part, with its help text and search range.

A part is a frozen keyword-only dataclass whose fields are made by `setting`. Configuration files,
command-line flags, tune ranges, ablation factors and report rows are derived from `settings_of`.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeAlias, TypeVar

Scalar: TypeAlias = float | int | str | bool | None


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
        low, high, step = self.low, self.high, self.step
        if low >= high:
            raise ValueError(
                f"'low' must be below 'high' (got {low:g} and {high:g}). Give the smaller end "
                "first."
            )
        if self.log and (low <= 0 or step is not None):
            raise ValueError(
                f"'log' must come with 'low' above 0 and no 'step' (got low {low:g}, step {step}). "
                "Leave one of them out."
            )
        if step is not None:
            count = (high - low) / step if step > 0 else 0.0
            if count < 1 or abs(count - round(count)) > 1e-6 * count:
                raise ValueError(
                    f"'step' must divide the range from {low:g} to {high:g} (got {step:g}). Move "
                    "an end, or leave it out."
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
        # Six digits are enough for any search, and short enough to be typed again.
        return min(max(float(f"{value:.6g}"), self.low), self.high)

    def probes(self) -> tuple[Scalar, ...]:
        """Values a setting must accept for all of the range to be fine."""
        return (self.low, self.high)

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return dict(vars(self))

    def __str__(self) -> str:
        note = "log" if self.log else "" if self.step is None else f"step {self.step:g}"
        return f"{self.low:g} to {self.high:g}" + (f" ({note})" if note else "")


@dataclass(frozen=True)
class Choice:
    """One of some values: strings, numbers, flags or None.

    Args:
        values: In any order, one or more, each once.

    Raises:
        ValueError: No value, one of them twice, or one of another type.

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
        for value in values:
            if not isinstance(value, float | int | str | None):
                raise ValueError(
                    f"'values' must be strings, numbers, flags or None (got {value!r})."
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
Part = TypeVar("Part")
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """One field of a part."""

    name: str
    default: Any
    #: Its type, as written in the source.
    annotation: str
    help: str
    #: Values that a search tries, if any.
    search: Dimension | None


def setting(default: Any, help: str, *, search: Dimension | None = None) -> Any:
    """A field of a part: its immutable default, a sentence of help, values a search tries."""
    return field(default=default, metadata={"help": help, "search": search})


def settings_of(part: type) -> dict[str, Setting]:
    """The settings of a part by name, in the order of its fields made by `setting`."""
    return {
        each.name: Setting(
            each.name, each.default, str(each.type), each.metadata["help"], each.metadata["search"]
        )
        for each in fields(part)
        if "help" in each.metadata
    }


def with_short_forms(name: str, part: Part | None, kind: type[Part], **short: Any) -> Part:
    """The part that an argument `name` and the `short` forms of its fields describe."""
    given = {key: value for key, value in short.items() if value is not None}
    if part is None:
        return kind(**given)
    if not isinstance(part, kind):
        raise TypeError(
            f"'{name}' must be a {kind.__name__} (got {type(part).__name__}): "
            f"{name}={kind.__name__}(...)."
        )
    for key, value in given.items():
        inside = getattr(part, key)
        if inside is not None and value is not inside and value != inside:
            raise ValueError(
                f"'{key}' is {value!r}, but {inside!r} in '{name}'. Give it once: inside "
                f"{kind.__name__}(...), or without '{name}'."
            )
    return kind(**(vars(part) | given)) if given else part


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the most similar known one, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."


def former_names(**names: str) -> Callable[[Method], Method]:
    """Let a function take arguments under former names, with a `DeprecationWarning`."""

    def decorate(function: Method) -> Method:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for former in names.keys() & kwargs.keys():
                now = names[former]
                if now in kwargs:
                    raise TypeError(f"'{former}' is the former name of '{now}'; both were given.")
                warnings.warn(f"'{former}' is now '{now}'.", DeprecationWarning, stacklevel=2)
                kwargs[now] = kwargs.pop(former)
            return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def shown(value: Any) -> str:
    """A setting as `repr` prints it: a function by its name, a tensor as a list."""
    if hasattr(value, "tolist"):
        return str(value.tolist())
    return str(getattr(value, "__name__", None) or repr(value))
