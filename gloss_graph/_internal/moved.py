"""Names that moved to another room, or got another name, stay importable where they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def moved_names(
    package: str,
    homes: Mapping[str, Sequence[str]],
    *,
    renamed: Mapping[str, tuple[str, str]] | None = None,
) -> Callable[[str], Any]:
    """A module `__getattr__` (PEP 562) that loads a name from its new home on first use.

    Args:
        package: The package that the names were in.
        homes: For each new home (a module path), the names that moved there.
        renamed: Former name -> new home and new name; its use warns.

    Returns:
        The function; it raises `AttributeError` for any other name.
    """
    home_of = {name: (home, name) for home, names in homes.items() for name in names}
    former = renamed or {}

    def __getattr__(name: str) -> Any:
        if name not in home_of and name not in former:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, new = former[name] if name in former else home_of[name]
        if name in former:
            warnings.warn(
                f"{package}.{name} is deprecated. Use {home}.{new}.",
                DeprecationWarning,
                stacklevel=2,
            )
        return getattr(import_module(home), new)

    return __getattr__
