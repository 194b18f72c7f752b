"""Names that moved to another room stay importable where they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def moved_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A module `__getattr__` (PEP 562) that loads a name from its new home on first use.

    Args:
        package: the package that the names were in.
        homes: for each new home (a module path), the names that moved there.

    Returns:
        The function; it raises `AttributeError` for any other name.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return __getattr__
