"""Tables to files that every reader gives back as they were: CSV, TSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gloss_graph._internal.files import atomic_write
from gloss_graph.text.tables import table_suffix

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["csv_bytes", "joined_names", "write_table"]


def csv_bytes(frame: pd.DataFrame, *, separator: str = ",") -> bytes:
    r"""A table as CSV in UTF-8, without its index; the one way in which CSV is written here.

    Every string is quoted. A writer that quotes only where it must leaves a lone ``\r`` bare, at
    which readers end the row. Missing values are empty; half of a surrogate pair, which UTF-8
    does not have, becomes U+FFFD.

    Example:
        >>> import pandas as pd
        >>> csv_bytes(pd.DataFrame({"id": [7], "text": ["one\rtwo"]}))
        b'"id","text"\n7,"one\rtwo"\n'
    """
    content = frame.to_csv(
        index=False, sep=separator, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    return _unicode(content).encode()


def joined_names(members: np.ndarray, names: list[str], separator: str) -> list[str]:
    """The class names of every row of `members` (N, C) bool, joined as `read_table` reads them.

    A row without a class is the bare separator.
    """
    return [separator.join(names[c] for c in np.flatnonzero(row)) or separator for row in members]


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length to a new file, atomically, in the format of its suffix.

    Numbers and strings keep their type. Lists and objects stay what they are in JSON lines and
    Parquet and are written as JSON in CSV. A column of several types becomes strings in Parquet.

    Args:
        path: Ends in one of the suffixes that `read_columns` knows.
        columns: Name -> values, a list or a pyarrow array.

    Raises:
        ValueError: Another suffix.
        FileExistsError: There is such a file.
    """
    suffix = table_suffix(path)
    if suffix == ".parquet":
        content = _parquet(columns)
    else:
        values = {name: _plain(column) for name, column in columns.items()}
        if suffix.startswith((".csv", ".tsv")):
            content = _delimited(values, "\t" if suffix.startswith(".tsv") else ",")
        else:
            content = _json_lines(values)
    if suffix.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    with atomic_write(path) as draft:
        draft.write(content)


def _plain(column: Any) -> Sequence[Any]:
    """The values as Python objects, None where there is none or NaN."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else column
    return [None if value != value else value for value in values]


def _delimited(columns: Mapping[str, Sequence[Any]], separator: str) -> bytes:
    import pandas as pd

    cells = {
        name: pd.Series(
            [_json(v) if isinstance(v, (list, dict)) else v for v in values], dtype=object
        )
        for name, values in columns.items()
    }
    return csv_bytes(pd.DataFrame(cells), separator=separator)


def _json_lines(columns: Mapping[str, Sequence[Any]]) -> bytes:
    names = list(columns)
    lines = (
        _json(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _json(value: Any) -> str:
    """JSON with the letters as they are; only escapes can hold half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text == _unicode(text) else json.dumps(value, default=str)


def _parquet(columns: Mapping[str, Any]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    def typed(column: Any) -> Any:
        if hasattr(column, "to_pylist"):
            return column
        try:
            return pa.array(column)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            strings = [v if v is None or isinstance(v, str) else _json(v) for v in column]
            return pa.array([None if v is None else _unicode(v) for v in strings])

    buffer = io.BytesIO()
    table = pa.table({name: typed(column) for name, column in columns.items()})
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _unicode(text: str) -> str:
    """The text with surrogate pairs joined and half ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
