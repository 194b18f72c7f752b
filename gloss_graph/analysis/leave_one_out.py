r"""Leave-one-out propagation: the label mass at every document while its label is hidden.

With T the walk, seeds S clamped and the other documents U conducting, hiding the label of one seed
i turns it into one more unknown. Eliminating U leaves, for that unknown alone,

    F_i without its label = ((T F)_i / (1 + \eta) - h_i y_i) / (1 - h_i),

where F is the propagation with all labels visible and h_i the mass of i's label that comes back to
i through U: the chance that a walk from i returns to i before it leaks or meets another seed. F
takes one solve for all i. h_i is 0 without unlabeled neighbors; otherwise seeds whose unlabeled
surroundings do not touch share a column, so that one solve serves many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph.export.graph_arrays import GraphArrays
from gloss_graph.propagation import LabelPropagation, node_factors

__all__ = ["WALKS", "Hidden", "hidden_labels", "walk_layer"]

#: Normalizations whose rows sum to 1: only with these is propagated mass a share.
WALKS = ("hub", "row")
_CHUNK = 128
Ways: TypeAlias = tuple[Tensor, Tensor, Tensor]
Spread: TypeAlias = Callable[[Tensor], Tensor]
# A walk that always comes back, up to rounding, meets no other label.
_RETURNS = 1.0 - 1e-9
# Arriving mass below this share of a label's return is rounding.
_RESOLVED = 1e-9


class Hidden(NamedTuple):
    """Label mass that arrives at every document while the label of that document is hidden.

    `mass` (N, C) float64 >= 0, with rows that sum to 1 less the mass that leaked or met no label;
    `returning` (N,), the h of seeds; `exact`, False if h was estimated.
    """

    mass: Tensor
    returning: Tensor
    exact: bool


def walk_layer(normalization: str, eta: float, prior: str | None = "none") -> LabelPropagation:
    """A harmonic layer whose solve is exact to rounding, for masses.

    Raises:
        ValueError: `normalization` not in `WALKS`, `eta` below 0.
    """
    check_choice("normalization", normalization, WALKS)
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    return LabelPropagation(
        "harmonic", normalization, eta=eta, prior=prior, tol=1e-11, max_iter=20_000
    )


def hidden_labels(
    documents: GraphArrays,
    *,
    normalization: str = "hub",
    eta: float = 0.2,
    max_columns: int = 512,
    probes: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Hidden:
    r"""Leave-one-out propagation for all labeled documents at once.

    Args:
        documents: The graph, with a seed.
        normalization: `"hub"` or `"row"`.
        eta: Leak >= 0 of the harmonic rule.
        max_columns: Most right sides of an exact h; with more, h is estimated.
        probes: Random probes (Hutchinson) of the estimate; its error is about the mass a label
            sends to other seeds, divided by the root of this number.
        seed: Seed of the probes.
        progress: Show a bar on stderr.

    Returns:
        Masses; documents that are not seeds have those of ordinary propagation.

    Cost: O((E + N C) iterations) and as much again for every 128 columns.
    """
    check_positive_int("max_columns", max_columns)
    check_positive_int("probes", probes)
    layer = walk_layer(normalization, eta)
    seeds = torch.from_numpy(documents.seeds)
    y = torch.from_numpy(documents.y)
    onehot = torch.nn.functional.one_hot(y.clamp(min=0), len(documents.names)).double()
    onehot = torch.where(seeds.unsqueeze(1), onehot, 0.0)
    share = _walk(documents, normalization)

    def spread(rows: Tensor) -> Tensor:
        return layer.propagate_labels(
            rows, documents.edge_index, documents.edge_weight, seeds, trusted=True
        ).values

    values = spread(onehot)
    source, target = documents.edge_index
    outward = _matrix((source, target, share / (1.0 + eta)), documents.size)
    arrived = torch.from_numpy(outward @ values.numpy())

    inner = seeds[source] & ~seeds[target]
    ways = (source[inner], target[inner], share[inner] / (1.0 + eta))
    columns = _columns(documents)
    exact = int(columns.max()) + 1 <= max_columns
    if exact:
        returning = _returning(spread, ways, columns, progress)
    else:
        returning = _estimated(spread, ways, seeds, probes, seed, progress)
    kept = torch.where(returning < _RETURNS, 1.0 - returning, torch.inf).unsqueeze(1)
    hidden = (arrived - returning.unsqueeze(1) * onehot) / kept
    # For every class alike, so that the rest does not depend on the class of the label.
    hidden = torch.where(hidden > _RESOLVED * returning.unsqueeze(1), hidden, 0.0)
    return Hidden(torch.where(seeds.unsqueeze(1), hidden, values), returning, exact)


def _walk(documents: GraphArrays, normalization: str) -> Tensor:
    """The walk's probabilities (E,) from an edge's first end to its second."""
    factor = node_factors(
        normalization, documents.edge_index, documents.edge_weight, documents.size
    )
    source, target = documents.edge_index
    weight = documents.edge_weight * factor[target]
    total = torch.zeros(documents.size, dtype=weight.dtype).index_add(0, source, weight)
    return weight / torch.where(total > 0, total, 1.0)[source]


def _matrix(ways: Ways, size: int) -> sparse.csr_array:
    """Edges as a matrix (N, N)."""
    source, target, share = (part.numpy() for part in ways)
    return sparse.csr_array((share, (source, target)), shape=(size, size))


def _columns(documents: GraphArrays) -> Tensor:
    """A column for every seed that touches unlabeled documents, -1 for the others (N,) long.

    Seeds that share a column touch no common piece of unlabeled documents, so the mass of one
    cannot be mistaken for that of the other.
    """
    columns = np.full(documents.size, -1, dtype=np.int64)
    free = np.flatnonzero(~documents.seeds)
    if free.size:
        inner = documents.adjacency[free][:, free]
        piece = np.full(documents.size, -1, dtype=np.int64)
        piece[free] = connected_components(inner, directed=False)[1]
        source, target = documents.edge_index.numpy()
        touch = documents.seeds[source] & (piece[target] >= 0)
        pairs = np.unique(np.stack([source[touch], piece[target[touch]]]), axis=1)
        taken: dict[int, int] = {}  # piece -> its columns, as bits
        starts = np.flatnonzero(np.diff(pairs[0], prepend=-1))
        for node, pieces in zip(pairs[0][starts], np.split(pairs[1], starts[1:]), strict=False):
            used = 0
            for number in pieces.tolist():
                used |= taken.get(number, 0)
            bit = ~used & (used + 1)
            columns[node] = bit.bit_length() - 1
            for number in pieces.tolist():
                taken[number] = taken.get(number, 0) | bit
    return torch.from_numpy(columns)


def _returning(spread: Spread, ways: Ways, columns: Tensor, progress: bool) -> Tensor:
    """Exact h (N,), by columns of seeds that do not meet."""
    source, target, share = ways
    h = torch.zeros(columns.numel(), dtype=share.dtype)
    column = columns[source]
    for start in _steps(int(columns.max()) + 1, progress):
        mine = (columns >= start) & (columns < start + _CHUNK)
        nodes = mine.nonzero().squeeze(1)
        width = int(columns[nodes].max()) - start + 1
        given = torch.zeros(columns.numel(), width, dtype=share.dtype)
        given[nodes, columns[nodes] - start] = 1.0
        values = spread(given)
        edges = (column >= start) & (column < start + _CHUNK)
        back = share[edges] * values[target[edges], column[edges] - start]
        h.index_add_(0, source[edges], back)
    return h.clamp(max=1.0)


def _estimated(
    spread: Spread, ways: Ways, seeds: Tensor, probes: int, seed: int, progress: bool
) -> Tensor:
    """Hutchinson's estimate of h (N,): random signs at the seeds, and the share that returns."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.zeros(seeds.numel(), dtype=torch.float64)
    outward = _matrix(ways, seeds.numel())
    for start in _steps(probes, progress):
        width = min(_CHUNK, probes - start)
        sign = torch.randint(0, 2, (seeds.numel(), width), generator=generator) * 2.0 - 1.0
        sign = torch.where(seeds.unsqueeze(1), sign.double(), 0.0)
        # The layer takes only label mass >= 0.
        values = spread(sign.clamp(min=0.0)) - spread((-sign).clamp(min=0.0))
        h += (torch.from_numpy(outward @ values.numpy()) * sign).sum(dim=1)
    return (h / probes).clamp(0.0, 1.0)


def _steps(total: int, progress: bool) -> Iterator[int]:
    starts = range(0, total, _CHUNK)
    yield from track(
        starts,
        description="Hiding labels",
        console=Console(stderr=True),
        transient=True,
        disable=not progress or len(starts) < 2,
    )
