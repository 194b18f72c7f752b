"""Which nodes a seed can reach."""

from __future__ import annotations

from torch import Tensor

from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator, Parts
from gloss_graph.propagation.operators import FullOperator

# Rows of a bank are cut out anew when less than one in so many of the last cut is left.
_CUT_AGAIN = 8


def reachable(operator: AnyOperator, seeds: Tensor) -> Tensor:
    """Nodes (N,) bool joined to a seed by edges of positive weight.

    Breadth first from `seeds` (N,) bool, one product a hop, until nothing new is found or all
    nodes are.
    """
    operator = operator.with_weight(operator.weight.detach())
    if isinstance(operator, FullOperator) and operator.is_complete():
        return seeds.any().expand_as(seeds)
    if isinstance(operator, BankOperator):
        return _reachable_in_bank(operator, seeds)
    reach = seeds
    while True:
        spread = operator.multiply(reach.to(operator.weight.dtype).unsqueeze(1)).squeeze(1) > 0
        grown = reach | spread
        if bool((grown == reach).all()):
            return reach
        reach = grown
        if bool(reach.all()):
            return reach


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
