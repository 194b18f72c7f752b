"""The memory bank: past embeddings with labels, identities, ages and neighbor lists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_tensor,
)
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.precision import unit_rows
from gloss_graph._internal.processes import world_size
from gloss_graph.memory.batch import (
    Batch,
    check_batch,
    gathered,
    join_targets,
)
from gloss_graph.memory.drift import (
    BankStats,
    Drift,
    class_counts,
    measure_drift,
    quartiles,
    restandardized_rows,
    twin_rows,
)
from gloss_graph.memory.eviction import Eviction, assign_slots, resolve_eviction, saved_name
from gloss_graph.memory.storage import CheckedState, check_bank_state, read_bank, write_bank
from gloss_graph.neighbors.exact import RowSearch, SearchResult, version_of
from gloss_graph.neighbors.inverted_lists import Cells
from gloss_graph.neighbors.lists import (
    LinkTable,
    NeighborLists,
    check_lists,
    nearest_lists,
    stored_slots,
)
from gloss_graph.neighbors.search import (
    Search,
    cells_for,
    check_search,
    describe_search,
    measure_recall,
    row_search,
    search_of,
)

# Queries searched at a time: bounds the memory of a large call.
_QUERIES = 1024
_HALF_RANGE = torch.finfo(torch.float16).max
_ANONYMOUS = (
    "MemoryBank.enqueue was called without 'ids'. When the same documents come again (a second "
    "epoch), each one finds its own stored copy with its own label: label leakage. Pass stable "
    "document 'ids', or call reset() before every epoch."
)


class MemoryBank(CheckedState):
    r"""A ring of past embeddings that knows which document each row is.

    Cross-batch memory (Wang et al., 2020, arXiv 1912.06798) with identities: a stored document gets
    its row refreshed; others overwrite the oldest slot, or the one that `eviction` names. Every row
    keeps the list of its nearest neighbors at the time it was written, so the graph among stored
    rows is inherited and never searched again. A link lives while both documents live; its length
    follows when either end is refreshed.

    `state_dict()` restores the bank, and what it finds, bit for bit. A call that raises leaves the
    state as it was. Rows never carry a gradient.

    Shapes: B batch rows, M = `len(bank)` stored rows, D dimension, k links per row, C classes.

    Args:
        capacity: Largest number of rows; with `ids` and the size of the corpus, one per document.
        dim: Embedding dimension D.
        k: Links stored with every row; 0 for uses without a graph.
        dtype: Storage, `torch.float32` or `torch.float16` (search and links use float32).
        search: `"exact"` (its variants are `"faiss"` and `"matmul"`, see
            `gloss_graph.neighbors.nearest`), or approximate, see `recall`: `"descent"`, walks over
            the bank's links for documents that come back, `"ivf"`, inverted lists, or their
            settings (`DescentSettings`, `IVFSettings`). `"auto"`: exact below 32,768 rows, then
            `"descent"`, with new documents searched exactly below 200,000 rows, then by `"ivf"`;
            always exact on a GPU.
        normalize: L2-normalize rows and queries, so Euclidean order is cosine order.
        num_classes: C for label sets, targets (C,) in [0, 1]; None for class numbers.
        eviction: Which row leaves a full bank: `"fifo"`, the oldest tenant; `"stalest"`, the row
            that was written longest ago; `"class-balanced"`, the oldest row of the most frequent
            class; `"reservoir"` keeps a uniform sample of all documents; or an `Eviction`.
        bits: Deprecated, without effect.

    Raises:
        ValueError: A setting out of range or unknown.
        TypeError: An `eviction` that is no policy.

    Cost: O(capacity (D + 3k)) memory, O(B M D) per search, O(M k) per enqueue.

    Example:
        >>> import torch
        >>> bank = MemoryBank(capacity=4, dim=2)
        >>> bank.enqueue(torch.eye(2), labels=torch.tensor([0, 1]), ids=torch.tensor([10, 11]))
        >>> bank.search(torch.tensor([[3.0, 0.0]]), k=1, exclude_ids=torch.tensor([10])).slots
        tensor([[1]])
        >>> bank
        MemoryBank(2/4 rows, dim=2, k=16, dtype=float32, search='auto', normalize=True)

    See also: `build_document_graph` connects a batch to a bank; `GraphGuidedObjective` runs the
    whole step and enqueues at its end.
    """

    rows: Tensor
    slot_labels: Tensor
    slot_targets: Tensor | None
    slot_ids: Tensor
    written_at: Tensor
    cursor: Tensor
    count: Tensor
    step: Tensor
    anonymous: Tensor
    cells: Cells | None
    _checks_rows = True

    def __init__(
        self,
        capacity: int,
        dim: int,
        *,
        k: int = 16,
        dtype: torch.dtype = torch.float32,
        search: Search = "auto",
        normalize: bool = True,
        num_classes: int | None = None,
        eviction: str | Eviction = "fifo",
        bits: int | None = None,
    ) -> None:
        super().__init__()
        if bits is not None:
            warnings.warn(
                "'bits' has no effect since version 0.2: rows are stored in 'dtype'. Leave it out; "
                "torch.float16 takes half of the memory.",
                DeprecationWarning,
                stacklevel=2,
            )
        check_positive_int("capacity", capacity, minimum=0)
        check_positive_int("dim", dim)
        check_positive_int("k", k, minimum=0)
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(f"'dtype' must be torch.float32 or torch.float16 (got {dtype}).")
        check_search(search, capacity)
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        self.capacity, self.dim, self.k, self.num_classes = capacity, dim, k, num_classes
        self.search_backend, self.normalize = search, normalize
        # Buffers made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.register_buffer("rows", torch.zeros(capacity, dim, dtype=dtype))
            self.register_buffer("slot_labels", torch.full((capacity,), -1))
            self.register_buffer("slot_ids", torch.full((capacity,), -1))
            self.register_buffer("written_at", torch.zeros(capacity, dtype=torch.long))
            for name in ("cursor", "count", "step", "anonymous"):
                self.register_buffer(name, torch.zeros((), dtype=torch.long))
            # With targets `slot_labels` says which rows have any: 0 or -1.
            targets = None
            if num_classes is not None:
                targets = torch.zeros(capacity, num_classes, dtype=torch.float32)
            self.register_buffer("slot_targets", targets)
            self.links = LinkTable(capacity, k)
            self.register_module("cells", cells_for(search, capacity, dim))
        self.eviction = resolve_eviction(eviction, num_classes)
        #: What `drift` measured last; not part of the state.
        self.last_drift: Drift | None = None
        self._warned_anonymous = False
        # Derived from the buffers when needed.
        self._slot_map: dict[int, int] | None = None
        self._searcher: RowSearch | None = None

    def __repr__(self) -> str:
        dtype = str(self.rows.dtype).removeprefix("torch.")
        sets = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        policy = self.eviction.name
        eviction = "" if policy == "fifo" else f", eviction={policy!r}"
        return (
            f"MemoryBank({len(self)}/{self.capacity} rows, dim={self.dim}, k={self.k}, "
            f"dtype={dtype}, search={self.search_backend!r}, normalize={self.normalize}"
            f"{sets}{eviction})"
        )

    def __len__(self) -> int:
        return int(self.count)

    @property
    def embeddings(self) -> Tensor:
        """Stored rows (M, D), a view."""
        return self.rows[: len(self)]

    @property
    def labels(self) -> Tensor:
        """Labels (M,) long, -1 = unlabeled; with `num_classes` (M, C), rows of NaN = unlabeled."""
        known = self.slot_labels[: len(self)]
        targets = self.slot_targets
        return known if targets is None else join_targets(known, targets[: len(self)])

    @property
    def labeled(self) -> Tensor:
        """Which of the stored rows (M,) bool carry a label."""
        return self.slot_labels[: len(self)] >= 0

    @property
    def ids(self) -> Tensor:
        """Document ids (M,) long of the stored rows, a view; negative where none was passed."""
        return self.slot_ids[: len(self)]

    @property
    def age(self) -> Tensor:
        """Enqueue calls since each row (M,) long was last written; 0 = by the last one."""
        return self.step - self.written_at[: len(self)] - 1

    def _documents(self) -> dict[int, int]:
        if self._slot_map is None:
            self._slot_map = {id_: slot for slot, id_ in enumerate(self.ids.tolist())}
        return self._slot_map

    def slots_of(self, ids: Tensor) -> Tensor:
        """Slot (B,) long of every document id (B,), -1 where it is not stored."""
        known = self._documents()
        slots = [known.get(id_, -1) for id_ in ids.tolist()]
        return torch.tensor(slots, dtype=torch.long, device=self.rows.device)

    @property
    def searcher(self) -> RowSearch:
        """What `search` names; it is derived from the rows and links and rebuilt when dropped."""
        if self._searcher is None:
            self._searcher = row_search(self.search_backend, self.links, self.cells)
        return self._searcher

    def _prepared(self, name: str, x: Tensor) -> Tensor:
        """Rows (B, D) checked, detached, in float32 at least and, if the bank does, normalized."""
        check_matrix(name, x, self.dim, normalized=self.normalize, compared=self.normalize)
        check_device(f"'{name}'", x, "the bank", self.rows.device)
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        return unit_rows(x) if self.normalize else x

    def _encoded(self, encode: Callable[[Tensor], Tensor], slots: Tensor) -> Tensor:
        """The rows (n, D) that `encode` returns for the documents in `slots` (n,)."""
        _check_callable("encode", encode)
        with evaluating(encode):
            x = encode(self.ids[slots])
        x = self._prepared("encode", x.to(slots.device) if isinstance(x, Tensor) else x)
        if x.size(0) != slots.numel():
            raise ValueError(
                f"'encode' must return a row for each of the {slots.numel()} ids (got {x.size(0)})."
            )
        return x

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, exclude_ids: Tensor | None = None) -> SearchResult:
        """Nearest stored rows of every query, exact or approximate as the bank's `search` says.

        Args:
            queries: (B, D) floating; normalized here if the bank normalizes.
            k: Neighbors per query.
            exclude_ids: (any,) ids whose rows must not be returned, for example the batch's own.

        Returns:
            Euclidean distances (B, k), ascending, and slots (B, k), padded with `inf` and -1
            where fewer than k rows are left or, with approximate search, were found.

        Raises:
            ValueError: Shape, dtype, device or non-finite queries; k < 1.
        """
        check_positive_int("k", k)
        x = self._prepared("queries", queries)
        banned = torch.empty(0, dtype=torch.long, device=self.rows.device)
        if exclude_ids is not None:
            check_tensor("exclude_ids", exclude_ids)
            check_index_vector("exclude_ids", exclude_ids.reshape(-1), exclude_ids.numel())
            banned = stored_slots(self.slots_of(exclude_ids.reshape(-1)))
        found = [
            self.searcher.allowed(part, self.rows, len(self), k, banned)
            for part in x.split(_QUERIES)
        ]
        squared, slots = map(torch.cat, zip(*found, strict=True))
        return SearchResult(squared.sqrt(), slots)

    @torch.no_grad()
    def neighbors(
        self, embeddings: Tensor, ids: Tensor | None = None, k: int | None = None
    ) -> NeighborLists:
        """Nearest neighbors of every row among the stored rows and the other batch rows.

        Stored copies of the batch's documents are left out; the batch rows take their place.

        Args:
            embeddings: (B, D) floating.
            ids: (B,) document ids of the rows.
            k: Neighbors per row, by default the bank's.

        Returns:
            Lists of shape (B, k).
        """
        if k is not None:
            check_positive_int("k", k, minimum=0)
        return self.neighbors_of(self.checked(embeddings, ids=ids), k or self.k)

    def neighbors_of(self, batch: Batch, k: int) -> NeighborLists:
        """As `neighbors`, for a batch that is checked already."""
        x, places = batch.x.detach(), batch.slots
        return nearest_lists(self.searcher, x, places, self.rows, len(self), k)

    def set_search(self, search: Search) -> None:
        """Change the argument `search`; an index is kept if only its use changes (`probes`)."""
        check_search(search, self.capacity)
        cells = cells_for(search, self.capacity, self.dim)
        wanted = row_search(search, self.links, cells)
        self.search_backend = search
        if not self.searcher.take_settings(wanted):
            self.cells, self._searcher = cells and cells.to(self.rows.device), wanted
            wanted.wrote(self.rows, len(self), self.ids[:0].long(), version_of(self.rows))

    def recall(self, k: int | None = None, sample: int = 256, seed: int = 0) -> float:
        """Share of the exact k nearest neighbors that this bank's search finds (recall@k).

        Rows at equal distance count as equal; 1.0 if the search is exact.

        Raises:
            ValueError: Fewer than two rows, or a number below one.
        """
        return measure_recall(self.searcher, self.rows, len(self), k or self.k, sample, seed)

    @torch.no_grad()
    def enqueue(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        neighbors: NeighborLists | None = None,
        link: bool = True,
    ) -> None:
        """Store a batch; everything is checked before anything is changed.

        If an id occurs more than once the last row counts; of a batch larger than the bank `"fifo"`
        and `"stalest"` keep the last `capacity` documents. No row links to a declined document.

        Args:
            embeddings: (B, D) floating, detached here.
            labels: (B,) integer, -1 = unlabeled; with `num_classes` (B, C) floating in [0, 1], a
                row of NaN = unlabeled. All unlabeled by default.
            ids: (B,) integer >= 0, stable document identities. Without them the bank cannot
                recognize a document when it comes back: it warns once.
            neighbors: Lists from `neighbors(...)` if the caller has them; else they are searched.
            link: `False` stores the rows without neighbors, for `relink()` later.

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shape, dtype, device, non-finite embeddings, a label or id out of range.
            RuntimeError: The bank was copied under `torch.inference_mode()` and is written outside.
        """
        self._check_writable()
        batch = self.checked(embeddings, labels, ids)
        if neighbors is not None:
            check_lists(neighbors, batch.x.size(0), len(self), self.rows.device)
        elif not link:
            neighbors = self.neighbors_of(batch, 0)
        self.store(batch, neighbors)

    def checked(
        self, embeddings: Tensor, labels: Tensor | None = None, ids: Tensor | None = None
    ) -> Batch:
        """The documents as `store` and `neighbors_of` take them; see `enqueue`."""
        batch = check_batch(
            embeddings,
            labels,
            ids,
            memory=self,
            normalize=self.normalize,
            num_classes=self.num_classes,
            compared=self.normalize,
        )
        return batch._replace(x=batch.x.detach())

    @torch.no_grad()
    def store(
        self, batch: Batch, neighbors: NeighborLists | None = None, *, of_all: bool = False
    ) -> None:
        """As `enqueue`, for a checked batch, or `of_all` processes, for the batches of all.

        Every bank then takes the same rows in the same order and stays bit-equal to the others.
        """
        self._check_writable()
        if of_all and world_size() > 1:
            # The lists of one process know nothing of the others' rows.
            batch, neighbors = gathered(batch, self.slots_of), None
        x, known, targets, ids, places = batch
        size, device = x.size(0), self.rows.device
        if size == 0 or self.capacity == 0:
            return
        nameless = 0 if ids is not None else size
        if ids is None or places is None:
            if not self._warned_anonymous:
                # This function and `enqueue`, each with the no_grad wrapper around it.
                warnings.warn(_ANONYMOUS, UserWarning, stacklevel=5)
            self._warned_anonymous = True
            ids = -2 - int(self.anonymous) - torch.arange(size, device=device)
            places = torch.full_like(ids, -1)
        if neighbors is None:
            neighbors = self.neighbors_of(batch, self.k)
        self._check_storable(x)
        kept, slots, fresh = assign_slots(self.eviction, self, ids, known, places)
        documents = self._documents()
        for evicted in self.slot_ids[slots[fresh]].tolist():
            documents.pop(evicted, None)
        documents.update(zip(ids[kept].tolist(), slots.tolist(), strict=True))
        self.written_at[slots] = self.step
        if bool(fresh.any()):
            self.count.copy_(torch.maximum(self.count, slots.max() + 1))
            self.cursor.copy_((slots[fresh][-1] + 1) % self.capacity)
        self.step += 1
        self.anonymous += nameless
        self.slot_labels[slots] = known[kept]
        if self.slot_targets is not None and targets is not None:
            self.slot_targets[slots] = targets[kept].to(self.slot_targets.dtype)
        self.slot_ids[slots] = ids[kept]
        self._write_rows(x, neighbors, kept, slots, fresh)

    def _write_rows(
        self, x: Tensor, neighbors: NeighborLists, kept: Tensor, slots: Tensor, fresh: Tensor
    ) -> None:
        """Write the batch rows `x[kept]` into `slots`, with what is derived from rows."""
        version = version_of(self.rows)
        self.rows[slots] = x[kept].to(self.rows.dtype)
        self.links.write(neighbors, kept, slots, fresh, self.rows, len(self))
        self.searcher.wrote(self.rows, len(self), slots, version)

    @torch.no_grad()
    def prefill(
        self,
        loader: Iterable[Mapping[str, Any] | Sequence[Any]],
        encoder: Callable[..., Tensor],
        *,
        progress: bool = False,
    ) -> int:
        """Encode every batch of `loader`, store it, then link all rows by one search.

        Args:
            loader: Batches: a mapping whose `labels` and `ids` are taken out and whose rest is
                passed to the encoder as keyword arguments, or a tuple `(inputs, labels, ids)`
                whose inputs are passed as one argument. Labels and ids are optional.
            encoder: Returns embeddings (B, D). A module runs in eval mode (no dropout) and is
                put back into the mode it was in.
            progress: Show a progress bar.

        Returns:
            Number of rows in the bank afterward.

        Raises:
            TypeError: `encoder` cannot be called or returns no tensor.
            ValueError: As `enqueue`.

        If anything raises, the bank is as it was; until then a copy of its rows is kept.
        """
        self._check_writable()
        _check_callable("encoder", encoder)
        size, drift = len(self), self.last_drift
        before = {
            name: (x[:size] if x.dim() and x.size(0) == self.capacity else x).clone()
            for name, x in self.named_buffers()
        }
        try:
            with evaluating(encoder):
                for batch in track(loader, "Filling the memory bank", disable=not progress):
                    rows, labels, ids = _encoded_batch(batch, encoder)
                    self.enqueue(rows.to(self.rows.device), labels, ids, link=False)
            self.relink(progress=progress)
        except BaseException:
            self.reset()
            for name, x in self.named_buffers():
                (x[: before[name].size(0)] if x.dim() else x).copy_(before[name])
            self.last_drift = drift
            self.forget_derived()
            raise
        return len(self)

    @torch.no_grad()
    def relink(self, *, progress: bool = False) -> None:
        """Search the neighbors of every row again, for example after long drift."""
        self.links.search_all(self.searcher.without_links(), self.rows, len(self), progress)

    @torch.no_grad()
    def refresh(self, encode: Callable[[Tensor], Tensor], count: int) -> int:
        """Encode the stalest documents again and rewrite their rows, as of the last enqueue.

        Their neighbors are searched again. Rows without an id cannot be encoded again and stay.
        With several processes `encode` must return the same rows on all of them.

        Args:
            encode: Maps document ids (n,) long to embeddings (n, D). A module runs in eval mode
                (no dropout) and is put back into the mode it was in.
            count: Number of rows; of equal age the lowest slots first.

        Returns:
            Number of rows written.

        Raises:
            TypeError: `encode` returns no tensor.
            ValueError: `count` < 0; rows of another shape, non-finite or beyond the bank's dtype.
        """
        check_positive_int("count", count, minimum=0)
        self._check_writable()
        known = (self.ids >= 0).nonzero().squeeze(1)
        # Of equal age the lowest slot first, on every device.
        order = self.written_at[known] * self.capacity + known
        slots = known[order.topk(min(count, known.numel()), largest=False).indices]
        if slots.numel() == 0:
            return 0
        x = self._encoded(encode, slots)
        self._check_storable(x)
        neighbors = nearest_lists(self.searcher, x, slots, self.rows, len(self), self.k)
        self.written_at[slots] = self.step - 1
        every = torch.arange(slots.numel(), device=slots.device)
        self._write_rows(x, neighbors, every, slots, torch.zeros_like(slots, dtype=torch.bool))
        return slots.numel()

    def reset(self) -> None:
        """Forget every row; settings stay."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()
        self.slot_ids.fill_(-1)
        self.slot_labels.fill_(-1)
        self.links.reset()
        if self.cells is not None:
            self.cells.reset()
        reset_policy = getattr(self.eviction, "reset", None)
        if reset_policy is not None:
            reset_policy()
        self._slot_map, self.last_drift = None, None

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Live directed links, sorted: source slot, target slot, squared distance, each (E,)."""
        return self.links.edges(len(self))

    @torch.no_grad()
    def drift(
        self,
        encode: Callable[[Tensor], Tensor],
        sample: int = 256,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> Drift:
        """Cosine between stored rows and new embeddings of the same documents; 1 = no drift.

        Args:
            encode: As for `refresh`.
            sample: Rows to compare, all if there are fewer.
            seed: Seed of the draw.
            generator: CPU generator of the draw, instead of one made from `seed`.

        Raises:
            ValueError: No row with an id; `sample` < 1; as `refresh`.
        """
        check_positive_int("sample", sample)
        known = (self.ids >= 0).nonzero().squeeze(1)
        if known.numel() == 0:
            raise ValueError(
                "The memory holds no row with an id, so nothing can be encoded again. Enqueue "
                "documents with 'ids' first."
            )
        generator = generator or torch.Generator().manual_seed(seed)
        drawn = torch.randperm(known.numel(), generator=generator)[:sample]
        slots = known[drawn.to(known.device)]
        x = self._encoded(encode, slots)
        self.last_drift = measure_drift(self.rows[slots], x, self.age[slots])
        return self.last_drift

    @torch.no_grad()
    def restandardized(self, x: Tensor, columns: int | None = None) -> MemoryBank:
        """A bank to read from, whose rows have the mean and spread of a batch x (B, D).

        Only the first `columns` dimensions change. Searches are exact; inherited links keep their
        lengths. It is this bank itself if it is empty or the batch has a single row.
        """
        if len(self) == 0 or x.size(0) < 2:
            return self
        batch = self._prepared("embeddings", x)[:, :columns].float()
        rows = restandardized_rows(self.embeddings, batch, keep_norms=self.normalize)
        exact = self.search_backend if self.search_backend in ("faiss", "matmul") else "exact"
        with torch.device("meta"):  # its buffers are replaced at once
            view = MemoryBank(**self._plain_settings(), search=exact)
        for name, buffer in self.named_buffers(recurse=False):
            setattr(view, name, buffer)
        view.rows, view.links, view._slot_map = rows, self.links, self._documents()
        return view

    def stats(self) -> BankStats:
        """Fill, class histogram, ages, links, duplicates, evictions, last measured drift."""
        size, age = len(self), self.age
        source, target, squared = self.edges()
        declined = getattr(self.eviction, "declined", None)
        return BankStats(
            size=size,
            capacity=self.capacity,
            class_counts=class_counts(self.labels),
            mean_age=float(age.double().mean()) if size else 0.0,
            max_age=int(age.max()) if size else 0,
            mean_degree=source.numel() / size if size else 0.0,
            anonymous=int((self.ids < 0).sum()),
            fill=size / self.capacity if self.capacity else 0.0,
            age_quartiles=quartiles(age),
            duplicates=twin_rows(
                source, target, squared, None if self.normalize else self.embeddings
            ),
            # A slot's stamp counts its tenants.
            evicted=int(self.links.stamps.sum()) - size,
            declined=None if declined is None else int(declined),
            drift=self.last_drift,
        )

    def settings(self) -> dict[str, Any]:
        """The arguments this bank was made with, as plain values ready for JSON."""
        return {
            **self._plain_settings(),
            "dtype": str(self.rows.dtype).removeprefix("torch."),
            "search": describe_search(self.search_backend),
            "eviction": saved_name(self.eviction),
        }

    def _plain_settings(self) -> dict[str, Any]:
        names = ("capacity", "dim", "k", "normalize", "num_classes")
        return {name: getattr(self, name) for name in names}

    def save(self, path: str | Path) -> Path:
        """Write the bank, settings and all, as one safetensors file.

        A process killed at any moment leaves the old file or the new one (and maybe a hidden draft
        `.NAME.*.part`, which can be deleted).

        Raises:
            ValueError: A custom eviction policy, which a file cannot hold.
        """
        return write_bank(path, self.state_dict(), self.settings())

    @classmethod
    def load(cls, path: str | Path, *, mmap: bool = False) -> MemoryBank:
        """The bank a file holds, on the CPU.

        Args:
            path: A file that `save` wrote.
            mmap: Map the file instead of reading it: at once, and processes share the pages they
                only read; writes never reach the file. Checksums, and the values of rows and links,
                are then not checked. Only `save` may overwrite the file.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A foreign or damaged file, or one of a bank this version cannot make.
        """
        settings, state = read_bank(path, mmap=mmap)
        try:
            dtype = getattr(torch, settings.pop("dtype"))
            search = search_of(settings.pop("search"))
            with torch.device("meta"):  # no memory for buffers that are replaced at once
                bank = cls(**settings, dtype=dtype, search=search)
            if state["rows"].dtype != dtype:
                raise ValueError(f"its rows are {state['rows'].dtype}, its settings say {dtype}")
            bank._checks_rows = not mmap
            bank.load_state_dict(state, assign=True)
            bank._checks_rows = True
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"'path' must be a bank this version can make: '{path}' ({error})."
            ) from error
        return bank

    def check_state(self, state: dict[str, Any], prefix: str = "", *, strict: bool = False) -> None:
        """Raise unless `state` has, under `prefix`, the entries of a bank like this one."""
        sizes = {"capacity": self.capacity, "dim": self.dim, "k": self.k}
        check_bank_state(self, sizes, self.cells, state, prefix, strict, self._checks_rows)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget_derived()

    def forget_derived(self) -> None:
        """Drop what is derived from the buffers, after they were changed from outside."""
        self._slot_map, self._searcher = None, None
        self.links.forget_graph()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slot_map": None, "_searcher": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        with torch.inference_mode(False):
            return super()._apply(fn, recurse)

    def _check_writable(self) -> None:
        """Raise RuntimeError if torch would refuse a write to an inference tensor."""
        if self.count.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "This bank was copied or loaded under torch.inference_mode() and can only be "
                "written there. Copy it again outside, or use torch.no_grad()."
            )

    def _check_storable(self, x: Tensor) -> None:
        """Raise ValueError unless rows (B, D) fit the dtype they are stored in."""
        if self.rows.dtype != torch.float16:
            return
        beyond = (x.abs() > _HALF_RANGE).any(dim=1).nonzero()
        if beyond.numel():
            raise ValueError(
                f"'embeddings' exceed float16 in {beyond.size(0)} of {x.size(0)} rows, the first "
                f"is row {int(beyond[0])}. Use a bank with dtype=torch.float32."
            )


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"'{name}' must be callable (got {type(value).__name__}).")


def _encoded_batch(
    batch: Mapping[str, Any] | Sequence[Any], encoder: Callable[..., Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows (B, D), labels and ids of a batch of the loader of `MemoryBank.prefill`."""
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        labels, ids = inputs.pop("labels", None), inputs.pop("ids", None)
        rows = encoder(**inputs)
    elif isinstance(batch, Sequence) and 1 <= len(batch) <= 3:
        first, labels, ids = (*batch, None, None)[:3]
        rows = encoder(first)
    else:
        raise ValueError(
            "'loader' must yield mappings or tuples (inputs[, labels[, ids]]) "
            f"(got {type(batch).__name__})."
        )
    check_tensor("encoder", rows)
    return rows, labels, ids
