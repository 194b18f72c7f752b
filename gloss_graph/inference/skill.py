"""Will the graph help? Hide known labels, propagate the rest, compare with a linear classifier."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from gloss_graph._checks import (
    check_choice,
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_range,
)
from gloss_graph.graph.bandwidth import BandwidthRule
from gloss_graph.graph.kernels import resolve_kernel
from gloss_graph.graph.visibility import visible_split
from gloss_graph.inference.head import HeadSettings, PropagationHead


class GraphSkill(NamedTuple):
    """How well propagation recovers hidden labels, beside a linear classifier on the same split.

    Means over repeats, in [0, 1]. `advantage` is the mean difference of macro-F1 (graph minus
    linear) and `standard_error` its uncertainty over repeats; `hidden` labels were scored a repeat.
    """

    accuracy: float
    macro_f1: float
    linear_accuracy: float
    linear_macro_f1: float
    advantage: float
    standard_error: float
    hidden: int

    @property
    def helps(self) -> bool:
        """Whether propagation is not clearly behind the linear classifier."""
        return self.advantage + self.standard_error >= 0.0

    def __str__(self) -> str:
        verdict = "the graph is likely to help" if self.helps else "the graph is unlikely to help"
        return (
            f"Graph skill: {100 * self.macro_f1:.1f} macro-F1 by propagation, "
            f"{100 * self.linear_macro_f1:.1f} by a linear classifier "
            f"(difference {100 * self.advantage:+.1f} ± {100 * self.standard_error:.1f}, "
            f"{self.hidden} hidden labels a repeat): {verdict}."
        )


def graph_skill(
    embeddings: Tensor,
    labels: Tensor,
    *,
    holdout: float = 0.2,
    repeats: int = 10,
    k: int = 20,
    kernel: str = "gaussian",
    bandwidth: float | str | BandwidthRule = "sqrt",
    symmetrize: str = "union",
    rule: str = "harmonic",
    normalization: str = "hub",
    eta: float = 0.2,
    align: float = 0.5,
    seed: int = 0,
    warn: bool = True,
) -> GraphSkill:
    """Estimate before training whether label propagation suits a corpus.

    Hides a share of the known labels, propagates the others over the graph of all documents and
    scores the hidden ones; a class-balanced logistic regression on the same embeddings is the
    yardstick. Neighbours that share topic but not label (sentiment) show as a graph behind it.

    Args:
        embeddings: (N, D) of all documents, unlabeled ones too, usually of the untrained encoder.
        labels: (N,) integer, -1 = unlabeled.
        holdout: Share of the labels hidden a repeat, stratified; each class keeps one at least.
        repeats: Random splits.
        k: Neighbours a document; as for the following in `GraphGuidedObjective`.
        kernel: See above.
        bandwidth: See above.
        symmetrize: See above.
        rule: See above.
        normalization: See above.
        eta: See above.
        align: Power of the class-mass alignment.
        seed: Of the splits.
        warn: Warn when the graph is unlikely to help.

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
    check_matrix("embeddings", embeddings)
    check_index_vector("labels", labels, embeddings.size(0))
    check_range("holdout", holdout, 0.0, 1.0, open_low=True, open_high=True)
    check_positive_int("repeats", repeats)
    labels = labels.long()
    known = labels >= 0
    classes, counts = labels[known].unique(return_counts=True)
    if classes.numel() < 2 or int(counts.max()) < 2:
        raise ValueError(
            f"'labels' must hold two classes and one of them twice (got {classes.numel()} classes "
            f"in {int(known.sum())} labels)."
        )
    check_choice("symmetrize", symmetrize, ("union", "mutual"))
    settings = HeadSettings(
        num_classes=int(labels.max()) + 1,
        k=k,
        kernel=resolve_kernel(kernel),
        bandwidth=bandwidth,
        symmetrize=symmetrize,
        normalize=True,
        rule=rule,
        normalization=normalization,
        eta=eta,
        alpha=0.9,
        align=align,
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(embeddings.detach().float(), dim=1)
    head = PropagationHead(x, labels, settings)
    points = x.cpu().numpy()
    scores = []
    for _ in range(repeats):
        shown = visible_split(labels, 1.0 - holdout, generator=generator)
        hidden = known & ~shown
        if not bool(hidden.any()):
            continue
        head.relabel(torch.where(shown, labels, -1))
        guess = head.probabilities(head.hits).argmax(dim=1)[hidden].cpu().numpy()
        truth = labels[hidden].cpu().numpy()
        rows = shown.cpu().numpy()
        linear = LogisticRegression(class_weight="balanced", max_iter=300, C=10.0)
        linear.fit(points[rows], labels[shown].cpu().numpy())
        other = linear.predict(points[hidden.cpu().numpy()])
        scores.append((*_pair(truth, guess), *_pair(truth, other), truth.size))
    if not scores:
        raise ValueError("'holdout' hides no label; raise it or label more documents.")
    table = np.asarray(scores)
    difference = table[:, 1] - table[:, 3]
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else 0.0
    accuracy, macro_f1, linear_accuracy, linear_macro_f1, count = table.mean(axis=0).tolist()
    skill = GraphSkill(
        accuracy,
        macro_f1,
        linear_accuracy,
        linear_macro_f1,
        float(difference.mean()),
        error,
        round(count),
    )
    if warn and not skill.helps:
        warnings.warn(f"{skill} Compare with loss='ce'.", UserWarning, stacklevel=2)
    return skill


def _pair(truth: np.ndarray, guess: np.ndarray) -> tuple[float, float]:
    present = np.unique(truth)
    f1 = f1_score(truth, guess, labels=present, average="macro", zero_division=0)
    return float(accuracy_score(truth, guess)), float(f1)
