"""Propagation rules: each turns labels into one linear system and its solution into values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_range
from gloss_graph.propagation.alignment import align_classes
from gloss_graph.propagation.inputs import check_prior
from gloss_graph.propagation.normalize import Scaling
from gloss_graph.propagation.operators import Operator
from gloss_graph.propagation.solve import DENSE_LIMIT, System

# Up to one node in so many is known: then solving around them beats cutting W down to the rest.
_KNOWN_RATIO = 4


class Task(NamedTuple):
    """What a rule makes a system of: the graph, its normalization and the labels on it.

    `labels` (N, C) are zero but for the `seeds` (N,) bool; `reached` (N,) bool are the nodes joined
    to a seed, seeds included; `damping` is `alpha` or `eta`. For `harmonic`: the leak goes to the
    `prior` (C,), from which differences are solved for if `centered`, and `start` (N, C) may be
    values to start from.
    """

    operator: Operator
    scaling: Scaling
    labels: Tensor
    seeds: Tensor
    reached: Tensor
    damping: float
    prior: Tensor
    centered: bool
    start: Tensor | None


class Problem(NamedTuple):
    """A linear system in the scaled values G = s F on n unknowns, and the way back to F.

    `right` and the first `guess`, if any, are (n, C); `assemble` makes values (N, C) of a solution.
    """

    system: System
    right: Tensor
    assemble: Callable[[Tensor], Tensor]
    guess: Tensor | None = None


def harmonic(task: Task) -> Problem:
    """Clamped seeds; the unknowns are the unseeded nodes that a seed reaches.

    The system is that of the unknowns, or of all nodes with zeros `around` few known ones.
    """
    operator, scaling, labels, eta = task.operator, task.scaling, task.labels, task.damping
    free = task.reached & ~task.seeds
    where, around = free.nonzero().squeeze(1), None
    known = free.numel() - where.numel()
    if _KNOWN_RATIO * known <= free.numel() and where.numel() > DENSE_LIMIT:
        around = operator.masked((~free).nonzero().squeeze(1))

    def unknown(x: Tensor) -> Tensor:
        return x if around is not None else x.index_select(0, where)

    def pulled(factor: Tensor, x: Tensor) -> Tensor:
        if around is not None:
            return operator.times(factor.unsqueeze(1) * x)
        return operator.known_at(factor, x, where)

    node_factor, node_diagonal = unknown(scaling.factor), unknown(scaling.diagonal)
    same = scaling.null is scaling.factor
    vector = node_factor if same else unknown(scaling.null)
    factor = node_factor.unsqueeze(1)
    # The prior solves the system without labels where rows of T sum to 1. Few labels move most
    # values little from it: a residual relative to the prior's own share would leave what the
    # labels add, all that a loss reads, less accurate by that ratio.
    centered = task.centered and same and eta > 0 and bool(task.prior.any())
    if centered:
        seeds = task.seeds.to(labels).unsqueeze(1)
        right = pulled(scaling.factor, torch.addcmul(labels, seeds, task.prior, value=-1.0))
    else:
        right = pulled(scaling.factor, labels)
        if eta > 0:
            right = right + eta * node_diagonal.unsqueeze(1) * factor * task.prior

    def excess() -> Tensor:
        tie = pulled(scaling.null, (~free).to(vector.dtype).unsqueeze(1)).squeeze(1)
        found = vector * tie + eta * node_diagonal * vector.square()
        return found if around is None else around.clear(found)

    def assemble(solved: Tensor) -> Tensor:
        if around is not None:
            found = solved / factor + (task.prior if centered else 0.0)
            values = torch.where(free.unsqueeze(1), found, labels)
        else:
            found = torch.addcdiv(task.prior, solved, factor) if centered else solved / factor
            values = labels.index_copy(0, where, found)
        unreached = (~task.reached).nonzero().squeeze(1)
        if unreached.numel() == 0:
            return values
        leak = task.prior if eta > 0 else torch.zeros_like(task.prior)
        return values.index_copy(0, unreached, leak.expand(unreached.numel(), -1))

    guess = None
    if task.start is not None and around is None:
        values = task.start.to(right).index_select(0, where)
        guess = ((values - task.prior if centered else values) * factor).detach()
    diagonal = (1.0 + eta) * node_diagonal
    if around is None:
        system = System(operator.restrict(free), diagonal, node_factor, vector, excess, eta)
        return Problem(system, right, assemble, guess)
    system = System(around, diagonal, node_factor, vector, excess, eta, fixed=around.fixed)
    return Problem(system, around.clear(right), assemble)


def spreading(task: Task) -> Problem:
    """Zhou et al.: (m - αW) G = (1 - α) m s Y on all nodes, divided by α."""
    scaling, alpha = task.scaling, task.damping
    factor = scaling.factor.unsqueeze(1)
    right = (1.0 - alpha) / alpha * scaling.diagonal.unsqueeze(1) * factor * task.labels
    damping = 1.0 / alpha - 1.0
    excess = partial(_excess, task, damping)
    diagonal = scaling.diagonal / alpha
    system = System(task.operator, diagonal, scaling.factor, scaling.null, excess, damping)
    return Problem(system, right, lambda solved: solved / factor)


def _tied(task: Task) -> Tensor:
    """Nodes (N,) bool with an edge of positive weight."""
    ones = torch.ones_like(task.scaling.diagonal).unsqueeze(1)
    return task.operator.multiply(ones.detach()).squeeze(1) > 0


def _excess(task: Task, share: float) -> Tensor:
    """What the diagonal has beyond the row sums of vWv on all nodes: `share` of them."""
    scaling = task.scaling
    return (share + (~_tied(task)).to(scaling.diagonal)) * scaling.diagonal * scaling.null.square()


def poisson(task: Task) -> Problem:
    """Sources at the seeds, balanced per component so that the singular system is solvable."""
    scaling, labels, eta = task.scaling, task.labels, task.damping
    seeds, reached = task.seeds.unsqueeze(1), task.reached.unsqueeze(1)
    factor, null = scaling.factor.unsqueeze(1), scaling.null.unsqueeze(1)
    tied = _tied(task)
    # With a leak an isolated node forms a part by itself: its placeholder degree has no unit.
    part = torch.where(tied, 0, (~tied).cumsum(0)) if eta > 0 else task.operator.components()
    count = int(part.max()) + 1

    def per_part(x: Tensor) -> Tensor:
        return x.new_zeros(count, x.size(1)).index_add(0, part, x)

    pull = null / factor * seeds
    # y - mean without a difference: the scores of a loosely tied seed magnify its rounding.
    total = per_part(pull).clamp(min=torch.finfo(pull.dtype).tiny)
    with_class, without = per_part(pull * labels) / total, per_part(pull * (1.0 - labels)) / total
    source = labels * without[part] - (1.0 - labels) * with_class[part]
    source = torch.where(seeds, source, 0.0)
    mass = torch.where(tied, scaling.diagonal * scaling.factor.square(), 0.0)
    degree = mass.sum() / tied.count_nonzero().clamp(min=1)
    right = degree * source / factor
    basis = None
    if eta == 0:
        values = scaling.null.detach()
        norm = values.new_zeros(count).index_add(0, part, values.square()).sqrt()
        basis = values / norm[part], part
    diagonal, excess = (1.0 + eta) * scaling.diagonal, partial(_excess, task, eta)
    # The score of a loosely tied seed is larger by the inverse of its ties.
    size = (right / (diagonal.unsqueeze(1) * factor)).detach().abs().amax(dim=1).clamp(min=1.0)
    system = System(
        task.operator, diagonal, scaling.factor, scaling.null, excess, eta, basis, size=size
    )

    def assemble(solved: Tensor) -> Tensor:
        if eta == 0:
            mass = scaling.diagonal.unsqueeze(1) * null
            shift = per_part(mass * solved) / per_part(mass * null)
            solved = solved - shift[part] * null
        return torch.where(reached, solved / factor, 0.0)

    return Problem(system, right, assemble)


RULES: dict[str, Callable[[Task], Problem]] = {
    "harmonic": harmonic,
    "spreading": spreading,
    "poisson": poisson,
}


def class_mass_normalize(
    values: Tensor,
    labels: Tensor,
    seeds: Tensor,
    prior: Tensor | str = "uniform",
    *,
    power: float = 1.0,
) -> Tensor:
    r"""Class-mass normalization (Zhu et al., 2003, sec. 4) of the unseeded rows.

    \(q_{ic} \propto H_{ic} (\pi_c / \sum_i H_{ic})^{p}\), rows summing to 1.

    Args:
        values: (N, C) propagated hit mass, without any part leaked to a prior.
        labels: (N, C) label rows, returned for the seeds.
        seeds: (N,) bool.
        prior: \(\pi\) (C,), or `"uniform"`.
        power: p in [0, 1]; 0.5 is a gentle alignment.

    Returns:
        (N, C). An unseeded row without mass gets the prior; a class without mass keeps none.

    Raises:
        ValueError: `power` out of range; a prior of another length, negative or non-finite.
    """
    check_range("power", power, 0.0, 1.0)
    classes = values.size(1)
    if isinstance(prior, str):
        target = values.new_full((classes,), 1.0 / classes)
    else:
        target = check_prior("class_mass", prior).to(values)
        if target.numel() != classes:
            raise ValueError(f"'class_mass' must have {classes} entries.")
    hidden = ~seeds.unsqueeze(1)
    mass = torch.where(hidden, values, 0.0).sum(dim=0)
    aligned = align_classes(values, target, mass, power)
    normalized = torch.where(aligned.sum(dim=1, keepdim=True) > 0, aligned, target)
    return torch.where(hidden, normalized, labels)
