r"""The labeled documents that decide every document, for all documents at once.

The mass of the labeled document j at document i is the chance that a walk from i ends in j: one
column of the propagation with the label j alone, so as many right sides as there are labels give
all masses, exactly. For a labeled document i the masses are those with its label hidden, which
makes it one more unknown. Eliminating the unlabeled documents U leaves
\(K = S_{ll} + S_{lu} M\), M (U, L) the masses of U, and then

    mass of j at i = K_ij / (a_i - K_ii) for j other than i,

a the diagonal of the system: exact too, without a further solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components

from gloss_graph.analysis.leave_one_out import walk_layer
from gloss_graph.export.graph_arrays import GraphArrays
from gloss_graph.propagation import node_factors

__all__ = ["TopMasses", "top_masses"]

_BLOCK = 256
# Up to this many unlabeled documents their system is factored once, dense, for all labels: seconds
# where iterations for thousands of labels take minutes.
_DENSE = 5000


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
    """Find the labeled documents with the largest mass at each of some documents.

    Args:
        documents: The graph.
        rows: (n,) the documents to explain.
        top: Labeled documents kept per document.
        eta: Leak of the harmonic rule.
        normalization: `"hub"` or `"row"`, for which masses are probabilities.
        progress: Show a bar on stderr.

    Returns:
        Exact masses on the whole graph, to rounding or the solver's tolerance of 1e-11.

    Cost: with L labels that touch some of U unlabeled documents O(U³ + U² L) for U up to 5,000,
    O((E + N) L iterations) beyond, in blocks of O(256 N) memory. Labels that touch no unlabeled
    document need no solve.
    """
    size, count = documents.size, len(rows)
    seeds = np.flatnonzero(documents.seeds)
    classes = int(documents.y.max(initial=-1)) + 1
    nodes = np.full((count, top), -1, dtype=np.int64)
    mass = np.zeros((count, top))
    by_class = np.zeros((count, classes))
    if not seeds.size or not count:
        return TopMasses(nodes, mass, by_class)
    layer = walk_layer(normalization, eta)  # checks the settings
    entries = documents.links.tocoo()
    edges = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    weight = torch.from_numpy(entries.data)
    factor = node_factors(normalization, edges, weight, size).numpy()
    scaled = sparse.csr_array(
        sparse.diags_array(factor) @ documents.links @ sparse.diags_array(factor)
    )
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
