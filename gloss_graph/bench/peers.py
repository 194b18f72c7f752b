"""Propagation over a whole corpus beside its peers: one graph, the same labels, accuracy, seconds.

Peers are optional (`pip install "gloss-graph[bench]"`); one that is not installed gets a row that
says so.
"""

from __future__ import annotations

import importlib.util
import statistics
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor

from gloss_graph.bench.made import clustered
from gloss_graph.bench.turns import take_turns
from gloss_graph.graph import build_document_graph
from gloss_graph.propagation import LabelPropagation

Method = Callable[[], np.ndarray]

SIGMA = 0.5
# Settings of ours, all on the Gaussian graph; the objective's defaults among them. "times ours" is
# relative to the first, which was put first after a look at R8.
OURS: dict[str, dict[str, float | str]] = {
    "ours, hub, undamped, tol 1e-2": {"eta": 0.0, "tol": 1e-2},
    "ours, hub, undamped, tol 1e-4": {"eta": 0.0, "tol": 1e-4},
    "ours, hub, eta 0.2, tol 1e-3 (default rule)": {"eta": 0.2, "tol": 1e-3},
    "ours, hub, eta 0.02, tol 1e-2": {"eta": 0.02, "tol": 1e-2},
    "ours, row, undamped, tol 1e-2": {"normalization": "row", "eta": 0.0, "tol": 1e-2},
    "ours, spreading, alpha 0.9, tol 1e-2": {"rule": "spreading", "alpha": 0.9, "tol": 1e-2},
}


def draw_labels(y: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of min(per_class, n / 2) documents of every class of n, sorted."""
    generator = np.random.default_rng(seed)
    chosen = []
    for c in np.unique(y):
        where = np.flatnonzero(y == c)
        chosen.append(generator.permutation(where)[: max(1, min(per_class, where.size // 2))])
    return np.sort(np.concatenate(chosen))


def corpus_table(
    x: Tensor,
    y: Tensor,
    *,
    labels_per_class: int = 20,
    k: int = 16,
    draws: int = 3,
    repeats: int = 3,
    poisson_rows: int = 5_000,
    progress: bool = False,
) -> pd.DataFrame:
    """Accuracy on the unlabeled rest and seconds of every method, the graph left out.

    Args:
        x: (N, D) embeddings.
        y: (N,) classes 0..C-1, all known; the draws hide most of them.
        labels_per_class: See `draw_labels`.
        k: Neighbours of the graph.
        draws: Label draws; accuracy is their mean.
        repeats: Rounds a draw, by turns.
        poisson_rows: Largest N on which GraphLearning's Poisson runs (minutes beyond).
        progress: Show a bar.

    Returns:
        Columns `method`, `accuracy`, `seconds` (median), `times ours` (the first row's seconds
        are 1) and `note`.
    """
    truth = y.numpy()
    classes = int(y.max()) + 1
    graphs = {
        kernel: build_document_graph(x, k=k, kernel=kernel, bandwidth=SIGMA)
        for kernel in ("gaussian", "cosine")
    }
    accuracy: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for draw in range(draws):
        seeds = draw_labels(truth, labels_per_class, draw)
        rest = np.setdiff1d(np.arange(truth.size), seeds)
        methods, notes = _methods(graphs, truth, seeds, classes, poisson_rows)
        for name, method in methods.items():
            accuracy.setdefault(name, []).append(float((method()[rest] == truth[rest]).mean()))
        title = f"N={truth.size:,}, draw {draw + 1} of {draws}"
        for name, taken in take_turns(methods, repeats, title=title, progress=progress).items():
            seconds.setdefault(name, []).extend(taken)
    fastest = statistics.median(next(iter(seconds.values())))
    rows: list[dict[str, object]] = []
    for name in seconds:
        median = statistics.median(seconds[name])
        rows.append(
            {
                "method": name,
                "accuracy": 100.0 * statistics.mean(accuracy[name]),
                "seconds": median,
                "times ours": median / fastest,
                "note": "",
            }
        )
    rows.extend({"method": name, "note": note} for name, note in notes.items())
    return pd.DataFrame(rows, columns=["method", "accuracy", "seconds", "times ours", "note"])


def made_corpus(rows: int, dim: int = 384, classes: int = 8) -> tuple[Tensor, Tensor]:
    """Points of 64 clusters, eight a class, and their classes."""
    x, y, _ = clustered(rows, dim, classes, seed=0)
    return x, y


def _methods(
    graphs: dict[str, object], truth: np.ndarray, seeds: np.ndarray, classes: int, poisson: int
) -> tuple[dict[str, Method], dict[str, str]]:
    """What runs, and for what does not the reason."""
    gaussian = graphs["gaussian"]
    edge_index, weight = gaussian.edge_index, gaussian.edge_weight  # type: ignore[attr-defined]
    methods: dict[str, Method] = {}
    notes: dict[str, str] = {}
    labels = torch.full((truth.size,), -1)
    labels[torch.from_numpy(seeds)] = torch.from_numpy(truth[seeds])
    for name, settings in OURS.items():
        methods[name] = _ours(settings, classes, labels, edge_index, weight)
    affinity, cosine = (_matrix(graphs[name], truth.size) for name in ("gaussian", "cosine"))
    methods["LP-DeepSSL recipe"] = lambda: lp_deepssl(cosine, truth, seeds, classes)
    methods["scikit-learn LabelSpreading"] = lambda: _spreading(affinity, labels.numpy())
    if importlib.util.find_spec("graphlearning") is None:
        missing = 'not installed (pip install "gloss-graph[bench]")'
        notes.update({f"GraphLearning {name}": missing for name in ("laplace", "poisson")})
        return methods, notes
    methods["GraphLearning laplace"] = lambda: _graphlearning("laplace", affinity, truth, seeds)
    if truth.size <= poisson:
        methods["GraphLearning poisson"] = lambda: _graphlearning("poisson", affinity, truth, seeds)
    else:
        notes["GraphLearning poisson"] = f"left out above {poisson:,} rows (minutes)"
    return methods, notes


def _ours(
    settings: dict[str, float | str],
    classes: int,
    labels: Tensor,
    edge_index: Tensor,
    weight: Tensor,
) -> Method:
    layer = LabelPropagation(num_classes=classes, **settings)  # type: ignore[arg-type]

    def run() -> np.ndarray:
        with torch.no_grad():
            out = layer.propagate_labels(labels, edge_index, weight, trusted=True).values
        return out.argmax(dim=1).numpy()

    return run


def _matrix(graph: object, size: int) -> sparse.csr_matrix:
    row, column = graph.edge_index.numpy()  # type: ignore[attr-defined]
    weight = graph.edge_weight.double().numpy()  # type: ignore[attr-defined]
    return sparse.csr_matrix((weight, (row, column)), shape=(size, size))


def lp_deepssl(
    affinity: sparse.csr_matrix,
    truth: np.ndarray,
    seeds: np.ndarray,
    classes: int,
    alpha: float = 0.99,
    iterations: int = 20,
) -> np.ndarray:
    """Classes by the recipe of Iscen et al. (2019): one scipy CG a class, at most 20 steps."""
    degree = np.asarray(affinity.sum(axis=1)).ravel()
    root = sparse.diags(1.0 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    system = sparse.eye(truth.size) - alpha * (root @ affinity @ root)
    values = np.zeros((truth.size, classes))
    for c in range(classes):
        own = seeds[truth[seeds] == c]
        if own.size:
            right = np.zeros(truth.size)
            right[own] = 1.0 / own.size
            values[:, c], _ = linalg.cg(system, right, rtol=1e-6, maxiter=iterations)
    found: np.ndarray = np.where(values < 0, 0.0, values).argmax(axis=1)
    return found


def _spreading(affinity: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.semi_supervised import LabelSpreading

    model = LabelSpreading(kernel=lambda *_: affinity, alpha=0.9, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        model.fit(np.arange(labels.size, dtype=float)[:, None], labels)
    found: np.ndarray = model.transduction_
    return found


def _graphlearning(
    name: str, affinity: sparse.csr_matrix, truth: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    import graphlearning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(graphlearning.ssl, name)(affinity)
        found: np.ndarray = model.fit_predict(seeds, truth[seeds])
    return found
