"""Names that a package offers from another module, loaded on first use; former names warn."""

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
    """A module `__getattr__` (PEP 562) that loads a name from its home on first use.

    `homes` maps a module path to its names, `renamed` a former name, whose use warns, to its home
    and present name.
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
