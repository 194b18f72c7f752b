"""Labels flipped at random: how many does the audit find, beside cleanlab's confident learning?

Run ``python examples/benchmarks/audit.py --data FOLDER --seeds 0 1 2 3 4`` on a folder with
``train.csv.gz`` (columns ``text,label``); needs ``pip install cleanlab``.

A share of the training labels (``--flip``) is replaced by another class, drawn uniformly. The
audit ranks documents over the nearest-neighbor graph of frozen MiniLM embeddings; cleanlab ranks
them by its label quality scores (self-confidence and normalized margin) on out-of-sample
probabilities, 5-fold logistic regression on the same L2-normalized embeddings. Precision is the
share of flipped documents among as many suspects as were flipped; the corpus' own labelling errors
count as false alarms for all. Embeddings are kept in ``--cache``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_rel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from gloss_graph import build_document_graph
from gloss_graph.analysis import audit
from gloss_graph.text import load_encoder, read_splits
from gloss_graph.training import encoder_identity, recorded_embeddings


def embedded(folder: Path, length: int, cache: Path) -> tuple[Tensor, np.ndarray]:
    """Frozen embeddings and labels of the labeled training documents."""
    corpus = read_splits(folder / "train.csv.gz").train
    rows = recorded_embeddings(
        {"train": corpus},
        lambda: load_encoder("minilm", max_length=length),
        encoder_identity("minilm", max_length=length),
        folder=cache,
        progress=True,
    )["train"]
    labels = np.array(corpus.labels)
    return rows[torch.from_numpy(labels >= 0)], labels[labels >= 0]


def flip(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is wrong, and which (N,) bool."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy, classes = labels.copy(), labels.max() + 1
    noisy[places] = (labels[places] + rng.integers(1, classes, len(places))) % classes
    return noisy, noisy != labels


def by_audit(rows: Tensor, labels: np.ndarray, k: int) -> np.ndarray:
    """Documents, the most suspicious first."""
    graph = build_document_graph(rows, torch.from_numpy(labels), k=k)
    return audit(graph).table["node"].to_numpy()


def by_cleanlab(rows: Tensor, labels: np.ndarray, method: str) -> np.ndarray:
    """The same by confident learning's label quality."""
    from cleanlab.rank import get_label_quality_scores

    unit = torch.nn.functional.normalize(rows, dim=1).numpy()
    least = np.bincount(labels).min()
    folds = StratifiedKFold(min(5, int(least)), shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=1000)
    chances = cross_val_predict(model, unit, labels, cv=folds, method="predict_proba")
    return np.argsort(get_label_quality_scores(labels, chances, method=method), kind="stable")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv.gz")
    parser.add_argument("--flip", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--length", type=int, default=128, help="tokens kept of a document")
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    settings = parser.parse_args()

    rows, truth = embedded(settings.data, settings.length, settings.cache)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "audit (graph)": lambda y: by_audit(rows, y, settings.k)
    }
    try:
        import cleanlab
    except ImportError:
        print("cleanlab is not installed (pip install cleanlab): the audit alone.")
    else:
        print(f"cleanlab {cleanlab.__version__}, 5-fold logistic regression")
        for name in ("self_confidence", "normalized_margin"):
            ways[f"cleanlab, {name}"] = lambda y, name=name: by_cleanlab(rows, y, name)

    found: dict[str, list[float]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    for seed in settings.seeds:
        noisy, wrong = flip(truth, settings.flip, seed)
        for name, rank in ways.items():
            start = time.perf_counter()
            first = rank(noisy)[: wrong.sum()]
            spent[name] += time.perf_counter() - start
            found[name].append(float(wrong[first].mean()))
    print(f"{len(truth)} documents, {wrong.sum()} labels flipped, seeds {settings.seeds}\n")
    print("| method | precision at the number of flips | each seed | difference (p) | seconds |")
    print("|---|---|---|---|---|")
    ours = np.array(found["audit (graph)"])
    for name, scores in found.items():
        each = " ".join(f"{100 * score:.1f}" for score in scores)
        mean, spread = np.mean(scores), np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        gap = ours - np.array(scores)
        versus = ""
        if name != "audit (graph)" and len(scores) > 1 and gap.std() > 0:
            versus = f"{100 * gap.mean():+.1f} ({ttest_rel(ours, scores).pvalue:.3f})"
        mine = f"{100 * mean:.1f} ± {100 * spread:.1f}"
        print(f"| {name} | {mine} | {each} | {versus} | {spent[name] / len(scores):.1f} |")


if __name__ == "__main__":
    main()
