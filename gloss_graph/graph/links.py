"""Directed neighbour links, in node numbers: batch rows first, then remembered rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph.graph.distances import (
    batch_squared_distances,
    link_squared_distances,
    row_squared_distances,
)
from gloss_graph.graph.symmetrize import all_pairs
from gloss_graph.memory import MemoryBank
from gloss_graph.neighbors import NeighborLists, nearest_others

_CHUNK = 1024


class Links(NamedTuple):
    """Directed links (L,) before symmetrisation: ends, in node numbers, and squared lengths."""

    source: Tensor
    target: Tensor
    squared: Tensor


def stored_links(memory: MemoryBank | None, slots: Tensor, size: int) -> Links:
    """Inherited links among `slots`, in node numbers, sorted by source."""
    if memory is None:
        none = slots[:0]
        return Links(none, none, none.float())
    node_of = torch.full((len(memory),), -1, dtype=torch.long, device=slots.device)
    node_of[slots] = torch.arange(size, size + slots.numel(), device=slots.device)
    source, target, squared = memory.edges()
    source, target = node_of[source], node_of[target]
    keep = (source >= 0) & (target >= 0)
    return Links(source[keep], target[keep], squared[keep])


def within_hops(
    memory: MemoryBank, neighbors: NeighborLists, slots: Tensor, stored: Links, hops: int
) -> Tensor:
    """The `slots` reachable from the batch in at most `hops` links, either direction."""
    size = neighbors.indices.size(0)
    near = torch.zeros(len(memory), dtype=torch.bool, device=slots.device)
    near[neighbors.indices[neighbors.indices >= 0]] = True
    source, target = slots[stored.source - size], slots[stored.target - size]
    for _ in range(hops - 1):
        grown = near.clone()
        grown[target[near[source]]] = True
        grown[source[near[target]]] = True
        near = grown
    return slots[near[slots]]


def join(*links: Links) -> Links:
    """All links in one, in the dtype of the first."""
    dtype = links[0].squared.dtype
    source, target, squared = zip(*links, strict=True)
    return Links(
        torch.cat(source), torch.cat(target), torch.cat([part.to(dtype) for part in squared])
    )


def batch_links(
    x: Tensor,
    memory: MemoryBank | None,
    slots: Tensor,
    neighbors: NeighborLists | None,
    k: int,
    all_batch: bool,
) -> tuple[Links, Tensor]:
    """Directed links of the batch rows, and their (B, k) squared distance lists."""
    size = x.size(0)
    if memory is None or neighbors is None:
        source, target, lists = corpus_links(x.detach(), k)
        return Links(source, target, link_squared_distances(x, source, target)), lists

    index = neighbors.indices
    row, column = (index >= 0).nonzero(as_tuple=True)
    slot = index[row, column]
    squared = x.new_empty(0)
    if slot.numel():
        squared = row_squared_distances(x, memory.rows, index)[row, column]
    # `slots` are sorted, and hold every slot a list names.
    to_memory = Links(row, size + torch.searchsorted(slots, slot), squared)

    if all_batch:
        left, right = all_pairs(size, x.device)
    else:
        left, column = (index <= -2).nonzero(as_tuple=True)
        right = -2 - index[left, column]
    in_batch = Links(left, right, batch_squared_distances(x)[left, right])
    return join(to_memory, in_batch), neighbors.squared_distances


def stored_lists(stored: Links, size: int, count: int, k: int) -> Tensor:
    """Squared distances (count, k) of the stored links of every memory node, `inf` for none."""
    lists = stored.squared.new_full((count, k), torch.inf)
    row = stored.source - size
    column = torch.arange(row.numel(), device=row.device) - torch.searchsorted(row, row)
    lists[row, column] = stored.squared
    return lists


def returned_links(links: Links, memory_lists: Tensor, size: int) -> Links:
    """The links memory nodes would have to batch rows, were their stored lists not older.

    A memory node lists a batch row that is closer than the farthest neighbour it has stored.
    """
    farthest = memory_lists.masked_fill(torch.isinf(memory_lists), -1.0).amax(dim=1)
    outward = (links.source < size) & (links.target >= size)
    row, node, squared = (part[outward] for part in links)
    closer = squared.detach() < farthest[node - size]
    return Links(node[closer], row[closer], squared[closer])


def corpus_links(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact k-nearest-neighbour links of a set of rows to itself."""
    size = x.size(0)
    k = min(k, size - 1)
    if k < 1:
        none = torch.empty(0, dtype=torch.long, device=x.device)
        return none, none, x.new_empty(size, 0)
    own = torch.arange(size, device=x.device)
    found = [nearest_others(x[part], x, part, k) for part in own.split(_CHUNK)]
    target = torch.cat([chunk.indices for chunk in found])
    squared = torch.cat([chunk.squared_distances for chunk in found])
    return own.repeat_interleave(k), target.flatten(), squared
