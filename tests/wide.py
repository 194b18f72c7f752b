"""Exact propagation in many digits, for weights of any size."""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
from mpmath import mpf

Vector = list[Any]
# The share of a tie below which `poisson` without a leak solves the two sides separately.
LOOSE = mpf(10) ** -4


class Graph(NamedTuple):
    """An undirected graph: pairs (i, j) with i < j, one weight per pair, labels and seeds."""

    size: int
    pairs: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    labels: tuple[int, ...]
    seeds: tuple[bool, ...]
    classes: int


def _matrix(graph: Graph, weights: Vector) -> mpmath.matrix:
    w = mpmath.zeros(graph.size)
    for (i, j), weight in zip(graph.pairs, weights, strict=True):
        w[i, j] += weight
        w[j, i] += weight
    return w


def _sums(w: mpmath.matrix, x: Vector) -> Vector:
    return [mpmath.fsum(w[i, j] * x[j] for j in range(len(x))) for i in range(len(x))]


def _scaling(name: str, w: mpmath.matrix) -> tuple[Vector, Vector, Vector]:
    """Factor s, diagonal m and null vector v as in the definition of each normalization."""
    n = w.rows
    ones = [mpf(1)] * n

    def safe(x: Vector) -> Vector:
        return [value if value > 0 else mpf(1) for value in x]

    degree = safe(_sums(w, ones))
    root = [1 / mpmath.sqrt(d) for d in degree]
    if name == "row":
        return ones, degree, ones
    if name == "symmetric":
        return root, degree, ones
    pulled = safe(_sums(w, root))
    factor = [1 / t for t in pulled]
    if name == "column":
        return factor, [t / r for t, r in zip(pulled, root, strict=True)], root
    mass = safe(_sums(w, factor))
    return factor, [m / s for m, s in zip(mass, factor, strict=True)], factor


def _parts(w: mpmath.matrix) -> list[int]:
    part = list(range(w.rows))
    for _ in range(w.rows):
        for i in range(w.rows):
            for j in range(w.rows):
                if w[i, j] > 0:
                    part[i] = part[j] = min(part[i], part[j])
    return part


def reached(graph: Graph) -> list[bool]:
    """Whether a seed is joined to each node by edges of positive weight."""
    part = _parts(_matrix(graph, [mpf(w) for w in graph.weights]))
    joined = {part[i] for i in range(graph.size) if graph.seeds[i]}
    return [part[i] in joined for i in range(graph.size)]


def propagate(
    graph: Graph,
    weights: Vector,
    rule: str,
    normalization: str,
    *,
    eta: float = 0.0,
    alpha: float = 0.9,
) -> mpmath.matrix:
    """F (N, C) of `LabelPropagation` as its documentation defines it."""
    n, classes = graph.size, graph.classes
    w = _matrix(graph, weights)
    s, m, _ = _scaling(normalization, w)
    y = mpmath.zeros(n, classes)
    for i in range(n):
        if graph.seeds[i]:
            y[i, graph.labels[i]] = mpf(1)
    eta, alpha = mpf(eta), mpf(alpha)
    if rule == "spreading":
        a = -alpha * w
        b = mpmath.zeros(n, classes)
        for i in range(n):
            a[i, i] += m[i]
            for c in range(classes):
                b[i, c] = (1 - alpha) * m[i] * s[i] * y[i, c]
        g = mpmath.lu_solve(a, b) if classes == 1 else _solve(a, b)
        return _unscale(g, s)
    if rule == "harmonic":
        joined = reached(graph)
        free = [i for i in range(n) if joined[i] and not graph.seeds[i]]
        out = y.copy()
        for i in range(n):
            if not joined[i] and eta > 0:
                for c in range(classes):
                    out[i, c] = mpf(1) / classes
        if not free:
            return out
        a, b = mpmath.zeros(len(free)), mpmath.zeros(len(free), classes)
        for p, i in enumerate(free):
            for q, j in enumerate(free):
                a[p, q] = -w[i, j]
            a[p, p] += (1 + eta) * m[i]
            for c in range(classes):
                known = mpmath.fsum(w[i, j] * s[j] * y[j, c] for j in range(n) if graph.seeds[j])
                b[p, c] = known + eta * m[i] * s[i] / classes
        g = _solve(a, b)
        for p, i in enumerate(free):
            for c in range(classes):
                out[i, c] = g[p, c] / s[i]
        return out
    return _poisson(graph, w, normalization, eta, y)


def _poisson(
    graph: Graph, w: mpmath.matrix, normalization: str, eta: Any, y: mpmath.matrix
) -> mpmath.matrix:
    n, classes = graph.size, graph.classes
    s, m, v = _scaling(normalization, w)
    if eta == 0:
        degree = _sums(w, [mpf(1)] * n)
        w = w.copy()
        for i in range(n):
            for j in range(n):
                if w[i, j] <= LOOSE * mpmath.sqrt(degree[i] * degree[j]):
                    w[i, j] = mpf(0)
        s, m, v = _scaling(normalization, w)
    tied = [any(w[i, j] > 0 for j in range(n)) for i in range(n)]
    # An isolated node is a part of its own.
    part = _parts(w) if eta == 0 else [-1 if tied[i] else i for i in range(n)]
    kept = {part_of for i, part_of in enumerate(_parts(w)) if graph.seeds[i]}
    joined = [part_of in kept for part_of in _parts(w)]
    mass = [m[i] * s[i] ** 2 for i in range(n) if tied[i]]
    kappa = mpmath.fsum(mass) / max(len(mass), 1)
    a, b = -w.copy(), mpmath.zeros(n, classes)
    for i in range(n):
        a[i, i] += (1 + eta) * m[i]
    for p in set(part):
        rows = [i for i in range(n) if part[i] == p]
        pull = mpmath.fsum(v[i] / s[i] for i in rows if graph.seeds[i])
        for c in range(classes):
            total = mpmath.fsum(v[i] / s[i] * y[i, c] for i in rows if graph.seeds[i])
            mean = total / pull if pull > 0 else mpf(0)
            for i in rows:
                if graph.seeds[i]:
                    b[i, c] = kappa * (y[i, c] - mean) / s[i]
        if eta == 0:
            size = mpmath.fsum(m[i] * v[i] ** 2 for i in rows)
            for i in rows:
                for j in rows:
                    a[i, j] += m[i] * v[i] * m[j] * v[j] / size
    g = _solve(a, b)
    out = mpmath.zeros(n, classes)
    for p in set(part):
        rows = [i for i in range(n) if part[i] == p]
        for c in range(classes):
            shift = mpf(0)
            if eta == 0:
                size = mpmath.fsum(m[i] * v[i] ** 2 for i in rows)
                shift = mpmath.fsum(m[i] * v[i] * g[i, c] for i in rows) / size
            for i in rows:
                out[i, c] = (g[i, c] - shift * v[i]) / s[i] if joined[i] else mpf(0)
    return out


def _solve(a: mpmath.matrix, b: mpmath.matrix) -> mpmath.matrix:
    out = mpmath.zeros(b.rows, b.cols)
    for c in range(b.cols):
        column = mpmath.lu_solve(a, b[:, c])
        for i in range(b.rows):
            out[i, c] = column[i]
    return out


def _unscale(g: mpmath.matrix, s: Vector) -> mpmath.matrix:
    out = g.copy()
    for i in range(g.rows):
        for c in range(g.cols):
            out[i, c] = g[i, c] / s[i]
    return out


def log_gradient(graph: Graph, toward: Any, *settings: Any, **more: Any) -> Vector:
    """w dL/dw of L = sum(toward * F) for every pair, by a difference of a millionth of a digit."""
    step = mpf(10) ** -60
    base = [mpf(w) for w in graph.weights]
    found = []
    for k in range(len(base)):
        values = []
        for sign in (1, -1):
            moved = [w * (1 + sign * step) if i == k else w for i, w in enumerate(base)]
            f = propagate(graph, moved, *settings, **more)
            total = mpmath.fsum(
                mpf(float(toward[i, c])) * f[i, c] for i in range(f.rows) for c in range(f.cols)
            )
            values.append(total)
        found.append((values[0] - values[1]) / (2 * step))
    return found
