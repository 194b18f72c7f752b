"""The document graph: batch rows and remembered rows, connected by similarity."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.settings import with_short_forms
from gloss_graph.graph.bandwidth import (
    BandwidthRule,
    drawn_rows,
    estimate_bandwidth,
    local_scales,
    reads_labels,
)
from gloss_graph.graph.batch import check_batch, check_memory
from gloss_graph.graph.kernels import Kernel, weigh
from gloss_graph.graph.links import (
    all_pairs,
    batch_links,
    batch_squared_distances,
    diagonal_mask,
    join,
    returned_links,
    stored_links,
    stored_lists,
    symmetrize_links,
    within_hops,
)
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import LabelSplit
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.incoming import Batch, join_targets
from gloss_graph.neighbors import NeighborLists

BATCH_BATCH, BATCH_MEMORY, MEMORY_MEMORY = 0, 1, 2
# With fewer remembered rows, listing all edges is as fast.
LEAST_ROWS = 1024
# Memory rows that the bandwidth rules look at, with the batch.
_BANDWIDTH_MEMORY_ROWS = 384


class BankEdges(NamedTuple):
    """Edges of `size` batch rows and the M rows of a bank; node size + m is slot m.

    The edges among remembered rows stay where the bank keeps them from step to step; only their
    weights are computed. Slots that take no part are nodes without edges.

    Attributes:
        edge_index: (2, E) long, the border: edges that touch the batch, both directions, sorted;
            ends are positions in `nodes`.
        edge_weight: (E,), differentiable.
        nodes: (T,) long, sorted, the ends of the border and all batch rows.
        pointer: (M + 1,) int32, rows of the edges among the slots.
        column: (F,) int32, their slots.
        weight: (F,) their weights, constants, 0 for edges of `absent`.
        absent: (n,) long, nodes of slots that take no part.
        owner: Must be held as long as `pointer` and `column` are used.
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


class Connection(NamedTuple):
    """The edges of one step, and what the rest of the step needs with them.

    Nodes are the `size` batch rows, then the remembered rows `slots`: node size + m is slot
    `slots[m]` of the bank.

    Attributes:
        edge_index: (2, E) long.
        edge_weight: (E,); None where all batch pairs are connected and no remembered row takes
            part.
        full: (B, B), the weights in that case.
        y: (N,) labels; with label sets 0 or -1, whether a node has any.
        size: B.
        slots: (M',) long.
        neighbors: The lists to enqueue with the batch; None without a bank.
        bandwidth: Scalar.
        shown: (N,) bool, the nodes that show their label.
        targets: (N, C) label sets, or None.
        bank: Holds the edges instead (and `edge_index` none). Every stored row is then a node,
            size + slot, unless the graph has `hops`; those not among `slots` take no part, their
            `y` is -1.
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
    is the only one: links among remembered rows are inherited. Stored copies of the batch's
    documents (same `ids`) are left out of the graph.

    Shapes: B batch rows, M' remembered rows in the graph, N = B + M' nodes (batch first), E
    directed edges.

    Args:
        embeddings: (B, D) floating; edges that touch these rows carry their gradient.
        labels: (B,) integer, -1 = unlabeled (the default for all); or label sets (B, C) floating
            in [0, 1], a row of NaN = unlabeled.
        ids: (B,) integer >= 0, document identities; by default 0..B-1 without a bank.
        memory: The bank, which is only read. None or empty: a graph of the batch alone.
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
        ValueError: Values or settings that do not fit; names the argument.

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
    if not len(batch.x) and not (memory is not None and len(memory)):
        raise ValueError(
            "'embeddings' must hold at least one row where no bank has any (got none). Pass the "
            "rows of a document."
        )
    if graph.batch_edges == "auto":
        graph = replace(graph, batch_edges="knn")
    return document_data(connect(batch, graph, memory=memory), batch.ids, memory)


def connect(
    batch: Batch,
    graph: KNNGraph,
    *,
    memory: MemoryBank | None,
    neighbors: NeighborLists | None = None,
    listed: bool = True,
    split: LabelSplit | None = None,
) -> Connection:
    """Connect a checked batch to itself and to a bank.

    The lists of the batch in the bank are searched for when left out. With `listed=False` the edges
    among remembered rows may stay where the bank keeps them. `split` says which labels are
    shown, by default all; the bandwidth sees no others.
    """
    slots = _remembered(memory, batch)
    if memory is None:
        return _connect_listed(batch, graph, None, slots, None, split)
    if neighbors is None:
        neighbors = memory.neighbors_of(batch, graph.k)
    if not listed and slots.numel() and _suits_kept_edges(memory, graph):
        near = slots
        if graph.hops is not None:
            near = _near_slots(memory, slots, neighbors, graph.hops)
        if near.numel():
            return _connect_kept(batch, graph, memory, near, neighbors, split)
    return _connect_listed(batch, graph, memory, slots, neighbors, split)


def _connect_listed(
    batch: Batch,
    graph: KNNGraph,
    memory: MemoryBank | None,
    slots: Tensor,
    neighbors: NeighborLists | None,
    split: LabelSplit | None,
) -> Connection:
    """Every edge in one list, or all pairs of the batch in one matrix."""
    x, size, k = batch.x, batch.x.size(0), graph.k
    local, mutual = graph.bandwidth == "local", graph.symmetrize == "mutual"
    if memory is not None:
        stored = stored_links(memory, slots, size)
        if neighbors is not None and graph.hops is not None:
            slots = within_hops(memory, neighbors, slots, stored, graph.hops)
            stored = stored_links(memory, slots, size)
    alone = slots.numel() == 0
    all_batch = graph.batch_edges == "all" or (graph.batch_edges == "auto" and alone)
    y, targets = _labels(batch, memory, slots)
    memory_lists = x.new_empty(0, k)
    if alone and all_batch:
        edge_index = all_pairs(size, x.device)
        squared = batch_squared_distances(x)
        batch_lists = _nearest_lists(squared, k) if local else memory_lists
    else:
        if memory is not None and (local or mutual):
            # A bank without links has empty lists.
            memory_lists = stored_lists(stored, size, slots.numel(), max(1, memory.k))
        links, batch_lists = batch_links(x, memory, slots, neighbors, k, all_batch)
        if memory is not None:
            links = join(links, stored)
            if mutual:
                links = join(links, returned_links(links, memory_lists, size))
        edge_index, link = symmetrize_links(
            links.source, links.target, size + slots.numel(), graph.symmetrize
        )
        squared = links.squared.index_select(0, link)

    every = squared.detach() if squared.dim() == 2 else None
    shown, sigma = _shown(batch, y, graph.bandwidth, memory, slots, split, every)
    squared_sigma = sigma.square()
    if local:
        scales = torch.cat([local_scales(batch_lists), local_scales(memory_lists)]).to(x.dtype)
        if squared.dim() == 2:
            squared_sigma = torch.outer(scales, scales)
        else:
            squared_sigma = scales[edge_index[0]] * scales[edge_index[1]]
    # A kernel sees one entry per edge, however they are stored here.
    weight = weigh(graph.weight, squared.flatten(), squared_sigma.flatten())
    full = None
    if squared.dim() == 2:
        full = weight.view(size, size).masked_fill(diagonal_mask(size, x.device), 0.0)
    return Connection(
        edge_index=edge_index,
        edge_weight=weight if full is None else None,
        full=full,
        y=y,
        size=size,
        slots=slots,
        neighbors=neighbors,
        bandwidth=sigma,
        shown=shown,
        targets=targets,
    )


def _connect_kept(
    batch: Batch,
    graph: KNNGraph,
    memory: MemoryBank,
    slots: Tensor,
    neighbors: NeighborLists,
    split: LabelSplit | None,
) -> Connection:
    """The edges among remembered rows left where the bank keeps them.

    Nodes are all slots of the bank, or with `hops` only the `slots` near the batch. Cost O(F)
    element by element for the weights, O(B k) for the rest.
    """
    x, size, stored = batch.x, batch.x.size(0), len(memory)
    near = graph.hops is not None
    labels, _ = _labels(batch, memory, slots)
    shown, sigma = _shown(batch, labels, graph.bandwidth, memory, slots, split)

    every = slots if near else torch.arange(stored)
    all_batch = graph.batch_edges == "all"
    links, _ = batch_links(x, memory, every, neighbors, graph.k, all_batch)
    ends = torch.cat([torch.arange(size), links.source, links.target])
    nodes, place = ends.unique(return_inverse=True)
    source, target = place[size:].split(links.source.numel())
    edge_index, link = symmetrize_links(source, target, nodes.numel())
    edge_weight = weigh(graph.weight, links.squared.index_select(0, link), sigma.square())

    kept = memory.links.symmetric(stored)
    owner: object = None
    absent = slots[:0]
    if near:
        pointer, column, squared = map(torch.from_numpy, kept.among(slots.numpy()))
    else:
        pointer, column, squared, owner = kept.pointer, kept.column, kept.squared, kept
        present = torch.zeros(stored, dtype=torch.bool)
        present[slots] = True
        absent = (~present).nonzero().squeeze(1)
    weight = weigh(graph.weight, squared.to(x.dtype), sigma.square())
    if absent.numel():
        weight[torch.from_numpy(kept.touching(absent.numpy()))] = 0.0
        part = shown
        shown = torch.zeros(size + stored, dtype=torch.bool)
        shown[:size], shown[size + slots] = part[:size], part[size:]
    dtype = torch.promote_types(edge_weight.dtype, weight.dtype)
    y, targets = _labels(batch, memory, slots if near else slice(stored))
    y[absent + size] = -1
    edges = BankEdges(
        edge_index=edge_index,
        edge_weight=edge_weight.to(dtype),
        nodes=nodes,
        pointer=pointer,
        column=column,
        weight=weight.to(dtype),
        absent=absent + size,
        owner=owner,
        size=size,
    )
    return Connection(
        edge_index=slots[:0].expand(2, 0),
        edge_weight=None,
        full=None,
        y=y,
        size=size,
        slots=slots,
        neighbors=neighbors,
        bandwidth=sigma,
        shown=shown,
        targets=targets,
        bank=edges,
    )


def _suits_kept_edges(memory: MemoryBank, graph: KNNGraph) -> bool:
    """Whether the edges among remembered rows can stay in the bank, and whether that pays."""
    if memory.rows.device.type != "cpu" or memory.k == 0 or len(memory) < LEAST_ROWS:
        return False
    return graph.symmetrize == "union" and graph.bandwidth != "local"


def _near_slots(memory: MemoryBank, slots: Tensor, neighbors: NeighborLists, hops: int) -> Tensor:
    """The `slots` (n,) reachable from the batch in at most `hops` links, sorted.

    Cost O(edges of those rows), and O(M) bytes.
    """
    stored = len(memory)
    absent = torch.ones(stored, dtype=torch.bool)
    absent[slots] = False
    start = neighbors.indices[neighbors.indices >= 0].numpy()
    kept = memory.links.symmetric(stored)
    return torch.from_numpy(kept.within(start, hops - 1, absent.nonzero().squeeze(1).numpy()))


def _labels(
    batch: Batch, memory: MemoryBank | None, slots: Tensor | slice
) -> tuple[Tensor, Tensor | None]:
    """Labels (n,) and targets of the batch and of remembered rows."""
    if memory is None:
        return batch.labels, batch.targets
    targets = batch.targets
    if targets is not None and memory.slot_targets is not None:
        targets = torch.cat([targets, memory.slot_targets[slots].to(batch.x.dtype)])
    return torch.cat([batch.labels, memory.slot_labels[slots]]), targets


def _nearest_lists(squared: Tensor, k: int) -> Tensor:
    """The k smallest of every row of a distance matrix (B, B), the diagonal left out."""
    size = squared.size(0)
    others = squared.detach().masked_fill(diagonal_mask(size, squared.device), torch.inf)
    return others.topk(min(k, size - 1), dim=1, largest=False).values


def _remembered(memory: MemoryBank | None, batch: Batch) -> Tensor:
    """Slots that take part: all stored rows but the copies of the batch's documents."""
    device = batch.x.device
    if memory is None or len(memory) == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    keep = torch.ones(len(memory), dtype=torch.bool, device=device)
    if batch.slots is not None:
        keep[batch.slots[batch.slots >= 0]] = False
    return keep.nonzero().squeeze(1)


def _shown(
    batch: Batch,
    y: Tensor,
    bandwidth: float | str | BandwidthRule,
    memory: MemoryBank | None,
    slots: Tensor,
    split: LabelSplit | None,
    squared: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which labels `y` (n,) are shown, and the bandwidth, which sees no others (NaN for "local").

    It is made from the batch, whose `squared` distances (B, B) may be known, and a draw of `slots`.
    """
    x, size = batch.x.detach(), batch.x.size(0)
    shown = y >= 0 if split is None else split.shown(y[:size], y[size:])
    if bandwidth == "local":
        return shown, x.new_tensor(torch.nan)
    labels = torch.where(shown, y, -1) if reads_labels(bandwidth) else None
    if memory is None or slots.numel() == 0:
        return shown, estimate_bandwidth(bandwidth, x, labels, squared=squared)
    if slots.numel() > _BANDWIDTH_MEMORY_ROWS:
        known = None if labels is None else labels[size:]
        keep = drawn_rows(bandwidth, slots.numel(), known, _BANDWIDTH_MEMORY_ROWS).to(x.device)
        slots = slots[keep]
        labels = None if labels is None else torch.cat([labels[:size], labels[size:][keep]])
    x = torch.cat([x, memory.rows[slots].to(x.dtype)])
    return shown, estimate_bandwidth(bandwidth, x, labels)


def document_data(connection: Connection, ids: Tensor | None, memory: MemoryBank | None) -> Data:
    """The `Data` of a connection, with the provenance of nodes and edges."""
    size, slots, y, targets = connection.size, connection.slots, connection.y, connection.targets
    device = slots.device
    num_nodes = size + slots.numel()
    edge_weight, full = connection.edge_weight, connection.full
    if edge_weight is None and full is not None:
        edge_weight = full[~diagonal_mask(size, device)]
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
