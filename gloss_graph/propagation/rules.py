"""Propagation rules: each turns labels into one linear system and its solution into values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gloss_graph._checks import check_range
from gloss_graph._space import Dimension, Range
from gloss_graph.propagation.alignment import align_classes
from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator, known_at
from gloss_graph.propagation.inputs import check_prior
from gloss_graph.propagation.normalize import Scaling
from gloss_graph.propagation.operators import MaskedOperator, SparseOperator
from gloss_graph.propagation.solve import DENSE_LIMIT, System

# Up to one node in so many is known: then solving around them beats cutting W down to the rest.
_KNOWN_RATIO = 4
SEARCH_SPACE: dict[str, Dimension] = {"eta": Range(0.01, 1.0, log=True)}

# Weight of an edge beside the mean of its ends' degrees, below which it is no tie for `poisson`.
_LOOSE = 1e-4


@dataclass(frozen=True)
class Problem:
    """A linear system in the scaled values G = s F and the way back to F.

    Attributes:
        system: The symmetric matrix on n unknowns.
        right: (n, C) right side.
        assemble: Solution (n, C) -> values (N, C).
        gather: Values (N, C) -> solution (n, C), where a guess of the values can start a solve.
    """

    system: System
    right: Tensor
    assemble: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor], Tensor] | None = None


def harmonic(
    operator: AnyOperator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
) -> Problem:
    """Clamped seeds; the unknowns are the unseeded nodes that a seed reaches."""
    free = reached & ~seeds
    unreached = (~reached).nonzero().squeeze(1)
    leak = prior if eta > 0 else torch.zeros_like(prior)
    if isinstance(operator, SparseOperator):
        fixed = (~free).nonzero().squeeze(1)
        unknown = free.numel() - fixed.numel()
        if _KNOWN_RATIO * fixed.numel() <= free.numel() and unknown > DENSE_LIMIT:
            masked = MaskedOperator(operator, fixed)
            return _harmonic_around(masked, labels, unreached, scaling, eta, prior, leak)
    where = free.nonzero().squeeze(1)
    node_factor = scaling.factor.index_select(0, where)
    node_diagonal = scaling.diagonal.index_select(0, where)
    factor = node_factor.unsqueeze(1)
    right = known_at(operator, scaling.factor, labels, where)
    if eta > 0:
        right = right + eta * node_diagonal.unsqueeze(1) * factor * prior
    system = System(operator.restrict(free), (1.0 + eta) * node_diagonal, node_factor, None)

    def assemble(solved: Tensor) -> Tensor:
        values = labels.index_copy(0, where, solved / factor)
        if unreached.numel() == 0:
            return values
        return values.index_copy(0, unreached, leak.expand(unreached.numel(), -1))

    def gather(values: Tensor) -> Tensor:
        return (values.index_select(0, where) * factor).detach()

    return Problem(system, right, assemble, gather)


def _harmonic_around(
    operator: MaskedOperator,
    labels: Tensor,
    unreached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
    leak: Tensor,
) -> Problem:
    """The system of `harmonic` on all nodes, with zeros where nothing is unknown."""
    factor, diagonal = scaling.factor.unsqueeze(1), scaling.diagonal
    right = operator.whole.times(factor * labels)
    if eta > 0:
        right = right + eta * diagonal.unsqueeze(1) * factor * prior
    system = System(operator, (1.0 + eta) * diagonal, scaling.factor, None)

    def assemble(solved: Tensor) -> Tensor:
        # Zero there already, but gradients must not enter the adjoint solve there either.
        values = labels + operator.clear(solved) / factor
        if unreached.numel() == 0:
            return values
        return values.index_copy(0, unreached, leak.expand(unreached.numel(), -1))

    return Problem(system, operator.clear(right), assemble)


def spreading(
    operator: AnyOperator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    alpha: float,
    prior: Tensor,
) -> Problem:
    """Zhou et al.: (m - αW) G = (1 - α) m s Y on all nodes, divided by α."""
    del seeds, reached, prior
    factor, diagonal = scaling.factor.unsqueeze(1), scaling.diagonal.unsqueeze(1)
    right = (1.0 - alpha) / alpha * diagonal * factor * labels
    system = System(operator, scaling.diagonal / alpha, scaling.factor, None)
    return Problem(system, right, lambda solved: solved / factor)


def poisson(
    operator: AnyOperator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
) -> Problem:
    """Sources at the seeds, balanced per component so that the singular system is solvable."""
    del prior
    n = operator.num_nodes
    factor = scaling.factor.unsqueeze(1)
    null = scaling.null.unsqueeze(1)
    if eta > 0:
        part = torch.zeros(n, dtype=torch.long, device=labels.device)
    else:
        part = _components(operator).to(labels.device)
    count = int(part.max()) + 1 if n else 0

    def per_part(x: Tensor) -> Tensor:
        return x.new_zeros(count, x.size(1)).index_add(0, part, x)

    pull = null / factor * seeds.unsqueeze(1)
    mean = per_part(pull * labels) / per_part(pull).clamp(min=torch.finfo(pull.dtype).tiny)
    source = torch.where(seeds.unsqueeze(1), labels - mean[part], 0.0)
    degree = (scaling.diagonal * scaling.factor.square()).mean()
    right = degree * source / factor
    basis = None if eta > 0 else _null_basis(null.detach().squeeze(1), part, count)
    system = System(operator, (1.0 + eta) * scaling.diagonal, scaling.factor, basis)

    def assemble(solved: Tensor) -> Tensor:
        if eta == 0:
            mass = scaling.diagonal.unsqueeze(1) * null
            shift = per_part(mass * solved) / per_part(mass * null)
            solved = solved - shift[part] * null
        return torch.where(reached.unsqueeze(1), solved / factor, 0.0)

    return Problem(system, right, assemble)


RULES: dict[str, Callable[..., Problem]] = {
    "harmonic": harmonic,
    "spreading": spreading,
    "poisson": poisson,
}


def _components(operator: AnyOperator) -> Tensor:
    """Connected component (N,) long of every node over edges that tie.

    Behind an edge of next to no weight a source would lift all values by what it is divided by,
    so the parts it joins are balanced each by itself.
    """
    if isinstance(operator, BankOperator):
        raise ValueError("rule='poisson' needs the edges of the whole graph in one list.")
    weight = operator.weight.detach()
    if isinstance(operator, SparseOperator):
        row, column, weight = operator.rows.row, operator.rows.target, weight
    else:
        row, column = weight.nonzero(as_tuple=True)
        weight = weight[row, column]
    degree = weight.new_zeros(operator.num_nodes).index_add(0, row, weight).sqrt()
    live = (weight > _LOOSE * degree[row] * degree[column]).cpu().numpy()
    ends = (row.cpu().numpy()[live], column.cpu().numpy()[live])
    shape = (operator.num_nodes, operator.num_nodes)
    adjacency = sparse.coo_matrix((live[live], ends), shape=shape)
    return torch.from_numpy(connected_components(adjacency, directed=False)[1]).long()


def _null_basis(null: Tensor, part: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unit null vectors, one a component, kept as values (N,) and component (N,)."""
    norm = null.new_zeros(count).index_add(0, part, null.square()).sqrt()
    return null / norm[part], part


def class_mass_normalize(
    values: Tensor,
    labels: Tensor,
    seeds: Tensor,
    prior: Tensor | str = "uniform",
    *,
    power: float = 1.0,
) -> Tensor:
    r"""Class-mass normalisation (Zhu et al., 2003, sec. 4) of the unseeded rows.

    \(q_{ic} \propto H_{ic} (\pi_c / \sum_i H_{ic})^{p}\), rows summing to 1.

    Args:
        values: (N, C) propagated hit mass, without any part leaked to a prior.
        labels: (N, C) label rows, given back for the seeds.
        seeds: (N,) bool.
        prior: \(\pi\) (C,), or `"uniform"`.
        power: p in [0, 1]; 0.5 is a gentle alignment.

    Returns:
        (N, C). An unseeded row without mass gets the prior; a class without mass keeps none.
    """
    check_range("power", power, 0.0, 1.0)
    classes = values.size(1)
    if isinstance(prior, str):
        target = values.new_full((classes,), 1.0 / classes)
    else:
        target = prior_of(prior, classes).to(values)
    hidden = ~seeds.unsqueeze(1)
    mass = torch.where(hidden, values, 0.0).sum(dim=0)
    aligned = align_classes(values, target, mass, power)
    normalized = torch.where(aligned.sum(dim=1, keepdim=True) > 0, aligned, target)
    return torch.where(hidden, normalized, labels)


def prior_of(prior: Tensor, classes: int) -> Tensor:
    """`prior` (C,) checked and scaled to sum 1.

    Raises:
        ValueError: Another length than `classes`, negative or non-finite entries.
    """
    checked = check_prior("class_mass", prior)
    if checked is None or checked.numel() != classes:
        raise ValueError(f"'class_mass' must have {classes} entries.")
    return checked
