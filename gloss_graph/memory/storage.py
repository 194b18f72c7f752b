"""The state of a bank: its check before it is loaded, and its file.

The file is one of the safetensors format, with the settings as JSON in the header. It is written
here because the library's writer first copies everything into one block of memory.
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gloss_graph._internal.files import atomic_write
from gloss_graph.neighbors.inverted_lists import Cells

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
    """Settings and tensors of a file of `write_bank`; with `mmap` mapped, without checksums."""
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


class CheckedState(nn.Module):
    """A module whose state is checked before it is loaded: if that raises nothing changed."""

    def check_state(self, state: dict[str, Any], prefix: str = "", *, strict: bool = False) -> None:
        """Raise unless `state` has, under `prefix`, the entries of a module like this one."""
        raise NotImplementedError

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore the `state_dict()` of a module with the same settings.

        Without `strict` entries may be missing; those of a bank all or none.

        Raises:
            RuntimeError: Entries are missing or foreign.
            ValueError: Another size, or values that no such module has; names the entry.
        """
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            self.check_state(state_dict, strict=strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Loading a module that holds this one checks nothing before.
        self.check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def fit_cells(cells: Cells | None, state: dict[str, Any], prefix: str) -> None:
    """Make the cells in a state fit a bank: take them out, leave them, or put empty ones in."""
    found = {name: x for name, x in state.items() if name.startswith(f"{prefix}cells.")}
    wanted = {} if cells is None else cells.state_dict(prefix=f"{prefix}cells.")
    fits = found.keys() == wanted.keys() and all(
        isinstance(x, Tensor) and x.shape == wanted[name].shape for name, x in found.items()
    )
    if fits or f"{prefix}count" not in state:
        return
    for name in found:
        del state[name]
    if cells is not None:
        most, dim = cells.centers.shape
        new = Cells(cells.cell_of.numel(), dim, most)
        state.update(new.state_dict(prefix=f"{prefix}cells."))


def check_keys(module: nn.Module, names: Set[str]) -> None:
    """Raise unless `names` are those of the entries of a module's state."""
    known = module.state_dict().keys()
    found = {"Missing": known - names, "Unexpected": names - known}
    lines = [
        f"{kind} key(s) in state_dict: {', '.join(map(repr, sorted(which)))}."
        for kind, which in found.items()
        if which
    ]
    if lines:
        name = type(module).__name__
        raise RuntimeError(f"Error(s) in loading state_dict for {name}: {' '.join(lines)}")


def check_entries(wanted: Mapping[str, Any], state: Mapping[str, Any], prefix: str = "") -> None:
    """Raise unless the entries of `state` have the shapes of `wanted`, and dtypes of their kind."""
    for name, known in wanted.items():
        if not isinstance(known, Tensor) or f"{prefix}{name}" not in state:
            continue
        if name.rpartition(".")[2] == "_extra_state":
            continue
        value = state[f"{prefix}{name}"]
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise foreign(f"{prefix}{name}", f"a dense tensor (got {type(value).__name__})")
        if value.shape != known.shape:
            raise foreign(
                f"{prefix}{name}", f"of shape {tuple(known.shape)} (got {tuple(value.shape)})"
            )
        floating = value.is_floating_point() and known.is_floating_point()
        if not floating and value.dtype != known.dtype:
            raise foreign(f"{prefix}{name}", f"of {known.dtype} (got {value.dtype})")


def check_limits(name: str, value: Tensor, low: float | None, high: float | None) -> None:
    """Raise unless the entries of `value` are finite and in [low, high]; None = no bound."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise foreign(name, "finite")
    if low is not None and bool((value < low).any()):
        raise foreign(name, f"at least {low} (got {value.min().item()})")
    if high is not None and bool((value > high).any()):
        raise foreign(name, f"at most {high} (got {value.max().item()})")


def foreign(name: str, rule: str) -> ValueError:
    """The error that names an entry of a state."""
    return ValueError(
        f"'{name}' must be {rule} in a state that is loaded. Is it of other settings?"
    )


def check_bank_state(
    bank: nn.Module,
    sizes: Mapping[str, int],
    cells: Cells | None,
    state: dict[str, Any],
    prefix: str,
    strict: bool,
    rows: bool,
) -> None:
    """Raise unless `state` holds a bank like this one, or, without `strict`, none of its entries.

    Without `rows` the values of rows and links, every one of which would be read, are not checked.
    """
    _check_sizes(state, prefix, sizes)
    fit_cells(cells, state, prefix)
    known = bank.state_dict()
    names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    if strict:
        check_keys(bank, names)
    if not known.keys() & names:
        return
    if known.keys() - names:
        check_keys(bank, names & known.keys())
    check_entries(known, state, prefix)

    def part(name: str) -> Tensor:
        value: Tensor = state[prefix + name]
        return value

    def require(name: str, holds: Any, rule: str) -> None:
        if not bool(torch.as_tensor(holds).all()):
            raise foreign(prefix + name, rule)

    capacity = known["rows"].size(0)
    count, step, anonymous = (int(part(name)) for name in ("count", "step", "anonymous"))
    require("count", 0 <= count <= capacity, f"in 0..{capacity} (got {count})")
    require("step", step >= (count > 0), f"the number of writes (got {step})")
    require("anonymous", anonymous >= 0, f"at least 0 (got {anonymous})")
    cursor = int(part("cursor"))
    require("cursor", 0 <= cursor < max(1, capacity), f"below {capacity} (got {cursor})")
    ids, labels, written = (part(name) for name in ("slot_ids", "slot_labels", "written_at"))
    used, free = ids[:count], ids[count:]
    rule = f"set in the first {count} slots, which are in use, and -1 in all others"
    require("slot_ids", (used != -1).all() & (free == -1).all(), rule)
    rule = f"at least {-1 - anonymous} with {anonymous} rows without identity"
    require("slot_ids", used >= -1 - anonymous, rule)
    require("slot_ids", used.unique().numel() == count, "distinct")
    require("slot_labels", labels[:count] >= -1, "at least -1")
    rule = f"in 0..{step - 1}, before step {step}"
    require("written_at", (written[:count] >= 0) & (written[:count] < step), rule)
    if "slot_targets" in known:
        require("slot_labels", labels[:count] <= 0, "0 or -1, the mark of a label set")
        targets = part("slot_targets")[:count]
        require("slot_targets", (targets >= 0) & (targets <= 1), "in [0, 1]")
    stamps = part("links.stamps")
    rule = f"at least 1 in the first {count} slots, which had a document, and 0 in all others"
    require("links.stamps", (stamps[:count] > 0).all() & (stamps[count:] == 0).all(), rule)
    declined = state.get(f"{prefix}eviction.declined")
    if isinstance(declined, Tensor):
        require("eviction.declined", declined >= 0, "at least 0")
    if "cells.centers" in known and f"{prefix}cells.count" in state:
        most, cell_of = known["cells.centers"].size(0), part("cells.cell_of")
        found = int(part("cells.count"))
        require("cells.count", 0 <= found <= most, f"in 0..{most} (got {found})")
        rule = f"below {found} for every row"
        require("cells.cell_of", cell_of[:count] >= 0 if found else cell_of == -1, rule)
        require("cells.cell_of", (cell_of >= -1) & (cell_of < max(found, 1)), rule)
        require("cells.cell_of", cell_of[count:] == -1, f"-1 from slot {count} on")
        for name in ("cells.found_at", "cells.overwritten"):
            require(name, part(name) >= 0, "at least 0")
    if not rows:
        return
    for name, value in known.items():
        if (
            value.is_floating_point()
            and not name.startswith("eviction.")
            and prefix + name in state
        ):
            require(name, torch.isfinite(part(name).to(value.dtype)), f"finite as {value.dtype}")
    links, link_stamps = part("links.slots"), part("links.slot_stamps")
    itself = torch.arange(capacity, device=links.device, dtype=links.dtype).unsqueeze(1)
    rule = f"slots below {count} other than the slot of the list, or -1"
    require("links.slots", (links >= -1) & (links < count) & (links != itself), rule)
    require("links.slots", links[count:] == -1, f"-1 from slot {count} on")
    target = stamps[links.clamp(min=0).long()] if capacity else link_stamps
    rule = "at most the stamp of the slot they name"
    require("links.slot_stamps", (links < 0) | ((link_stamps >= 0) & (link_stamps <= target)), rule)
    live = torch.where((links >= 0) & (link_stamps == target), links, -1).sort(dim=1).values
    require(
        "links.slots", (live[:, 1:] != live[:, :-1]) | (live[:, 1:] < 0), "distinct in every list"
    )
    require("links.squared", part("links.squared") >= 0, "at least 0")


def _check_sizes(state: Mapping[str, Any], prefix: str, sizes: Mapping[str, int]) -> None:
    """Raise unless a bank's `state` has the capacity, dim and k of `sizes`."""
    if f"{prefix}rows.codes" in state:
        raise ValueError(
            f"'{prefix}rows.codes' belongs to a bank with 'bits', which version 0.2 removed. Make "
            "a MemoryBank without 'bits' and fill it again."
        )
    rows, links = (state.get(f"{prefix}{name}") for name in ("rows", "links.slots"))
    found: dict[str, int] = {}
    if isinstance(rows, Tensor) and rows.dim() == 2:
        found = {"capacity": rows.size(0), "dim": rows.size(1)}
    if isinstance(links, Tensor) and links.dim() == 2:
        found["k"] = links.size(1)
    for name, value in found.items():
        if value != sizes[name]:
            raise ValueError(
                f"'{name}' must be that of the saved bank, {value} (got {sizes[name]}). Make the "
                f"bank with MemoryBank({', '.join(f'{n}={v}' for n, v in found.items())}, ...)."
            )
