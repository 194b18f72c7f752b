"""Links between nodes (batch rows first, then remembered rows), their lengths, and edges of them.

Squared lengths carry the gradient of the batch rows, once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice
from gloss_graph._internal.precision import first_order
from gloss_graph.graph.settings import SYMMETRIZE, KNNGraph
from gloss_graph.memory import MemoryBank
from gloss_graph.neighbors import NeighborLists, nearest_others
from gloss_graph.neighbors.adjacency import union_rows
from gloss_graph.neighbors.exact import pair_distances

# Rows that are searched at a time.
_CHUNK = 1024
# Entries of the (links, D) difference held at a time.
_CHUNK_ENTRIES = 8_000_000


class _BatchDistances(torch.autograd.Function):
    """One matrix product each way; the chain of small operations would cost more than they do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gram = x @ x.T
        norms = gram.diagonal().clone()
        # In this order (i, j) and (j, i) are equal bit for bit.
        squared = (norms.unsqueeze(1) + norms).sub_(gram, alpha=2.0).clamp_(min=0.0)
        # Kernels that are singular at 0 stay finite at an ordinary value.
        squared.fill_diagonal_(1.0)
        ctx.save_for_backward(x)
        return squared

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        pull = -2.0 * (grad + grad.T)
        pull.diagonal().sub_(pull.sum(dim=1))
        return pull @ x


def batch_squared_distances(x: Tensor) -> Tensor:
    """Squared distances (B, B) of all rows; the ones on the diagonal must be left out."""
    return _BatchDistances.apply(x)


class _LinkDistances(torch.autograd.Function):
    """Chunked forward and backward: O(L D) time, O(N D + L) memory, never (L, D) at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, source, target)
        out = x.new_empty(source.numel())
        for part in _parts(source.numel(), x.size(1)):
            out[part] = pair_distances(x, source[part], x, target[part])
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, source, target = ctx.saved_tensors
        grad_x = torch.zeros_like(x)
        for part in _parts(source.numel(), x.size(1)):
            delta = 2.0 * grad[part].unsqueeze(1) * (x[source[part]] - x[target[part]])
            grad_x.index_add_(0, source[part], delta)
            grad_x.index_add_(0, target[part], delta, alpha=-1.0)
        return grad_x, None, None


def _parts(length: int, dim: int) -> list[slice]:
    step = max(1, _CHUNK_ENTRIES // dim)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _RowDistances(torch.autograd.Function):
    """From x (B, D) to rows (B, k, D). The differences are kept: they give the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        difference = rows.sub_(x.unsqueeze(1))
        ctx.save_for_backward(difference, x)
        return torch.linalg.vector_norm(difference, dim=2).square_()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        difference, _ = ctx.saved_tensors
        return torch.bmm(grad.unsqueeze(1), difference).squeeze(1).mul_(-2.0), None


class Links(NamedTuple):
    """Directed links (L,) before they are made undirected: both ends, and squared lengths."""

    source: Tensor
    target: Tensor
    squared: Tensor


def join(*links: Links) -> Links:
    """All links in one, in the dtype of the first."""
    dtype = links[0].squared.dtype
    source, target, squared = zip(*links, strict=True)
    return Links(
        torch.cat(source), torch.cat(target), torch.cat([part.to(dtype) for part in squared])
    )


class Edges(NamedTuple):
    """Undirected edges (2, E) in both directions, and the lists they come from.

    Attributes:
        edge_index: (2, E) long.
        squared: (E,) squared lengths; (B, B) of all pairs of a batch alone, whose diagonal of ones
            must be left out.
        batch_lists: (B, k) squared distances to the neighbors of every batch row.
        memory_lists: (M', k') those of the stored links of every remembered row, `inf` for none.
    """

    edge_index: Tensor
    squared: Tensor
    batch_lists: Tensor
    memory_lists: Tensor


def all_edges(x: Tensor, graph: KNNGraph) -> Edges:
    """All pairs of the rows x (B, D)."""
    size, squared = x.size(0), batch_squared_distances(x)
    lists = x.new_empty(0, graph.k)
    if graph.bandwidth == "local":
        others = squared.detach().clone().fill_diagonal_(torch.inf)
        lists = others.topk(min(graph.k, size - 1), dim=1, largest=False).values
    return Edges(all_pairs(size, x.device), squared, lists, lists[:0])


def listed_edges(
    x: Tensor,
    graph: KNNGraph,
    all_batch: bool,
    memory: MemoryBank | None,
    slots: Tensor,
    neighbors: NeighborLists | None,
) -> Edges:
    """Edges of the rows x (B, D) and the remembered rows in `slots`, searched and inherited."""
    size, mutual = x.size(0), graph.symmetrize == "mutual"
    links, batch_lists = batch_links(x, memory, slots, neighbors, graph.k, all_batch)
    memory_lists = x.new_empty(0, graph.k)
    if memory is not None:
        stored = stored_links(memory, slots, size)
        links = join(links, stored)
        if mutual or graph.bandwidth == "local":
            # A bank without links has empty lists.
            memory_lists = stored_lists(stored, size, slots.numel(), max(1, memory.k))
        if mutual:
            links = join(links, returned_links(links, memory_lists, size))
    total = size + slots.numel()
    edges, link = symmetrize_links(links.source, links.target, total, graph.symmetrize)
    return Edges(edges, links.squared.index_select(0, link), batch_lists, memory_lists)


def batch_links(
    x: Tensor,
    memory: MemoryBank | None,
    slots: Tensor,
    neighbors: NeighborLists | None,
    k: int,
    all_batch: bool,
) -> tuple[Links, Tensor]:
    """Directed links of the batch rows, and their (B, k) squared distance lists.

    `slots` are sorted, and hold every slot that a list names.
    """
    size = x.size(0)
    if memory is None or neighbors is None:
        source, target, lists = corpus_links(x.detach(), k)
        return Links(source, target, _LinkDistances.apply(x, source, target)), lists
    index = neighbors.indices
    row, column = (index >= 0).nonzero(as_tuple=True)
    slot = index[row, column]
    squared = x.new_empty(0)
    if slot.numel():
        rows = memory.rows[index.clamp(min=0)].to(x.dtype)
        squared = _RowDistances.apply(x, rows)[row, column]
    to_memory = Links(row, size + torch.searchsorted(slots, slot), squared)
    if all_batch:
        left, right = all_pairs(size, x.device)
    else:
        left, column = (index <= -2).nonzero(as_tuple=True)
        right = -2 - index[left, column]
    in_batch = Links(left, right, batch_squared_distances(x)[left, right])
    return join(to_memory, in_batch), neighbors.squared_distances


def stored_links(memory: MemoryBank, slots: Tensor, size: int) -> Links:
    """Inherited links among `slots`, in node numbers, sorted by source."""
    node_of = torch.full((len(memory),), -1, dtype=torch.long, device=slots.device)
    node_of[slots] = torch.arange(size, size + slots.numel(), device=slots.device)
    source, target, squared = memory.edges()
    source, target = node_of[source], node_of[target]
    keep = (source >= 0) & (target >= 0)
    return Links(source[keep], target[keep], squared[keep])


def within_hops(
    memory: MemoryBank, present: Tensor, neighbors: NeighborLists, hops: int, kept: bool
) -> Tensor:
    """Slots (n,) that are `present` (M,) and at most `hops` links from the batch, sorted.

    With `kept`, over the graph that the bank keeps: cost O(edges of those rows), and O(M) bytes.
    """
    start = neighbors.indices[neighbors.indices >= 0]
    if kept:
        absent = (~present).nonzero().squeeze(1)
        graph = memory.links.symmetric(len(memory))
        return torch.from_numpy(graph.within(start.numpy(), hops - 1, absent.numpy()))
    near = torch.zeros_like(present)
    near[start] = True
    source, target, _ = memory.edges()
    inside = present[source] & present[target]
    source, target = source[inside], target[inside]
    for _ in range(hops - 1):
        grown = near.clone()
        grown[target[near[source]]] = True
        grown[source[near[target]]] = True
        near = grown
    return (near & present).nonzero().squeeze(1)


def stored_lists(stored: Links, size: int, count: int, k: int) -> Tensor:
    """Squared distances (count, k) of the stored links of every memory node, `inf` for none."""
    lists = stored.squared.new_full((count, k), torch.inf)
    row = stored.source - size
    column = torch.arange(row.numel(), device=row.device) - torch.searchsorted(row, row)
    lists[row, column] = stored.squared
    return lists


def returned_links(links: Links, memory_lists: Tensor, size: int) -> Links:
    """The links that memory nodes would have to batch rows if their lists were made now.

    A memory node lists a batch row that is closer than the farthest neighbor it has stored.
    """
    farthest = memory_lists.masked_fill(torch.isinf(memory_lists), -1.0).amax(dim=1)
    outward = (links.source < size) & (links.target >= size)
    row, node, squared = (part[outward] for part in links)
    closer = squared.detach() < farthest[node - size]
    return Links(node[closer], row[closer], squared[closer])


def corpus_links(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact k-nearest-neighbor links of a set of rows to itself, and their distance lists."""
    size = x.size(0)
    k = min(k, size - 1)
    if k < 1:
        none = torch.empty(0, dtype=torch.long, device=x.device)
        return none, none, x.new_empty(size, 0)
    rows = torch.arange(size, device=x.device)
    found = [nearest_others(x[part], x, part, k) for part in rows.split(_CHUNK)]
    target = torch.cat([chunk.indices for chunk in found])
    squared = torch.cat([chunk.squared_distances for chunk in found])
    return rows.repeat_interleave(k), target.flatten(), squared


def symmetrize_links(
    source: Tensor, target: Tensor, num_nodes: int, mode: str = "union"
) -> tuple[Tensor, Tensor]:
    """Undirected edges of a directed neighbor graph, both directions, coalesced.

    Args:
        source: (L,) long.
        target: (L,) long; no self-links, no repeated (source, target) pair.
        num_nodes: N.
        mode: `"union"` keeps a pair if either lists the other, `"mutual"` only if both do.

    Returns:
        `edge_index` (2, E) long, sorted by row, then column, and `link` (E,) long: the link that
        each edge came from. Both directions of a pair name the same link, so values computed per
        link are exactly symmetric.

    Raises:
        ValueError: Unknown mode.

    Cost O(L) for the union on CPU (counting sort), else O(L log L).

    Example:
        >>> import torch
        >>> edges, link = symmetrize_links(torch.tensor([0, 2]), torch.tensor([1, 1]), 3)
        >>> edges.tolist(), link.tolist()
        ([[0, 1, 1, 2], [1, 0, 2, 1]], [0, 0, 1, 1])
    """
    check_choice("symmetrize", mode, SYMMETRIZE)
    if source.numel() == 0:
        return torch.stack([source, target]), source
    if source.device.type != "cpu" or mode == "mutual":
        return symmetrize_by_sorting(source, target, num_nodes, mode)
    pointer, column, link = union_rows(source.numpy(), target.numpy(), num_nodes)
    row = np.repeat(np.arange(num_nodes, dtype=np.int64), np.diff(pointer))
    edge_index = torch.from_numpy(np.stack([row, column.astype(np.int64)]))
    return edge_index, torch.from_numpy(link.astype(np.int64))


def symmetrize_by_sorting(
    source: Tensor, target: Tensor, num_nodes: int, mode: str
) -> tuple[Tensor, Tensor]:
    """As `symmetrize_links`, on any device."""
    number = torch.arange(source.numel(), device=source.device)
    key = torch.cat([source * num_nodes + target, target * num_nodes + source])
    link = torch.cat([number, number])
    unique, inverse, counts = key.unique(return_inverse=True, return_counts=True)
    chosen = torch.full_like(unique, -1)
    reduce = "amax" if mode == "union" else "amin"
    chosen = chosen.scatter_reduce(0, inverse, link, reduce, include_self=False)
    if mode == "mutual":
        unique, chosen = unique[counts > 1], chosen[counts > 1]
    return torch.stack([unique // num_nodes, unique % num_nodes]), chosen


@lru_cache(maxsize=32)
def all_pairs(num_nodes: int, device: torch.device) -> Tensor:
    """Every ordered pair of distinct nodes (2, N(N-1)), sorted. Cached: not to be written to."""
    flat = torch.arange(num_nodes * num_nodes, device=device)
    row, column = flat // max(num_nodes, 1), flat % max(num_nodes, 1)
    keep = row != column
    return torch.stack([row[keep], column[keep]])
