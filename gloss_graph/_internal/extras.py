"""Optional libraries: which extra of the package installs them."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]


def require(*libraries: str, extra: str) -> None:
    """Check that optional libraries are installed, without importing them.

    Args:
        libraries: Names as in an import statement.
        extra: The extra of gloss-graph that installs them.

    Raises:
        ModuleNotFoundError: One of them is missing; names the extra.
    """
    for library in libraries:
        if not _is_installed(library):
            raise ModuleNotFoundError(
                f"{library} is not installed. Run 'pip install \"gloss-graph[{extra}]\"'.",
                name=library,
            )


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ModuleNotFoundError, ValueError):  # a parent is missing; None in `sys.modules`
        return False
