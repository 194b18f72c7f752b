"""Optional libraries: which extra of the package installs them."""

from __future__ import annotations

from importlib.util import find_spec


def require(*libraries: str, extra: str) -> None:
    """Raise a `ModuleNotFoundError` that names the extra if a library is not installed.

    Nothing is imported.
    """
    for library in libraries:
        try:
            found = find_spec(library)
        except (ModuleNotFoundError, ValueError):  # a parent is missing; None in `sys.modules`
            found = None
        if found is None:
            raise ModuleNotFoundError(
                f"{library} is not installed. Run 'pip install \"gloss-graph[{extra}]\"'.",
                name=library,
            )
