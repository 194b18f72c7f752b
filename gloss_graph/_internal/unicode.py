"""Text that every writer takes."""

from __future__ import annotations


def whole_text(text: str) -> str:
    """The text with surrogate pairs joined and half ones, as broken JSON has them, U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
