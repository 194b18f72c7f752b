"""Which file documents were read from, so that they are found again, and found unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gloss_graph.text.corpora import Corpus
from gloss_graph.text.readers import read_table

__all__ = ["describe_file", "joined_texts", "read_again"]


_DESCRIBED: dict[str, Any] = {
    "file": str,
    "text": (str, type(None)),
    "text_b": (str, type(None)),
    "first_id": int,
    "texts_sha256": str,
}


def describe_file(
    file: str | Path, *, text: str | None, text_b: str | None, first_id: int = 0
) -> dict[str, Any]:
    """What `read_again` needs to know of a table, as JSON types.

    Args:
        file: The table.
        text: Column of the texts, None for documents without.
        text_b: Column of the second texts of pairs.
        first_id: Identity of its first document; the others count on.

    Raises:
        ValueError: As `read_table`.
    """
    corpus = read_table(file, text=text, text_b=text_b, label=None)
    return {
        "file": str(Path(file).resolve()),
        "text": text,
        "text_b": text_b,
        "first_id": first_id,
        "rows": len(corpus),
        "texts_sha256": _digest(corpus),
    }


def read_again(described: Mapping[str, Any]) -> Corpus:
    """The documents of a file that `describe_file` described, without labels.

    Raises:
        ValueError: The file is gone, cannot be read, or holds other texts than then; what else is
            in it may have changed.
    """
    for key, kind in _DESCRIBED.items():
        if not isinstance(described, Mapping) or not isinstance(described.get(key), kind):
            raise ValueError(f"The description of a file lacks {key!r} or has a wrong one.")
    file = described["file"]
    columns = {name: described[name] for name in ("text", "text_b")}
    corpus = read_table(file, **columns, label=None, first_id=described["first_id"])
    if _digest(corpus) != described["texts_sha256"]:
        raise ValueError(f"{file} holds other texts than it did.")
    return corpus


def joined_texts(corpus: Corpus) -> list[str]:
    """The texts (N) to show, of pairs both with a line break between them."""
    if corpus.texts_b is None:
        return corpus.texts
    return [f"{one}\n{two}" for one, two in zip(corpus.texts, corpus.texts_b, strict=True)]


def _digest(corpus: Corpus) -> str:
    content = json.dumps([corpus.texts, corpus.texts_b], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
