"""Table files read and written: CSV, TSV, JSON lines and Parquet, strictly UTF-8."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.extras import require
from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import load_json, open_bytes, parquet_chunks, read_parquet
from gloss_graph._internal.unicode import whole_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

SUFFIXES = (
    *(suffix + gz for suffix in (".csv", ".tsv", ".jsonl", ".ndjson") for gz in ("", ".gz")),
    ".parquet",
)
# Bytes that tell whether a file is of another encoding or has no content.
_HEAD = 1 << 16
# Rows of Parquet that are written together: groups repeat what they have in common.
_ROW_GROUP = 1 << 14
_T = TypeVar("_T")
# Other encodings by their byte order mark; UTF-32 first, whose mark begins like that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# What separates the fields of files that are called CSV.
_SEPARATORS = {",": "a comma", "\t": "a tab", ";": "';'", "|": "'|'"}


class Table(NamedTuple):
    """Columns of a file and, for messages, the place of each row in it.

    Values of CSV and TSV are strings, of the other formats any scalar, list or None.
    """

    path: Path
    columns: dict[str, Any]
    places: list[str]

    def values(self, name: str) -> list[Any]:
        """A column as Python objects."""
        try:
            return _listed(self.columns[name])
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: column {name!r} is not UTF-8 ({error}). Write it again."
            ) from error

    def parsed(self, name: str, kind: Callable[[Any], _T]) -> list[_T]:
        """The values of a column, each turned into a number."""
        values: list[_T] = []
        for value, place in zip(self.columns[name], self.places, strict=True):
            try:
                values.append(kind(value))
            except (TypeError, ValueError):
                start = f"{self.path}, {place}: column {name!r} must hold numbers (got {value!r})"
                raise ValueError(f"{start}. Put back the file that was written.") from None
        return values

    def fault(self, name: str, rule: str, got: str, advice: str) -> ValueError:
        """The error of a column that breaks a rule, with the next step."""
        return ValueError(f"{self.path}: column {name!r} must {rule} (got {got}). {advice}")


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
    [table] = _File(Path(path), wanted or (), wanted is None, quoting, allow_empty).chunks(None)
    return table


def read_chunks(path: str | Path, rows: int | None, wanted: Sequence[str] = ()) -> Iterator[Table]:
    """Read all columns, among them the wanted ones, at most `rows` rows at a time; None: all.

    Of JSON lines every chunk has the columns of its rows.
    """
    return _File(Path(path), wanted).chunks(rows)


def has_column(path: str | Path, name: str) -> bool:
    """Whether a table file has a column; False also where it cannot be read, which readers report.

    Only the header is looked at; of JSON lines the rows up to the first that has the key.
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
        lines = _lines(path)
        if delimiter := _delimiter(suffix):
            found = name in next(filter(None, _csv_rows(lines, delimiter)), [])
        else:
            objects = (load_json(line) for line in lines if line.strip())
            found = any(name in row for row in objects if isinstance(row, dict))
        # What is packed must be readable to its end.
        return found and (not suffix.endswith(".gz") or all(True for _ in lines))
    except (OSError, ValueError, csv.Error):
        return False


def table_suffix(path: Path, name: str = "path") -> str:
    """The known suffix of a table file; a ValueError names the argument `name`."""
    suffix = next((known for known in SUFFIXES if path.name.lower().endswith(known)), None)
    if suffix is None:
        known = ", ".join(SUFFIXES)
        raise misfit(name, f"end in one of {known}", repr(path.name), "Convert the file.")
    return suffix


def csv_bytes(frame: pd.DataFrame, *, separator: str = ",", header: bool = True) -> bytes:
    r"""A table as CSV in UTF-8, without its index.

    Every string is quoted: readers end a row at a lone `\r`, which other ways of quoting leave
    bare. Missing values are empty; half of a surrogate pair becomes U+FFFD.
    """
    layout: dict[str, Any] = {"index": False, "lineterminator": "\n", "sep": separator}
    content = frame.to_csv(header=header, quoting=csv.QUOTE_NONNUMERIC, **layout)
    return whole_text(content).encode()


def joined_names(members: np.ndarray, names: list[str], separator: str) -> list[str]:
    """The class names per row of `members` (N, C) bool; the bare separator where there is none."""
    return [separator.join(names[c] for c in np.flatnonzero(row)) or separator for row in members]


def write_table(
    path: Path,
    chunks: Iterable[Mapping[str, Any]],
    types: Mapping[str, pyarrow.DataType] | None = None,
) -> None:
    """Write chunks of the same columns, lists or pyarrow arrays, to a new file.

    The suffix names the format. Lists and objects are JSON in a CSV file. In Parquet columns are of
    `types`, by default those of the first chunk; one of several types is strings.
    """
    suffix = table_suffix(path)
    with atomic_write(path) as draft:
        if suffix == ".parquet":
            _write_parquet(draft, iter(chunks), types or {})
            return
        with ExitStack() as stack:
            out: Any = draft
            if suffix.endswith(".gz"):
                out = stack.enter_context(gzip.GzipFile("", "wb", fileobj=draft, mtime=0))
            for number, columns in enumerate(chunks):
                out.write(_text(columns, _delimiter(suffix), header=number == 0))


def column_types(chunks: Callable[[], Iterable[Mapping[str, Any]]]) -> dict[str, pyarrow.DataType]:
    """Types for `write_table` that hold all values; each call of `chunks` starts a new pass."""
    types: dict[str, pyarrow.DataType] = {}
    mixed = set()
    for columns in chunks():
        for name, values in columns.items():
            found = _array(values).type
            if found != types.setdefault(name, found):
                types[name] = _joint_type(types[name], found)
                mixed.add(name)
    # A type that all chunks have in common need not hold all numbers, as fractions large integers.
    for columns in chunks() if mixed else ():
        for name in mixed.intersection(columns):
            types[name] = _array(columns[name], types[name]).type
    return types


def _delimiter(suffix: str) -> str:
    """Of CSV and TSV; "" for other formats."""
    return {".csv": ",", ".tsv": "\t"}.get(suffix.removesuffix(".gz"), "")


def _csv_rows(lines: Iterable[str], delimiter: str, quoting: bool = True) -> Any:
    """A reader of CSV, to which a lone carriage return ends a line too."""
    parts = (io.StringIO(line, newline="") if "\r" in line else (line,) for line in lines)
    quotes: Any = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    return csv.reader(chain.from_iterable(parts), delimiter=delimiter, quoting=quotes, strict=True)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that must be UTF-8, as they end, without its byte order mark."""
    _check_start(path)
    start = 0
    with open_bytes(path) as content:
        for number, line in enumerate(content, 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8: byte {line[error.start]:#04x} at position "
                    f"{start + error.start} (line {number}). Save it as UTF-8, e.g. with 'iconv "
                    "-f WINDOWS-1252 -t UTF-8'."
                ) from error
            start += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _check_start(path: Path) -> None:
    """Refuse a file without content, or of another encoding by its first bytes."""
    with open_bytes(path) as content:
        head = content.read(_HEAD).removeprefix(codecs.BOM_UTF8)
        if not head.strip() and not any(line.strip() for line in content):
            raise ValueError(f"{path} is empty. Write a header and one row per document.")
    encoding = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), None)
    start = head[:64]
    # UTF-16 without its mark: every other byte of a header is 0.
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(start) > 3 and not any(start[first::2]) and all(start[1 - first :: 2]):
            encoding = encoding or name
    if encoding is not None:
        raise ValueError(
            f"{path} is {encoding}, not UTF-8. Save it as UTF-8 (Excel: 'CSV UTF-8'), or convert "
            f"it with 'iconv -f {encoding} -t UTF-8'."
        )


class _File(NamedTuple):
    """A table file and what is wanted of it."""

    path: Path
    wanted: Sequence[str]
    others: bool = True  # whether all other columns are read too
    quoting: bool = True
    allow_empty: bool = False

    def chunks(self, rows: int | None) -> Iterator[Table]:
        """The rows, at most `rows` at a time; None: all at once."""
        path, suffix = self.path, table_suffix(self.path)
        if not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            raise ValueError(f"'path' must be a file ({path} {problem}). Check the spelling.")
        read = self._delimited_chunks if _delimiter(suffix) else self._json_chunks
        try:
            for table in (self._parquet_chunks if suffix == ".parquet" else read)(rows):
                if not table.places and not self.allow_empty:
                    raise ValueError(f"{path} holds no rows (only a header or blank lines).")
                yield table
        except ValueError:
            # Another encoding explains other faults, wherever its first odd byte stands.
            if suffix != ".parquet":
                all(True for _ in _lines(path))
            raise

    def _delimited_chunks(self, rows: int | None) -> Iterator[Table]:
        records = self._delimited_rows()
        _, header = next(records)

        def used(spot: int) -> bool:
            # Spreadsheets leave columns without a name or a value at the end.
            return any(row[spot] for _, row in islice(self._delimited_rows(), 1, None))

        spots = [spot for spot, name in enumerate(header) if name or not self.others or used(spot)]
        names = self._checked_columns([header[spot] for spot in spots])
        place_of = {header[spot]: spot for spot in reversed(spots)}
        for taken in _parts(records, rows):
            columns = {name: [row[place_of[name]] for _, row in taken] for name in names}
            yield Table(self.path, columns, [place for place, _ in taken])

    def _delimited_rows(self) -> Iterator[tuple[str, list[str]]]:
        """The rows that are not blank, the header first, each with its place."""
        delimiter = _delimiter(table_suffix(self.path))
        reader = _csv_rows(_lines(self.path), delimiter, self.quoting)
        header: list[str] = []
        start = 1
        # The csv module's limit of 131,072 characters per field is too small for documents.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            for row in reader:
                if row and not header:
                    header = row
                    if not set(self.wanted) <= set(header):
                        self._check_separator(delimiter)
                if row and len(row) != len(header):
                    raise ValueError(
                        f"{self.path}, line {start}: expected {len(header)} fields as in the "
                        f"header (got {len(row)}). Quote fields that contain the delimiter."
                    )
                if row:
                    yield f"line {start}", row
                start = reader.line_num + 1
        except csv.Error as error:
            if not header:
                self._check_separator(delimiter)
            raise ValueError(
                f"{self.path}, line {start}: {error}. Write a quote inside a quoted field twice, "
                "or pass quoting=False if the file quotes nothing."
            ) from error
        finally:
            csv.field_size_limit(limit)

    def _check_separator(self, expected: str) -> None:
        """Refuse a file whose header has the wanted columns with another separator of fields."""
        line = next(filter(str.strip, _lines(self.path)), "").strip("\r\n")
        for found in (mark for mark in _SEPARATORS if mark != expected):
            try:
                header = next(_csv_rows([line], found, self.quoting))
            except (csv.Error, StopIteration):
                continue
            if len(header) > 1 and set(self.wanted) <= set(header):
                again = f"pandas.read_csv(FILE, sep={found!r}).to_csv(FILE, index=False)"
                advice = f"Save it again with {_SEPARATORS[expected]}, for example by {again}."
                if found in ",\t":
                    advice = f"Rename it to end in {'.csv' if found == ',' else '.tsv'}."
                raise ValueError(
                    f"{self.path}: {_SEPARATORS[found]} separates its fields, and not "
                    f"{_SEPARATORS[expected]} as its name says. {advice}"
                )

    def _json_chunks(self, rows: int | None) -> Iterator[Table]:
        for number, taken in enumerate(_parts(self._json_rows(), rows)):
            found = dict.fromkeys(key for _, row in taken for key in row)
            # One row that has a key makes it a column of the file; later rows need not have it.
            if number:
                found |= dict.fromkeys(self.wanted)
            names = self._checked_columns(list(found))
            columns = {name: [row.get(name) for _, row in taken] for name in names}
            yield Table(self.path, columns, [place for place, _ in taken])

    def _json_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of a file, each with its place."""
        # Only line feeds end a row: texts may contain the other line separators of Unicode.
        for number, line in enumerate(_lines(self.path), 1):
            if not line.strip():
                continue
            try:
                # Files that were joined bring their byte order marks.
                row = load_json(line.removeprefix("\ufeff"))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}, line {number}: not valid JSON ({error}). Write it again."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{self.path}, line {number}: expected an object (got {type(row).__name__}). "
                    'Write one per line, e.g. {"text": "...", "label": "..."}.'
                )
            yield f"line {number}", row

    def _parquet_chunks(self, rows: int | None) -> Iterator[Table]:
        require("pyarrow", extra="analysis")
        import pyarrow
        from pyarrow import parquet

        path, done = self.path, 0
        try:
            names = list(self._checked_columns(list(parquet.read_schema(path).names)))
            tables = parquet_chunks(path, names, rows) if rows else [read_parquet(path, names)]
            for table in tables:
                columns = {name: table.column(name) for name in names}
                if not self.others:
                    columns = {name: column.to_pylist() for name, column in columns.items()}
                places = [f"row {done + number}" for number in range(1, table.num_rows + 1)]
                yield Table(path, columns, places)
                done += table.num_rows
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} cannot be read as Parquet ({error}). Correct the file or its suffix."
            ) from error

    def _checked_columns(self, found: Sequence[str]) -> Sequence[str]:
        """The wanted columns, with `others` all found ones; each must occur once."""
        shown = ", ".join(map(repr, found[:30])) + (", ..." if len(found) > 30 else "")
        for name in self.wanted:
            if name not in found:
                raise ValueError(
                    f"{self.path} has no column {name!r} (found {shown}). Name the column to read, "
                    "or add a header line."
                )
        names = found if self.others else self.wanted
        for name in names:
            if found.count(name) > 1:
                raise ValueError(f"{self.path} has more than one column {name!r}. Rename one.")
        return names


def _parts(records: Iterator[_T], rows: int | None) -> Iterator[list[_T]]:
    """Lists of `rows` records; the first, which alone may be empty, comes always."""
    taken = list(islice(records, rows))
    yield taken
    while taken := list(islice(records, rows)):
        yield taken


def _listed(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _text(columns: Mapping[str, Any], delimiter: str, header: bool) -> bytes:
    """Columns as CSV, or as JSON lines without a delimiter; NaN is a missing value."""
    values = {name: [None if v != v else v for v in _listed(col)] for name, col in columns.items()}
    if not delimiter:
        rows = (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
        return "".join(f"{_json(row)}\n" for row in rows).encode()
    import pandas as pd

    cells = {
        name: [_json(value) if isinstance(value, (list, dict)) else value for value in column]
        for name, column in values.items()
    }
    return csv_bytes(pd.DataFrame(cells, dtype=object), separator=delimiter, header=header)


def _json(value: Any) -> str:
    """JSON with the letters as they are; only escapes can hold half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text == whole_text(text) else json.dumps(value, default=str)


def _write_parquet(
    draft: BinaryIO, chunks: Iterator[Mapping[str, Any]], types: Mapping[str, pyarrow.DataType]
) -> None:
    import pyarrow
    from pyarrow import parquet

    tables = (
        pyarrow.table({name: _array(v, types.get(name)) for name, v in columns.items()})
        for columns in chunks
    )
    held = [next(tables)]
    schema = held[0].schema
    types = dict(zip(schema.names, schema.types, strict=True))  # of the other tables
    with parquet.ParquetWriter(draft, schema) as writer:
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= _ROW_GROUP:
                writer.write_table(pyarrow.concat_tables(held))
                held = []
        if held:
            writer.write_table(pyarrow.concat_tables(held))


def _array(column: Any, kind: pyarrow.DataType | None = None) -> Any:
    """A column as a pyarrow array, of strings if no type, or not this one, holds all values."""
    import pyarrow

    if hasattr(column, "to_pylist"):
        return column
    try:
        return pyarrow.array(column, kind)
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
        strings = [v if v is None or isinstance(v, str) else _json(v) for v in column]
        return pyarrow.array([None if v is None else whole_text(v) for v in strings])


def _joint_type(one: pyarrow.DataType, other: pyarrow.DataType) -> pyarrow.DataType:
    import pyarrow

    schemas = [pyarrow.schema([("", kind)]) for kind in (one, other)]
    try:
        return pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pyarrow.ArrowException:
        return pyarrow.string()
