"""Will the graph help? Hide known labels, propagate the rest, compare with a linear classifier."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from gloss_graph._internal.checks import (
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_range,
    check_seed,
)
from gloss_graph._internal.settings import with_short_forms
from gloss_graph.graph.bandwidth import BandwidthRule, check_fits_bank
from gloss_graph.graph.kernels import Kernel
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import visible_split
from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.propagation import PropagationSettings


class GraphSkill(NamedTuple):
    """How well propagation and a linear classifier recover hidden labels on the same splits.

    `accuracy` and `macro_f1` are means over repeats, in [0, 1]. `advantage` is the difference of
    class-balanced accuracy (graph minus linear) over the documents that were hidden at least once,
    `standard_error` its uncertainty over documents; `scored` is their number.
    """

    accuracy: float
    macro_f1: float
    linear_accuracy: float
    linear_macro_f1: float
    advantage: float
    standard_error: float
    scored: int

    @property
    def helps(self) -> bool:
        """Whether propagation is not clearly behind the linear classifier."""
        return self.advantage + self.standard_error >= 0.0

    def __str__(self) -> str:
        verdict = "suits" if self.helps else "alone does not suit"
        return (
            f"Graph skill: {100 * self.macro_f1:.1f} macro-F1 by propagation, "
            f"{100 * self.linear_macro_f1:.1f} by a linear classifier "
            f"on {self.scored} hidden labels; difference of balanced accuracy "
            f"{100 * self.advantage:+.1f} ± {100 * self.standard_error:.1f}: propagation "
            f"{verdict} this corpus."
        )


def graph_skill(
    embeddings: Tensor,
    labels: Tensor,
    *,
    holdout: float = 0.2,
    repeats: int = 20,
    graph: KNNGraph | None = None,
    propagation: PropagationSettings | None = None,
    k: int | None = None,
    kernel: str | Kernel | None = None,
    bandwidth: float | str | BandwidthRule | None = None,
    symmetrize: str | None = None,
    rule: str | None = None,
    normalization: str | None = None,
    eta: float | None = None,
    align: float = 0.5,
    seed: int = 0,
    warn: bool = True,
) -> GraphSkill:
    """Estimate before training whether label propagation suits a corpus.

    Hides a share of the known labels, propagates the others over the graph of all documents and
    scores the hidden ones; a class-balanced logistic regression on the same embeddings is the
    yardstick. Where neighbors share a topic but not a label (sentiment), the graph loses to it.

    Args:
        embeddings: (N, D) of all documents, unlabeled ones too, usually of the untrained encoder.
        labels: (N,) integer, -1 = unlabeled; classes may have any numbers.
        holdout: Share of the labels hidden per repeat, stratified; each class keeps at least one.
        repeats: Random splits.
        graph: How documents are connected; not with a bandwidth that is made from labels.
        propagation: How labels propagate.
        k: Short form of `KNNGraph.k`.
        kernel: Short form of `KNNGraph.kernel`.
        bandwidth: Short form of `KNNGraph.bandwidth`.
        symmetrize: Short form of `KNNGraph.symmetrize`.
        rule: Short form of `PropagationSettings.rule`.
        normalization: Short form of `PropagationSettings.normalization`.
        eta: Short form of `PropagationSettings.eta`.
        align: Power of the class-mass alignment.
        seed: Seed of the splits.
        warn: Warn when propagation alone does not suit the corpus.

    Raises:
        TypeError: A value that is not a tensor.
        ValueError: Shapes that disagree, non-finite embeddings, fewer than two labeled classes, or
            no class with two labels, so that none can be hidden.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
        >>> x = x + 0.1 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> graph_skill(x, torch.arange(40) % 2, k=5).macro_f1
        1.0
    """
    check_matrix("embeddings", embeddings, normalized=True)
    check_index_vector("labels", labels, embeddings.size(0))
    check_range("holdout", holdout, 0.0, 1.0, open_low=True, open_high=True)
    check_positive_int("repeats", repeats)
    short = {"k": k, "kernel": kernel, "bandwidth": bandwidth, "symmetrize": symmetrize}
    graph = with_short_forms("graph", graph, KNNGraph, **short)
    check_fits_bank(graph.bandwidth)
    short = {"rule": rule, "normalization": normalization, "eta": eta}
    propagation = with_short_forms("propagation", propagation, PropagationSettings, **short)
    check_range("align", align, 0.0, 1.0)
    check_seed("seed", seed)
    labels = labels.long()
    known = labels >= 0
    classes, numbers, counts = labels[known].unique(return_inverse=True, return_counts=True)
    if classes.numel() < 2 or int(counts.max()) < 2:
        raise ValueError(
            f"'labels' must hold two classes and one of them twice (got {classes.numel()} classes "
            f"in {int(known.sum())} labels)."
        )
    # Only classes with labels can be found, whatever their numbers.
    labels = torch.full_like(labels, -1).masked_scatter(known, numbers)
    classifier = GraphClassifier(
        num_classes=classes.numel(), graph=graph, propagation=propagation, align=align
    )
    generator = torch.Generator().manual_seed(int(seed))
    x = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    head = PropagationHead(x, labels, classifier)
    points, truth = x.cpu().numpy(), labels.cpu().numpy()
    scores = []
    times, gained = np.zeros(len(labels)), np.zeros(len(labels))
    for _ in range(repeats):
        shown = visible_split(labels, 1.0 - holdout, generator=generator)
        hidden = (known & ~shown).cpu().numpy()
        if not hidden.any():
            continue
        head.relabel(torch.where(shown, labels, -1))
        guess = head.probabilities(head.hits).argmax(dim=1).cpu().numpy()[hidden]
        rows = shown.cpu().numpy()
        linear = LogisticRegression(class_weight="balanced", max_iter=300, C=10.0)
        with warnings.catch_warnings():
            # Few labels of many classes are the usual case here.
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            linear.fit(points[rows], truth[rows])
        other = linear.predict(points[hidden])
        scores.append((*_pair(truth[hidden], guess), *_pair(truth[hidden], other)))
        times[hidden] += 1
        gained[hidden] += (guess == truth[hidden]).astype(float) - (other == truth[hidden])
    if not scores:
        raise ValueError("'holdout' hides no label; raise it or label more documents.")
    scored = times > 0
    advantage, error = _balanced_mean(gained[scored] / times[scored], truth[scored])
    accuracy, macro_f1, linear_accuracy, linear_macro_f1 = np.mean(scores, axis=0).tolist()
    skill = GraphSkill(
        accuracy=accuracy,
        macro_f1=macro_f1,
        linear_accuracy=linear_accuracy,
        linear_macro_f1=linear_macro_f1,
        advantage=advantage,
        standard_error=error,
        scored=int(scored.sum()),
    )
    if warn and not skill.helps:
        warnings.warn(f"{skill} Compare with loss='ce'.", UserWarning, stacklevel=2)
    return skill


def _pair(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    """Accuracy, and macro-F1 over the classes that are present."""
    present = np.unique(truth)
    f1 = f1_score(truth, guess, labels=present, average="macro", zero_division=0)
    return float(accuracy_score(truth, guess)), float(f1)


def _balanced_mean(values: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Mean over classes of the class means, and its standard error over documents."""
    _, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
    means = np.bincount(index, values) / counts
    # The spread is pooled, since a class of one document has none.
    spread = float(values.var(ddof=1)) if values.size > 1 else 0.0
    return float(means.mean()), float(np.sqrt((spread / counts).sum()) / counts.size)
