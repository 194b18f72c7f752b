"""The file of a run folder that lists the labeled documents."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gloss_graph.text.tables import has_column, read_columns

#: Name of the file.
LABELS_USED = "labels_used.csv"


class LabelsUsed(NamedTuple):
    """The labeled documents of a run, in the order of its `labels_used.csv`.

    `labels` are class names (label sets are joined); `texts_b` is None without pairs.
    """

    ids: list[int]
    labels: list[str]
    texts: list[str]
    texts_b: list[str] | None


def read_labels_used(folder: Path) -> LabelsUsed:
    """Read the `labels_used.csv` of a run folder.

    Raises:
        ValueError: The file is missing or damaged; names the file and, if known, the line.
    """
    file = folder / LABELS_USED
    second = ["text_b"] if has_column(file, "text_b") else []
    table = read_columns(file, ["id", "label", "text", *second])
    ids = table.parsed("id", int)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{file} names a document twice. Put back the file that was written.")
    labels, texts, *texts_b = (
        [str(v) for v in table.columns[n]] for n in table.columns if n != "id"
    )
    return LabelsUsed(ids, labels, texts, texts_b[0] if texts_b else None)
