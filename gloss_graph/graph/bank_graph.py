"""The graph of a step over a bank without listing its edges: what the bank keeps, and a border.

`connect` lists every edge of batch and bank anew. Here the edges among remembered rows stay in the
rows the bank keeps from step to step; only their weights are computed, and those that touch the
batch's own stored copies are set to 0. Both give the same graph; slots that take no part are nodes
without edges here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph.graph.distances import weigh
from gloss_graph.graph.kernels import Kernel
from gloss_graph.graph.links import batch_links
from gloss_graph.graph.symmetrize import symmetrize_links
from gloss_graph.memory import MemoryBank
from gloss_graph.neighbors import NeighborLists

# Fewer remembered rows are connected as fast by listing all edges.
LEAST_ROWS = 1024


class BankEdges(NamedTuple):
    """Edges of `size` batch rows and the M rows of a bank; node size + m is slot m.

    Attributes:
        edge_index: (2, E) long, the border: edges that touch the batch, both directions, sorted;
            ends are positions in `nodes`.
        edge_weight: (E,), differentiable.
        nodes: (T,) long, sorted, the ends of the border and all batch rows.
        pointer: (M + 1,) int32, rows of the edges among the slots.
        column: (F,) int32, their slots.
        weight: (F,) their weights, constants, 0 for edges of `absent`.
        absent: (n,) long, nodes of slots that take no part.
        owner: To be held as long as `pointer` and `column` are used.
        size: B.
    """

    edge_index: Tensor
    edge_weight: Tensor
    nodes: Tensor
    pointer: Tensor
    column: Tensor
    weight: Tensor
    absent: Tensor
    owner: object
    size: int


def suits_bank_edges(memory: MemoryBank | None, bandwidth: object, symmetrize: str) -> bool:
    """Whether `bank_edges` can serve, and pays."""
    if memory is None or memory.rows.device.type != "cpu" or memory.k == 0:
        return False
    return symmetrize == "union" and bandwidth != "local" and len(memory) >= LEAST_ROWS


def near_slots(memory: MemoryBank, slots: Tensor, neighbors: NeighborLists, hops: int) -> Tensor:
    """The `slots` (n,) long reachable from the batch in at most `hops` links, sorted.

    Cost O(edges of those rows), and O(M) bytes.
    """
    stored = len(memory)
    absent = torch.ones(stored, dtype=torch.bool)
    absent[slots] = False
    index = neighbors.indices
    start = index[index >= 0].numpy()
    graph = memory.links.symmetric(stored)
    return torch.from_numpy(graph.within(start, hops - 1, absent.nonzero().squeeze(1).numpy()))


def bank_edges(
    x: Tensor,
    memory: MemoryBank,
    slots: Tensor,
    neighbors: NeighborLists,
    *,
    k: int,
    all_batch: bool,
    kernel: Kernel,
    squared_bandwidth: Tensor,
    only: bool = False,
) -> BankEdges:
    """Edges of the batch rows `x` (B, D), normalized if the bank is, and the `slots` of the bank.

    With `only` no other slot is a node, and node size + m is slot `slots[m]`.

    Cost O(F) element by element for the weights, O(B k) for the rest.
    """
    size, stored = x.size(0), len(memory)
    every = slots if only else torch.arange(stored)
    links, _ = batch_links(x, memory, every, neighbors, k, all_batch)
    ends = torch.cat([torch.arange(size), links.source, links.target])
    nodes, place = ends.unique(return_inverse=True)
    source, target = place[size:].split(links.source.numel())
    edge_index, link = symmetrize_links(source, target, nodes.numel())
    edge_weight = weigh(kernel, links.squared.index_select(0, link), squared_bandwidth)

    graph = memory.links.symmetric(stored)
    absent = slots[:0]
    if only:
        pointer, column, squared = map(torch.from_numpy, graph.among(slots.numpy()))
        owner = None
    else:
        pointer, column, squared, owner = graph.pointer, graph.column, graph.squared, graph
        present = torch.zeros(stored, dtype=torch.bool)
        present[slots] = True
        absent = (~present).nonzero().squeeze(1)
    weight = weigh(kernel, squared.to(x.dtype), squared_bandwidth)
    if absent.numel():
        weight[torch.from_numpy(graph.touching(absent.numpy()))] = 0.0
    dtype = torch.promote_types(edge_weight.dtype, weight.dtype)
    edge_weight, weight = edge_weight.to(dtype), weight.to(dtype)
    return BankEdges(
        edge_index=edge_index,
        edge_weight=edge_weight,
        nodes=nodes,
        pointer=pointer,
        column=column,
        weight=weight,
        absent=absent + size,
        owner=owner,
        size=size,
    )
