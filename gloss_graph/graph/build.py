"""The document graph: batch rows and remembered rows, connected by similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.graph.bandwidth import (
    BandwidthRule,
    check_bandwidth,
    drawn_rows,
    estimate_bandwidth,
    local_scales,
)
from gloss_graph.graph.bank_graph import BankEdges, bank_edges, near_slots, suits_bank_edges
from gloss_graph.graph.checks import check_batch, check_memory
from gloss_graph.graph.distances import batch_squared_distances, unit_rows, weigh
from gloss_graph.graph.kernels import Kernel, cosine_kernel, resolve_kernel
from gloss_graph.graph.links import (
    batch_links,
    join,
    returned_links,
    stored_links,
    stored_lists,
    within_hops,
)
from gloss_graph.graph.symmetrize import (
    SYMMETRIZE,
    all_pairs,
    diagonal_mask,
    off_diagonal,
    symmetrize_links,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.labels import join_targets
from gloss_graph.neighbors import NeighborLists

BATCH_EDGES = ("auto", "knn", "all")
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
    k: int = 16,
    kernel: str | Kernel = "gaussian",
    bandwidth: float | str | BandwidthRule = "sqrt",
    symmetrize: str = "union",
    batch_edges: str = "auto",
    hops: int | None = None,
    normalize_embeddings: bool = True,
) -> Data:
    r"""Connect documents by similarity: a batch to a memory bank, or a whole corpus to itself.

    Weights are \(w_{ij} = \exp(-\|x_i - x_j\|^2 / (2\sigma^2))\), \(w_{ii} = 0\) (G-Loss, arXiv
    2604.25853, eq. 2), on the k-nearest-neighbour graph of batch and bank. The B x M search is
    the only one: links among remembered rows are inherited. Stored copies of the batch's own
    documents (same `ids`) are left out of the graph.

    Shapes: B batch rows, M' remembered rows in the graph, N = B + M' nodes (batch first), E
    directed edges.

    Args:
        embeddings: (B, D) floating; edges that touch these rows carry their gradient.
        labels: (B,) integer, -1 = unlabeled (all unlabeled when left out); or label sets (B, C)
            floating in [0, 1], a row of NaN = unlabeled.
        ids: (B,) integer >= 0, document identities; by default 0..B-1 without a bank.
        memory: The bank, which is read only. None or empty: a graph of the batch alone.
        k: Neighbours a row.
        kernel: `"gaussian"`, `"cosine"` (of unit rows, no bandwidth), or a callable
            `(squared, squared_bandwidth) -> weight`.
        bandwidth: \(\sigma\): a number, `"sqrt"`, `"inflection"`, `"interclass_min"`, `"local"`
            or a callable, see `estimate_bandwidth`. No gradient flows through it. With
            `"interclass_min"` the weights depend on every label, so hide the labels that an
            answer must not know.
        symmetrize: `"union"` or `"mutual"`; a remembered row lists a batch row if it is closer
            than the farthest neighbour it has stored.
        batch_edges: `"knn"`: a batch row lists its k nearest in batch and bank together;
            `"all"`: all batch pairs besides; `"auto"` is `"knn"` here, and in the objective
            `"all"` as long as no remembered row takes part.
        hops: Keep only remembered rows within this many links of the batch; None keeps all.
        normalize_embeddings: L2-normalise rows first.

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
    check_positive_int("k", k)
    check_bandwidth(bandwidth)
    check_choice("symmetrize", symmetrize, SYMMETRIZE)
    check_choice("batch_edges", batch_edges, BATCH_EDGES)
    if hops is not None:
        check_positive_int("hops", hops)
    check_memory(memory, normalize_embeddings)
    num_classes = None if memory is None else memory.num_classes
    if isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2:
        num_classes = labels.size(1)
    labels, targets, ids = check_batch(
        embeddings, labels, ids, memory, normalize_embeddings, num_classes
    )
    connection = connect(
        embeddings,
        labels,
        ids,
        targets=targets,
        memory=memory,
        k=k,
        kernel=resolve_kernel(kernel),
        bandwidth=bandwidth,
        symmetrize=symmetrize,
        # A corpus is no batch: all of its pairs are wanted only where it asks for them.
        batch_edges="knn" if batch_edges == "auto" else batch_edges,
        hops=hops,
        normalize_embeddings=normalize_embeddings,
    )
    return document_data(connection, ids, memory)


def connect(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    *,
    memory: MemoryBank | None,
    k: int,
    kernel: Kernel,
    bandwidth: float | str | BandwidthRule,
    symmetrize: str,
    batch_edges: str,
    hops: int | None,
    normalize_embeddings: bool,
    neighbors: NeighborLists | None = None,
    targets: Tensor | None = None,
    listed: bool = True,
    show: Callable[[Tensor], Tensor] | None = None,
) -> Connection:
    """Build the graph of checked arguments; see `build_document_graph`.

    `neighbors` are `memory.neighbors(embeddings, ids, k)`, searched for when left out; `targets`
    (B, C) come with labels that only mark the labeled rows. `listed=False` may leave the edges
    among remembered rows where the bank keeps them. `show` says of the labels (n,) of the nodes
    that take part, batch rows first, which of them are shown (n,) bool: all by default. The
    bandwidth sees no other label.
    """
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    if kernel is cosine_kernel and not normalize_embeddings:
        raise ValueError("kernel='cosine' needs normalize_embeddings=True.")
    size = x.size(0)
    slots = _remembered(memory, ids, x.device)
    if memory is not None and neighbors is None:
        neighbors = memory.neighbors(x.detach(), ids, k)
    kept = not listed and slots.numel() > 0
    kept = kept and suits_bank_edges(memory, bandwidth, symmetrize)
    if kept and memory is not None and neighbors is not None:
        chosen: tuple[Any, ...] = (k, kernel, bandwidth, batch_edges == "all")
        rows = unit_rows(x) if normalize_embeddings else x
        near = slots if hops is None else near_slots(memory, slots, neighbors, hops)
        if near.numel():
            chosen = (*chosen, hops is not None, show)
            return _connect_bank(rows, labels, targets, memory, near, neighbors, *chosen)
    stored = stored_links(memory, slots, size)
    if memory is not None and neighbors is not None and hops is not None:
        slots = within_hops(memory, neighbors, slots, stored, hops)
        stored = stored_links(memory, slots, size)
    alone = slots.numel() == 0
    all_batch = batch_edges == "all" or (batch_edges == "auto" and alone)
    y = labels if memory is None else torch.cat([labels, memory.slot_labels[slots]])
    if targets is not None:
        targets = targets.to(x.dtype)
        if memory is not None and memory.slot_targets is not None:
            targets = torch.cat([targets, memory.slot_targets[slots].to(x.dtype)])
    memory_lists = x.new_empty(0, k)
    if alone and all_batch:
        edge_index = all_pairs(size, x.device)
        squared = batch_squared_distances(x, normalize_embeddings)
        batch_lists = _nearest_lists(squared, k) if bandwidth == "local" else memory_lists
    else:
        x = unit_rows(x) if normalize_embeddings else x
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
        points = x.detach()
        if normalize_embeddings and squared.dim() == 2 and not isinstance(bandwidth, (int, float)):
            points = unit_rows(points)
        sigma = _bandwidth(bandwidth, points, visible, memory, slots)
        squared_sigma = sigma.square()
    # A kernel sees one entry an edge, whatever holds them here.
    weight = weigh(kernel, squared.flatten(), squared_sigma.flatten())
    edge_weight, full = (weight if squared.dim() == 1 else None), None
    if edge_weight is None:
        full = weight.view(size, size).masked_fill(diagonal_mask(size, x.device), 0.0)
    found = (y, size, slots, neighbors, sigma, shown, targets)
    return Connection(edge_index, edge_weight, full, *found)


def _connect_bank(
    x: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    memory: MemoryBank,
    slots: Tensor,
    neighbors: NeighborLists,
    k: int,
    kernel: Kernel,
    bandwidth: float | str | BandwidthRule,
    all_batch: bool,
    near: bool,
    show: Callable[[Tensor], Tensor] | None,
) -> Connection:
    """As `connect`, for rows `x` that are normalised already if the bank is.

    Nodes are the `slots` where only those `near` the batch are wanted, else all of the bank.
    """
    size = x.size(0)
    shown, visible = _shown(torch.cat([labels, memory.slot_labels[slots]]), show)
    sigma = _bandwidth(bandwidth, x.detach(), visible, memory, slots)
    edges = bank_edges(x, memory, slots, neighbors, k, all_batch, kernel, sigma.square(), near)
    which: Tensor | slice = slots if near else slice(len(memory))
    y = torch.cat([labels, memory.slot_labels[which]])
    y[edges.absent] = -1
    if targets is not None:
        targets = targets.to(x.dtype)
        if memory.slot_targets is not None:
            targets = torch.cat([targets, memory.slot_targets[which].to(x.dtype)])
    none = slots[:0].expand(2, 0)
    return Connection(none, None, None, y, size, slots, neighbors, sigma, shown, targets, edges)


def _shown(y: Tensor, show: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    """Which labels (n,) are shown, and the labels without the others."""
    shown = y >= 0 if show is None else show(y)
    return shown, torch.where(shown, y, -1)


def _nearest_lists(squared: Tensor, k: int) -> Tensor:
    """The k smallest of every row of a distance matrix (B, B), the diagonal left out."""
    size = squared.size(0)
    others = squared.detach().masked_fill(diagonal_mask(size, squared.device), torch.inf)
    return others.topk(min(k, size - 1), dim=1, largest=False).values


def _remembered(memory: MemoryBank | None, ids: Tensor | None, device: torch.device) -> Tensor:
    """Slots that take part: all stored rows but the batch's own copies."""
    if memory is None or len(memory) == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    keep = torch.ones(len(memory), dtype=torch.bool, device=device)
    keep[memory.own_slots(ids)] = False
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
