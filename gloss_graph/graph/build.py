"""The document graph: batch rows and remembered rows, connected by similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.settings import with_short_forms
from gloss_graph.graph.bandwidth import (
    BandwidthRule,
    bandwidth_of_distances,
    drawn_rows,
    estimate_bandwidth,
    local_scales,
)
from gloss_graph.graph.bank_graph import BankEdges, bank_edges, near_slots, suits_bank_edges
from gloss_graph.graph.batch import check_batch, check_memory
from gloss_graph.graph.distances import batch_squared_distances, weigh
from gloss_graph.graph.kernels import Kernel
from gloss_graph.graph.links import (
    batch_links,
    join,
    returned_links,
    stored_links,
    stored_lists,
    within_hops,
)
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.symmetrize import (
    all_pairs,
    diagonal_mask,
    off_diagonal,
    symmetrize_links,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.incoming import Batch, join_targets
from gloss_graph.neighbors import NeighborLists

BATCH_BATCH, BATCH_MEMORY, MEMORY_MEMORY = 0, 1, 2
# Memory rows the bandwidth rules look at beside the batch.
_BANDWIDTH_MEMORY_ROWS = 384


class Connection(NamedTuple):
    """The edges of one step, and what the rest of the step needs beside them.

    Nodes are the `size` batch rows, then the remembered rows `slots` (M',) long: node size + m is
    bank slot `slots[m]`. `edge_index` (2, E) long and `edge_weight` (E,); when all batch pairs
    are connected and no remembered row takes part, `full` (B, B) holds the weights instead and
    `edge_weight` is None. `y` (N,) labels, `bandwidth` scalar, `neighbors` the lists to enqueue
    with the batch (None without a bank). `shown` (n,) bool says which of the nodes that take part,
    batch rows first, show their label. `targets` (N, C) of label sets, or None; `y` then says which
    nodes have any (0 or -1).

    With `bank` the edges stand there instead (none in `edge_index`) and, without `hops`, every
    stored row is a node, size + slot; those not among `slots` take no part, their `y` is -1.
    """

    edge_index: Tensor
    edge_weight: Tensor | None
    full: Tensor | None
    y: Tensor
    size: int
    slots: Tensor
    neighbors: NeighborLists | None
    bandwidth: Tensor
    shown: Tensor
    targets: Tensor | None = None
    bank: BankEdges | None = None

    def on_nodes(self, mask: Tensor) -> Tensor:
        """A mask over the nodes that take part as one over all nodes (N,) bool."""
        if self.y.numel() == mask.numel():
            return mask
        out = torch.zeros_like(self.y, dtype=torch.bool)
        out[: self.size] = mask[: self.size]
        out[self.size + self.slots] = mask[self.size :]
        return out


def build_document_graph(
    embeddings: Tensor,
    labels: Tensor | None = None,
    ids: Tensor | None = None,
    *,
    memory: MemoryBank | None = None,
    graph: KNNGraph | None = None,
    k: int | None = None,
    kernel: str | Kernel | None = None,
    bandwidth: float | str | BandwidthRule | None = None,
    symmetrize: str | None = None,
    batch_edges: str | None = None,
    hops: int | None = None,
    normalize_embeddings: bool | None = None,
) -> Data:
    r"""Connect documents by similarity: a batch to a memory bank, or a whole corpus to itself.

    The k-nearest-neighbor graph of batch and bank, weighted as `KNNGraph` says. The B x M search
    is the only one: links among remembered rows are inherited. Stored copies of the batch's own
    documents (same `ids`) are left out of the graph.

    Shapes: B batch rows, M' remembered rows in the graph, N = B + M' nodes (batch first), E
    directed edges.

    Args:
        embeddings: (B, D) floating; edges that touch these rows carry their gradient.
        labels: (B,) integer, -1 = unlabeled (all unlabeled when left out); or label sets (B, C)
            floating in [0, 1], a row of NaN = unlabeled.
        ids: (B,) integer >= 0, document identities; by default 0..B-1 without a bank.
        memory: The bank, which is read only. None or empty: a graph of the batch alone.
        graph: How the documents are connected.
        k: Short form of `KNNGraph.k`.
        kernel: Short form of `KNNGraph.kernel`.
        bandwidth: Short form of `KNNGraph.bandwidth`.
        symmetrize: Short form of `KNNGraph.symmetrize`.
        batch_edges: Short form of `KNNGraph.batch_edges`.
        hops: Short form of `KNNGraph.hops`.
        normalize_embeddings: Short form of `KNNGraph.normalize`.

    Returns:
        `Data` with `edge_index` (2, E) long, undirected, coalesced, no self-loops; `edge_weight`
        (E,), differentiable; `y` (N,) long, (N, C) of label sets; `doc_id` (N,) long;
        `in_batch` (N,) bool; `seed_mask` (N,) bool = labeled; `age` (N,) long, 0 in the
        batch; `edge_kind` (E,) long: 0 batch-batch, 1 batch-memory, 2 memory-memory; `bandwidth`
        (scalar \(\sigma\), NaN for `"local"`).

    Raises:
        TypeError: A value that is not a tensor.
        ValueError: Shapes, dtypes or devices that disagree; non-finite embeddings; a setting out
            of range or unknown; a bank of another dimension.

    Cost O(B M D + (B + M) k) with a bank, O(N² D) for the exact graph of a corpus.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> data = build_document_graph(x, torch.tensor([0, -1, 1]), k=1, bandwidth=1.0)
        >>> data.edge_index.tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]

    See also: `to_networkx` exports the result; `LabelPropagation` propagates labels over it.
    """
    graph = with_short_forms(
        "graph",
        graph,
        KNNGraph,
        k=k,
        kernel=kernel,
        bandwidth=bandwidth,
        symmetrize=symmetrize,
        batch_edges=batch_edges,
        hops=hops,
        normalize=normalize_embeddings,
    )
    check_memory(memory, graph.normalize)
    num_classes = None if memory is None else memory.num_classes
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2:
        num_classes = labels.size(1)
    batch = check_batch(
        embeddings,
        labels,
        ids,
        memory=memory,
        normalize=graph.normalize,
        num_classes=num_classes,
    )
    # All pairs of a corpus are connected only where the caller asks for them.
    all_batch = graph.batch_edges == "all"
    connection = connect(batch, graph, memory=memory, all_batch=all_batch)
    return document_data(connection, batch.ids, memory)


def connect(
    batch: Batch,
    graph: KNNGraph,
    *,
    memory: MemoryBank | None,
    all_batch: bool | None = None,
    neighbors: NeighborLists | None = None,
    listed: bool = True,
    show: Callable[[Tensor], Tensor] | None = None,
) -> Connection:
    """Connect a checked batch to itself and to a bank.

    Args:
        batch: The rows.
        graph: How they are connected.
        memory: The bank or None.
        all_batch: Whether all pairs of the batch are connected; None: as `graph` says, `"auto"`
            being those of a batch without remembered rows.
        neighbors: The lists of the batch in the bank; searched for when left out.
        listed: False may leave the edges among remembered rows where the bank keeps them.
        show: Says of the labels (n,) of the nodes that take part, batch rows first, which are
            shown (n,) bool; all by default. The bandwidth sees no other label.
    """
    x, labels, targets = batch.x, batch.labels, batch.targets
    k, bandwidth, symmetrize, hops = graph.k, graph.bandwidth, graph.symmetrize, graph.hops
    size = x.size(0)
    slots = _remembered(memory, batch.slots, x.device)
    if memory is not None and neighbors is None:
        neighbors = memory.neighbors_of(batch, k)
    if (
        memory is not None
        and neighbors is not None
        and not listed
        and slots.numel()
        and suits_bank_edges(memory, bandwidth, symmetrize)
    ):
        near = slots if hops is None else near_slots(memory, slots, neighbors, hops)
        if near.numel():
            every = graph.batch_edges == "all" if all_batch is None else all_batch
            return _connect_bank(batch, graph, memory, near, neighbors, every, show)
    stored = stored_links(memory, slots, size)
    if memory is not None and neighbors is not None and hops is not None:
        slots = within_hops(memory, neighbors, slots, stored, hops)
        stored = stored_links(memory, slots, size)
    alone = slots.numel() == 0
    if all_batch is None:
        all_batch = graph.batch_edges == "all" or (graph.batch_edges == "auto" and alone)
    y = labels if memory is None else torch.cat([labels, memory.slot_labels[slots]])
    if targets is not None and memory is not None and memory.slot_targets is not None:
        targets = torch.cat([targets, memory.slot_targets[slots].to(x.dtype)])
    memory_lists = x.new_empty(0, k)
    if alone and all_batch:
        edge_index = all_pairs(size, x.device)
        squared = batch_squared_distances(x)
        batch_lists = _nearest_lists(squared, k) if bandwidth == "local" else memory_lists
    else:
        if memory is not None and (bandwidth == "local" or symmetrize == "mutual"):
            # A bank without links has empty lists.
            memory_lists = stored_lists(stored, size, slots.numel(), max(1, memory.k))
        links, batch_lists = batch_links(x, memory, slots, neighbors, k, all_batch)
        if memory is not None:
            links = join(links, stored)
        if memory is not None and symmetrize == "mutual":
            links = join(links, returned_links(links, memory_lists, size))
        num_nodes = size + slots.numel()
        edge_index, link = symmetrize_links(links.source, links.target, num_nodes, symmetrize)
        squared = links.squared.index_select(0, link)

    shown, visible = _shown(y, show)
    if bandwidth == "local":
        scales = torch.cat([local_scales(batch_lists), local_scales(memory_lists)]).to(x.dtype)
        sigma = scales.new_tensor(float("nan"))
        if squared.dim() == 2:
            squared_sigma = torch.outer(scales, scales)
        else:
            squared_sigma = scales[edge_index[0]] * scales[edge_index[1]]
    else:
        points, found = x.detach(), None
        if squared.dim() == 2:
            found = bandwidth_of_distances(bandwidth, points, squared.detach())
        sigma = _bandwidth(bandwidth, points, visible, memory, slots) if found is None else found
        squared_sigma = sigma.square()
    # A kernel sees one entry per edge, however they are stored here.
    weight = weigh(graph.weight, squared.flatten(), squared_sigma.flatten())
    edge_weight, full = (weight if squared.dim() == 1 else None), None
    if edge_weight is None:
        full = weight.view(size, size).masked_fill(diagonal_mask(size, x.device), 0.0)
    return Connection(
        edge_index=edge_index,
        edge_weight=edge_weight,
        full=full,
        y=y,
        size=size,
        slots=slots,
        neighbors=neighbors,
        bandwidth=sigma,
        shown=shown,
        targets=targets,
    )


def _connect_bank(
    batch: Batch,
    graph: KNNGraph,
    memory: MemoryBank,
    slots: Tensor,
    neighbors: NeighborLists,
    all_batch: bool,
    show: Callable[[Tensor], Tensor] | None,
) -> Connection:
    """As `connect`, with the edges among remembered rows left where the bank keeps them.

    Nodes are all slots of the bank, or with `hops` only the `slots` near the batch.
    """
    x, labels, targets = batch.x, batch.labels, batch.targets
    near = graph.hops is not None
    shown, visible = _shown(torch.cat([labels, memory.slot_labels[slots]]), show)
    sigma = _bandwidth(graph.bandwidth, x.detach(), visible, memory, slots)
    edges = bank_edges(
        x,
        memory,
        slots,
        neighbors,
        k=graph.k,
        all_batch=all_batch,
        kernel=graph.weight,
        squared_bandwidth=sigma.square(),
        only=near,
    )
    which: Tensor | slice = slots if near else slice(len(memory))
    y = torch.cat([labels, memory.slot_labels[which]])
    y[edges.absent] = -1
    if targets is not None and memory.slot_targets is not None:
        targets = torch.cat([targets, memory.slot_targets[which].to(x.dtype)])
    return Connection(
        edge_index=slots[:0].expand(2, 0),
        edge_weight=None,
        full=None,
        y=y,
        size=x.size(0),
        slots=slots,
        neighbors=neighbors,
        bandwidth=sigma,
        shown=shown,
        targets=targets,
        bank=edges,
    )


def _shown(y: Tensor, show: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Which labels (n,) are shown, and the labels without the others."""
    shown = y >= 0 if show is None else show(y)
    return shown, torch.where(shown, y, -1)


def _nearest_lists(squared: Tensor, k: int) -> Tensor:
    """The k smallest of every row of a distance matrix (B, B), the diagonal left out."""
    size = squared.size(0)
    others = squared.detach().masked_fill(diagonal_mask(size, squared.device), torch.inf)
    return others.topk(min(k, size - 1), dim=1, largest=False).values


def _remembered(memory: MemoryBank | None, copies: Tensor | None, device: torch.device) -> Tensor:
    """Slots that take part: all stored rows but the batch's own copies, in slots (B,) or -1."""
    if memory is None or len(memory) == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    keep = torch.ones(len(memory), dtype=torch.bool, device=device)
    if copies is not None:
        keep[copies[copies >= 0]] = False
    return keep.nonzero().squeeze(1)


def _bandwidth(
    bandwidth: float | str | BandwidthRule,
    x: Tensor,
    labels: Tensor,
    memory: MemoryBank | None,
    slots: Tensor,
) -> Tensor:
    """Bandwidth from the batch and a draw of the remembered rows; `labels` (n,) are of both."""
    if memory is None or slots.numel() == 0:
        return estimate_bandwidth(bandwidth, x, labels)
    own, known = labels.split([x.size(0), slots.numel()])
    if slots.numel() > _BANDWIDTH_MEMORY_ROWS:
        keep = drawn_rows(bandwidth, slots.numel(), known, _BANDWIDTH_MEMORY_ROWS).to(x.device)
        slots, known = slots[keep], known[keep]
    x = torch.cat([x, memory.rows[slots].to(x.dtype)])
    return estimate_bandwidth(bandwidth, x, torch.cat([own, known]))


def document_data(connection: Connection, ids: Tensor | None, memory: MemoryBank | None) -> Data:
    """The `Data` of a connection, with the provenance of nodes and edges."""
    size, slots, y, targets = connection.size, connection.slots, connection.y, connection.targets
    device = slots.device
    num_nodes = size + slots.numel()
    edge_weight = connection.edge_weight
    if edge_weight is None and connection.full is not None:
        edge_weight = off_diagonal(connection.full)
    data = Data(
        edge_index=connection.edge_index,
        edge_weight=edge_weight,
        y=y if targets is None else join_targets(y, targets),
        num_nodes=num_nodes,
    )
    if ids is None:
        # Without a bank the position is the identity; with one it would collide with stored ids.
        ids = torch.arange(size, device=device)
        ids = ids if memory is None else torch.full_like(ids, -1)
    data.doc_id = ids if memory is None else torch.cat([ids, memory.slot_ids[slots]])
    data.in_batch = torch.arange(num_nodes, device=device) < size
    data.seed_mask = y >= 0
    age = torch.zeros(size, dtype=torch.long, device=device)
    data.age = age if memory is None else torch.cat([age, memory.age[slots]])
    data.edge_kind = edge_kind(connection)
    data.bandwidth = connection.bandwidth
    return data


def edge_kind(connection: Connection) -> Tensor:
    """(E,) long: 0 batch-batch, 1 batch-memory, 2 memory-memory."""
    if connection.slots.numel() == 0:
        return torch.zeros_like(connection.edge_index[0])
    return (connection.edge_index >= connection.size).sum(dim=0)
