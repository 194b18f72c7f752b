"""Probabilities of the signed scores of Poisson learning."""

from __future__ import annotations

import pytest
import torch

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.inference import GraphClassifier, PropagationHead
from gloss_graph.propagation.alignment import (
    align_classes,
    row_shares,
    score_probabilities,
    score_spread,
)

from .test_head import CLASSES, DIM, clusters, few, settings


def test_equal_scores_are_equally_likely_and_large_ones_certain() -> None:
    scores = torch.tensor([[1e-9, -1e-9], [1.0, -1.0], [20.0, -20.0], [0.0, 0.0]])
    told = score_probabilities(scores, torch.tensor(1.0))
    torch.testing.assert_close(told[0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(told[1, 0], torch.tensor(2.0).sigmoid())
    assert float(told[2, 0]) > 1.0 - 1e-6
    assert told[3].tolist() == [0.0, 0.0]  # nothing is known


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_the_unit_of_the_scores_does_not_matter(unit: float) -> None:
    scores = torch.tensor([[3.0, -1.0, -2.0], [-0.5, 0.1, 0.4], [0.0, 0.0, 0.0]])
    expected = torch.tensor(((9.0 + 1 + 4 + 0.25 + 0.01 + 0.16) / 6) ** 0.5)
    torch.testing.assert_close(score_spread(scores), expected)
    told = score_probabilities(unit * scores, score_spread(unit * scores))
    torch.testing.assert_close(told, score_probabilities(scores, expected))
    assert float(score_spread(scores[:0])) == 0.0


@pytest.mark.parametrize("align", [0.0, 0.5, 1.0])
def test_the_decision_is_that_of_the_weighed_scores(align: float) -> None:
    """Calder et al. (2020): the largest u_c s_c; shares of what is positive decide alike."""
    x, labels = clusters(spread=0.6)
    head = PropagationHead(x, few(labels, 3), settings(rule="poisson", align=align))
    told = head.probabilities(head.hits)
    shares = align_classes(row_shares(head.hits), head.prior, head.mass, align)
    assert torch.equal(told.argmax(dim=1), shares.argmax(dim=1))
    torch.testing.assert_close(told.sum(dim=1), torch.ones(36, dtype=told.dtype))
    # Order within every row as well, where no class is weighed.
    if align == 0.0:
        assert torch.equal(told.argsort(dim=1), head.hits.argsort(dim=1))


def test_a_document_between_two_classes_is_told_so() -> None:
    """Rows from one cluster to the other: certain at the ends, open in the middle."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(10, dim=0)
    x = x + 0.05 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.full((20,), -1)
    labels[0], labels[10] = 0, 1
    bank = MemoryBank(20, 2)
    bank.enqueue(x, labels, torch.arange(20))
    objective = GraphGuidedObjective(2, memory=bank, k=20, bandwidth=0.5)
    angle = torch.linspace(0.0, torch.pi / 2, 9)
    query = torch.stack([angle.cos(), angle.sin()], dim=1)
    told = objective.explain(query, rule="poisson")
    first = told.probabilities[:, 0]
    assert bool((first[:-1] > first[1:]).all())
    assert float(first[0]) > 0.8
    assert float(first[-1]) < 0.2
    assert 0.3 < float(first[4]) < 0.7
    assert float(told.confidence[4]) < 0.1 < float(told.confidence[0])


def test_targets_of_a_step_are_those_of_the_corpus() -> None:
    """`refresh_every=0` and a table over the bank give Poisson scores the same meaning."""
    x, labels = clusters()
    shown = few(labels)
    options = {"rule": "poisson", "k": 35, "bandwidth": 0.7, "align": 0.0, "eta": 0.1}
    objective = GraphGuidedObjective(CLASSES, refresh_every=0, **options)
    chosen: GraphClassifier = objective.targets.classifier
    head = PropagationHead(x.float(), shown, chosen)
    unlabeled = shown < 0
    target, confidence = objective.targets.eval().from_hits(head.hits, shown, unlabeled)
    expected = head.probabilities(head.hits)[unlabeled]
    torch.testing.assert_close(target, expected)
    torch.testing.assert_close(confidence, head.confidence(head.hits, expected))
    assert target.size(1) == CLASSES
    assert x.size(1) == DIM
