"""Table files read and written: CSV, TSV, JSON lines and Parquet, strictly UTF-8."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from gloss_graph._internal.extras import require
from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import load_json, read_bytes, read_parquet

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (
    *(suffix + gz for suffix in (".csv", ".tsv", ".jsonl", ".ndjson") for gz in ("", ".gz")),
    ".parquet",
)
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
    """Columns of a file and, for messages, the place of each row in it.

    Values of CSV and TSV are strings, of the other formats any scalar, list or None.
    """

    path: Path
    columns: dict[str, Any]
    places: list[str]

    def parsed(self, name: str, kind: Callable[[Any], _T]) -> list[_T]:
        """The values of a column, each turned into a number."""
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
    wanted: Sequence[str] | None = None,
    *,
    quoting: bool = True,
    allow_empty: bool = False,
) -> Table:
    """Read the wanted columns of a table file, whose suffix names the format.

    None reads all columns except empty ones without a name, of Parquet as pyarrow arrays, which
    keep their type. Blank lines are skipped; an absent JSON key is None.
    """
    path = Path(path)
    suffix = table_suffix(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"'path' must be a file ({path} {problem}). Check the spelling.")
    if suffix == ".parquet":
        table = _read_parquet(path, wanted)
    elif _delimiter(suffix):
        table = _read_delimited(path, wanted, suffix, quoting)
    else:
        table = _read_json_lines(path, wanted)
    if not table.places and not allow_empty:
        raise ValueError(f"{path} holds no rows (only a header or blank lines). Add documents.")
    return table


def has_column(path: str | Path, name: str) -> bool:
    """Whether a table file has a column; False also where it cannot be read, which readers report.

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
        delimiter = _delimiter(suffix)
        newline = "" if delimiter else "\n"
        content = io.BytesIO(read_bytes(path)) if suffix.endswith(".gz") else path.open("rb")
        with io.TextIOWrapper(content, encoding="utf-8-sig", newline=newline) as lines:
            if delimiter:
                return name in next(filter(None, _csv_rows(lines, delimiter)), [])
            objects = (load_json(line) for line in lines if line.strip())
            return any(name in row for row in objects if isinstance(row, dict))
    except (OSError, ValueError, csv.Error):
        return False


def table_suffix(path: Path, name: str = "path") -> str:
    """The known suffix of a table file; a ValueError names the argument `name`."""
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if suffix is None:
        raise ValueError(
            f"'{name}' must end in one of {', '.join(SUFFIXES)} (got {path.name!r}). Rename or "
            "convert the file."
        )
    return suffix


def csv_bytes(frame: pd.DataFrame, *, separator: str = ",") -> bytes:
    r"""A table as CSV in UTF-8, without its index.

    Every string is quoted: readers end a row at a lone `\r`, which other ways of quoting leave
    bare. Missing values are empty; half of a surrogate pair becomes U+FFFD.
    """
    content = frame.to_csv(
        index=False, sep=separator, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    return _unicode(content).encode()


def joined_names(members: np.ndarray, names: list[str], separator: str) -> list[str]:
    """The class names per row of `members` (N, C) bool; the bare separator where there is none."""
    return [separator.join(names[c] for c in np.flatnonzero(row)) or separator for row in members]


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns, lists or pyarrow arrays, to a new file in the format of its suffix.

    Lists and objects are JSON in a CSV file. A column of several types is strings in Parquet.
    """
    suffix = table_suffix(path)
    content = _parquet(columns) if suffix == ".parquet" else _text(columns, _delimiter(suffix))
    if suffix.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    with atomic_write(path) as draft:
        draft.write(content)


def _delimiter(suffix: str) -> str:
    """Of CSV and TSV; "" for other formats."""
    return {".csv": ",", ".tsv": "\t"}.get(suffix.removesuffix(".gz"), "")


def _csv_rows(lines: Iterable[str], delimiter: str, quoting: bool = True) -> Iterator[list[str]]:
    return csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )


def _read_utf8(path: Path) -> bytes:
    """The file's contents, unpacked and without a byte order mark, known to be UTF-8."""
    content = read_bytes(path)
    marked = len(_BOM) if content.startswith(_BOM) else 0
    content = content[marked:]
    if not content.strip():
        raise ValueError(f"{path} is empty. Write a header and one row per document.")
    encoding = next((name for mark, name in _OTHER_MARKS if content.startswith(mark)), None)
    start = content[:64]
    # UTF-16 without its mark: every other byte of a header is 0.
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(start) > 3 and not any(start[first::2]) and all(start[1 - first :: 2]):
            encoding = encoding or name
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


def _read_delimited(path: Path, wanted: Sequence[str] | None, suffix: str, quoting: bool) -> Table:
    content = _read_utf8(path).decode()
    lines = io.StringIO(content, newline="")
    reader: Any = _csv_rows(lines, _delimiter(suffix), quoting)
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
            _check_separator(path, wanted or (), content, suffix, quoting)
        raise ValueError(
            f"{path}, line {start}: {error}. Write a quote inside a quoted field twice, or pass "
            "quoting=False if the file quotes nothing."
        ) from error
    finally:
        csv.field_size_limit(limit)
    header = rows[0]
    if not set(wanted or ()) <= set(header):
        _check_separator(path, wanted or (), content, suffix, quoting)
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, {place}: expected {len(header)} fields as in the header (got "
                f"{len(row)}). Enclose fields that contain the delimiter in double quotes."
            )
    if wanted is None:
        # Spreadsheets leave columns without a name or a value at the end.
        used = [spot for spot, name in enumerate(header) if name or any(row[spot] for row in rows)]
        header = [header[spot] for spot in used]
        rows = [[row[spot] for spot in used] for row in rows]
    names = _checked_columns(path, wanted, header)
    spots = {name: header.index(name) for name in names}
    columns = {name: [row[spot] for row in rows[1:]] for name, spot in spots.items()}
    return Table(path, columns, places[1:])


def _check_separator(
    path: Path, wanted: Sequence[str], content: str, suffix: str, quoting: bool
) -> None:
    """Refuse a file whose header has the wanted columns with another separator of fields."""
    line = content.lstrip().partition("\n")[0].strip("\r")
    expected = _delimiter(suffix)
    for delimiter in (mark for mark in _SEPARATORS if mark != expected):
        try:
            header = next(_csv_rows([line], delimiter, quoting))
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


def _read_json_lines(path: Path, wanted: Sequence[str] | None) -> Table:
    rows: list[dict[str, object]] = []
    places: list[str] = []
    # Only line feeds end a row: texts may contain the other line separators of Unicode.
    for number, line in enumerate(_read_utf8(path).split(b"\n"), 1):
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
    names = _checked_columns(path, wanted, list(dict.fromkeys(key for row in rows for key in row)))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, places)


def _read_parquet(path: Path, wanted: Sequence[str] | None) -> Table:
    require("pyarrow", extra="analysis")
    import pyarrow
    from pyarrow import parquet

    try:
        names = _checked_columns(path, wanted, list(parquet.read_schema(path).names))
        table = read_parquet(path, names)
        columns = {name: table.column(name) for name in names}
        if wanted is not None:
            columns = {name: column.to_pylist() for name, column in columns.items()}
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}). Write it again, or correct the suffix."
        ) from error
    return Table(path, columns, [f"row {number}" for number in range(1, table.num_rows + 1)])


def _checked_columns(
    path: Path, wanted: Sequence[str] | None, found: Sequence[str]
) -> Sequence[str]:
    """The wanted columns, all found ones for None; each must occur once."""
    wanted = found if wanted is None else wanted
    shown = ", ".join(map(repr, found[:30])) + (", ..." if len(found) > 30 else "")
    for name in wanted:
        if name not in found:
            raise ValueError(
                f"{path} has no column {name!r} (found {shown}). Name the column to read, or add "
                "a header line."
            )
        if found.count(name) > 1:
            raise ValueError(f"{path} has more than one column {name!r}. Rename all but one.")
    return wanted


def _plain(column: Any) -> list[Any]:
    """The values as Python objects, None for missing ones and NaN."""
    values = column.to_pylist() if hasattr(column, "to_pylist") else column
    return [None if value != value else value for value in values]


def _text(columns: Mapping[str, Any], delimiter: str) -> bytes:
    """Columns as CSV, or as JSON lines without a delimiter."""
    values = {name: _plain(column) for name, column in columns.items()}
    if not delimiter:
        rows = zip(*values.values(), strict=True)
        lines = (_json(dict(zip(values, row, strict=True))) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()
    import pandas as pd

    cells = {name: pd.Series(map(_cell, v), dtype=object) for name, v in values.items()}
    return csv_bytes(pd.DataFrame(cells), separator=delimiter)


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


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
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
