"""Which nodes a seed can reach."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator, Parts
from gloss_graph.propagation.operators import FullOperator, Operator, SparseOperator

# Rows of a bank are cut out anew when less than one in so many of the last cut is left.
_CUT_AGAIN = 8
# Hops searched one product each, before all components are found at once: a chain is long.
_HOPS = 16


def components(operator: Operator) -> Tensor:
    """Connected component (N,) long of every node over edges of positive weight."""
    weight = operator.weight.detach()
    if isinstance(operator, SparseOperator):
        live = weight > 0
        row, column = operator.rows.row[live], operator.rows.target[live]
    else:
        row, column = weight.nonzero(as_tuple=True)
    n = operator.num_nodes
    ends = (row.cpu().numpy(), column.cpu().numpy())
    adjacency = sparse.coo_matrix((np.ones(row.numel(), dtype=bool), ends), shape=(n, n))
    found = connected_components(adjacency, directed=False)[1]
    return torch.from_numpy(found).long().to(weight.device)


def reachable(operator: AnyOperator, seeds: Tensor) -> Tensor:
    """Nodes (N,) bool joined to a seed, one of `seeds` (N,) bool, by edges of positive weight."""
    operator = operator.with_weight(operator.weight.detach())
    if isinstance(operator, BankOperator):
        return _reachable_in_bank(operator, seeds)
    if isinstance(operator, FullOperator) and operator.is_complete():
        return seeds.any().expand_as(seeds)
    reach = seeds
    for _ in range(_HOPS):
        spread = operator.multiply(reach.to(operator.weight.dtype).unsqueeze(1)).squeeze(1)
        grown = reach | (spread > 0)
        if bool((grown == reach).all()) or bool(grown.all()):
            return grown
        reach = grown
    part = components(operator)
    return torch.isin(part, part[seeds].unique())


def _reachable_in_bank(operator: BankOperator, seeds: Tensor) -> Tensor:
    """As `reachable`; a hop multiplies the rows that were not reached when they were cut out.

    That is before the first hop, so that a solve, which wants the same rows, finds them in
    `parts`, and again whenever few of them are left, so that the end of a long chain costs little.
    """
    left = ~seeds
    left[operator.absent] = False
    where = left.nonzero().squeeze(1)
    reach = seeds.clone()
    while True:
        x = reach.to(operator.weight.dtype).unsqueeze(1)
        hit = where[operator.multiply_at(x, where).squeeze(1) > 0]
        new = hit[left[hit]]
        reach[new], left[new] = True, False
        rest = int(left.count_nonzero())
        if new.numel() == 0 or rest == 0:
            return reach
        if rest * _CUT_AGAIN < where.numel():
            operator, where = operator._replace(parts=Parts()), left.nonzero().squeeze(1)
