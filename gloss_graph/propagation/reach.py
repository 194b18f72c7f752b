"""Which nodes a seed can reach."""

from __future__ import annotations

from torch import Tensor

from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator
from gloss_graph.propagation.operators import FullOperator


def reachable(operator: AnyOperator, seeds: Tensor, wanted: Tensor) -> Tensor:
    """Nodes (N,) bool joined to a seed by edges of positive weight.

    Breadth first from `seeds` (N,) bool, one product a hop, until nothing new is found or all
    `wanted` (N,) bool nodes are.
    """
    operator = operator.with_weight(operator.weight.detach())
    if isinstance(operator, FullOperator) and operator.is_complete():
        return seeds.any().expand_as(seeds)
    if isinstance(operator, BankOperator):
        return _reachable_in_bank(operator, seeds, wanted)
    reach = seeds
    while True:
        spread = operator.multiply(reach.to(operator.weight.dtype).unsqueeze(1)).squeeze(1) > 0
        grown = reach | spread
        if bool((grown == reach).all()):
            return reach
        reach = grown
        if bool(reach[wanted].all()):
            return reach


def _reachable_in_bank(operator: BankOperator, seeds: Tensor, wanted: Tensor) -> Tensor:
    """As `reachable`; a hop multiplies the rows that are not reached yet."""
    left = ~seeds
    left[operator.absent] = False
    wanted = wanted & left
    reach = seeds.clone()
    while True:
        where = left.nonzero().squeeze(1)
        x = reach.to(operator.weight.dtype).unsqueeze(1)
        new = where[operator.multiply_at(x, where).squeeze(1) > 0]
        reach[new], left[new] = True, False
        if new.numel() == 0 or not bool((wanted & left).any()):
            return reach
