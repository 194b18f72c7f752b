"""The rows of a memory bank with what is derived from them: links, a search, a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from gloss_graph.memory.checked import check_bank_state, check_keys, fit_cells
from gloss_graph.memory.eviction import Eviction, saved_name
from gloss_graph.memory.recall import measure_recall
from gloss_graph.memory.state import StoredRows
from gloss_graph.memory.storage import check_sizes, read_bank, write_bank
from gloss_graph.neighbors.automatic import cells_for, retuned, row_search
from gloss_graph.neighbors.cells import Cells
from gloss_graph.neighbors.lists import LinkTable
from gloss_graph.neighbors.quantized import searched, version_of
from gloss_graph.neighbors.settings import (
    RowSearch,
    Search,
    check_search,
    describe_search,
    search_of,
)

AnyBank = TypeVar("AnyBank", bound="SearchedRows")


class SearchedRows(StoredRows):
    """State of a `MemoryBank` with its neighbour lists, how it is searched, saved and restored.

    Args:
        capacity: Number of slots.
        dim: Embedding dimension D.
        dtype: Storage of the rows.
        num_classes: C for label sets, None for class numbers.
        k: Links a slot.
        search: See `MemoryBank`.
        bits: See `MemoryBank`.
    """

    normalize: bool
    eviction: Eviction
    cells: Cells | None
    # Not of a mapped file: it would be read from end to end.
    _looks_at_rows = True

    def __init__(
        self,
        capacity: int,
        dim: int,
        dtype: torch.dtype,
        num_classes: int | None,
        k: int,
        search: Search,
        bits: int | None = None,
    ) -> None:
        super().__init__(capacity, dim, dtype, num_classes, bits)
        self.k, self.search_backend = k, search
        self.links = LinkTable(capacity, k)
        self.register_module("cells", cells_for(search, capacity, dim))
        self._searcher = self._new_search()

    def _new_search(self) -> RowSearch:
        return row_search(self.search_backend, self.links, self.cells)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_searcher": self._new_search()}

    def _forget_derived(self) -> None:
        super()._forget_derived()
        self.links._forget_derived()
        self._searcher = self._new_search()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore a bank from `state_dict()`; it is checked first, so if it raises nothing changed.

        Args:
            state_dict: Of a bank with the same settings; `search` may differ.
            strict: Whether every entry must be there; else all of them or none.
            assign: See `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: Entries are missing or foreign.
            ValueError: Another size, or values no bank has; names the entry.
        """
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            self.check_state(state_dict, strict=strict)
        return super().load_state_dict(state_dict, strict, assign)

    def check_state(self, state: dict[str, Any], prefix: str = "", *, strict: bool = False) -> None:
        """Raise unless the entries of `state` under `prefix` are those of a bank like this one.

        What inverted lists need is fitted to the search of this bank, see `fit_cells`.

        Raises:
            RuntimeError: Entries are missing or foreign, and `strict`.
            ValueError: Another size, or values no bank has; names the entry.
        """
        sizes = {"capacity": self.capacity, "dim": self.dim, "bits": self.bits, "k": self.k}
        check_sizes(state, prefix, sizes)
        fit_cells(self.cells, state, prefix)
        names = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
        if strict:
            check_keys(self, names)
        known = self.state_dict().keys()
        if not known & names:
            return
        if known - names:
            check_keys(self, names & known)
        check_bank_state(self, state, prefix, rows=self._looks_at_rows)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A bank may be part of another module, whose loading asks nothing of it before.
        self.check_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def settings(self) -> dict[str, Any]:
        """The arguments this bank was made with, as plain values ready for JSON."""
        return {
            "capacity": self.capacity,
            "dim": self.dim,
            "k": self.k,
            "dtype": str(self.rows.dtype).removeprefix("torch."),
            "search": describe_search(self.search_backend),
            "normalize": self.normalize,
            "num_classes": self.num_classes,
            "eviction": saved_name(self.eviction),
            "bits": self.bits,
        }

    def save(self, path: str | Path) -> Path:
        """Write the bank, settings and all, as one safetensors file.

        The file takes its name only when it is complete: a process killed at any moment leaves
        the old file or the new one (and maybe a hidden draft `.NAME.*.part` beside it, which can
        be deleted). Memory does not grow with the bank.

        Args:
            path: The file; replaced if it exists, its folder must.

        Raises:
            ValueError: An eviction policy of one's own, which a file cannot hold.
        """
        return write_bank(path, self.state_dict(), self.settings())

    @classmethod
    def load(cls: type[AnyBank], path: str | Path, *, mmap: bool = False) -> AnyBank:
        """The bank a file holds, on the CPU.

        Args:
            path: What `save` wrote.
            mmap: Map the file instead of reading it: at once, and pages that are only read are
                shared between processes; what this bank writes stays its own. Checksums, and the
                values of rows and links, are looked at only without it. Do not overwrite the file
                in place meanwhile (`save` never does).

        Raises:
            FileNotFoundError: No such file.
            ValueError: A foreign, damaged or cut file, or one of a newer version.
        """
        settings, state = read_bank(path, mmap=mmap)
        try:
            dtype, search = getattr(torch, settings.pop("dtype")), search_of(settings.pop("search"))
            with torch.device("meta"):  # no memory for buffers that are replaced at once
                bank = cls(**settings, dtype=dtype, search=search)
            if bank.bits is None and state["rows"].dtype != dtype:
                raise ValueError(f"its rows are {state['rows'].dtype}, its settings say {dtype}")
            bank._looks_at_rows = not mmap
            bank.load_state_dict(state, assign=True)
            bank._looks_at_rows = True
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"'path' must be a bank this version can make: '{path}' ({error})."
            ) from error
        return bank

    def set_search(self, search: Search) -> None:
        """Search in another way from now on; see the argument `search` of `MemoryBank`.

        An index is kept where only what a search does with it changes (`probes`, `ef`), so that
        `recall` can be measured for one setting after the other.

        Raises:
            TypeError: Neither a name nor settings.
            ValueError: An unknown name, or more cells than rows.
        """
        check_search(search, self.capacity)
        cells = cells_for(search, self.capacity, self.dim)
        wanted = row_search(search, self.links, cells)
        self.search_backend = search
        if not retuned(self._searcher, wanted):
            self.cells, self._searcher = cells and cells.to(self.rows.device), wanted
            rows = searched(self.rows)
            wanted.wrote(self.rows, len(self), self.slots_of(self.ids[:0]), version_of(rows))

    def recall(self, k: int | None = None, sample: int = 256, seed: int = 0) -> float:
        """Share of the exact k nearest neighbours that this bank's search finds (recall@k).

        Args:
            k: Neighbours, by default the bank's.
            sample: Stored rows that are looked up, each without itself.
            seed: Of their draw.

        Returns:
            1.0 where the search is exact. Rows at equal distance count as equal.

        Raises:
            ValueError: Fewer than two rows, or a number below one.
        """
        return measure_recall(self, k or self.k, sample, seed)
