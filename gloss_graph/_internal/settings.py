"""The one home of a setting: a field of a part, with its help text and search range.

A part is a frozen keyword-only dataclass whose fields are made by `setting`. Configuration files,
command-line flags, tune ranges, ablation factors and report rows are derived from `settings_of`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from gloss_graph._internal.search_space import Dimension

Part = TypeVar("Part")


@dataclass(frozen=True)
class Setting:
    """One field of a part.

    Attributes:
        name: Of the field.
        default: Its default value.
        annotation: Its type, as written in the source.
        help: One sentence for people.
        search: The values that a search tries; None for a setting that is not searched.
    """

    name: str
    default: Any
    annotation: str
    help: str
    search: Dimension | None


def setting(default: Any, help: str, *, search: Dimension | None = None) -> Any:
    """A field of a part, with what other rooms need to know of it.

    Args:
        default: An immutable value.
        help: One sentence for people.
        search: The values that a search tries.
    """
    return field(default=default, metadata={"help": help, "search": search})


def settings_of(part: type) -> dict[str, Setting]:
    """The settings of a part by name, in the order of its fields.

    Args:
        part: A dataclass; fields that were not made by `setting` are left out.
    """
    return {
        each.name: Setting(
            each.name,
            each.default,
            str(each.type),
            each.metadata["help"],
            each.metadata["search"],
        )
        for each in fields(part)
        if "help" in each.metadata
    }


def with_short_forms(name: str, part: Part | None, kind: type[Part], **short: Any) -> Part:
    """A part with the short forms of its fields put in; None is "not said" in either.

    Args:
        name: The argument that takes the part.
        part: The part as passed, None for one of defaults.
        kind: The class of the part.
        short: Values by field name; None where a short form was not given.

    Raises:
        TypeError: A part of another class.
        ValueError: A short form and the part disagree.
    """
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
    return replace(part, **given) if given else part


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the most similar known one, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."


Method = TypeVar("Method", bound=Callable[..., Any])


def former_names(**names: str) -> Callable[[Method], Method]:
    """Let a function take arguments under their former names, with a `DeprecationWarning`.

    Args:
        names: The present name by the former one.
    """

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
    if isinstance(value, Tensor):
        return str(value.tolist())
    return str(getattr(value, "__name__", None) or repr(value))
