"""The answer about a document does not depend on its own stored label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.inference import Explanation

CLASSES, DIM, PER_CLASS = 3, 6, 10
RULES = ("harmonic", "spreading", "poisson")


def documents(spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows (30, 6) in three clusters, and their classes (30,)."""
    truth = torch.arange(CLASSES).repeat(PER_CLASS)
    noise = torch.randn(truth.numel(), DIM, generator=torch.Generator().manual_seed(0))
    return torch.eye(DIM)[truth] + spread * noise, truth


def few(truth: Tensor, count: int = 2) -> Tensor:
    """The labels of the first `count` documents of each class, -1 elsewhere."""
    return torch.where(torch.arange(truth.numel()) < CLASSES * count, truth, -1)


def objective(x: Tensor, labels: Tensor, **settings: object) -> GraphGuidedObjective:
    classes = labels.size(1) if labels.is_floating_point() else None
    bank = MemoryBank(x.size(0), DIM, num_classes=classes)
    bank.enqueue(x, labels, torch.arange(100, 100 + x.size(0)))
    settings = {"k": 4, "multilabel": classes is not None} | settings
    return GraphGuidedObjective(classes or CLASSES, memory=bank, **settings)


def assert_same(one: Explanation, two: Explanation) -> None:
    for name, left, right in zip(Explanation._fields, one, two, strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [2, PER_CLASS], ids=["few labels", "all labels"])
def test_another_label_of_the_document_changes_no_bit(rule: str, mode: str, count: int) -> None:
    x, truth = documents()
    labels = few(truth, count)
    ask = torch.tensor([3, 17, 4])  # with two labels per class the second has none
    answers = []
    for label in range(CLASSES):
        changed = labels.clone()
        changed[3] = label
        asked = objective(x, changed, rule=rule)
        answers.append(asked.explain(x[ask], ids=100 + ask, mode=mode))
        assert not bool((answers[-1].ids == (100 + ask).unsqueeze(1)).any())
    for answer in answers[1:]:
        assert_same(*(Explanation(*(part[:1] for part in one)) for one in (answers[0], answer)))


@pytest.mark.parametrize("rule", RULES)
def test_the_answer_is_that_of_a_bank_without_the_label(rule: str) -> None:
    x, truth = documents()
    labels, ask = few(truth), torch.tensor([3])
    never = labels.clone()
    never[3] = -1
    settings = {"rule": rule, "align": 0.0}
    with_label = objective(x, labels, **settings).explain(x[ask], ids=100 + ask, top=9)
    without = objective(x, never, **settings).explain(x[ask], ids=100 + ask, top=9)
    assert torch.equal(with_label.ids, without.ids)
    torch.testing.assert_close(with_label.shares, without.shares)
    # The scale of Poisson scores is that of the unlabeled documents, one more in the second bank.
    near = {"rtol": 0.0, "atol": 0.03} if rule == "poisson" else {}
    torch.testing.assert_close(with_label.probabilities, without.probabilities, **near)


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_wrong_labels_do_not_come_back(mode: str) -> None:
    """Two right labels and one wrong one in each cluster: the right class is told of all."""
    x, truth = documents(0.2)
    labels = few(truth, 3)
    wrong = torch.arange(6, 9)
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    told = objective(x, labels).predict(x[wrong], ids=100 + wrong, mode=mode)
    assert torch.equal(told.argmax(dim=1), truth[wrong])


def test_the_only_label_of_a_far_cluster_does_not_come_back() -> None:
    """What is left is 1e-20 of the mass that the document's own label had."""
    x, truth = documents(0.05)
    labels = torch.where((truth == 1) & (torch.arange(30) < 20), 1, -1)
    labels[2], ask = 2, torch.tensor([2])
    answers = []
    for label in range(CLASSES):
        labels[2] = label
        asked = objective(x, labels, bandwidth=0.15, align=0.0)
        answers.append(asked.explain(x[ask], ids=100 + ask))
    assert_same(answers[0], answers[1])
    assert_same(answers[0], answers[2])


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
@pytest.mark.parametrize("count", [2, PER_CLASS], ids=["few labels", "all labels"])
@pytest.mark.parametrize("rule", ["harmonic", "spreading"])
def test_another_label_set_changes_no_bit(rule: str, mode: str, count: int) -> None:
    x, truth = documents()
    sets = torch.eye(4)[truth] + torch.eye(4)[(truth * 2) % 4]
    sets = sets.clamp(max=1.0).where(few(truth, count).unsqueeze(1) >= 0, torch.nan)
    ask, answers = torch.tensor([4, 20]), []
    for row in ([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]):
        sets[4] = torch.tensor(row)
        asked = objective(x, sets, rule=rule)
        answer = asked.explain(x[ask], ids=100 + ask, mode=mode)
        answers.append(Explanation(*(part[:1] for part in answer)))
        assert 104 not in answers[-1].ids
    assert_same(answers[0], answers[1])
    assert_same(answers[0], answers[2])


def test_documents_with_and_without_labels_keep_their_places() -> None:
    """One call over all documents gives each what a call of its own gives it."""
    x, truth = documents()
    asked = objective(x, few(truth))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    together = asked.explain(x[order], ids=100 + order)
    for place in (0, 7, int((order == 3).nonzero()), int((order == 20).nonzero())):
        row = order[place : place + 1]
        alone = asked.explain(x[row], ids=100 + row)
        torch.testing.assert_close(together.probabilities[place], alone.probabilities[0])
        assert torch.equal(together.ids[place], alone.ids[0])
        torch.testing.assert_close(together.shares[place], alone.shares[0])


def test_ids_of_no_document_are_refused() -> None:
    x, truth = documents()
    with pytest.raises(ValueError, match="'ids' must be >= 0"):
        objective(x, few(truth)).predict(x[:2], ids=torch.tensor([-1, 3]))
