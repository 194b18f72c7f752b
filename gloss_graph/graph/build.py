"""The document graph: batch rows and remembered rows, connected by similarity."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce

from gloss_graph._internal.settings import with_short_forms
from gloss_graph.graph.bandwidth import (
    BandwidthRule,
    bandwidth_over,
    local_scales,
    reads_labels,
)
from gloss_graph.graph.bank_operator import BankOperator, ConstantRows, bank_operator
from gloss_graph.graph.kernels import Kernel, discounted, weigh
from gloss_graph.graph.links import (
    all_edges,
    batch_links,
    listed_edges,
    symmetrize_links,
    within_hops,
)
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import LabelSplit
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import Batch, check_batch, join_targets
from gloss_graph.memory.drift import age_decay
from gloss_graph.neighbors import NeighborLists

BATCH_BATCH, BATCH_MEMORY, MEMORY_MEMORY = 0, 1, 2
# With fewer remembered rows, listing all edges is as fast.
LEAST_ROWS = 1024


class Connection(NamedTuple):
    """The nodes and edges of one step.

    Nodes are the `size` batch rows, then the remembered rows `slots`: node size + m is slot
    `slots[m]` of the bank.

    Attributes:
        size: B.
        slots: (M',) long.
        y: (N,) labels; with label sets 0 or -1, whether a node has any.
        targets: (N, C) label sets, or None.
        shown: (N,) bool, the nodes that show their label.
        neighbors: The lists to enqueue with the batch; None without a bank.
        bandwidth: Scalar.
        edge_index: (2, E) long.
        edge_weight: (E,); None where all batch pairs are connected and no remembered row takes
            part.
        full: (B, B), the weights in that case.
        bank: Holds the edges instead (and `edge_index` none). Every stored row is then a node,
            size + slot, unless the graph has `hops`; those not among `slots` take no part, their
            `y` is -1.
    """

    size: int
    slots: Tensor
    y: Tensor
    targets: Tensor | None
    shown: Tensor
    neighbors: NeighborLists | None
    bandwidth: Tensor
    edge_index: Tensor
    edge_weight: Tensor | None = None
    full: Tensor | None = None
    bank: BankOperator | None = None


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

    The k-nearest-neighbor graph of batch and bank, weighted as `KNNGraph` says. Links among
    remembered rows are inherited. Stored copies of the batch's documents (same `ids`) are left out.

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


def check_memory(memory: MemoryBank | None, normalize_embeddings: bool) -> None:
    """Raise unless `memory` is None or a bank that normalizes as asked."""
    if memory is None:
        return
    if not isinstance(memory, MemoryBank):
        raise TypeError(f"'memory' must be a MemoryBank (got {type(memory).__name__}).")
    if memory.normalize != normalize_embeddings:
        raise ValueError(
            f"'normalize_embeddings' is {normalize_embeddings} but the bank was made with "
            f"normalize={memory.normalize}. Make them agree."
        )


def connect(
    batch: Batch,
    graph: KNNGraph,
    *,
    memory: MemoryBank | None,
    neighbors: NeighborLists | None = None,
    listed: bool = True,
    split: LabelSplit | None = None,
    half_life: float | None = None,
    strength: float = 1.0,
) -> Connection:
    r"""Connect a checked batch to itself and to a bank.

    The lists of the batch in the bank are searched for when left out. `split` says which labels are
    shown, by default all; the bandwidth sees no others. With `listed=False` the edges among
    remembered rows may stay where the bank keeps them.

    Weights are \(s_{ij} f_i f_j w_{ij}\): \(f = 2^{-\mathrm{age}/h}\) with the half-life h for a
    remembered row, 1 in the batch; s is the `strength` where an edge touches a remembered row, else
    1. W stays symmetric.
    """
    size, y, targets = batch.x.size(0), batch.labels, batch.targets
    slots, kept = torch.empty(0, dtype=torch.long, device=y.device), False
    if memory is not None:
        if neighbors is None:
            neighbors = memory.neighbors_of(batch, graph.k)
        plain = half_life is None and strength == 1.0
        kept = plain and not listed and _suits_kept_edges(memory, graph)
        # All stored rows but the copies of the batch's documents take part.
        present = torch.ones(len(memory), dtype=torch.bool, device=y.device)
        if batch.slots is not None:
            present[batch.slots[batch.slots >= 0]] = False
        if graph.hops is None:
            slots = present.nonzero().squeeze(1)
        else:
            slots = within_hops(memory, present, neighbors, graph.hops, kept)
        y = torch.cat([y, memory.slot_labels[slots]])
        if targets is not None and memory.slot_targets is not None:
            targets = torch.cat([targets, memory.slot_targets[slots].to(batch.x.dtype)])
    nodes = Connection(
        size=size,
        slots=slots,
        y=y,
        targets=targets,
        shown=y >= 0 if split is None else split.shown(y[:size], y[size:]),
        neighbors=neighbors,
        bandwidth=batch.x.new_tensor(torch.nan),
        edge_index=slots[:0].expand(2, 0),
    )
    if memory is not None and kept and slots.numel():
        return _keep_edges(nodes, batch, graph, memory)
    return _list_edges(nodes, batch, graph, memory, half_life, strength)


def _list_edges(
    nodes: Connection,
    batch: Batch,
    graph: KNNGraph,
    memory: MemoryBank | None,
    half_life: float | None,
    strength: float,
) -> Connection:
    """Every edge in one list, or all pairs of the batch in one matrix."""
    x, size, slots = batch.x, nodes.size, nodes.slots
    alone = slots.numel() == 0
    all_batch = graph.batch_edges == "all" or (graph.batch_edges == "auto" and alone)
    if alone and all_batch:
        edges = all_edges(x, graph)
    else:
        edges = listed_edges(x, graph, all_batch, memory, slots, nodes.neighbors)
    edge_index, squared = edges.edge_index, edges.squared
    full = squared.dim() == 2
    sigma = bandwidth_over(
        graph.bandwidth,
        x,
        torch.where(nodes.shown, nodes.y, -1),
        None if memory is None else memory.rows,
        slots,
        squared=squared.detach() if full else None,
    )
    squared_sigma = sigma.square()
    if graph.bandwidth == "local":
        lists = (edges.batch_lists, edges.memory_lists)
        scales = torch.cat([local_scales(part) for part in lists]).to(x.dtype)
        if full:
            squared_sigma = torch.outer(scales, scales)
        else:
            squared_sigma = scales[edge_index[0]] * scales[edge_index[1]]
    # A kernel sees one entry per edge, however they are stored here.
    weight = weigh(graph.weight, squared.flatten(), squared_sigma.flatten())
    found = nodes._replace(bandwidth=sigma, edge_index=edge_index)
    if full:
        diagonal = torch.eye(size, dtype=torch.bool, device=x.device)
        return found._replace(full=weight.view(size, size).masked_fill(diagonal, 0.0))
    if memory is not None and not alone and (half_life is not None or strength < 1.0):
        source, target = edge_index
        factor = weight.detach().new_ones(weight.numel())
        if half_life is not None:
            decay = age_decay(memory.age[slots], half_life).to(factor)
            trust = torch.cat([factor.new_ones(size), decay])
            factor = trust[source] * trust[target]
        if strength < 1.0:
            factor = torch.where((source >= size) | (target >= size), strength * factor, factor)
        weight = discounted(weight, factor)
    return found._replace(edge_weight=weight)


def _keep_edges(nodes: Connection, batch: Batch, graph: KNNGraph, memory: MemoryBank) -> Connection:
    """The edges among remembered rows left where the bank keeps them.

    Nodes are all slots of the bank, or with `hops` only the `slots` near the batch. Cost O(F)
    element by element for the weights of the F kept edges, O(B k) for the rest.
    """
    x, size, slots, stored = batch.x, nodes.size, nodes.slots, len(memory)
    near = graph.hops is not None
    labels = torch.where(nodes.shown, nodes.y, -1)
    sigma = bandwidth_over(graph.bandwidth, x, labels, memory.rows, slots)
    every = slots if near else torch.arange(stored)
    all_batch = graph.batch_edges == "all"
    links, _ = batch_links(x, memory, every, nodes.neighbors, graph.k, all_batch)
    ends, place = torch.cat([torch.arange(size), links.source, links.target]).unique(
        return_inverse=True
    )
    source, target = place[size:].split(links.source.numel())
    edge_index, link = symmetrize_links(source, target, ends.numel())
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
        place, total = torch.cat([torch.arange(size), size + slots]), size + stored
        y = nodes.y.new_full((total,), -1).index_copy_(0, place, nodes.y)
        shown = nodes.shown.new_zeros(total).index_copy_(0, place, nodes.shown)
        nodes = nodes._replace(y=y, shown=shown)
        if nodes.targets is not None:
            targets = nodes.targets.new_zeros(total, nodes.targets.size(1))
            nodes = nodes._replace(targets=targets.index_copy_(0, place, nodes.targets))
    dtype = torch.promote_types(edge_weight.dtype, weight.dtype)
    rows = ConstantRows(pointer, column, weight.to(dtype), pointer.numel() - 1, owner)
    bank = bank_operator(edge_index, edge_weight.to(dtype), ends, rows, size, absent + size)
    return nodes._replace(bandwidth=sigma, bank=bank)


def _suits_kept_edges(memory: MemoryBank, graph: KNNGraph) -> bool:
    """Whether the edges among remembered rows can stay in the bank, and whether that pays."""
    if memory.rows.device.type != "cpu" or memory.k == 0 or len(memory) < LEAST_ROWS:
        return False
    return graph.symmetrize == "union" and graph.bandwidth != "local"


def document_data(connection: Connection, ids: Tensor | None, memory: MemoryBank | None) -> Data:
    """The `Data` of a connection, with the provenance of nodes and edges."""
    size, slots, y, targets = connection.size, connection.slots, connection.y, connection.targets
    device = slots.device
    num_nodes = size + slots.numel()
    edge_weight, full = connection.edge_weight, connection.full
    if edge_weight is None and full is not None:
        edge_weight = full[tuple(connection.edge_index)]
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
    data.edge_kind = (connection.edge_index >= size).sum(dim=0)
    data.bandwidth = connection.bandwidth
    return data


def with_edges(data: Data, graph: KNNGraph) -> Data:
    """A shallow copy of `data` whose rows are connected, each graph of `data.batch` alone."""
    if not isinstance(data, Data):
        raise TypeError(f"'data' must be a torch_geometric.data.Data (got {type(data).__name__}).")
    x = data.get("x") if data.get("pos") is None else data.pos
    if x is None or not len(x):
        raise ValueError("'data' must hold rows, as 'data.pos' or 'data.x' (got none).")
    # Without a bandwidth made from classes `y` may be anything, such as a label per graph.
    labels = data.get("y") if reads_labels(graph.bandwidth) else None
    groups = [torch.arange(len(x), device=x.device)]
    if (batch := data.get("batch")) is not None:
        groups = [(batch == number).nonzero().flatten() for number in batch.unique()]
    parts = [
        build_document_graph(x[rows], None if labels is None else labels[rows], graph=graph)
        for rows in groups
    ]
    ends = [rows[part.edge_index] for rows, part in zip(groups, parts, strict=True)]
    weights = torch.cat([part.edge_weight for part in parts])
    out = copy.copy(data)
    out.edge_index, out.edge_weight = coalesce(torch.cat(ends, 1), weights, num_nodes=len(x))
    sigma = [part.bandwidth for part in parts]
    out.bandwidth = sigma[0] if len(sigma) == 1 else torch.stack(sigma)
    # Attributes of former edges.
    out.edge_attr = None
    return out
