"""The template engine of all reports: one look, everything escaped, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup, escape

__all__ = ["render_page"]

_SHARED = "gloss_graph.reports"


def render_page(template: str, content: Mapping[str, Any], *, package: str = _SHARED) -> bytes:
    """Fill a template of the package and return the page as UTF-8.

    A template extends `page.html.jinja`, whose frame shows `title`, `summary`, `figures` (pairs of
    a name and a value) and `contents` (pairs of a section's id and name). Values are escaped; the
    filter `code` marks text between backticks as code.
    """

    def source(name: str) -> str:
        home = package if name == template else _SHARED
        return files(home).joinpath(name).read_text(encoding="utf-8")

    engine = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(source)
    )
    engine.filters["code"] = _code
    page = engine.get_template(template).render(content)
    return page.encode("utf-8", "backslashreplace")


def _code(text: object) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
