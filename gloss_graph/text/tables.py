"""Columns of a table file: CSV, TSV, JSON lines or Parquet, strictly UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from gloss_graph._internal.extras import require
from gloss_graph._internal.limits import load_json, read_bytes, read_parquet

__all__ = ["SUFFIXES", "Column", "Table", "has_column", "read_columns", "table_suffix"]

SUFFIXES = (
    *(suffix + gz for suffix in (".csv", ".tsv", ".jsonl", ".ndjson") for gz in ("", ".gz")),
    ".parquet",
)
"""The formats known by their suffix."""

Column: TypeAlias = list[object]
"""One value per row: always a string in CSV and TSV, any scalar or None in the others."""

_T = TypeVar("_T")
_BOM = b"\xef\xbb\xbf"
# Other encodings by their byte order mark; UTF-32 first, whose mark begins like that of UTF-16.
_OTHER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
# What separates the fields of files that are called CSV.
_SEPARATORS = {",": "a comma", "\t": "a tab", ";": "';'", "|": "'|'"}


class Table(NamedTuple):
    """Columns of a file and, for messages, where each row stands in it.

    `rest` holds the other columns where they were asked for: of Parquet as pyarrow arrays, which
    keep their type.
    """

    path: Path
    columns: dict[str, Column]
    places: list[str]
    rest: dict[str, Any] = {}  # noqa: RUF012

    def parsed(self, name: str, kind: Callable[[Any], _T]) -> list[_T]:
        """The values of a column, each turned into a number.

        Raises:
            ValueError: Names the file, the row and the column.
        """
        values: list[_T] = []
        for value, place in zip(self.columns[name], self.places, strict=True):
            try:
                values.append(kind(value))
            except (TypeError, ValueError):
                raise ValueError(
                    f"{self.path}, {place}: column {name!r} must hold numbers (got {value!r}). Put "
                    "back the file that was written."
                ) from None
        return values


def read_columns(
    path: str | Path,
    wanted: Sequence[str],
    *,
    quoting: bool = True,
    rest: bool = False,
    allow_empty: bool = False,
) -> Table:
    """Read some columns of a table file; the suffix names the format.

    Blank lines between rows are skipped. A JSON row may lack a key; its value is then None.

    Args:
        path: The file.
        wanted: Names of the columns.
        quoting: Whether ``"`` encloses fields of a CSV or TSV file.
        rest: Read the other columns as well; those without a name that hold nothing are left out.
        allow_empty: Accept a table that has a header and no rows.

    Returns:
        The columns, of equal length and, without `allow_empty`, with at least one row.

    Raises:
        ValueError: If the file is missing, empty, of an unknown format, malformed or not UTF-8,
            or lacks a wanted column; with `rest` also if two columns have one name.
    """
    path = Path(path)
    suffix = table_suffix(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"'path' must be a file ({path} {problem}). Check the spelling.")
    if suffix == ".parquet":
        table = _read_parquet(path, wanted, rest)
    elif suffix.startswith((".jsonl", ".ndjson")):
        table = _read_json_lines(path, wanted, rest)
    else:
        table = _read_delimited(path, wanted, suffix, quoting, rest)
    if not table.places and not allow_empty:
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
        suffix = table_suffix(path)
        if suffix == ".parquet":
            require("pyarrow", extra="analysis")
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


def table_suffix(path: Path, name: str = "path") -> str:
    """The known suffix of a table file, which names its format.

    Raises:
        ValueError: Names the argument `name` and the known ones.
    """
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if suffix is None:
        raise ValueError(
            f"'{name}' must end in one of {', '.join(SUFFIXES)} (got {path.name!r}). Rename or "
            "convert the file."
        )
    return suffix


def _delimiter(suffix: str) -> str:
    return "\t" if suffix.startswith(".tsv") else ","


def _reader(lines: Iterable[str], suffix: str, quoting: bool, delimiter: str | None = None) -> Any:
    return csv.reader(
        lines,
        delimiter=delimiter or _delimiter(suffix),
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
    encoding = next((name for mark, name in _OTHER_MARKS if content.startswith(mark)), None)
    encoding = encoding or _without_mark(content[:64])
    if encoding is not None:
        raise ValueError(
            f"{path} is {encoding}, not UTF-8. Save it as UTF-8 (Excel: 'CSV UTF-8'), or convert "
            f"it with 'iconv -f {encoding} -t UTF-8'."
        )
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


def _without_mark(start: bytes) -> str | None:
    """UTF-16 that lacks its mark: every other byte of a header is 0; None for anything else."""
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(start) > 3 and not any(start[first::2]) and all(start[1 - first :: 2]):
            return name
    return None


def _read_delimited(
    path: Path, wanted: Sequence[str], suffix: str, quoting: bool, rest: bool
) -> Table:
    content = _read_bytes(path).decode()
    reader = _reader(io.StringIO(content, newline=""), suffix, quoting)
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
        if not rows:
            _check_separator(path, wanted, content, suffix, quoting)
        raise ValueError(
            f"{path}, line {start}: {error}. Write a quote inside a quoted field twice, or pass "
            "quoting=False if the file quotes nothing."
        ) from error
    finally:
        csv.field_size_limit(limit)
    header = rows[0]
    if not set(wanted) <= set(header):
        _check_separator(path, wanted, content, suffix, quoting)
    _check_columns(path, wanted, header)
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, {place}: expected {len(header)} fields as in the header (got "
                f"{len(row)}). Enclose fields that contain the delimiter in double quotes."
            )
    columns: dict[str, Column] = {
        name: [row[position] for row in rows[1:]]
        for name, position in ((name, header.index(name)) for name in wanted)
    }
    others: dict[str, Any] = {}
    if rest:
        # Spreadsheets leave columns without a name or a value at the end.
        used = [
            place for place, name in enumerate(header) if name or any(row[place] for row in rows)
        ]
        _check_columns(path, names := [header[place] for place in used], names)
        others = {header[place]: [row[place] for row in rows[1:]] for place in used}
    return Table(path, columns, places[1:], others)


def _check_separator(
    path: Path, wanted: Sequence[str], content: str, suffix: str, quoting: bool
) -> None:
    """Refuse a file whose header has the wanted columns with another separator of fields."""
    line = content.lstrip().partition("\n")[0].strip("\r")
    expected = _delimiter(suffix)
    for delimiter in (mark for mark in _SEPARATORS if mark != expected):
        try:
            header = next(_reader([line], suffix, quoting, delimiter))
        except (csv.Error, StopIteration):
            continue
        if len(header) > 1 and set(wanted) <= set(header):
            again = f"pandas.read_csv(FILE, sep={delimiter!r}).to_csv(FILE, index=False)"
            advice = {"\t": "Rename it to end in .tsv.", ",": "Rename it to end in .csv."}.get(
                delimiter, f"Save it again with {_SEPARATORS[expected]}, for example by {again}."
            )
            raise ValueError(
                f"{path}: {_SEPARATORS[delimiter]} separates its fields, and not "
                f"{_SEPARATORS[expected]} as in a {suffix} file. {advice}"
            )


def _read_json_lines(path: Path, wanted: Sequence[str], rest: bool) -> Table:
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
    found = list(dict.fromkeys(key for row in rows for key in row))
    _check_columns(path, wanted, found)
    columns = {name: [row.get(name) for row in rows] for name in wanted}
    others = {name: [row.get(name) for row in rows] for name in found} if rest else {}
    return Table(path, columns, places, others)


def _read_parquet(path: Path, wanted: Sequence[str], rest: bool) -> Table:
    require("pyarrow", extra="analysis")
    import pyarrow
    from pyarrow import parquet

    try:
        found = list(parquet.read_schema(path).names)
        _check_columns(path, found if rest else wanted, found)
        table = read_parquet(path, None if rest else wanted)
        columns = {name: table.column(name).to_pylist() for name in wanted}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}). Write it again, or correct the suffix."
        ) from error
    others = {name: table.column(name) for name in found} if rest else {}
    places = [f"row {number}" for number in range(1, table.num_rows + 1)]
    return Table(path, columns, places, others)


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
