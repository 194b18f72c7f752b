"""Which nodes a seed can reach."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# Hops searched by one product each, before all components are found at once: a chain is long.
_HOPS = 16


def connected_parts(row: Tensor, column: Tensor, num_nodes: int) -> Tensor:
    """Connected component (N,) long of every node over edges from `row` (E,) to `column` (E,)."""
    ends = (row.cpu().numpy(), column.cpu().numpy())
    ties = np.ones(row.numel(), dtype=bool)
    adjacency = sparse.coo_matrix((ties, ends), shape=(num_nodes, num_nodes))
    found = connected_components(adjacency, directed=False)[1]
    return torch.from_numpy(found).long().to(row.device)


def spread_reach(
    multiply: Callable[[Tensor], Tensor],
    seeds: Tensor,
    dtype: torch.dtype,
    parts: Callable[[], Tensor],
) -> Tensor:
    """Nodes (N,) bool joined to a seed by edges of positive weight.

    Args:
        multiply: W x for x (N, 1).
        seeds: (N,) bool.
        dtype: The dtype of W.
        parts: Connected component (N,) of every node, asked for if a few hops do not suffice.
    """
    reach = seeds
    for _ in range(_HOPS):
        grown = reach | (multiply(reach.to(dtype).unsqueeze(1)).squeeze(1) > 0)
        if bool((grown == reach).all()) or bool(grown.all()):
            return grown
        reach = grown
    part = parts()
    return torch.isin(part, part[seeds].unique())
