"""Propagation rules: each turns labels into one linear system and its solution into values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_range
from gloss_graph.propagation.alignment import align_classes
from gloss_graph.propagation.inputs import check_prior
from gloss_graph.propagation.normalize import Scaling
from gloss_graph.propagation.operators import MaskedOperator, Operator
from gloss_graph.propagation.solve import DENSE_LIMIT, System

# Up to one node in so many is known: then solving around them beats cutting W down to the rest.
_KNOWN_RATIO = 4


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

    def first_guess(self, values: Tensor | None) -> Tensor | None:
        """The solution (n, C) to start from, of guessed values (N, C)."""
        if values is None or self.gather is None:
            return None
        return self.gather(values.to(self.right))


def harmonic(
    operator: Operator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
    centered: bool = False,
) -> Problem:
    """Clamped seeds; the unknowns are the unseeded nodes that a seed reaches."""
    free = reached & ~seeds
    unreached = (~reached).nonzero().squeeze(1)
    leak = prior if eta > 0 else torch.zeros_like(prior)
    where = free.nonzero().squeeze(1)
    known = free.numel() - where.numel()
    if _KNOWN_RATIO * known <= free.numel() and where.numel() > DENSE_LIMIT:
        masked = operator.masked((~free).nonzero().squeeze(1))
        if masked is not None:
            return _harmonic_around(
                masked, labels, seeds, unreached, scaling, eta, prior, leak, centered
            )
    node_factor = scaling.factor.index_select(0, where)
    node_diagonal = scaling.diagonal.index_select(0, where)
    factor = node_factor.unsqueeze(1)
    middle = _middle(scaling, eta, prior, centered)
    if middle is None:
        right = operator.known_at(scaling.factor, labels, where)
        if eta > 0:
            right = right + eta * node_diagonal.unsqueeze(1) * factor * prior
    else:
        right = operator.known_at(scaling.factor, _spread(labels, seeds, middle), where)
    same = scaling.null is scaling.factor
    vector = node_factor if same else scaling.null.index_select(0, where)

    def excess() -> Tensor:
        known = (~free).to(vector.dtype).unsqueeze(1)
        tie = operator.known_at(scaling.null, known, where).squeeze(1)
        return vector * tie + eta * node_diagonal * vector.square()

    diagonal = (1.0 + eta) * node_diagonal
    system = System(operator.restrict(free), diagonal, node_factor, vector, excess, eta)

    def assemble(solved: Tensor) -> Tensor:
        found = solved / factor if middle is None else torch.addcdiv(middle, solved, factor)
        values = labels.index_copy(0, where, found)
        if unreached.numel() == 0:
            return values
        return values.index_copy(0, unreached, leak.expand(unreached.numel(), -1))

    def gather(values: Tensor) -> Tensor:
        known = values.index_select(0, where)
        return ((known if middle is None else known - middle) * factor).detach()

    return Problem(system, right, assemble, gather)


def _middle(scaling: Scaling, eta: float, prior: Tensor, centered: bool) -> Tensor | None:
    """The prior (C,) if values are to be solved as differences from it.

    It solves the system without labels where rows of T sum to 1. Few labels move most values
    little from it: a residual relative to the prior's own share would leave what the labels add,
    all that a loss reads, less accurate by that ratio.
    """
    exact = scaling.null is scaling.factor and eta > 0 and bool(prior.any())
    return prior if centered and exact else None


def _spread(labels: Tensor, seeds: Tensor, middle: Tensor) -> Tensor:
    """Labels (N, C) as differences from the `middle` (C,), zero but for the seeds, in one pass."""
    return torch.addcmul(labels, seeds.to(labels).unsqueeze(1), middle, value=-1.0)


def _harmonic_around(
    operator: MaskedOperator,
    labels: Tensor,
    seeds: Tensor,
    unreached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
    leak: Tensor,
    centered: bool,
) -> Problem:
    """The system of `harmonic` on all nodes, with zeros where nothing is unknown."""
    factor, diagonal = scaling.factor.unsqueeze(1), scaling.diagonal
    middle = _middle(scaling, eta, prior, centered)
    if middle is None:
        right = operator.whole.times(factor * labels)
        if eta > 0:
            right = right + eta * diagonal.unsqueeze(1) * factor * prior
    else:
        right = operator.whole.times(factor * _spread(labels, seeds, middle))
    vector = scaling.null

    def excess() -> Tensor:
        fixed = torch.zeros_like(diagonal).index_fill(0, operator.fixed, 1.0)
        tie = operator.whole.times((vector * fixed).unsqueeze(1)).squeeze(1)
        return (1.0 - fixed) * (vector * tie + eta * diagonal * vector.square())

    system = System(
        operator,
        (1.0 + eta) * diagonal,
        scaling.factor,
        vector,
        excess,
        eta,
        fixed=operator.fixed,
    )

    def assemble(solved: Tensor) -> Tensor:
        # Zero there already, but gradients must not enter the adjoint solve there either.
        values = labels + operator.clear(solved) / factor
        if middle is not None:
            values = values + operator.clear(middle.expand_as(values).clone())
        if unreached.numel() == 0:
            return values
        return values.index_copy(0, unreached, leak.expand(unreached.numel(), -1))

    return Problem(system, operator.clear(right), assemble)


def spreading(
    operator: Operator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    alpha: float,
    prior: Tensor,
    centered: bool = False,
) -> Problem:
    """Zhou et al.: (m - αW) G = (1 - α) m s Y on all nodes, divided by α."""
    del seeds, reached, prior, centered
    factor = scaling.factor.unsqueeze(1)
    right = (1.0 - alpha) / alpha * scaling.diagonal.unsqueeze(1) * factor * labels
    damping = 1.0 / alpha - 1.0
    excess = partial(_excess, operator, scaling, damping)
    diagonal = scaling.diagonal / alpha
    system = System(operator, diagonal, scaling.factor, scaling.null, excess, damping)
    return Problem(system, right, lambda solved: solved / factor)


def _excess(operator: Operator, scaling: Scaling, share: float) -> Tensor:
    """What the diagonal has beyond the row sums of vWv on all nodes: `share` of them."""
    ones = torch.ones_like(scaling.diagonal).unsqueeze(1)
    tied = operator.multiply(ones.detach()).squeeze(1) > 0
    return (share + (~tied).to(scaling.diagonal)) * scaling.diagonal * scaling.null.square()


def poisson(
    operator: Operator,
    labels: Tensor,
    seeds: Tensor,
    reached: Tensor,
    scaling: Scaling,
    eta: float,
    prior: Tensor,
    centered: bool = False,
) -> Problem:
    """Sources at the seeds, balanced per component so that the singular system is solvable."""
    del prior, centered
    n = operator.num_nodes
    factor = scaling.factor.unsqueeze(1)
    null = scaling.null.unsqueeze(1)
    tied = operator.multiply(torch.ones_like(null).detach()).squeeze(1) > 0
    if eta > 0:
        # An isolated node forms a part by itself: its placeholder degree has no unit.
        part = torch.where(tied, 0, (~tied).cumsum(0))
    else:
        part = operator.components()
    count = int(part.max()) + 1 if n else 0

    def per_part(x: Tensor) -> Tensor:
        return x.new_zeros(count, x.size(1)).index_add(0, part, x)

    pull = null / factor * seeds.unsqueeze(1)
    # y - mean without a difference: the scores of a loosely tied seed magnify its rounding.
    total = per_part(pull).clamp(min=torch.finfo(pull.dtype).tiny)
    with_class, without = per_part(pull * labels) / total, per_part(pull * (1.0 - labels)) / total
    source = labels * without[part] - (1.0 - labels) * with_class[part]
    source = torch.where(seeds.unsqueeze(1), source, 0.0)
    mass = torch.where(tied, scaling.diagonal * scaling.factor.square(), 0.0)
    degree = mass.sum() / tied.count_nonzero().clamp(min=1)
    right = degree * source / factor
    basis = None if eta > 0 else _null_basis(null.detach().squeeze(1), part, count)
    diagonal, excess = (1.0 + eta) * scaling.diagonal, partial(_excess, operator, scaling, eta)
    # The score of a loosely tied seed is larger by the inverse of its ties.
    size = (right / (diagonal.unsqueeze(1) * factor)).detach().abs().amax(dim=1).clamp(min=1.0)
    system = System(operator, diagonal, scaling.factor, scaling.null, excess, eta, basis, size=size)

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


def _null_basis(null: Tensor, part: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unit null vectors, one per component, kept as values (N,) and component (N,)."""
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
