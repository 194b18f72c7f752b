"""Where label mass comes from: the one home of every solve that hides a document's label."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph.export.graph_arrays import GraphArrays
from gloss_graph.propagation import LabelPropagation, node_factors

# Normalizations whose rows sum to 1: only with these is propagated mass a share.
_WALKS = ("hub", "row")
_CHUNK = 128  # right sides of hidden labels per solve,
_BLOCK = 256  # and of the masses of labels
# A walk that always comes back, up to rounding, meets no other label.
_RETURNS = 1.0 - 1e-9
# Arriving mass below this share of a label's return is rounding.
_RESOLVED = 1e-9
# Up to this many unlabeled documents their system is factored once, dense, for all labels: seconds
# where iterations for thousands of labels take minutes.
_DENSE = 5000
Ways: TypeAlias = tuple[Tensor, Tensor, Tensor]
Spread: TypeAlias = Callable[[Tensor], Tensor]


def check_labeled(documents: GraphArrays) -> None:
    """Raise for a graph without a label that propagates."""
    if not documents.seeds.any():
        raise ValueError(
            "'graph' must hold a labeled document (got none: every 'y' is -1 or outside "
            "'seed_mask'). Label some documents first."
        )


class Hidden(NamedTuple):
    """Label mass that arrives at every document while the label of that document is hidden.

    `mass` (N, C) float64 >= 0, with rows that sum to 1 less the mass that leaked or met no label;
    `returning` (N,), the h of seeds; `exact`, False if h was estimated.
    """

    mass: Tensor
    returning: Tensor
    exact: bool


def _layer(normalization: str, eta: float, prior: str | None = "none") -> LabelPropagation:
    """A harmonic layer whose solve is exact to rounding."""
    check_choice("normalization", normalization, _WALKS)
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    return LabelPropagation(
        "harmonic", normalization, eta=eta, prior=prior, tol=1e-11, max_iter=20_000
    )


def node_masses(
    documents: GraphArrays, node: int, normalization: str, eta: float
) -> tuple[np.ndarray, float, bool]:
    """Mass of every document at one (N,), the mass that leaked, and whether a label is reached."""
    layer = _layer(normalization, eta, prior=None)
    seeds = torch.from_numpy(documents.seeds.copy())
    seeds[node] = False
    # The values of labels and prior do not matter, only their gradients.
    labels = torch.zeros(documents.size, 1, dtype=torch.float64, requires_grad=True)
    prior = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        solved = layer.propagate_labels(
            labels, documents.edge_index, documents.edge_weight, seeds, trusted=True, prior=prior
        )
        value = solved.values[node, 0]
        if not value.requires_grad:
            return np.zeros(documents.size), 0.0, False
        masses, leaked = torch.autograd.grad(
            value, (labels, prior), allow_unused=True, materialize_grads=True
        )
    return masses.squeeze(1).clamp(min=0.0).numpy(), float(leaked), bool(solved.reached[node])


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
    r"""Propagate with the label of every labeled document hidden in turn, for all at once.

    With T the walk, hiding the label of a seed i turns it into one more unknown. Eliminating the
    unlabeled documents U leaves, for that unknown alone,

        F_i without its label = ((T F)_i / (1 + \eta) - h_i y_i) / (1 - h_i),

    where F is the propagation with all labels visible, from one solve for all i, and h_i the mass
    of i's label that comes back to i through U: the chance that a walk from i returns to i before
    it leaks or meets another seed. It is 0 without unlabeled neighbors; otherwise seeds whose
    unlabeled surroundings do not touch share a right side.

    With more than `max_columns` right sides h is estimated from random `probes` (Hutchinson); the
    error is about the mass that a label sends to other seeds, divided by the root of their number.
    Documents that are not seeds have the masses of ordinary propagation.

    Cost: O((E + N C) iterations) and as much again for every 128 columns.
    """
    check_positive_int("max_columns", max_columns)
    check_positive_int("probes", probes)
    layer = _layer(normalization, eta)
    seeds = torch.from_numpy(documents.seeds)
    y = torch.from_numpy(documents.y)
    onehot = torch.nn.functional.one_hot(y.clamp(min=0), len(documents.names)).double()
    onehot = torch.where(seeds.unsqueeze(1), onehot, 0.0)
    share = _walk(documents, normalization) / (1.0 + eta)

    def spread(rows: Tensor) -> Tensor:
        return layer.propagate_labels(
            rows, documents.edge_index, documents.edge_weight, seeds, trusted=True
        ).values

    values = spread(onehot)
    source, target = documents.edge_index
    arrived = _outward((source, target, share), values)
    inner = seeds[source] & ~seeds[target]
    ways = (source[inner], target[inner], share[inner])
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


def _outward(ways: Ways, values: Tensor) -> Tensor:
    """What arrives over some edges of values (N, C) at their second ends."""
    source, target, share = (part.numpy() for part in ways)
    size = len(values)
    matrix = sparse.csr_array((share, (source, target)), shape=(size, size))
    return torch.from_numpy(matrix @ values.numpy())


def _columns(documents: GraphArrays) -> Tensor:
    """A column for every seed that touches unlabeled documents, -1 for the others (N,) long.

    Seeds that share a column touch no common piece of unlabeled documents, so the mass of one
    cannot be confused with that of the other.
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
        nodes = ((columns >= start) & (columns < start + _CHUNK)).nonzero().squeeze(1)
        width = int(columns[nodes].max()) - start + 1
        labels = torch.zeros(columns.numel(), width, dtype=share.dtype)
        labels[nodes, columns[nodes] - start] = 1.0
        values = spread(labels)
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
    for start in _steps(probes, progress):
        width = min(_CHUNK, probes - start)
        sign = torch.randint(0, 2, (seeds.numel(), width), generator=generator) * 2.0 - 1.0
        sign = torch.where(seeds.unsqueeze(1), sign.double(), 0.0)
        # The layer takes only label mass >= 0.
        values = spread(sign.clamp(min=0.0)) - spread((-sign).clamp(min=0.0))
        h += (_outward(ways, values) * sign).sum(dim=1)
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


class TopMasses(NamedTuple):
    """The labeled documents that decide n documents, largest mass first.

    `nodes` (n, T) int64, padded with -1; `mass` (n, T); `by_class` (n, C), the mass of all labeled
    documents per class. Rows of `by_class` sum to 1 less the mass that leaked or met no label.
    """

    nodes: np.ndarray
    mass: np.ndarray
    by_class: np.ndarray

    @property
    def propagated(self) -> np.ndarray:
        """Class of the largest mass (n,), -1 where no label reaches."""
        if not self.by_class.shape[1]:
            return np.full(len(self.nodes), -1, dtype=np.int64)
        best = self.by_class.argmax(axis=1)
        return np.where(self.by_class.max(axis=1) > 1e-12, best, -1)


@torch.no_grad()
def top_masses(
    documents: GraphArrays,
    rows: np.ndarray,
    *,
    top: int = 5,
    eta: float = 0.2,
    normalization: str = "hub",
    progress: bool = False,
) -> TopMasses:
    r"""Find the `top` labeled documents of largest mass at each of the documents `rows` (n,).

    The mass of label j at i is the chance that a walk from i ends in j: one right side per label
    gives the masses M (U, L) of unlabeled documents. With \(K = S_{ll} + S_{lu} M\) and a the
    diagonal of the system, that of j at a labeled i, its label hidden, is
    \(K_{ij} / (a_i - K_{ii})\), without a further solve. Masses are exact to rounding or the
    solver's tolerance of 1e-11.

    Cost: with L labels that touch some of U unlabeled documents O(U³ + U² L) for U up to 5,000,
    O((E + N) L iterations) beyond, in blocks of O(256 N) memory. Labels that touch no unlabeled
    document need no solve.
    """
    size, count = documents.size, len(rows)
    seeds = np.flatnonzero(documents.seeds)
    nodes = np.full((count, top), -1, dtype=np.int64)
    mass = np.zeros((count, top))
    by_class = np.zeros((count, int(documents.y.max(initial=-1)) + 1))
    if not seeds.size or not count:
        return TopMasses(nodes, mass, by_class)
    layer = _layer(normalization, eta)
    entries = documents.links.tocoo()
    edges = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    weight = torch.from_numpy(entries.data)
    factor = sparse.diags_array(node_factors(normalization, edges, weight, size).numpy())
    scaled = sparse.csr_array(factor @ documents.links @ factor)
    every = (1 + eta) * np.asarray(scaled.sum(axis=1)).ravel()
    diagonal, outward = every[rows], scaled[rows]
    # Only labels with an unlabeled neighbor send mass through others.
    touching = scaled @ (~documents.seeds).astype(float) > 0
    dense = _factored(documents, scaled, every) if touching[seeds].any() else None

    def spread(block: np.ndarray) -> np.ndarray:
        """Masses (N, b) of the labels `block` at all documents."""
        values = np.zeros((size, block.size))
        values[block, np.arange(block.size)] = 1.0
        some = touching[block]
        if not some.any():
            return values
        if dense is None:
            y = torch.from_numpy(values[:, some])
            seen = torch.from_numpy(documents.seeds)
            solved = layer.propagate_labels(y, edges, weight, seen, trusted=True)
            values[:, some] = solved.values.numpy()
        else:
            free, solve = dense
            values[np.ix_(free, some)] = solve(scaled[free][:, block[some]].toarray())
        return values

    labeled = documents.seeds[rows]
    back = np.zeros(count)  # what returns to a labeled document, K_ii
    starts = range(0, seeds.size, _BLOCK)
    console = Console(stderr=True)
    for start in track(starts, "explanations", console=console, disable=not progress):
        block = seeds[start : start + _BLOCK]
        values = spread(block)
        found = np.maximum(values[rows], 0.0)
        found[labeled] = np.maximum((outward @ values)[labeled], 0.0)
        itself = rows[:, None] == block
        back[itself.any(axis=1)] = found[itself]
        found[itself] = 0.0
        for label in np.unique(documents.y[block]):
            by_class[:, label] += found[:, documents.y[block] == label].sum(axis=1)
        joined = np.concatenate([mass, found], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :top]
        names = np.concatenate([nodes, np.broadcast_to(block, (count, block.size))], axis=1)
        mass = np.take_along_axis(joined, order, axis=1)
        nodes = np.take_along_axis(names, order, axis=1)

    # A labeled document that meets only itself gets no mass.
    rest = np.where(labeled, diagonal - back, 1.0)
    scale = np.where(rest > 1e-9 * np.maximum(diagonal, 1e-300), 1 / np.maximum(rest, 1e-300), 0.0)
    mass, by_class = mass * scale[:, None], by_class * scale[:, None]
    return TopMasses(np.where(mass > 1e-12, nodes, -1), mass, by_class)


def _factored(
    documents: GraphArrays, scaled: sparse.csr_array, diagonal: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """Unlabeled documents that labels reach and a solver of their system; None if too large."""
    _, part = connected_components(scaled, directed=False)
    reached = np.isin(part, part[documents.seeds])
    free = np.flatnonzero(~documents.seeds & reached)
    pivot = diagonal[free]
    # A diagonal that underflows leaves nothing to divide by.
    if free.size > _DENSE or not (pivot > np.finfo(float).tiny).all():
        return None
    root = pivot**-0.5
    matrix = -(root[:, None] * scaled[free][:, free].toarray() * root)
    matrix[np.diag_indices(free.size)] += 1.0
    try:
        factor = linalg.cho_factor(matrix, overwrite_a=True)
    except linalg.LinAlgError:
        return None  # weights of very different size
    return free, lambda right: root[:, None] * linalg.cho_solve(factor, root[:, None] * right)
