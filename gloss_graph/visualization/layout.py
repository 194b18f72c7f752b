"""Selection and placement of the nodes of a picture."""

from __future__ import annotations

import networkx as nx
import numpy as np
from scipy import fft, sparse

_JUMP = 0.15
_BLOCK = 64  # rows that stay in cache; larger products also wake every BLAS thread
# Up to this many nodes all pairs are visited; beyond, their masses are put on a grid of cells of at
# least this side (the kernel falls to one half at distance 1).
_ALL_PAIRS, _CELL, _CELLS = 1500, 0.4, 320
_CORNERS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])


def sample_nodes(graph: nx.Graph, size: int, *, seed: int = 0) -> list[object]:
    """Choose nodes by a random walk with jumps (Leskovec & Faloutsos 2006), in the graph's order.

    A uniform sample of a share p of the nodes keeps only p² of the edges; a walk keeps
    neighborhoods together.
    """
    if size < 1:
        raise ValueError(f"'size' must be at least 1 (got {size}).")
    nodes = list(graph)
    if size >= len(nodes):
        return nodes
    rng = np.random.default_rng(seed)
    chosen: dict[object, None] = {}
    here = nodes[rng.integers(len(nodes))]
    # A walk can be stuck in a small component; then uniform draws fill the rest.
    for _ in range(50 * size):
        chosen[here] = None
        if len(chosen) == size:
            break
        neighbors = list(graph.adj[here])
        if not neighbors or rng.random() < _JUMP:
            here = nodes[rng.integers(len(nodes))]
        else:
            here = neighbors[rng.integers(len(neighbors))]
    rest = [node for node in nodes if node not in chosen]
    for i in rng.choice(len(rest), size - len(chosen), replace=False):
        chosen[rest[i]] = None
    return [node for node in nodes if node in chosen]


def edge_list(links: sparse.sparray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (p, 2), the smaller first, and weights (p,) of a symmetric weight matrix (N, N)."""
    entries = links.tocoo()
    one_way = entries.row < entries.col
    return np.stack([entries.row, entries.col], axis=1)[one_way], entries.data[one_way]


def place_nodes(
    graph: nx.Graph | sparse.sparray, *, seed: int = 0, iterations: int = 250
) -> np.ndarray:
    r"""Place nodes in the plane so that neighbors stay together and clusters apart.

    Neighbor embedding of the graph itself (tsNET: Kruiger et al. 2017): with
    \(p_{ij} = (w_{ij}/d_i + w_{ij}/d_j) / 2N\) and \(q_{ij} \propto (1 + \|x_i - x_j\|^2)^{-1}\),
    gradient descent on \(\mathrm{KL}(p \| q)\) from a spectral start. Of a graph the attribute
    `weight` counts, or it is a symmetric weight matrix (N, N); edges of weight 0 and below do not
    count. The result (N, 2) is within [-1, 1]; nodes without an edge are in rows below -1.

    Cost: O(iterations · N²) up to 1,500 nodes; O(iterations · (N + E)) beyond, where repulsion
    comes from a grid (Linderman et al. 2019).
    """
    if isinstance(graph, nx.Graph):
        if not graph:
            return np.zeros((0, 2))
        graph = nx.to_scipy_sparse_array(graph)
    entries = graph.tocoo()
    num_nodes = entries.shape[0]
    places = np.zeros((num_nodes, 2))
    keep = (entries.data > 0) & (entries.row != entries.col)
    weight = entries.data[keep].astype(np.float32)
    linked_to = sparse.csr_array((weight, (entries.row[keep], entries.col[keep])), entries.shape)
    linked = np.flatnonzero(np.diff(linked_to.indptr))
    if linked.size:
        inner = _embed(sparse.csr_array(linked_to[linked][:, linked]), seed, iterations)
        low, high = inner.min(axis=0), inner.max(axis=0)
        places[linked] = 2 * (inner - low) / np.maximum(high - low, 1e-12) - 1
    alone = np.setdiff1d(np.arange(num_nodes), linked)
    # Rows of up to 40 below the picture; a graph without edges becomes a square of dots.
    width = max(40 if linked.size else 1, int(np.ceil(np.sqrt(alone.size))))
    column, row = np.arange(alone.size) % width, np.arange(alone.size) // width
    places[alone, 0] = -1 + 2 * (column + 0.5) / width
    places[alone, 1] = (-1.12 if linked.size else 1.0) - 2 * (row + 0.5) / width
    return places


def _embed(adjacency: sparse.csr_array, seed: int, iterations: int) -> np.ndarray:
    """Places (N, 2) of nodes that all have an edge, at any scale."""
    num_nodes = adjacency.shape[0]
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    walk = sparse.diags_array(1 / degree) @ adjacency
    p = sparse.csr_array((walk + walk.T) / (2 * num_nodes), dtype=np.float32)
    p.sort_indices()
    row, column = np.repeat(np.arange(num_nodes), np.diff(p.indptr)), p.indices

    x = _spectral_start(adjacency, degree, np.random.default_rng(seed)).astype(np.float32)
    velocity = np.zeros_like(x)
    rate = max(num_nodes / 4, 1.0)
    repulsion = _repulsion if num_nodes <= _ALL_PAIRS else _grid_repulsion
    for step in range(iterations):
        early = step < iterations // 3
        gap = x[row] - x[column]
        pull = p.data / (1 + np.square(gap).sum(axis=1))
        attraction = np.stack([np.bincount(row, pull * side, num_nodes) for side in gap.T], axis=1)
        force = (8 if early else 1) * attraction - repulsion(x)
        velocity = (0.5 if early else 0.8) * velocity - (4 * rate * force).astype(np.float32)
        # A bound on the stride keeps tiny graphs from flying apart.
        stride = np.sqrt(np.square(velocity).sum(axis=1, keepdims=True))
        velocity *= np.minimum(1, 5 / np.maximum(stride, 1e-12))
        x = x + velocity
        x -= x.mean(axis=0)
    return x.astype(float)


def _repulsion(x: np.ndarray) -> np.ndarray:
    """Sum over j of q_ij² (x_i - x_j) / Z for all pairs, q unnormalized, in blocks of rows."""
    square = np.square(x).sum(axis=1)
    force, total = np.empty(x.shape), 0.0
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        q = x[rows] @ (-2 * x.T)
        q += square[rows, None] + 1
        q += square
        np.reciprocal(np.maximum(q, 1, out=q), out=q)
        total += float(q.sum(dtype=np.float64)) - len(q)  # the diagonal holds ones
        np.square(q, out=q)
        force[rows] = q.sum(axis=1, keepdims=True) * x[rows] - q @ x
    return force / max(total, 1e-12)


def _grid_repulsion(x: np.ndarray) -> np.ndarray:
    """As `_repulsion`, with masses spread over the corners of grid cells and convolved by FFT.

    Forces of a pair stay equal and opposite, since a mass is read at the corners that hold it; only
    their strength at distances of one or two cells is off by some percent.
    """
    low = x.min(axis=0)
    cell = max(_CELL, float((x.max(axis=0) - low).max()) / (_CELLS - 2))
    place = (x - low) / cell
    corner = place.astype(np.int64)
    share = place - corner
    side = int(corner.max()) + 2
    index = (corner + _CORNERS[:, None]) @ (side, 1)  # (4, N)
    weight = np.where(_CORNERS[:, None], share, 1 - share).prod(axis=2)
    masses = np.zeros((3, side * side), dtype=np.float32)
    for kind, charge in enumerate((1.0, x[:, 0], x[:, 1])):
        for at, part in zip(index, weight, strict=True):
            masses[kind] += np.bincount(at, part * charge, side * side).astype(np.float32)

    size = fft.next_fast_len(2 * side - 1, real=True)
    away = np.minimum(np.arange(size), size - np.arange(size)).astype(np.float32) * cell
    q = 1 / (1 + np.square(away)[:, None] + np.square(away))
    spectra = fft.rfft2(masses.reshape(3, side, side), s=(size, size))
    field = fft.irfft2(spectra * fft.rfft2(q * q), s=(size, size))[:, :side, :side]
    total = fft.irfft2(spectra[0] * fft.rfft2(q), s=(size, size))[:side, :side]
    fields = [*field.reshape(3, -1), total.reshape(-1)]
    near, pull_x, pull_y, sums = (
        sum(part * plane[at] for at, part in zip(index, weight, strict=True)) for plane in fields
    )
    # The part of a mass that it reads itself, which the sums must not contain.
    itself = sum(
        a * b * (1 / (1 + cell**2 * ((i - k) ** 2 + (j - m) ** 2)))
        for a, (i, j) in zip(weight, _CORNERS, strict=True)
        for b, (k, m) in zip(weight, _CORNERS, strict=True)
    )
    scale = max(float(np.sum(sums - itself, dtype=np.float64)), 1e-12)
    return np.stack([near * x[:, 0] - pull_x, near * x[:, 1] - pull_y], axis=1) / scale


def _spectral_start(
    adjacency: sparse.csr_array, degree: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Two slow modes of the random walk by subspace iteration: never fails, needs no ARPACK."""
    num_nodes = adjacency.shape[0]
    scale = sparse.diags_array(1 / np.sqrt(degree))
    symmetric = scale @ adjacency @ scale
    modes = rng.standard_normal((num_nodes, 2))
    trivial = np.sqrt(degree / degree.sum())[:, None]
    for _ in range(100):
        modes = modes + symmetric @ modes
        modes -= trivial @ (trivial.T @ modes)
        modes, _ = np.linalg.qr(modes)
    modes = np.asarray(scale @ modes)
    spread = np.maximum(np.abs(modes).max(axis=0), 1e-12)
    return 0.01 * modes / spread + 1e-4 * rng.standard_normal((num_nodes, 2))
