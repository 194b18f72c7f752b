"""Classes of a corpus with few labels, by the agreement of several views of its documents."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.propagation.alignment import entropy_confidence, row_shares

# Share that a view leaves a class it rules out, so that it alone cannot exclude it.
_LEAST = 1e-6
# Inverse strength of the regularization: 1 collapses on skewed draws.
_STRENGTH = 10.0


class FoundClasses(NamedTuple):
    """Classes of documents, known or found, and how far to trust them.

    Attributes:
        labels: (N,) long, the class of every document.
        trust: (N,) in [0, 1]: 1 for a labeled document, 1 - entropy / log C for others, 0 for
            documents that no label reaches.
    """

    labels: Tensor
    trust: Tensor


class ViewVotes(NamedTuple):
    """What a further view of N documents says: votes (N, C) by two rules, and whom it reaches."""

    harmonic: Tensor
    poisson: Tensor
    reached: Tensor


@torch.no_grad()
def view_votes(view: Tensor, labels: Tensor, settings: GraphClassifier) -> ViewVotes:
    """Votes of the graph of further rows (N, D') of documents; a row of zeros says nothing."""
    said = view.abs().sum(dim=1) > 0
    # Documents without a row there are all alike.
    votes = [
        torch.where(said.unsqueeze(1), _votes(view, labels, rule), 1.0 / settings.num_classes)
        for rule in _rules(settings)
    ]
    reached = [said & (given.sum(dim=1) > 0) for given in votes]
    return ViewVotes(votes[0], votes[1], reached[0] | reached[1])


@torch.no_grad()
def agreed_labels(
    rows: Tensor,
    labels: Tensor,
    settings: GraphClassifier,
    views: Sequence[ViewVotes] = (),
    decay: Tensor | None = None,
) -> FoundClasses:
    """Classes of all documents by the geometric mean of several views.

    These are labels propagated over the graph of the embeddings, by the rule of the settings and by
    Poisson learning, and a class-balanced logistic regression on the labeled documents, which err
    on different documents. Each further view, such as the words, adds both propagations over its
    graph: independent views teach the encoder what it does not know yet (co-training, Blum and
    Mitchell, 1998).

    Args:
        rows: (N, D) embeddings.
        labels: (N,) long, -1 = unlabeled.
        settings: How documents are connected and labels propagated.
        views: Votes of further views.
        decay: (N,) in (0, 1], factor of the edges of every row; None = 1.
    """
    spread, poisson = (_votes(rows, labels, rule, decay) for rule in _rules(settings))
    opinions = [spread, poisson]
    known = labels >= 0
    if labels[known].unique().numel() > 1:
        opinions.append(logistic_probabilities(rows, labels, settings.num_classes))
    reached = known | (spread.sum(dim=1) > 0)
    for view in views:
        opinions += [view.harmonic, view.poisson]
        reached |= view.reached
    logs = [votes.to(spread).clamp(min=_LEAST).log() for votes in opinions]
    found = trusted_labels(row_shares(torch.stack(logs).mean(dim=0).exp()), labels)
    return found._replace(trust=torch.where(reached, found.trust, 0.0))


def trusted_labels(target: Tensor, labels: Tensor) -> FoundClasses:
    """Labels (N,) where they are known, else the best class of `target` (N, C)."""
    known = labels >= 0
    trust = torch.where(known, 1.0, entropy_confidence(target))
    return FoundClasses(torch.where(known, labels, target.argmax(dim=1)), trust)


def logistic_probabilities(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class probabilities (N, C) by a class-balanced logistic regression on the labeled rows.

    `labels` (N,) are -1 where unknown and name at least two classes; other classes get 0.
    """
    points, known = F.normalize(rows.float(), dim=1).cpu().numpy(), (labels >= 0).cpu().numpy()
    model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        # Many classes for few labels is what this is for.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(points[known], labels.cpu().numpy()[known])
    out = torch.zeros(rows.size(0), num_classes, dtype=torch.float64)
    out[:, torch.from_numpy(model.classes_)] = torch.from_numpy(
        model.predict_proba(points)
    ).double()
    return out.to(rows.device)


def _rules(settings: GraphClassifier) -> tuple[GraphClassifier, GraphClassifier]:
    return settings, settings.with_rule("poisson", settings.propagation.leak)


def _votes(
    rows: Tensor, labels: Tensor, settings: GraphClassifier, decay: Tensor | None = None
) -> Tensor:
    """Votes (N, C) of the graph of rows (N, D), which rule out no class as probabilities do."""
    solved = PropagationHead(rows, labels, settings, decay)
    return solved.votes(solved.hits)
