"""Metric-learning losses against their formulas, and what the cross-batch memory keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph import MemoryBank
from gloss_graph.losses import METRIC_LOSSES, MetricLoss

B, D = 10, 6


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, D, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])


def make(kind: str, **settings: Any) -> MetricLoss:
    memory = MemoryBank(16, D, k=0) if kind == "xbm-scl" else None
    return MetricLoss(kind, memory=memory, **settings)


def supcon(x: Tensor, labels: Tensor, others: Tensor, known: Tensor, allowed: Tensor) -> Tensor:
    """Khosla et al., eq. 2, row by row."""
    unit, rest = F.normalize(x, dim=1), F.normalize(others, dim=1)
    losses = []
    for i in range(len(x)):
        scores = unit[i] @ rest.T / 0.1
        denominator = scores[allowed[i]].logsumexp(dim=0)
        same = allowed[i] & (known == labels[i])
        if same.any():
            losses.append(-(scores[same] - denominator).mean())
    return torch.stack(losses).mean()


def test_supervised_contrastive_is_its_formula(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    expected = supcon(x, labels, x, labels, ~torch.eye(B, dtype=torch.bool))
    torch.testing.assert_close(make("scl")(x, labels), expected)
    # Nothing remembered yet: the cross-batch form is the same.
    torch.testing.assert_close(make("xbm-scl")(x, labels, ids=torch.arange(B)), expected)


def test_triplets_are_all_that_violate(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    unit = F.normalize(x, dim=1)
    violations = [
        0.2 + (unit[a] - unit[p]).norm() - (unit[a] - unit[n]).norm()
        for a in range(B)
        for p in range(B)
        for n in range(B)
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    values = torch.stack(violations)
    expected = values[values > 0].mean()
    torch.testing.assert_close(make("triplet")(x, labels), expected)


def test_cosine_is_a_mean_over_pairs(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    unit = F.normalize(x.float(), dim=1)
    pairs = [(i, j) for i in range(B) for j in range(i)]
    errors = [(unit[i] @ unit[j] - float(labels[i] == labels[j])) ** 2 for i, j in pairs]
    torch.testing.assert_close(make("cosine")(x, labels), torch.stack(errors).mean())


def test_remembered_rows_are_compared_but_not_own_copies(batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    loss = make("xbm-scl")
    ids = torch.arange(B)
    loss(x, labels, ids=ids)
    assert len(loss.memory) == B
    # The same documents again, embedded otherwise: their old copies take no part.
    again = loss(x.square(), labels, ids=ids)
    torch.testing.assert_close(again, make("scl")(x.square(), labels))
    assert len(loss.memory) == B
    new = torch.randn(4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classes = torch.tensor([0, 1, 1, 3])
    stored = loss.memory.embeddings.double().clone()
    others, known = torch.cat([new, stored]), torch.cat([classes, loss.memory.labels])
    allowed = torch.cat([~torch.eye(4, dtype=torch.bool), torch.ones(4, B, dtype=bool)], dim=1)
    expected = supcon(new, classes, others, known, allowed)
    found = loss(new, classes, ids=torch.arange(B, B + 4))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(loss.memory) == B + 4


def test_nothing_is_remembered_in_evaluation(batch: tuple[Tensor, Tensor]) -> None:
    loss = make("xbm-scl").eval()
    loss(*batch, ids=torch.arange(B))
    assert len(loss.memory) == 0


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_unlabeled_rows_take_no_part(kind: str, batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    ids = torch.arange(B)
    hidden = labels.masked_fill(ids >= 6, -1)
    x.requires_grad_()
    loss = make(kind)
    value = loss(x, hidden, ids=ids)
    torch.testing.assert_close(value, make(kind)(x[:6], labels[:6], ids=ids[:6]))
    value.backward()
    assert (x.grad[6:] == 0).all()
    assert x.grad[:6].abs().sum() > 0
    if loss.memory is not None:
        assert set(loss.memory.ids.tolist()) == set(range(6))
    none = make(kind)(x, torch.full((B,), -1))
    assert float(none.detach()) == 0.0
    none.backward()


@pytest.mark.parametrize("kind", METRIC_LOSSES)
def test_cross_entropy_joins_by_weight(kind: str, batch: tuple[Tensor, Tensor]) -> None:
    x, labels = batch
    logits = torch.randn(B, 4, generator=torch.Generator().manual_seed(2))
    ids = torch.arange(B)
    alone = make(kind)(x, labels, ids=ids)
    loss = make(kind, weight=0.3)
    joint = loss(x, labels, ids=ids, logits=logits)
    expected = 0.3 * alone.double() + 0.7 * F.cross_entropy(logits, labels).double()
    torch.testing.assert_close(joint.double(), expected)
    assert set(loss.parts) == {"metric_loss", "cross_entropy"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ntxent"}, "'kind' must be one of"),
        ({"kind": "scl", "weight": 1.5}, "'weight' must be"),
        ({"kind": "scl", "temperature": 0.0}, "'temperature' must be"),
        ({"kind": "triplet", "margin": -1.0}, "'margin' must be"),
        ({"kind": "xbm-scl"}, "'memory' must be a MemoryBank"),
        ({"kind": "scl", "memory": MemoryBank(4, D)}, "'memory' must be a MemoryBank"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricLoss(**settings)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.full((3, D), float("nan")), torch.zeros(3).long(), "'embeddings'"),
        (torch.ones(3, D), torch.zeros(2).long(), "'labels'"),
        (torch.ones(3, D), torch.zeros(3), "'labels'"),
    ],
)
def test_bad_batches(x: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("scl")(x, labels)
