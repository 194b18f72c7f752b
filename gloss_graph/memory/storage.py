"""A bank as one file: safetensors, its settings as JSON in the header, written whole or not at all.

The format is that of the safetensors library, which reads it: eight bytes of header length, a
JSON header, then the buffers. It is written here because the library's own writer first copies
everything into one block of memory.
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gloss_graph._internal.files import atomic_write

FORMAT, VERSION = "gloss_graph.MemoryBank", 1
_CHUNK_BYTES = 8 << 20
_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_bank(
    path: str | Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> Path:
    """Write named tensors and settings atomically, in chunks, so without a copy in memory."""
    # The largest items first keeps every buffer aligned to its own item size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    ordered = {name: tensors[name] for name in names}
    path = Path(path)
    with atomic_write(path, overwrite=True) as draft:
        draft.write(_header(ordered, settings, {}))
        sums = {name: _checksum(tensor, draft) for name, tensor in ordered.items()}
        # Sums are of fixed width, so the header with them is as long as the one without.
        draft.seek(0)
        draft.write(_header(ordered, settings, sums))
    return path


def _checksum(tensor: Tensor, draft: BinaryIO | None = None) -> int:
    """CRC-32 of a tensor's bytes, chunk by chunk, which are written to `draft` if there is one."""
    total = 0
    flat = tensor.detach().contiguous().reshape(-1)
    for part in flat.split(max(1, _CHUNK_BYTES // tensor.element_size())):
        if part.numel():
            chunk = memoryview(part.cpu().numpy()).cast("B")
            total = zlib.crc32(chunk, total)
            if draft is not None:
                draft.write(chunk)
    return total


def _header(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], sums: dict[str, int]
) -> bytes:
    described = json.dumps(dict(settings), sort_keys=True)
    checks = {name: f"{sums.get(name, 0):08x}" for name in tensors}
    checks["settings"] = f"{zlib.crc32(described.encode()):08x}"
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "settings": described,
        "crc32": json.dumps(checks),
    }
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_bank(path: str | Path, *, mmap: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of a file that `write_bank` wrote.

    With `mmap` pages are read when used, writes never reach the file, and the checksums of the
    tensors are not compared.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no bank at '{path}'. Write one with MemoryBank.save.")
    if path.is_dir():
        raise ValueError(f"'path' must be a file of MemoryBank.save (got the folder '{path}').")
    try:
        with safe_open(path, framework="pt") as file:
            settings, checks = _metadata(path, file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"'path' must be a whole file of MemoryBank.save: '{path}' is damaged, cut short or no "
            f"safetensors file ({error})."
        ) from error
    if set(tensors) != set(checks) - {"settings"}:
        raise _damaged(path, "its tensors are not those it was written with")
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise _damaged(path, f"'{name}' is of the type {tensor.dtype}")
    if not mmap:
        for name, tensor in tensors.items():
            if f"{_checksum(tensor):08x}" != checks[name]:
                raise _damaged(path, f"the checksum of '{name}' does not match")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return settings, tensors


def _metadata(path: Path, found: dict[str, str] | None) -> tuple[dict[str, Any], dict[str, str]]:
    found = found or {}
    if found.get("format") != FORMAT:
        raise ValueError(
            f"'path' must be a file of MemoryBank.save: '{path}' is a safetensors file of another "
            "kind."
        )
    version = found.get("version", "")
    if not version.isdecimal() or int(version) < 1:
        raise _damaged(path, f"its version reads {version!r}")
    if int(version) > VERSION:
        raise ValueError(
            f"'path' must be of format version {VERSION} or older: '{path}' is of version "
            f"{version}. Update gloss-graph."
        )
    try:
        checks: dict[str, str] = json.loads(found["crc32"])
        described = found["settings"]
        if checks["settings"] != f"{zlib.crc32(described.encode()):08x}":
            raise _damaged(path, "the checksum of its settings does not match")
        return _present(path, json.loads(described)), checks
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise _damaged(path, f"its header lacks or garbles {error}") from error


def _present(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a bank of version 0.1 as this version understands them."""
    bits, search = settings.pop("bits", None), settings.get("search")
    if bits is not None:
        raise ValueError(
            f"'path' must be a bank this version can make: '{path}' keeps {bits} bits per entry "
            "('bits'), which version 0.2 removed. Fill a new bank: MemoryBank(capacity, dim), or "
            "with dtype=torch.float16, then prefill."
        )
    if search == "hnsw" or (isinstance(search, dict) and search.get("kind") == "hnsw"):
        settings["search"] = "ivf"
        warnings.warn(
            f"'{path}' was saved with search='hnsw', which version 0.2 removed. The bank "
            "searches by 'ivf' from now on.",
            UserWarning,
            # Three functions of this module, and MemoryBank.load.
            stacklevel=5,
        )
    return settings


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(
        f"'path' must be a whole file of MemoryBank.save: '{path}' is damaged, {how}."
    )
