"""What the files that `gloss-graph predict` writes have in common, whatever kind the run is of."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from gloss_graph.text import Corpus
from gloss_graph.text.tables import read_columns, table_suffix

_TEXTS = ("text", "text_b")


def check_output(out: Path) -> None:
    """Refuse an output that cannot be written, before any work.

    Raises:
        ValueError: A suffix that names no format.
        FileExistsError: There is such a file.
        FileNotFoundError: There is no such folder.
    """
    table_suffix(out, "output")
    if out.exists():
        raise FileExistsError(f"'output' must not exist ({out} does). Choose another name.")
    if not out.parent.is_dir():
        raise FileNotFoundError(
            f"'output' must lie in a folder that exists ({out.parent} does not). Create it first."
        )


def answered(
    source: Path,
    corpus: Corpus,
    *,
    text: str | None,
    text_b: str | None,
    answers: Collection[str],
) -> dict[str, Any]:
    """The columns of the input, in their order and of their types, for the answers to join.

    The texts are named `text` and `text_b`. Another column of an answer's name gets the prefix
    `input_`. Documents without texts are named by their place in the file.

    Args:
        source: The file.
        corpus: Its documents.
        text: Column of the texts; None where there is none.
        text_b: Column of the second texts.
        answers: Names of the columns that will be added.

    Raises:
        ValueError: Two columns of one name, or of `input_` and that of an answer.
    """
    wanted = [name for name in (text, text_b) if name is not None]
    columns = read_columns(source).columns
    table: dict[str, Any] = {} if text is not None else {"text": corpus.texts}
    taken = {*answers, *(_TEXTS if text_b is not None else _TEXTS[:1])}
    for name, values in columns.items():
        if name in wanted:
            table[_TEXTS[wanted.index(name)]] = values
            continue
        kept = f"input_{name}" if name in taken else name
        if kept != name and kept in columns:
            raise ValueError(
                f"{source} must not have both columns {name!r} and {kept!r}: {name!r} is the name "
                f"of a prediction, and the column is kept as {kept!r}. Rename one."
            )
        table[kept] = values
    return table
