"""The memory bank: past embeddings with labels, identities, ages and neighbour lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph._internal.checks import (
    check_device,
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_tensor,
)
from gloss_graph.memory.drift import Drift, measure_drift, refresh_rows
from gloss_graph.memory.eviction import Eviction, resolve_eviction
from gloss_graph.memory.fill import fill, relink
from gloss_graph.memory.labels import read_labels
from gloss_graph.memory.searched import SearchedRows
from gloss_graph.memory.state import warn_anonymous
from gloss_graph.memory.stats import BankStats, bank_stats
from gloss_graph.memory.write import Incoming, store
from gloss_graph.neighbors.exact import Nearest, SearchResult
from gloss_graph.neighbors.lists import NeighborLists, add_batch_mates, check_lists
from gloss_graph.neighbors.settings import Search, check_search

_DTYPES = (torch.float32, torch.float16)
# Queries searched at a time: bounds the memory of a large call.
_QUERIES = 1024
_HALF_RANGE = torch.finfo(torch.float16).max


class MemoryBank(SearchedRows):
    r"""A ring of past embeddings that knows which document each row is.

    Cross-batch memory (Wang et al., 2020, arXiv 1912.06798) with identities: enqueueing a
    document that is already stored refreshes its row in place; other documents overwrite the
    oldest slot, or the one that `eviction` names. Every row keeps the list of its nearest
    neighbours at the time it was written, so the graph among stored rows is inherited and never
    searched again. A link lives while both documents live; its length follows when either end is
    refreshed.

    All state lives in persistent buffers: `state_dict()` restores the bank bit for bit, and what it
    finds too, but for `search="hnsw"`. A call that raises leaves the state as it was.

    Shapes: B batch rows, M = `len(bank)` stored rows, D dimension, k links a row.

    Args:
        capacity: Largest number of rows. 0 is a bank that never stores anything. With
            `capacity` >= corpus size and `ids`, the bank is one row per document.
        dim: Embedding dimension D.
        k: Links stored with every row; 0 = none, for uses without a graph.
        dtype: Storage, `torch.float32` or `torch.float16` (half the memory; search and links
            are computed in float32).
        search: `"exact"` (its variants `"faiss"` and `"matmul"` too, see
            `gloss_graph.memory.nearest`), or approximate, see `recall`: `"descent"`, walks over the
            bank's own links for documents that come back, `"ivf"`, `"hnsw"`, or their settings
            (`DescentSettings`, `IVFSettings`, `HNSWSettings`). `"auto"`: exact below 32,768 rows,
            then `"descent"`, with new documents searched exactly below 200,000 rows, then by
            `"ivf"`; on a GPU always exact.
        normalize: L2-normalise rows and queries, so Euclidean order is cosine order.
        num_classes: C for label sets: every row then has targets (C,) in [0, 1]. None: one
            class number a row.
        eviction: Who leaves a full bank: `"fifo"`, the oldest tenant; `"stalest"`, the row that
            was written longest ago; `"class-balanced"`, the oldest row of the most frequent
            class; `"reservoir"` keeps a uniform sample of all documents; or an `Eviction`.
        bits: Product quantisation for banks that do not fit: 8, 4 or 2 bits an entry in place of
            the 32 or 16 of `dtype`, trained by nothing. Search, links and `embeddings` are those
            of what is left of the rows: of all-MiniLM-L6-v2 a cosine of .9999, .996 or .95 to
            them, and 99, 97 or 88 % of their 16 nearest neighbours.

    Raises:
        ValueError: A setting out of range or unknown.
        TypeError: An `eviction` that is no policy.

    Rows never carry a gradient. Cost: O(capacity (D + 3k)) memory, O(B M D) a search, O(M k) an
    enqueue.

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
        check_positive_int("capacity", capacity, minimum=0)
        check_positive_int("dim", dim)
        check_positive_int("k", k, minimum=0)
        if dtype not in _DTYPES:
            raise ValueError(f"'dtype' must be torch.float32 or torch.float16 (got {dtype}).")
        check_search(search, capacity)
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        eviction = resolve_eviction(eviction, num_classes)
        # Buffers made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            super().__init__(capacity, dim, dtype, num_classes, k, search, bits)
        self.normalize = normalize
        self.eviction = eviction
        #: What `drift` measured last; not part of the state.
        self.last_drift: Drift | None = None
        self._warned_anonymous = False

    def __repr__(self) -> str:
        dtype = str(self.rows.dtype).removeprefix("torch.")
        kept = f"dtype={dtype}" if self.bits is None else f"bits={self.bits}"
        sets = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        policy = self.eviction.name
        leaves = "" if policy == "fifo" else f", eviction={policy!r}"
        more = f"normalize={self.normalize}{sets}{leaves}"
        return (
            f"MemoryBank({len(self)}/{self.capacity} rows, dim={self.dim}, k={self.k}, "
            f"{kept}, search={self.search_backend!r}, {more})"
        )

    # ------------------------------------------------------------------ search

    def _prepare(self, name: str, embeddings: Tensor) -> Tensor:
        unit = self.normalize
        check_matrix(name, embeddings, self.dim, normalized=unit, compared=unit)
        check_device(f"'{name}'", embeddings, "the bank", self.rows.device)
        x = embeddings.detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.normalize(x, dim=1) if self.normalize else x

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, exclude_ids: Tensor | None = None) -> SearchResult:
        """Nearest stored rows of every query, exact or approximate as the bank was told.

        Args:
            queries: (B, D) floating; normalised here when the bank normalises.
            k: Neighbours a query.
            exclude_ids: (any,) ids whose rows must not be returned, for example the batch's own.

        Returns:
            Euclidean distances (B, k), ascending, and slots (B, k), padded with `inf` and -1
            where fewer than k rows are left or, with approximate search, were found.

        Raises:
            ValueError: Shape, dtype, device or non-finite queries; k < 1.
        """
        check_positive_int("k", k)
        x = self._prepare("queries", queries)
        if exclude_ids is not None:
            check_tensor("exclude_ids", exclude_ids)
            check_index_vector("exclude_ids", exclude_ids.reshape(-1), exclude_ids.numel())
        banned = self.own_slots(exclude_ids)
        blocks = x.split(_QUERIES)
        found = [self._searcher.allowed(part, self.rows, len(self), k, banned) for part in blocks]
        squared, slots = map(torch.cat, zip(*found, strict=True))
        return SearchResult(squared.sqrt(), slots)

    @torch.no_grad()
    def neighbors(
        self, embeddings: Tensor, ids: Tensor | None = None, k: int | None = None
    ) -> NeighborLists:
        """Nearest neighbours of every row among the stored rows and the other batch rows.

        Stored copies of the batch's own documents are left out (their place is taken by the
        batch rows themselves).

        Args:
            embeddings: (B, D) floating.
            ids: (B,) document ids of the rows.
            k: Neighbours a row, by default the bank's.

        Returns:
            Lists of shape (B, k).
        """
        x = self._prepare("embeddings", embeddings)
        if ids is not None:
            check_index_vector("ids", ids, x.size(0))
        if k is not None:
            check_positive_int("k", k, minimum=0)
        return self._neighbors(x, self._places(ids, x.size(0)), k or self.k)

    def _places(self, ids: Tensor | None, size: int) -> Tensor:
        """Slot (B,) of every row's document, -1 where it is not stored."""
        if ids is None:
            return torch.full((size,), -1, device=self.rows.device)
        return self.slots_of(ids.reshape(-1))

    def _neighbors(self, x: Tensor, places: Tensor, k: int) -> NeighborLists:
        if k == 0:
            none = torch.empty(x.size(0), 0, dtype=torch.long, device=x.device)
            return NeighborLists(x.new_empty(x.size(0), 0), none)
        banned, size = places[places >= 0].unique(), len(self)
        blocks = zip(x.split(_QUERIES), places.split(_QUERIES), strict=True)
        found = [
            self._searcher.around(part, self.rows, size, k, banned, own) for part, own in blocks
        ]
        return add_batch_mates(x, Nearest(*map(torch.cat, zip(*found, strict=True))), k)

    # ------------------------------------------------------------------ write

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

        A document that is stored already is refreshed in place; others get the slots that
        `eviction` names, by default the oldest. If an id occurs more than once the last row
        counts; of a batch larger than the bank `"fifo"` and `"stalest"` keep the last `capacity`
        documents. Documents that are declined are nobody's neighbours.

        Args:
            embeddings: (B, D) floating, detached here.
            labels: (B,) integer, -1 = unlabeled; with `num_classes` (B, C) floating in [0, 1], a
                row of NaN = unlabeled. All unlabeled when left out.
            ids: (B,) integer >= 0, stable document identities. Without them the bank cannot
                recognise a document when it comes back: it warns once.
            neighbors: Lists from `neighbors(...)` when the caller already has them; searched for
                otherwise.
            link: `False` stores the rows without neighbours, for `relink()` later.

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shape, dtype, device, non-finite embeddings, a negative id, a label < -1,
                a target outside [0, 1].
            RuntimeError: The bank was copied under `torch.inference_mode()` and is written outside.
        """
        self.check_writable()
        x = self._prepare("embeddings", embeddings)
        size = x.size(0)
        device = self.rows.device
        known, targets = read_labels(labels, size, self.num_classes, device)
        if ids is not None:
            check_index_vector("ids", ids, size)
            if size and int(ids.min()) < 0:
                raise ValueError(f"'ids' must be >= 0 (got {int(ids.min())}).")
        if size == 0 or self.capacity == 0:
            return
        nameless = 0
        if ids is None:
            self._warned_anonymous = warn_anonymous(self._warned_anonymous)
            nameless = size
            ids = -2 - int(self.anonymous) - torch.arange(size, device=device)
        ids = ids.to(device).long()
        if neighbors is None:
            neighbors = self._neighbors(x, self._places(ids, size), self.k if link else 0)
        check_lists(neighbors, x.size(0), len(self), device)
        self.check_storable(x)
        store(self, Incoming(x, known, targets, ids), neighbors, nameless=nameless)

    def check_writable(self) -> None:
        """Raise if torch would refuse a write.

        Raises:
            RuntimeError: Buffers made under `torch.inference_mode()`, which was left since.
        """
        if self.count.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                "This bank was copied or loaded under torch.inference_mode() and can only be "
                "written there. Copy it again outside, or use torch.no_grad()."
            )

    def check_storable(self, x: Tensor) -> None:
        """Raise unless rows (B, D) fit the dtype they are stored in.

        Raises:
            ValueError: A value beyond float16.
        """
        if self.rows.dtype != torch.float16:
            return
        beyond = (x.abs() > _HALF_RANGE).any(dim=1).nonzero()
        if beyond.numel():
            raise ValueError(
                f"'embeddings' exceed float16 in {beyond.size(0)} of {x.size(0)} rows, the first "
                f"is row {int(beyond[0])}. Use a bank with dtype=torch.float32."
            )

    # ------------------------------------------------------------------ graph, upkeep

    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Live directed links: source slot (E,), target slot (E,), squared distance (E,).

        Sorted by source. Both ends are stored rows; no self-links, no repeated pairs.
        """
        return self.links.edges(len(self))

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
                whose inputs are passed as one argument. Labels and ids may be left out.
            encoder: Returns embeddings (B, D). A module runs in eval mode (no dropout) and is
                put back into the mode it was in.
            progress: Show a progress bar.

        Returns:
            Number of rows in the bank afterwards.

        Raises:
            TypeError: `encoder` cannot be called or returns no tensor.
            ValueError: As `enqueue`.

        If the loader, the encoder or a check raises, the bank is as it was before the call; until
        then a copy of the rows it had is kept.
        """
        fill(self, loader, encoder, progress)
        return len(self)

    def relink(self, *, progress: bool = False) -> None:
        """Replace every neighbour list by the k nearest stored rows, as the bank searches.

        Cost O(M² D) time in chunks of 1,024 rows if the search is exact. Useful after long drift.
        """
        relink(self, progress)

    def refresh(self, encode: Callable[[Tensor], Tensor], count: int) -> int:
        """Encode the stalest documents again and write them in place, as of the last enqueue.

        Their neighbours are searched anew. Rows without an id cannot be encoded again and stay.
        With several processes `encode` must return the same rows on all of them.

        Args:
            encode: Maps document ids (n,) long to embeddings (n, D). A module runs in eval mode
                (no dropout) and is put back into the mode it was in.
            count: How many rows; of equal age the lowest slots first.

        Returns:
            Number of rows written.

        Raises:
            TypeError: `encode` returns no tensor.
            ValueError: `count` < 0; rows of another shape, non-finite or beyond the bank's dtype.
                The bank is as before.

        Cost: `count` documents encoded, O(count M D) for their neighbours.
        """
        return refresh_rows(self, encode, count)

    def drift(
        self,
        encode: Callable[[Tensor], Tensor],
        sample: int = 256,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> Drift:
        """Cosine between stored rows and what the encoder makes of the same documents now.

        Args:
            encode: As for `refresh`.
            sample: Rows to compare, all if there are fewer.
            seed: Of the draw.
            generator: CPU generator of the draw in place of one made from `seed`.

        Returns:
            Mean, least, quartiles, and means by age; 1 = no drift. `stats()` repeats it.

        Raises:
            ValueError: No row with an id; `sample` < 1; as `refresh`.
        """
        generator = generator or torch.Generator().manual_seed(seed)
        self.last_drift = measure_drift(self, encode, sample, generator)
        return self.last_drift

    def reset(self) -> None:
        """Forget every row; settings stay."""
        self.slot_ids.fill_(-1)
        self.slot_labels.fill_(-1)
        cleared = (self.rows, self.written_at, self.cursor, self.count, self.step, self.anonymous)
        for buffer in (*cleared, self.slot_targets):
            if buffer is not None:
                buffer.zero_()
        self.links.reset()
        if self.cells is not None:
            self.cells.reset()
        forget = getattr(self.eviction, "reset", None)
        if forget is not None:
            forget()
        self._slot_of, self.last_drift = None, None

    def stats(self) -> BankStats:
        """Fill, class histogram, ages, links, duplicates, who left, and the last measured drift."""
        return bank_stats(self)
