"""Readers of untrusted files: the size of a file bounds the size of its content."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.parsers import expat

import numpy as np

from gloss_graph._internal.extras import require

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

#: Environment variable that raises the limit.
VARIABLE = "GLOSS_GRAPH_MAX_BYTES"
_DEFAULT = 16 << 20
# Text rarely packs more than twentyfold; what is made to blow up packs a thousandfold.
_RATIO = 50
_CHUNK = 1 << 20
# A value costs at least a pointer, a node of a graph its number and its place.
_VALUE_BYTES = 8
# YAML is read by hand-written Python, a few hundred kilobytes per second.
_YAML_SHARE = 64
_YAML_VALUES = 100_000


def max_bytes() -> int:
    """Bytes that the content of any file may take, however small the file is."""
    found = os.environ.get(VARIABLE, "").strip()
    if not found:
        return _DEFAULT
    if not (found.isascii() and found.isdecimal() and 0 < len(found) < 19 and int(found)):
        raise ValueError(f"'{VARIABLE}' must be a positive number of bytes (got {found!r}).")
    return int(found)


def check_unpacked(path: str | Path, size: int) -> None:
    """Refuse a file whose content takes far more than the file: 50 times, and `max_bytes`.

    `size` are the bytes that it declares, or that were unpacked so far.
    """
    stored = Path(path).stat().st_size
    if size > max(max_bytes(), _RATIO * stored):
        raise ValueError(
            f"{path} stands for far more than the {stored:,} bytes it has ({size:,} or more). If "
            f"you trust the file, set {VARIABLE} to the number of bytes to allow."
        )


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, unpacked if its name ends in `.gz`."""
    with open_bytes(path) as content:
        return content.read()


def open_bytes(path: str | Path) -> BinaryIO:
    """Open a file to read its content, unpacked on the way if its name ends in `.gz`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file. Check the spelling.")
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return io.BufferedReader(_Unpacked(path), _CHUNK)


class _Unpacked(io.RawIOBase):
    """The content of a packed file, as far as the size of the file bounds it."""

    def __init__(self, path: Path) -> None:
        self._path, self._packed, self._size = path, gzip.GzipFile(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._packed.readinto(buffer)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{self._path} ends in .gz but cannot be unpacked ({error}). Download or compress "
                "it again, or drop the suffix if it is plain text."
            ) from error
        self._size += count
        check_unpacked(self._path, self._size)
        return count

    def close(self) -> None:
        self._packed.close()
        super().close()


def load_json(content: str | bytes) -> Any:
    """Parse JSON."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    content = read_bytes(path)
    try:
        found = load_json(content)
    except ValueError as error:
        raise ValueError(f"{path} must hold JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object (got {type(found).__name__}).")
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the keys and values of a small YAML file without tags of its own.

    Aliases count as what they repeat.
    """
    require("yaml", extra="cli")
    import yaml

    if not Path(path).is_file():
        raise ValueError(f"{path} must be a YAML file (it does not exist). Check the spelling.")
    content, limit = read_bytes(path), max_bytes() // _YAML_SHARE
    if len(content) > limit:
        raise ValueError(
            f"{path} must be a small YAML file (got {len(content):,} bytes, more than {limit:,}). "
            f"Shorten it, or set {VARIABLE} to {_YAML_SHARE} times its size."
        )
    try:
        root = yaml.compose(content, yaml.SafeLoader)
        if root is not None:
            _count_values(root, {})
        found = yaml.safe_load(content)
    except RecursionError:
        raise ValueError(f"{path} must be a YAML file (it is nested too deeply).") from None
    except Exception as error:  # The constructors of values raise whatever Python raises.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} must be a YAML file ({reason}).") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} must hold keys and values (got {type(found).__name__}). Write them as 'k: 8'."
        )
    return found


def _count_values(node: Any, known: dict[int, int]) -> int:
    """Values below a node with every alias written out; `known` are those counted before."""
    if known.get(id(node)) == 0:
        raise ValueError("an alias stands within what it names")
    if id(node) not in known:
        known[id(node)] = 0  # being counted
        total = 1
        for entry in node.value if isinstance(node.value, list) else ():
            # An entry of a mapping is a key and its value.
            for part in entry if isinstance(entry, tuple) else (entry,):
                total += _count_values(part, known)
        if total > _YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {_YAML_VALUES:,} values")
        known[id(node)] = total
    return known[id(node)]


def check_xml(content: bytes) -> None:
    """Refuse XML with a document type, whose entities can stand for any amount of text."""

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type (DOCTYPE), which no graph needs")

    def stop(*_: Any) -> None:
        raise StopIteration

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    # A document type stands before the first element.
    parser.StartElementHandler = stop
    try:
        parser.Parse(content, True)
    except StopIteration:
        return
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"it is no XML: {error}") from error


def check_zip(path: str | Path) -> None:
    """Refuse an archive whose members unpack to far more than it has; of NumPy also its headers."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_unpacked(path, sum(member.file_size for member in members))
            for member in members:
                if member.filename.endswith(".npy"):
                    with archive.open(member) as content:
                        promised = _promised_bytes(content)
                    if promised > member.file_size:
                        raise ValueError(
                            f"{member.filename} promises {promised:,} bytes and has "
                            f"{member.file_size:,}"
                        )
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no whole archive ({error}).") from error


def _promised_bytes(content: Any) -> int:
    """Size of the array that follows the header of a `.npy` file."""
    version = np.lib.format.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays are of the unknown version {version}")
    formats = np.lib.format
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    shape, _, dtype = read(content)
    return math.prod(map(int, shape)) * int(dtype.itemsize)


def map_array(path: str | Path) -> np.ndarray:
    """Map a `.npy` file, so that a header that promises too much costs nothing."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def read_tensors(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in it is executed."""
    import torch

    if zipfile.is_zipfile(path):
        check_zip(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Read a Parquet file, or some of its columns, after a look at what it declares."""
    names = None if columns is None else list(columns)
    with _opened_parquet(path, names) as file:
        return _written_out(path, file.read(columns=names))


def parquet_chunks(path: str | Path, columns: list[str], rows: int) -> Iterator[pyarrow.Table]:
    """As `read_parquet`, in tables of at most `rows` rows; none of an empty file."""
    import pyarrow

    with _opened_parquet(path, columns) as file:
        for batch in file.iter_batches(rows, columns=columns):
            yield _written_out(path, pyarrow.Table.from_batches([batch]))


def _opened_parquet(path: str | Path, columns: list[str] | None) -> parquet.ParquetFile:
    require("pyarrow", extra="analysis")
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        found = file.metadata
    values = size = 0
    repeated = set()
    for group in map(found.row_group, range(found.num_row_groups)):
        for column in map(group.column, range(found.num_columns)):
            name = column.path_in_schema
            if columns is not None and name.split(".")[0] not in columns:
                continue
            values += max(column.num_values, group.num_rows)
            size += max(0, column.total_uncompressed_size)
            packed = any("DICTIONARY" in encoding for encoding in column.encodings)
            if packed and column.physical_type == "BYTE_ARRAY" and "." not in name:
                repeated.add(name)
    check_unpacked(path, max(size, _VALUE_BYTES * values))
    # Values that occur often are stored once; they are counted before they are written out. A
    # buffer keeps the reader from holding whole columns of a row group.
    return parquet.ParquetFile(path, read_dictionary=sorted(repeated), buffer_size=_CHUNK)


def _written_out(path: str | Path, table: pyarrow.Table) -> pyarrow.Table:
    """The table with every dictionary replaced by the values it stands for."""
    import pyarrow
    from pyarrow import compute

    for number, field in enumerate(table.schema):
        kind = field.type.value_type if pyarrow.types.is_dictionary(field.type) else None
        if kind not in (pyarrow.string(), pyarrow.large_string(), pyarrow.binary()):
            continue
        column, size = table.column(number), 0
        for part in column.chunks:
            lengths = compute.binary_length(part.dictionary)
            size += compute.sum(compute.take(lengths, part.indices)).as_py() or 0
            check_unpacked(path, size)
        table = table.set_column(number, field.with_type(kind), column.cast(kind))
    return table
