"""Columns of a table file: CSV, TSV, JSON lines or Parquet, strictly UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gloss_graph._limits import load_json, read_bytes, read_parquet

__all__ = ["SUFFIXES", "Column", "Table", "has_column", "read_columns"]

SUFFIXES = (
    *(suffix + gz for suffix in (".csv", ".tsv", ".jsonl", ".ndjson") for gz in ("", ".gz")),
    ".parquet",
)
"""The formats known by their suffix."""

Column: TypeAlias = list[object]
"""One value per row: always a string in CSV and TSV, any scalar or None in the others."""

_BOM = b"\xef\xbb\xbf"


class Table(NamedTuple):
    """The wanted columns of a file and, for messages, where each row stands in it."""

    path: Path
    columns: dict[str, Column]
    places: list[str]


def read_columns(path: str | Path, wanted: Sequence[str], *, quoting: bool = True) -> Table:
    """Read some columns of a table file; the suffix names the format.

    Blank lines between rows are skipped. A JSON row may lack a key; its value is then None.

    Args:
        path: The file.
        wanted: Names of the columns.
        quoting: Whether ``"`` encloses fields of a CSV or TSV file.

    Returns:
        The columns, of equal length and with at least one row.

    Raises:
        ValueError: If the file is missing, empty, of an unknown format, malformed or not UTF-8,
            or lacks a wanted column.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"'path' must be a file ({path} {problem}). Check the spelling.")
    if suffix == ".parquet":
        table = _read_parquet(path, wanted)
    elif suffix.startswith((".jsonl", ".ndjson")):
        table = _read_json_lines(path, wanted)
    else:
        table = _read_delimited(path, wanted, suffix, quoting)
    if not table.places:
        raise ValueError(f"{path} holds no rows (only a header or blank lines). Add documents.")
    return table


def has_column(path: str | Path, name: str, *, quoting: bool = True) -> bool:
    """Whether a table file has a column; False too where it cannot be read, which readers report.

    Only the header is read; of JSON lines the rows up to the first that has the key.
    """
    path = Path(path)
    if not path.is_file():
        return False
    try:
        suffix = _suffix(path)
        if suffix == ".parquet":
            from pyarrow import parquet

            return name in parquet.read_schema(path).names
        packed = suffix.endswith(".gz")
        of_objects = suffix.startswith((".jsonl", ".ndjson"))
        newline = "\n" if of_objects else ""
        content = io.BytesIO(read_bytes(path)) if packed else path.open("rb")
        with io.TextIOWrapper(content, encoding="utf-8-sig", newline=newline) as lines:
            if of_objects:
                rows = (load_json(line) for line in lines if line.strip())
                return any(name in row for row in rows if isinstance(row, dict))
            return name in next((row for row in _reader(lines, suffix, quoting) if row), [])
    except (OSError, ValueError, csv.Error):
        return False


def _suffix(path: Path) -> str:
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if suffix is None:
        raise ValueError(
            f"'path' must end in one of {', '.join(SUFFIXES)} (got {path.name!r}). Rename or "
            "convert the file."
        )
    return suffix


def _reader(lines: Iterable[str], suffix: str, quoting: bool) -> Any:
    return csv.reader(
        lines,
        delimiter="\t" if suffix.startswith(".tsv") else ",",
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )


def _read_bytes(path: Path) -> bytes:
    """The file's contents, unpacked and without a byte order mark, known to be UTF-8."""
    content = read_bytes(path)
    marked = len(_BOM) if content.startswith(_BOM) else 0
    content = content[marked:]
    if not content.strip():
        raise ValueError(f"{path} is empty. Write a header and one row per document.")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at position "
            f"{error.start + marked} (line {line}). Save it as UTF-8, e.g. with "
            "'iconv -f WINDOWS-1252 -t UTF-8'."
        ) from error
    return content


def _read_delimited(path: Path, wanted: Sequence[str], suffix: str, quoting: bool) -> Table:
    reader = _reader(io.StringIO(_read_bytes(path).decode(), newline=""), suffix, quoting)
    rows: list[list[str]] = []
    places: list[str] = []
    start = 1
    # The module's limit of 131,072 characters per field is too small for documents.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for row in reader:
            if row:
                rows.append(row)
                places.append(f"line {start}")
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {start}: {error}. Write a quote inside a quoted field twice, or pass "
            "quoting=False if the file quotes nothing."
        ) from error
    finally:
        csv.field_size_limit(limit)
    header = rows[0]
    _check_columns(path, wanted, header)
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, {place}: expected {len(header)} fields as in the header (got "
                f"{len(row)}). Enclose fields that contain the delimiter in double quotes."
            )
    positions = {name: header.index(name) for name in wanted}
    columns: dict[str, Column] = {
        name: [row[position] for row in rows[1:]] for name, position in positions.items()
    }
    return Table(path, columns, places[1:])


def _read_json_lines(path: Path, wanted: Sequence[str]) -> Table:
    rows: list[dict[str, object]] = []
    places: list[str] = []
    # Only line feeds end a row: texts may contain the other line separators of Unicode.
    for number, line in enumerate(_read_bytes(path).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not valid JSON ({error}). Write one object per line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: expected an object (got {type(row).__name__}). Write one "
                'object per line, e.g. {"text": "...", "label": "..."}.'
            )
        rows.append(row)
        places.append(f"line {number}")
    _check_columns(path, wanted, list(dict.fromkeys(key for row in rows for key in row)))
    return Table(path, {name: [row.get(name) for row in rows] for name in wanted}, places)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        _check_columns(path, wanted, list(parquet.read_schema(path).names))
        table = read_parquet(path, wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}). Write it again, or correct the suffix."
        ) from error
    return Table(path, columns, [f"row {number}" for number in range(1, table.num_rows + 1)])


def _check_columns(path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    shown = ", ".join(map(repr, found[:30])) + (", ..." if len(found) > 30 else "")
    for name in wanted:
        if name not in found:
            raise ValueError(
                f"{path} has no column {name!r} (found {shown}). Name the column to read, or add "
                "a header line."
            )
        if found.count(name) > 1:
            raise ValueError(f"{path} has more than one column {name!r}. Rename all but one.")
