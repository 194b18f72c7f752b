"""Node factors of a normalisation on a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph.propagation.bank_scaling import scaled
from gloss_graph.propagation.inputs import check_graph
from gloss_graph.propagation.operators import operator_of


@torch.no_grad()
def node_factors(
    normalization: str, edge_index: Tensor, edge_weight: Tensor, num_nodes: int
) -> Tensor:
    """Factors s (N,) with which a normalisation scales the weight of every node's edges.

    In float64 where the graph needs it.

    Args:
        normalization: A key of `NORMALIZATIONS`.
        edge_index: (2, E) long, undirected.
        edge_weight: (E,).
        num_nodes: N.
    """
    rows, weight = check_graph(edge_index, edge_weight, num_nodes, trusted=True)
    _, scaling = scaled(normalization, operator_of(rows, weight, None))
    return scaling.factor
