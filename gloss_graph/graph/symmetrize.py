"""From directed neighbour lists to one coalesced undirected edge list."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from gloss_graph._internal.checks import check_choice
from gloss_graph.neighbors.adjacency import union_rows

SYMMETRIZE = ("union", "mutual")


def symmetrize_links(
    source: Tensor, target: Tensor, num_nodes: int, mode: str = "union"
) -> tuple[Tensor, Tensor]:
    """Undirected edges of a directed neighbour graph, both directions, coalesced.

    Args:
        source: (L,) long.
        target: (L,) long; no self-links, no repeated (source, target) pair.
        num_nodes: N.
        mode: `"union"` keeps a pair if either lists the other, `"mutual"` only if both do.

    Returns:
        `edge_index` (2, E) long, sorted by row, then column, and `link` (E,) long: the link each
        edge came from. Both directions of a pair name the same link, so whatever is computed per
        link is exactly symmetric.

    Raises:
        ValueError: Unknown mode.

    Cost O(L) time on CPU (counting sort), O(L log L) elsewhere.

    Example:
        >>> import torch
        >>> edges, link = symmetrize_links(torch.tensor([0, 2]), torch.tensor([1, 1]), 3)
        >>> edges.tolist(), link.tolist()
        ([[0, 1, 1, 2], [1, 0, 2, 1]], [0, 0, 1, 1])
    """
    check_choice("symmetrize", mode, SYMMETRIZE)
    if source.numel() == 0:
        return torch.stack([source, target]), source
    if source.device.type == "cpu":
        return _symmetrize_cpu(source, target, num_nodes, mode)
    return _symmetrize_sorted(source, target, num_nodes, mode)


def _symmetrize_cpu(
    source: Tensor, target: Tensor, num_nodes: int, mode: str
) -> tuple[Tensor, Tensor]:
    if mode == "union":
        pointer, column, link = union_rows(source.numpy(), target.numpy(), num_nodes)
        row = np.repeat(np.arange(num_nodes, dtype=np.int64), np.diff(pointer))
        edge_index = torch.from_numpy(np.stack([row, column.astype(np.int64)]))
        return edge_index, torch.from_numpy(link.astype(np.int64))
    # Links are numbered from 1, so that no entry is an explicit zero.
    number = np.arange(1, source.numel() + 1, dtype=np.int32)
    shape = (num_nodes, num_nodes)
    forward = sparse.coo_matrix((number, (source.numpy(), target.numpy())), shape=shape).tocsr()
    forward.sort_indices()
    both = forward.minimum(forward.T.tocsr())
    both = both.multiply(forward.astype(bool)).tocsr()
    both.eliminate_zeros()
    both.sort_indices()
    row = np.repeat(np.arange(num_nodes, dtype=np.int64), np.diff(both.indptr))
    edge_index = torch.from_numpy(np.stack([row, both.indices.astype(np.int64)]))
    return edge_index, torch.from_numpy(both.data.astype(np.int64) - 1)


def _symmetrize_sorted(
    source: Tensor, target: Tensor, num_nodes: int, mode: str
) -> tuple[Tensor, Tensor]:
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
    """Every ordered pair of distinct nodes, sorted: `edge_index` (2, N(N-1)).

    Cached: callers must not write to it.
    """
    flat = torch.arange(num_nodes * num_nodes, device=device)
    row, column = flat // max(num_nodes, 1), flat % max(num_nodes, 1)
    keep = row != column
    return torch.stack([row[keep], column[keep]])


@lru_cache(maxsize=32)
def diagonal_mask(size: int, device: torch.device) -> Tensor:
    """Diagonal of a square matrix (size, size), bool. Cached: callers must not write to it."""
    return torch.eye(size, dtype=torch.bool, device=device)


def off_diagonal(matrix: Tensor) -> Tensor:
    """Entries of a square matrix (N, N) at `all_pairs`, (N(N-1),), without an index."""
    size = matrix.size(0)
    if size < 2:
        return matrix.flatten()[:0]
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(-1)
