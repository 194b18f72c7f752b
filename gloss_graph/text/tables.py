"""Table files read and written: CSV, TSV, JSON lines and Parquet, strictly UTF-8."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

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
    [table] = read_chunks(
        path, None, wanted or (), others=wanted is None, quoting=quoting, allow_empty=allow_empty
    )
    return table


def read_chunks(
    path: str | Path,
    rows: int | None,
    wanted: Sequence[str] = (),
    *,
    others: bool = True,
    quoting: bool = True,
    allow_empty: bool = False,
) -> Iterator[Table]:
    """Read a table as `read_columns` does, at most `rows` rows at a time; None: all at once.

    The wanted columns must be there, the `others` come too: of JSON lines those of the chunk.
    """
    path = Path(path)
    suffix = table_suffix(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise ValueError(f"'path' must be a file ({path} {problem}). Check the spelling.")
    if suffix == ".parquet":
        chunks = _parquet_chunks(path, rows, wanted, others)
    elif _delimiter(suffix):
        chunks = _delimited_chunks(path, rows, wanted, others, suffix, quoting)
    else:
        chunks = _json_chunks(path, rows, wanted, others)
    try:
        for table in chunks:
            if not table.places and not allow_empty:
                raise ValueError(
                    f"{path} holds no rows (only a header or blank lines). Add documents."
                )
            yield table
    except ValueError:
        # Another encoding explains other faults, wherever its first odd byte stands.
        if suffix != ".parquet":
            all(True for _ in _lines(path))
        raise


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
        raise ValueError(
            f"'{name}' must end in one of {', '.join(SUFFIXES)} (got {path.name!r}). Rename or "
            "convert the file."
        )
    return suffix


def csv_bytes(frame: pd.DataFrame, *, separator: str = ",", header: bool = True) -> bytes:
    r"""A table as CSV in UTF-8, without its index.

    Every string is quoted: readers end a row at a lone `\r`, which other ways of quoting leave
    bare. Missing values are empty; half of a surrogate pair becomes U+FFFD.
    """
    content = frame.to_csv(
        index=False,
        header=header,
        sep=separator,
        quoting=csv.QUOTE_NONNUMERIC,
        lineterminator="\n",
    )
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
        packed = suffix.endswith(".gz")
        with (
            gzip.GzipFile("", "wb", fileobj=draft, mtime=0) if packed else nullcontext(draft) as out
        ):
            for number, columns in enumerate(chunks):
                out.write(_text(columns, _delimiter(suffix), header=number == 0))


def column_types(
    chunks: Callable[[], Iterable[Mapping[str, Any]]],
) -> dict[str, pyarrow.DataType]:
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


def _csv_rows(lines: Iterable[str], delimiter: str, quoting: bool = True) -> Iterator[list[str]]:
    return csv.reader(
        _csv_lines(lines),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )


def _csv_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines cut at lone carriage returns too."""
    for line in lines:
        if "\r" in line.removesuffix("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that must be UTF-8, as they end, without its byte order mark."""
    _check_start(path)
    start = 0
    with open_bytes(path) as content:
        for number, line in enumerate(content, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                # A mark is no part of what the decoder was given.
                place = start + error.start + (len(line) - len(error.object))
                raise ValueError(
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at position "
                    f"{place} (line {number}). Save it as UTF-8, e.g. with "
                    "'iconv -f WINDOWS-1252 -t UTF-8'."
                ) from error
            start += len(line)
            yield text


def _check_start(path: Path) -> None:
    """Refuse a file without content, or of another encoding by its first bytes."""
    with open_bytes(path) as content:
        head = content.read(_HEAD).removeprefix(_BOM)
        if not head.strip() and not any(line.strip() for line in content):
            raise ValueError(f"{path} is empty. Write a header and one row per document.")
    encoding = next((name for mark, name in _OTHER_MARKS if head.startswith(mark)), None)
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


def _delimited_chunks(
    path: Path, rows: int | None, wanted: Sequence[str], others: bool, suffix: str, quoting: bool
) -> Iterator[Table]:
    records = _delimited_rows(path, wanted, suffix, quoting)
    [(_, header)] = _take(records, 1)

    def used(spot: int) -> bool:
        # Spreadsheets leave columns without a name or a value at the end.
        again = islice(_delimited_rows(path, wanted, suffix, quoting), 1, None)
        return bool(_take((row for _, row in again if row[spot]), 1))

    spots = [spot for spot, name in enumerate(header) if name or not others or used(spot)]
    names = _checked_columns(path, wanted, [header[spot] for spot in spots], others)
    place_of = {header[spot]: spot for spot in reversed(spots)}
    for taken in _parts(records, rows):
        columns = {name: [row[place_of[name]] for _, row in taken] for name in names}
        yield Table(path, columns, [place for place, _ in taken])


def _parts(records: Iterator[_T], rows: int | None) -> Iterator[list[_T]]:
    """Lists of `rows` records; the first, which alone may be empty, comes always."""
    taken = _take(records, rows)
    yield taken
    while taken := _take(records, rows):
        yield taken


def _take(records: Iterator[_T], count: int | None) -> list[_T]:
    # The csv module's limit of 131,072 characters per field is too small for documents.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return list(islice(records, count))
    finally:
        csv.field_size_limit(limit)


def _delimited_rows(
    path: Path, wanted: Sequence[str], suffix: str, quoting: bool
) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, the header first, each with its place."""
    reader: Any = _csv_rows(_lines(path), _delimiter(suffix), quoting)
    header: list[str] = []
    start = 1
    try:
        for row in reader:
            if row and not header:
                header = row
                if not set(wanted) <= set(header):
                    _check_separator(path, wanted, suffix, quoting)
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {start}: expected {len(header)} fields as in the header (got "
                    f"{len(row)}). Enclose fields that contain the delimiter in double quotes."
                )
            if row:
                yield f"line {start}", row
            start = reader.line_num + 1
    except csv.Error as error:
        if not header:
            _check_separator(path, wanted, suffix, quoting)
        raise ValueError(
            f"{path}, line {start}: {error}. Write a quote inside a quoted field twice, or pass "
            "quoting=False if the file quotes nothing."
        ) from error


def _check_separator(path: Path, wanted: Sequence[str], suffix: str, quoting: bool) -> None:
    """Refuse a file whose header has the wanted columns with another separator of fields."""
    line = next(filter(str.strip, _lines(path)), "").strip("\r\n")
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


def _json_chunks(
    path: Path, rows: int | None, wanted: Sequence[str], others: bool
) -> Iterator[Table]:
    for number, taken in enumerate(_parts(_json_rows(path), rows)):
        keys = list(dict.fromkeys(key for _, row in taken for key in row))
        # A key is a column of the file if one row has it, which later rows need not.
        found = keys if number == 0 else list(dict.fromkeys([*keys, *wanted]))
        names = _checked_columns(path, wanted, found, others)
        columns = {name: [row.get(name) for _, row in taken] for name in names}
        yield Table(path, columns, [place for place, _ in taken])


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place."""
    # Only line feeds end a row: texts may contain the other line separators of Unicode.
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            # Files that were joined bring their byte order marks.
            row = load_json(line.removeprefix("\ufeff"))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not valid JSON ({error}). Write one object per line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: expected an object (got {type(row).__name__}). Write one "
                'object per line, e.g. {"text": "...", "label": "..."}.'
            )
        yield f"line {number}", row


def _parquet_chunks(
    path: Path, rows: int | None, wanted: Sequence[str], others: bool
) -> Iterator[Table]:
    require("pyarrow", extra="analysis")
    import pyarrow
    from pyarrow import parquet

    done = 0
    try:
        found = list(parquet.read_schema(path).names)
        names = list(_checked_columns(path, wanted, found, others))
        tables = parquet_chunks(path, names, rows) if rows else [read_parquet(path, names)]
        for table in tables:
            columns = {name: table.column(name) for name in names}
            if not others:
                columns = {name: column.to_pylist() for name, column in columns.items()}
            places = [f"row {number}" for number in range(done + 1, done + table.num_rows + 1)]
            yield Table(path, columns, places)
            done += table.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}). Write it again, or correct the suffix."
        ) from error


def _checked_columns(
    path: Path, wanted: Sequence[str], found: Sequence[str], others: bool
) -> Sequence[str]:
    """The wanted columns, with `others` all found ones; each must occur once."""
    shown = ", ".join(map(repr, found[:30])) + (", ..." if len(found) > 30 else "")
    for name in wanted:
        if name not in found:
            raise ValueError(
                f"{path} has no column {name!r} (found {shown}). Name the column to read, or add "
                "a header line."
            )
    wanted = found if others else wanted
    for name in wanted:
        if found.count(name) > 1:
            raise ValueError(f"{path} has more than one column {name!r}. Rename all but one.")
    return wanted


def _listed(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _plain(column: Any) -> list[Any]:
    """The values as Python objects, None for missing ones and NaN."""
    return [None if value != value else value for value in _listed(column)]


def _text(columns: Mapping[str, Any], delimiter: str, header: bool) -> bytes:
    """Columns as CSV, or as JSON lines without a delimiter."""
    values = {name: _plain(column) for name, column in columns.items()}
    if not delimiter:
        rows = zip(*values.values(), strict=True)
        lines = (_json(dict(zip(values, row, strict=True))) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()
    import pandas as pd

    cells = {name: pd.Series(map(_cell, v), dtype=object) for name, v in values.items()}
    return csv_bytes(pd.DataFrame(cells), separator=delimiter, header=header)


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


def _json(value: Any) -> str:
    """JSON with the letters as they are; only escapes can hold half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if text == whole_text(text) else json.dumps(value, default=str)


def _write_parquet(
    draft: BinaryIO, chunks: Iterator[Mapping[str, Any]], types: Mapping[str, pyarrow.DataType]
) -> None:
    import pyarrow
    from pyarrow import parquet

    held = [_arrow_table(next(chunks), types)]
    schema = held[0].schema
    types = dict(zip(schema.names, schema.types, strict=True))
    with parquet.ParquetWriter(draft, schema) as writer:
        for columns in chunks:
            held.append(_arrow_table(columns, types))
            if sum(map(len, held)) >= _ROW_GROUP:
                writer.write_table(pyarrow.concat_tables(held))
                held = []
        if held:
            writer.write_table(pyarrow.concat_tables(held))


def _arrow_table(
    columns: Mapping[str, Any], types: Mapping[str, pyarrow.DataType]
) -> pyarrow.Table:
    import pyarrow

    return pyarrow.table({name: _array(v, types.get(name)) for name, v in columns.items()})


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
