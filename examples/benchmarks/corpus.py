"""Propagation over a whole corpus beside its peers: one graph, the same labels, accuracy, seconds.

Run ``python examples/benchmarks/corpus.py [--corpus R8/train.csv.gz --points 50000 --threads 1]``.
Peers are optional (`pip install graphlearning`); one that is not installed gets a row that says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from made import clustered
from scipy import sparse
from scipy.sparse import linalg
from scipy.sparse.csgraph import connected_components
from tables import machine_note, show_tables
from torch import Tensor
from torch_geometric.data import Data
from turns import limited_threads, peak_mib, take_turns

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.graph import build_document_graph
from gloss_graph.graph.kernels import cosine_kernel
from gloss_graph.propagation import LabelPropagation
from gloss_graph.text import load_encoder, read_table
from gloss_graph.training import encoder_identity, recorded_embeddings

Method = Callable[[], np.ndarray]

SIGMA = 0.5
# Settings of ours, all on the Gaussian graph; "times ours" is relative to the first, which was
# chosen on R8 with label draws 100 to 102 (reported are draws from 0).
OURS: dict[str, dict[str, float | str]] = {
    "ours, hub, eta 0, tol 1e-2 (tuned on R8, draws 100-102)": {"eta": 0.0, "tol": 1e-2},
    "ours, hub, eta 0, tol 1e-4": {"eta": 0.0, "tol": 1e-4},
    "ours, hub, eta 0.2, tol 1e-3 (default of the objective)": {"eta": 0.2, "tol": 1e-3},
    "ours, hub, eta 0.02, tol 1e-2": {"eta": 0.02, "tol": 1e-2},
    "ours, row, eta 0, tol 1e-2": {"normalization": "row", "eta": 0.0, "tol": 1e-2},
    "ours, spreading, alpha 0.9, tol 1e-2": {"rule": "spreading", "alpha": 0.9, "tol": 1e-2},
}
COLUMNS = [
    "method",
    "accuracy",
    "ours - this",
    "ours wins",
    "seconds",
    "times ours",
    "peak MiB",
    "note",
]


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
    draws: int = 5,
    repeats: int = 3,
    poisson_rows: int = 5_000,
    progress: bool = False,
) -> pd.DataFrame:
    """Accuracy on the unlabeled rest and seconds of every method, the graph left out.

    All methods see the same neighbors and, but for those that say otherwise, the same Gaussian
    weights.

    Args:
        x: (N, D) embeddings.
        y: (N,) classes 0..C-1, all known; the draws hide most of them.
        labels_per_class: See `draw_labels`.
        k: Neighbors of the graph.
        draws: Label draws; accuracy is their mean.
        repeats: Rounds a draw, by turns.
        poisson_rows: Largest N for GraphLearning's Poisson and for peers on a graph of their own
            (minutes beyond).
        progress: Show a bar.

    Returns:
        Columns `method`, `accuracy` in %, `ours - this` (the first row's accuracy less this one's,
        the mean over the draws), `ours wins` (draws in which that is above 0), `seconds`
        (median), `times ours` (the first row's seconds are 1), `peak MiB` and `note`.
    """
    truth = y.numpy()
    classes = int(y.max()) + 1
    graph = build_document_graph(x, k=k, kernel="gaussian", bandwidth=SIGMA)
    accuracy: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    notes: dict[str, str] = {}
    for draw in range(draws):
        seeds = draw_labels(truth, labels_per_class, draw)
        rest = np.setdiff1d(np.arange(truth.size), seeds)
        methods, notes = _methods(x, graph, truth, seeds, classes, poisson_rows, k)
        answers: dict[str, np.ndarray] = {}
        calls = {name: partial(_answer, answers, name, method) for name, method in methods.items()}
        title = f"N={truth.size:,}, draw {draw + 1} of {draws}"
        for name, taken in take_turns(calls, repeats, title=title, progress=progress).items():
            seconds.setdefault(name, []).extend(taken)
            right = answers[name][rest] == truth[rest]
            accuracy.setdefault(name, []).append(100.0 * float(right.mean()))
        if draw == draws - 1:
            peaks = {name: peak_mib(method) for name, method in methods.items()}
    first = next(iter(seconds))
    fastest = statistics.median(seconds[first])
    rows: list[dict[str, object]] = []
    for name in seconds:
        median = statistics.median(seconds[name])
        less = np.array(accuracy[first]) - np.array(accuracy[name])
        rows.append(
            {
                "method": name,
                "accuracy": statistics.mean(accuracy[name]),
                "ours - this": float(less.mean()),
                "ours wins": "" if name == first else f"{int((less > 0).sum())} of {draws}",
                "seconds": median,
                "times ours": median / fastest,
                "peak MiB": peaks[name],
                "note": notes.pop(name, ""),
            }
        )
    rows.extend({"method": name, "note": note} for name, note in notes.items())
    return pd.DataFrame(rows, columns=COLUMNS)


def _answer(answers: dict[str, np.ndarray], name: str, method: Method) -> None:
    answers[name] = method()


def made_corpus(rows: int, dim: int = 384, classes: int = 8) -> tuple[Tensor, Tensor]:
    """Points of 64 clusters, eight a class, and their classes."""
    x, y, _ = clustered(rows, dim, classes, seed=0)
    return x, y


def _methods(
    x: Tensor,
    graph: Data,
    truth: np.ndarray,
    seeds: np.ndarray,
    classes: int,
    limit: int,
    k: int,
) -> tuple[dict[str, Method], dict[str, str]]:
    """What runs, and notes: on what, and for what does not run the reason."""
    edge_index, weight = graph.edge_index, graph.edge_weight
    methods: dict[str, Method] = {}
    notes: dict[str, str] = {}
    labels = torch.full((truth.size,), -1)
    labels[torch.from_numpy(seeds)] = torch.from_numpy(truth[seeds])
    for name, settings in OURS.items():
        methods[name] = _ours(settings, classes, labels, edge_index, weight)
    affinity = _matrix(edge_index, weight, truth.size)
    # The Gaussian's squared distances, so that a large corpus is searched once.
    squared = (-2.0 * SIGMA**2) * weight.log()
    cosine = _matrix(edge_index, cosine_kernel(squared, squared), truth.size)
    marked = labels.numpy()

    def own(name: str, method: Method, note: str) -> None:
        """A peer on a graph of its own."""
        if truth.size <= limit:
            methods[name], notes[name] = method, note
        else:
            notes[name] = f"not run above {limit:,} rows"

    methods["LP-DeepSSL recipe"] = lambda: lp_deepssl(affinity, truth, seeds, classes)
    methods["LP-DeepSSL recipe, cosine³"] = lambda: lp_deepssl(cosine, truth, seeds, classes)
    notes["LP-DeepSSL recipe, cosine³"] = "the weights of its paper"
    methods["scikit-learn LabelSpreading, alpha 0.9"] = lambda: _spreading(affinity, marked)
    points = x.numpy()
    own(
        "scikit-learn LabelSpreading, its defaults",
        lambda: _spreading_default(points, marked),
        "kernel=knn, alpha 0.2; graph included",
    )
    names = ("laplace", "poisson", "laplace, its own graph")
    if importlib.util.find_spec("graphlearning") is None:
        missing = "not installed (pip install graphlearning)"
        notes.update({f"GraphLearning {name}": missing for name in names})
        return methods, notes
    methods["GraphLearning laplace"] = lambda: _graphlearning("laplace", affinity, truth, seeds)
    # Sources are balanced over the whole graph. Where several of its parts hold seeds they are
    # not in each, the system has no solution and conjugate gradients runs 100,000 iterations.
    parts = connected_components(affinity, directed=False)[1]
    whole = np.unique(parts[seeds]).size == 1
    solver = "conjugate_gradient" if whole else "gradient_descent"
    note = "" if whole else "gradient descent (the graph is in parts, its CG does not stop there)"
    own(
        "GraphLearning poisson",
        lambda: _graphlearning("poisson", affinity, truth, seeds, solver=solver),
        note,
    )
    alone = "GraphLearning laplace, its own graph"
    if importlib.util.find_spec("annoy") is None:
        notes[alone] = "its search is not installed (pip install annoy)"
    else:
        own(
            alone,
            lambda: _graphlearning("laplace", _its_graph(points, k), truth, seeds),
            "its defaults; graph included",
        )
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


def _matrix(edge_index: Tensor, edge_weight: Tensor, size: int) -> sparse.csr_matrix:
    row, column = edge_index.numpy()
    weight = edge_weight.double().numpy()
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


def _spreading_default(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from sklearn.semi_supervised import LabelSpreading

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: np.ndarray = LabelSpreading(kernel="knn").fit(points, labels).transduction_
    return found


def _its_graph(points: np.ndarray, k: int) -> sparse.csr_matrix:
    import graphlearning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return graphlearning.weightmatrix.knn(points, k)


def _graphlearning(
    name: str,
    affinity: sparse.csr_matrix,
    truth: np.ndarray,
    seeds: np.ndarray,
    **options: str,
) -> np.ndarray:
    import graphlearning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(graphlearning.ssl, name)(affinity, **options)
        found: np.ndarray = model.fit_predict(seeds, truth[seeds])
    return found


def read_corpus(file: Path, folder: Path) -> tuple[Tensor, Tensor]:
    """Embeddings of a labeled file by MiniLM, kept in `folder`, and the classes."""
    documents = read_table(file)
    y = torch.tensor(documents.labels)
    if bool((y < 0).any()):
        raise ValueError(f"'corpus' must have a label in every row ({file} does not).")
    x = recorded_embeddings(
        {"corpus": documents},
        lambda: load_encoder("minilm", max_length=64),
        encoder_identity("minilm", max_length=64),
        folder=folder,
        progress=True,
    )["corpus"]
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="labeled file whose texts are embedded")
    parser.add_argument("--points", type=int, default=50_000, help="of the synthetic corpus")
    parser.add_argument("--k", type=int, default=16, help="neighbors per document")
    parser.add_argument("--draws", type=int, default=5, help="of labels")
    parser.add_argument("--repeats", type=int, default=5, help="rounds per draw")
    parser.add_argument("--threads", type=int, help="of every library; default: theirs")
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"))
    given = parser.parse_args()
    check_positive_int("points", given.points, minimum=64)
    check_positive_int("repeats", given.repeats)
    load = os.getloadavg()[0]
    same = {"k": given.k, "repeats": given.repeats, "progress": True}
    tables: dict[str, pd.DataFrame] = {}
    with limited_threads(given.threads):
        if given.corpus is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            x, y = read_corpus(given.corpus, given.out)
            tables[f"corpus {given.corpus.name}"] = corpus_table(x, y, draws=given.draws, **same)
        x, y = made_corpus(given.points)
        title = f"synthetic corpus of {given.points:,} points"
        tables[title] = corpus_table(x, y, draws=min(given.draws, 3), **same)
        note = machine_note(given.repeats, load)
    show_tables(tables, given.out, note)


if __name__ == "__main__":
    main()
