"""The one home of a setting: a field of a part, with its help text and search range.

A part is a frozen keyword-only dataclass whose fields are made by `setting`. Configuration files,
command-line flags, tune ranges, ablation factors and report rows are derived from `settings_of`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import wraps
from typing import Any, TypeVar

from gloss_graph._internal.search_space import Dimension

Part = TypeVar("Part")


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


Method = TypeVar("Method", bound=Callable[..., Any])


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
