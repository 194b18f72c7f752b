"""The template engine of all reports: one look, everything escaped, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape


def render_page(template: str, content: Mapping[str, Any]) -> bytes:
    """Fill a template of this room and return the page as UTF-8.

    A template extends `page.html.jinja`, whose frame shows `title`, `summary`, `figures` (pairs of
    a name and a value) and `contents` (pairs of a section's id and name). Values are escaped; the
    filter `code` marks text between backticks as code.
    """
    loader = PackageLoader("gloss_graph.reports", "")
    engine = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    engine.filters["code"] = _code
    return engine.get_template(template).render(content).encode("utf-8", "backslashreplace")


def _code(text: object) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
