"""Docstring to plain prose: markup, code and telling names go, the subject stays."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import pairwise

__all__ = ["MASK", "mask_docstring"]

MASK = "NAME"
"""What stands where a masked name stood."""

# Section headings of Google style (alone on a line), and field lists. Underlined headings of
# numpydoc are recognised by their underline.
_HEADINGS = (
    "args|arguments|attributes|examples?|inputs?|kwargs|keyword arg(?:ument)?s|keyword parameters"
    "|notes?|other parameters|outputs?|parameters|raises|references|returns?|see also|shapes?"
    "|usage|warnings?|warns|yields"
)
_SECTION = re.compile(
    rf"(?:[*]{{0,2}}(?:{_HEADINGS})[*:\s]*|:(?:param|type|returns?|rtype|raises)\b.*)$",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"\s*([-=~^\"'*+#])\1{2,}\s*$")
_SIGNATURE = re.compile(r"[\w.]+\(.*\)\s*(?:->.*|:)?$")
_DROPPED_LINE = re.compile(
    r"\s*(?:>>>|\.\.\.(?:\s|$)|In \[\d+\]|import\s+\w|from\s+[\w.]+\s+import\b|[$%]\s|[|+=-]{3,})"
)
_DIRECTIVE = re.compile(r"\s*\.\.(?:\s|$)")

_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Read more in the :ref:`[^`]*`\.?"), " "),  # the signature of one library
    (re.compile(r":math:`[^`]*`|\$[^$\n]{1,200}\$"), " "),
    (re.compile(r":[\w:+-]+:`[^`]*`"), f" {MASK} "),
    (re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{1,2}"), r"\1"),
    (re.compile(r"https?://\S+|www\.\S+|\b(?:doi|arXiv):\S+", re.IGNORECASE), " "),
    (re.compile(r"\[[\w#*-]{1,12}\]_|\|[\w -]+\|_{0,2}"), " "),
    (re.compile(r"%\(\w+\)s|\{\{?[^{}\n]*\}?\}|\$\{?\w+\}?"), " "),
    # Inline code: a plain lower-case word (usually a parameter) reads on, other code is masked.
    (re.compile(r"``?([a-z]+)``?"), r"\1"),
    (re.compile(r"``?[^`\n]*``?"), f" {MASK} "),
    (re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:\(\))?|\b\w+\([^()\s]*\)"), f" {MASK} "),
    # Identifiers by their shape: snake_case, camelCase and CapWords, letters before a digit.
    (
        re.compile(r"\b\w*_\w*\b|\b[A-Za-z]*[a-z][A-Z]\w*|\b[A-Z]{2,}[a-z]\w+|\b[A-Za-z]+\d\w*"),
        MASK,
    ),
    (re.compile(r"[*]{1,2}|::|\\[A-Za-z]*"), " "),
)
_WORD = re.compile(r"[A-Za-z]+")
_REPEATED = re.compile(rf"\b{MASK}(?:\W+{MASK}\b)+")
_SPACE_BEFORE_POINT = re.compile(r"\s+(?=[,.;:)])")


def mask_docstring(doc: str, names: Collection[str], *, max_characters: int = 600) -> str:
    r"""Turn one docstring into a line of masked prose.

    The summary and the extended description are kept, that is everything above the first section.
    Gone are code, directives, formulae, references and addresses; identifiers become :data:`MASK`.

    Args:
        doc: The docstring, already dedented.
        names: Lower-case words to replace by :data:`MASK`, whatever their case in the text.
        max_characters: The text is cut at the last word that ends before this length.

    Returns:
        One line of text, possibly empty.

    Example:
        >>> mask_docstring("Sorts with `np.sort`, see [1]_.\n\nArgs:\n    x: Data.", {"sorts"})
        'NAME with NAME, see.'
    """
    # Markup is dense at worst; four times the wanted length is enough raw text.
    text = "\n".join(_prose_lines(doc))[: 4 * max_characters]
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = _WORD.sub(lambda word: MASK if word[0].lower() in names else word[0], text)
    text = _REPEATED.sub(MASK, " ".join(text.split()))
    text = _SPACE_BEFORE_POINT.sub("", text)
    if len(text) > max_characters:
        text = text[: max_characters + 1].rpartition(" ")[0] or text[:max_characters]
    return text


def _prose_lines(doc: str) -> list[str]:
    """Lines above the first section, without code, directives and their bodies."""
    lines = doc.expandtabs().splitlines()
    if lines and _SIGNATURE.match(lines[0].strip()):
        lines = lines[1:]
    kept: list[str] = []
    block_indent: int | None = None  # inside a directive or a literal block, deeper lines go
    in_example = False  # between a prompt and the next blank line
    for line, following in pairwise([*lines, ""]):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if block_indent is not None and stripped:
            if indent > block_indent:
                continue
            block_indent = None
        if stripped and (_SECTION.match(stripped) or (kept and _UNDERLINE.match(following))):
            break
        in_example = bool(stripped) and (in_example or stripped.startswith(">>>"))
        if _DIRECTIVE.match(line):
            block_indent = indent
        elif in_example:
            continue
        elif not _DROPPED_LINE.match(line) and not _UNDERLINE.match(line):
            if stripped.endswith("::"):
                block_indent = indent
            kept.append(line)
    return kept
