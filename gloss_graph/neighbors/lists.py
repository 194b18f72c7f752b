"""Neighbor lists of the stored rows: the inherited edges of the bank's graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from gloss_graph._internal.checks import check_device, check_tensor
from gloss_graph.neighbors.adjacency import (
    Room,
    SymmetricLinks,
    build_lists,
    listing,
    updated,
)
from gloss_graph.neighbors.exact import RowSearch, nearest_mates, pair_distances, version_of

# Writing more than one row in so many leads to a new build instead of an update.
_UPDATE_SHARE = 8
# Up to so many batch rows all pairs are measured; larger batches search in blocks.
_ALL_PAIRS = 1024
# Queries searched at a time: bounds the memory of a large call.
_QUERIES = 1024


class NeighborLists(NamedTuple):
    """Nearest neighbors of B batch rows among the bank and the batch itself.

    `squared_distances` (B, k), ascending, `inf` where there is none; `indices` (B, k) long: a bank
    slot where >= 0, batch row `-2 - index` where <= -2, none where -1.
    """

    squared_distances: Tensor
    indices: Tensor


def stored_slots(slots: Tensor) -> Tensor:
    """Sorted slots (n,) of those documents that are stored."""
    return slots[slots >= 0].unique()


def nearest_lists(
    search: RowSearch, x: Tensor, places: Tensor | None, rows: Tensor, size: int, k: int
) -> NeighborLists:
    """The k nearest of the first `size` of `rows` and of the other batch rows, per row x (B, D).

    `places` (B,) are the slots of stored documents, -1 for others: all of these are left out.
    """
    if k == 0:
        none = torch.empty(x.size(0), 0, dtype=torch.long, device=x.device)
        return NeighborLists(x.new_empty(x.size(0), 0), none)
    if places is None:
        places = torch.full((x.size(0),), -1, device=x.device)
    banned = stored_slots(places)
    found = [
        search.around(part, rows, size, k, banned, place)
        for part, place in zip(x.split(_QUERIES), places.split(_QUERIES), strict=True)
    ]
    if x.size(0) <= _ALL_PAIRS:
        # O(B²) memory, and fastest for a small batch.
        mates = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist").square()
        mates.fill_diagonal_(torch.inf)
        numbers = torch.arange(x.size(0), device=x.device).expand(x.size(0), -1)
    else:
        mates, numbers = nearest_mates(x, k)
    squared = torch.cat([torch.cat([part.squared_distances for part in found]), mates], dim=1)
    index = torch.cat([torch.cat([part.indices for part in found]), -2 - numbers], dim=1)
    squared, order = squared.topk(min(k, squared.size(1)), dim=1, largest=False)
    return NeighborLists(squared, index.gather(1, order).masked_fill(squared.isinf(), -1))


def check_lists(lists: NeighborLists, batch: int, stored: int, device: torch.device) -> None:
    """Raise unless `lists` are (batch, k) and name stored slots and batch rows only."""
    if not isinstance(lists, NeighborLists):
        raise TypeError(f"'neighbors' must be NeighborLists (got {type(lists).__name__}).")
    index = lists.indices
    check_tensor("neighbors", index)
    if index.dtype != torch.long:
        raise ValueError(f"'neighbors' must have long indices (got {index.dtype}).")
    check_device("'neighbors'", index, "the bank", device)
    if index.dim() != 2 or index.size(0) != batch:
        raise ValueError(
            f"'neighbors' must hold one list per row, ({batch}, k) (got {tuple(index.shape)})."
        )
    if index.numel() and (int(index.max()) >= stored or int(index.min()) < -1 - batch):
        raise ValueError(
            f"'neighbors' must name slots below {stored} or batch rows below {batch}, as "
            "MemoryBank.neighbors gives them. Search again."
        )


class LinkTable(nn.Module):
    """Fixed-width neighbor lists over the slots of a bank.

    A link names a slot and the stamp that the slot had then. A slot's stamp grows when it gets a
    new tenant, so links to a former tenant die without a search for them. The stored length of a
    live link always equals that of the stored rows.
    """

    slots: Tensor
    slot_stamps: Tensor
    squared: Tensor
    stamps: Tensor

    def __init__(self, capacity: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("slots", torch.full((capacity, k), -1, dtype=torch.int32))
        self.register_buffer("slot_stamps", torch.zeros(capacity, k, dtype=torch.int32))
        self.register_buffer("squared", torch.zeros(capacity, k, dtype=torch.float32))
        # How many documents a slot has held.
        self.register_buffer("stamps", torch.zeros(capacity, dtype=torch.int32))
        # Derived, never saved: the undirected graph, and the state of the lists it belongs to.
        self._graph: SymmetricLinks | None = None
        self._graph_of: list[tuple[Tensor, int]] = []
        self._rooms: list[Room] = []

    def __getstate__(self) -> dict[str, Any]:
        derived: dict[str, Any] = {"_graph": None, "_graph_of": [], "_rooms": []}
        return {**self.__dict__, **derived}

    def forget_graph(self) -> None:
        """Drop the undirected graph, after a change that the tensors of the lists do not count."""
        self._graph, self._graph_of = None, []

    def _lists(self) -> tuple[Tensor, ...]:
        return self.slots, self.slot_stamps, self.squared, self.stamps

    def _keep_graph(self, graph: SymmetricLinks) -> None:
        # Tensors count writes; while they are held here no other tensor can have their identity.
        self._graph, self._graph_of = graph, [(x, version_of(x)) for x in self._lists()]

    def kept_graph(self) -> SymmetricLinks | None:
        """The undirected graph of an earlier step, if it is still that of the lists."""
        for x, version in self._graph_of:
            if all(x is not y for y in self._lists()) or version_of(x) != version:
                self.forget_graph()
                break
        return self._graph

    def symmetric(self, size: int) -> SymmetricLinks:
        """The undirected graph of the first `size` slots, kept between calls (CPU only)."""
        graph = self.kept_graph()
        if graph is None or graph.size != size:
            lists = (self.slots[:size], self.squared[:size], self.live(size))
            graph = build_lists(*lists, self._rooms)
            self._keep_graph(graph)
        return graph.view()

    def write(
        self,
        lists: NeighborLists,
        kept: Tensor,
        slots: Tensor,
        fresh: Tensor,
        rows: Tensor,
        size: int,
    ) -> None:
        """Store the lists of the batch rows `kept` (n,), which live in `slots` (n,) already.

        They name slots as they were before this write; `fresh` slots (n,) got a new tenant.
        """
        graph = self.kept_graph()
        index = lists.indices[kept, : self.k]
        mates = index <= -2
        row_of = torch.full((lists.indices.size(0),), -1, dtype=torch.long, device=slots.device)
        row_of[kept] = slots
        links = torch.where(mates, row_of[(-2 - index).clamp(min=0)], index)
        # A twin that was dropped and a row that would list itself are no neighbors.
        links = links.masked_fill(links == slots.unsqueeze(1), -1)
        before = self.stamps[links.clamp(min=0)]
        self.stamps[slots[fresh]] += 1
        # A slot evicted in this very call keeps its old stamp here, so that link is dead.
        stamps = torch.where(mates, self.stamps[links.clamp(min=0)], before)
        width = links.size(1)
        self.slots[slots] = -1
        self.slots[slots, :width] = links.to(torch.int32)
        self.slot_stamps[slots, :width] = stamps
        self._measure(rows, slots, slots[~fresh], size, graph)
        if graph is None or slots.numel() * _UPDATE_SHARE > size:
            self.forget_graph()
        else:
            self._update(graph, slots.sort().values, size)

    def _live(self, rows: Any, columns: Any) -> Any:
        target = self.slots.numpy()[rows, columns]
        stamp = self.stamps.numpy()[np.maximum(target, 0)]
        return (target >= 0) & (stamp == self.slot_stamps.numpy()[rows, columns])

    def _update(self, graph: SymmetricLinks, written: Tensor, size: int) -> None:
        slots = written.numpy()
        lists, squared = self.slots.numpy(), self.squared.numpy()
        source = np.repeat(slots, self.k)
        column = np.tile(np.arange(self.k), slots.size)
        live = self._live(source, column)
        inward, where = listing(graph, slots, lists, self._live)
        others = ~np.isin(inward, slots)
        row = np.concatenate([source[live], inward[others].astype(np.int64)])
        column = np.concatenate([column[live], where[others]])
        links = (row, lists[row, column].astype(np.int64), squared[row, column])
        self._keep_graph(updated(graph, slots, links, size, self._rooms))

    def _measure(
        self,
        rows: Tensor,
        written: Tensor,
        refreshed: Tensor,
        size: int,
        graph: SymmetricLinks | None,
    ) -> None:
        neighbors = self.slots[written].long().clamp(min=0)
        source = written.repeat_interleave(self.k)
        squared = pair_distances(rows, source, rows, neighbors.reshape(-1))
        self.squared[written] = squared.view_as(neighbors).to(self.squared.dtype)
        if refreshed.numel() == 0:
            return
        moved = torch.zeros(self.slots.size(0), dtype=torch.bool, device=rows.device)
        moved[refreshed] = True
        flat = self.slots[:size].reshape(-1)
        if graph is None:
            hit = (moved[flat.clamp(min=0)] & (flat >= 0)).nonzero().squeeze(1)
        else:
            # Those that list a refreshed row are among its neighbors.
            row, column = listing(graph, refreshed.numpy(), self.slots.numpy(), self._live)
            listed = self.slots[written]
            among = (moved[listed.clamp(min=0)] & (listed >= 0)).nonzero()
            inward = torch.from_numpy(row.astype(np.int64) * self.k + column)
            hit = torch.cat([inward, written[among[:, 0]] * self.k + among[:, 1]])
        # Links to a former tenant are dead and keep the length they had.
        alive = self.stamps[flat[hit].long()] == self.slot_stamps[:size].reshape(-1)[hit]
        hit = hit[alive]
        squared = pair_distances(rows, hit // self.k, rows, flat[hit].long())
        self.squared[:size].view(-1)[hit] = squared.to(self.squared.dtype)

    def search_all(self, search: RowSearch, rows: Tensor, size: int, progress: bool) -> None:
        """Replace the list of every slot by the nearest of the first `size` of `rows`."""
        width = min(self.k, size - 1)
        if width < 1:
            return
        for start in track(
            range(0, size, _QUERIES), "Linking the memory bank", disable=not progress
        ):
            slots = torch.arange(start, min(start + _QUERIES, size), device=rows.device)
            found = search.others(rows[slots].float(), rows, size, slots, width)
            self.slots[slots] = -1
            self.slots[slots, :width] = found.indices.to(torch.int32)
            self.slot_stamps[slots, :width] = self.stamps[found.indices]
            self.squared[slots, :width] = found.squared_distances.to(self.squared.dtype)

    def live(self, size: int) -> Tensor:
        """Which links (size, k) bool of the first `size` slots live."""
        lists = self.slots[:size]
        return (self.stamps[lists.clamp(min=0)] == self.slot_stamps[:size]) & (lists >= 0)

    def edges(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Live links among the first `size` slots: source, target, squared length, each (E,)."""
        position = self.live(size).reshape(-1).nonzero().squeeze(1)
        target = self.slots[:size].reshape(-1)[position].long()
        return position // self.k, target, self.squared[:size].reshape(-1)[position]

    def reset(self) -> None:
        """Forget every list."""
        self.slots.fill_(-1)
        for buffer in (self.slot_stamps, self.squared, self.stamps):
            buffer.zero_()
