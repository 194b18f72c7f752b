"""Slow, obvious, dense oracles: written from the definitions, sharing no code with the library.

Everything is float64 unless the caller says otherwise, and differentiable where torch makes it so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NORMALIZATIONS = ("row", "hub", "symmetric", "column")


# ---------------------------------------------------------------- graphs


class Graph(NamedTuple):
    """An undirected graph as pairs (2, P) with one weight each, and a label problem on it."""

    pairs: Tensor
    pair_weight: Tensor
    y: Tensor
    seeds: Tensor
    num_classes: int

    @property
    def num_nodes(self) -> int:
        return self.y.numel()

    @property
    def edge_index(self) -> Tensor:
        return torch.cat([self.pairs, self.pairs.flip(0)], dim=1)

    @property
    def edge_weight(self) -> Tensor:
        return both_ways(self.pair_weight)


def both_ways(pair_weight: Tensor) -> Tensor:
    """Edge weights of `Graph.edge_index`: the pairs' own, then once more for the way back."""
    return torch.cat([pair_weight, pair_weight])


def awkward_graph(seed: int = 0, *, isolated: bool = True, sparse: bool = False) -> Graph:
    """Everything that goes wrong in practice, on few nodes with four classes.

    Two components with seeds (one a clique of repeated points joined to three others), one
    component without any seed, class 3 without a seed, and, if `isolated`, one hidden and one
    seeded node without edges at the end. No component is bipartite. `sparse` spins the first
    component out, so that fewer than one pair in eight is an edge.
    """
    g = torch.Generator().manual_seed(seed)
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []

    def connect(i: int, j: int, weight: float) -> None:
        pairs.append((i, j))
        weights.append(weight)

    def draw() -> float:
        return float(0.2 + 0.8 * torch.rand((), generator=g, dtype=torch.float64))

    ring = 22 if sparse else 9
    for i in range(ring):  # a ring with chords
        connect(i, (i + 1) % ring, draw())
    chords = [(0, 2), (1, 5), (3, 8), (4, 7)]
    if sparse:
        chords += [(2, 13), (6, 17), (9, 20), (11, 19), (8, 15), (5, 21)]
    for i, j in chords:
        connect(i, j, draw())
    clique = range(ring, ring + 3)  # repeated points: similarity 1 to each other
    for i in clique:
        for j in range(i + 1, ring + 3):
            connect(i, j, 1.0)
        for j in range(3):
            connect(i, ring + 3 + j, 0.3 + 0.1 * j)
    lost = ring + 6  # a triangle without a seed
    for i, j in ((0, 1), (1, 2), (0, 2)):
        connect(lost + i, lost + j, draw())
    n = lost + 3
    known = [0, 4, 5, ring, ring + 3]
    if isolated:
        n += 2
        known.append(n - 1)
    y = torch.arange(n) % 3
    y[[8, ring + 5]] = 3
    seeds = torch.zeros(n, dtype=torch.bool)
    seeds[known] = True
    weight = torch.tensor(weights, dtype=torch.float64)
    return Graph(torch.tensor(pairs).T.contiguous(), weight, y, seeds, 4)


def dense_weights(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    """W (N, N): repeated edges add up, the diagonal is zero."""
    w = edge_weight.new_zeros(num_nodes, num_nodes)
    w = w.index_put((edge_index[0], edge_index[1]), edge_weight, accumulate=True)
    return w * (1.0 - torch.eye(num_nodes, dtype=w.dtype))


def components(w: Tensor) -> list[list[int]]:
    """Connected components over positive entries, by plain depth-first search."""
    n = w.size(0)
    seen: set[int] = set()
    found = []
    for start in range(n):
        if start in seen:
            continue
        stack, part = [start], []
        seen.add(start)
        while stack:
            i = stack.pop()
            part.append(i)
            for j in range(n):
                if float(w[i, j].detach()) > 0 and j not in seen:
                    seen.add(j)
                    stack.append(j)
        found.append(sorted(part))
    return found


def reach(w: Tensor, seeds: Tensor) -> Tensor:
    """Nodes (N,) bool in a component with a seed."""
    out = torch.zeros(w.size(0), dtype=torch.bool)
    for part in components(w):
        if any(bool(seeds[i]) for i in part):
            out[part] = True
    return out


# ---------------------------------------------------------------- propagation


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


def symmetric_adjacency(w: Tensor) -> Tensor:
    """D^(-1/2) W D^(-1/2)."""
    root = _or_one(w.sum(dim=1)).rsqrt()
    return root.unsqueeze(1) * w * root.unsqueeze(0)


def walk(w: Tensor, normalization: str) -> Tensor:
    """The propagation matrix T, normalized step by step as the papers write it."""
    if normalization == "row":
        return w / _or_one(w.sum(dim=1, keepdim=True))
    t = symmetric_adjacency(w)
    if normalization == "symmetric":
        return t
    t = t / _or_one(t.sum(dim=0, keepdim=True))
    if normalization == "column":
        return t
    return t / _or_one(t.sum(dim=1, keepdim=True))


def symmetric_form(w: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """Symmetric S and diagonal D with T = D^(-1) S."""
    if normalization == "row":
        return w, w.sum(dim=1)
    a = symmetric_adjacency(w)
    if normalization == "symmetric":
        return a, torch.ones_like(a[0])
    c = _or_one(a.sum(dim=0))
    s = a / (c.unsqueeze(0) * c.unsqueeze(1))
    return s, (1.0 / c if normalization == "column" else s.sum(dim=1))


def one_hot(y: Tensor, num_classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Label rows, zeros for -1."""
    out = torch.zeros(y.numel(), num_classes, dtype=dtype)
    for i, label in enumerate(y.tolist()):
        if label >= 0:
            out[i, label] = 1.0
    return out


def harmonic(
    w: Tensor,
    labels: Tensor,
    seeds: Tensor,
    normalization: str,
    eta: float,
    prior: Tensor | None = None,
) -> Tensor:
    """Block closed form ((1 + eta) I - T_uu) F_u = T_ul Y_l + eta prior on the reached nodes."""
    n, classes = labels.shape
    prior = labels.new_full((classes,), 1.0 / classes) if prior is None else prior
    t, reached = walk(w, normalization), reach(w, seeds)
    u = (reached & ~seeds).nonzero().squeeze(1)
    known = seeds.nonzero().squeeze(1)
    matrix = (1.0 + eta) * torch.eye(u.numel(), dtype=w.dtype) - t[u][:, u]
    right = t[u][:, known] @ labels[known] + eta * prior
    out = labels.new_zeros(n, classes)
    out = out.index_copy(0, known, labels[known])
    out = out.index_copy(0, u, torch.linalg.solve(matrix, right))
    if eta > 0:
        lost = (~reached).nonzero().squeeze(1)
        out = out.index_copy(0, lost, prior.expand(lost.numel(), -1))
    return out


def spreading(w: Tensor, labels: Tensor, seeds: Tensor, normalization: str, alpha: float) -> Tensor:
    """F = (1 - alpha) (I - alpha T)^(-1) Y with Y zero outside the seeds."""
    t = walk(w, normalization)
    y = torch.where(seeds.unsqueeze(1), labels, 0.0)
    identity = torch.eye(w.size(0), dtype=w.dtype)
    return (1.0 - alpha) * torch.linalg.solve(identity - alpha * t, y)


def poisson(
    w: Tensor, labels: Tensor, seeds: Tensor, normalization: str, eta: float = 0.0
) -> Tensor:
    """((1 + eta) D - S) F = mean(D) sum_j (y_j - mean y) e_j, component by component.

    Without a leak the solution of a component is fixed by D-orthogonality to the null vector, and
    the labels are balanced within it; a component without a seed keeps zeros.
    """
    s, d = symmetric_form(w, normalization)
    degree = w.sum(dim=1)
    if normalization in ("row", "hub"):
        null = torch.ones_like(degree)
    elif normalization == "symmetric":
        null = degree.sqrt()
    else:
        null = symmetric_adjacency(w).sum(dim=0)
    kappa = d[degree > 0].mean() if bool((degree > 0).any()) else d.mean()
    # A node without edges is on its own, with a leak too.
    joined = (degree > 0).nonzero().squeeze(1).tolist()
    parts = components(w) if eta == 0 else [joined]
    out = torch.zeros_like(labels)
    for part in parts:
        index = torch.tensor(part)
        inside = seeds[index].to(w.dtype).unsqueeze(1)
        if len(part) < 2 or not bool(inside.any()):
            continue
        v = null[index].unsqueeze(1)
        # y - mean, without a difference that would lose a share below the rounding of 1.
        y, pull = labels[index], inside * v / (inside * v).sum()
        source = y * (pull * (1.0 - y)).sum(dim=0) - (1.0 - y) * (pull * y).sum(dim=0)
        right = kappa * inside * source
        matrix = (1.0 + eta) * torch.diag(d[index]) - s[index][:, index]
        if eta == 0:
            solved = torch.linalg.solve(matrix + v @ v.T, right)
            mass = d[index].unsqueeze(1) * v
            solved = solved - v * ((mass * solved).sum(dim=0) / (mass * v).sum())
        else:
            # To a unit diagonal: pivoting cannot cope with rows smaller by powers of ten.
            scale = matrix.diagonal().rsqrt().unsqueeze(1)
            solved = scale * torch.linalg.solve(scale * matrix * scale.T, scale * right)
        out = out.index_copy(0, index, solved)
    return torch.where(reach(w, seeds).unsqueeze(1), out, 0.0)


def propagate(
    rule: str,
    w: Tensor,
    labels: Tensor,
    seeds: Tensor,
    normalization: str,
    *,
    eta: float,
    alpha: float,
) -> Tensor:
    """Dispatch to the rule of that name."""
    if rule == "harmonic":
        return harmonic(w, labels, seeds, normalization, eta)
    if rule == "spreading":
        return spreading(w, labels, seeds, normalization, alpha)
    return poisson(w, labels, seeds, normalization, eta)


def absorbing_chain(t: Tensor, labels: Tensor, seeds: Tensor, leak: float, prior: Tensor) -> Tensor:
    """Where a walker on T ends: absorbed at a seed, or leaked with probability leak a step.

    Squares the transition matrix of the whole chain (N nodes + one leak state) until it is
    stationary: no linear solve anywhere.
    """
    n = t.size(0)
    chain = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    chain[n, n] = 1.0
    for i in range(n):
        if bool(seeds[i]):
            chain[i, i] = 1.0
        else:
            chain[i, :n] = (1.0 - leak) * t[i]
            chain[i, n] = leak
    for _ in range(40):
        chain = chain @ chain
    ends = torch.cat([labels * seeds.unsqueeze(1), prior.unsqueeze(0)])
    return (chain @ ends)[:n]


def class_mass(
    values: Tensor, labels: Tensor, seeds: Tensor, prior: Tensor, power: float
) -> Tensor:
    """Class-mass normalization, entry by entry."""
    n, classes = values.shape
    mass = [sum(float(values[i, c]) for i in range(n) if not seeds[i]) for c in range(classes)]
    out = labels.clone().to(values.dtype)
    for i in range(n):
        if bool(seeds[i]):
            continue
        row = [
            float(values[i, c]) * (float(prior[c]) / mass[c]) ** power if mass[c] > 0 else 0.0
            for c in range(classes)
        ]
        total = sum(row)
        for c in range(classes):
            out[i, c] = row[c] / total if total > 0 else float(prior[c])
    return out


# ---------------------------------------------------------------- document graphs


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean distance, entry by entry."""
    return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))


def nearest(x: np.ndarray, k: int) -> list[list[int]]:
    """The k nearest other rows of every row, by sorting all distances."""
    lists = []
    for i in range(len(x)):
        others = sorted((distance(x[i], x[j]), j) for j in range(len(x)) if j != i)
        lists.append([j for _, j in others[:k]])
    return lists


def undirected(lists: list[list[int]], mode: str) -> set[tuple[int, int]]:
    """Pairs (i < j) of which one lists the other (union) or both do (mutual)."""
    listed = {(i, j) for i, row in enumerate(lists) for j in row}
    if mode == "union":
        kept = listed
    else:
        kept = {(i, j) for i, j in listed if (j, i) in listed}
    return {(min(i, j), max(i, j)) for i, j in kept}


def pairs_of(edge_index: Tensor) -> set[tuple[int, int]]:
    """Pairs (i < j) of an edge list."""
    return {(min(i, j), max(i, j)) for i, j in edge_index.T.tolist()}


def median_distance(x: np.ndarray) -> float:
    """Lower median over the whole N x N distance matrix, zero diagonal included."""
    values = sorted(distance(a, b) for a in x for b in x)
    return values[(len(values) - 1) // 2]
