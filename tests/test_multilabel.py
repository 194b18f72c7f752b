"""Label sets beyond the loss: predictions, the bank's state, bad input."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from label_sets import CLASSES, DIM, NAN, SIZE, filled, rows, sets_of
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph
from gloss_graph.losses import MetricLoss

# ---------------------------------------------------------------- predictions


def two_clusters() -> tuple[MemoryBank, Tensor]:
    """Class 0 in the first cluster, class 1 in both, class 2 nowhere."""
    x = torch.eye(DIM)[:2].repeat(6, 1) + 0.05 * rows(12).float()
    bank = MemoryBank(20, DIM, k=4, num_classes=CLASSES)
    sets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).repeat(6, 1)
    sets[:2] = NAN
    bank.enqueue(x, sets, torch.arange(12))
    return bank, torch.eye(DIM)[:2]


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_predictions_are_probabilities_of_every_class(mode: str) -> None:
    bank, queries = two_clusters()
    objective = GraphGuidedObjective(CLASSES, multilabel=True, memory=bank, k=4)
    answer = objective.explain(queries, mode=mode)
    expected = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(answer.probabilities, expected, rtol=0.0, atol=0.02)
    assert float(answer.probabilities.min()) >= 0.0005 - 1e-7
    assert float(answer.probabilities.max()) <= 0.9995 + 1e-7
    assert float(answer.confidence.min()) > 0.8
    assert (answer.ids % 2).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert not set(answer.ids.flatten().tolist()) & {0, 1}
    torch.testing.assert_close(objective.predict(queries, mode=mode), answer.probabilities)


def test_a_new_target_of_a_stored_document_changes_the_prediction() -> None:
    bank, queries = two_clusters()
    objective = GraphGuidedObjective(CLASSES, multilabel=True, memory=bank, k=4)
    before = objective.predict(queries)
    stored = bank.embeddings[2::2].clone()
    bank.enqueue(stored, torch.tensor([[0.0, 0.0, 1.0]]).repeat(5, 1), torch.arange(2, 12, 2))
    after = objective.predict(queries)
    assert float(before[0, 2]) < 0.1
    assert float(after[0, 2]) > 0.9


# ---------------------------------------------------------------- the bank


def test_the_bank_gives_back_what_it_was_given() -> None:
    bank = MemoryBank(4, DIM, num_classes=CLASSES)
    sets = sets_of(3, unlabeled=(1,))
    bank.enqueue(rows(3), sets, torch.arange(3))
    torch.testing.assert_close(bank.labels, sets.float(), equal_nan=True)
    assert bank.labeled.tolist() == [True, False, True]
    assert bank.stats().class_counts.get(-1) == 1
    bank.enqueue(rows(1), torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([1]))
    assert bank.labels[1].tolist() == [1.0, 0.0, 1.0]
    bank.enqueue(rows(1), None, torch.tensor([0]))
    assert bool(bank.labels[0].isnan().all())
    counts = bank.labels.nan_to_num(0.0).sum(dim=0).tolist()
    expected = {c: int(n) for c, n in enumerate(counts) if n} | {-1: 1}
    assert bank.stats().class_counts == expected
    assert "num_classes=3" in repr(bank)
    bank.reset()
    assert len(bank) == 0
    assert not bool(bank.slot_targets.any())  # type: ignore[union-attr]


def test_the_state_of_a_bank_of_class_numbers_has_no_new_keys() -> None:
    assert "slot_targets" not in MemoryBank(4, DIM).state_dict()
    assert "slot_targets" in MemoryBank(4, DIM, num_classes=2).state_dict()


def test_a_restored_objective_continues_bit_for_bit() -> None:
    def fresh() -> GraphGuidedObjective:
        bank = MemoryBank(30, DIM, k=4, num_classes=CLASSES)
        return GraphGuidedObjective(
            CLASSES, multilabel=True, memory=bank, k=4, consistency_start=2, refresh_every=3
        )

    def run(objective: GraphGuidedObjective, steps: range) -> list[float]:
        losses = []
        for number in steps:
            ids = (torch.arange(SIZE) + 5 * number) % 30
            x = rows(30, 2)[ids] + 0.01 * number
            sets = sets_of(30, 4, unlabeled=(1, 7, 9, 20))[ids]
            losses.append(float(objective(x, sets, ids=ids, logits=x[:, :CLASSES])))
        return losses

    whole = fresh()
    expected = run(whole, range(10))
    first = fresh()
    run(first, range(5))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = fresh()
    second.load_state_dict(torch.load(file, weights_only=True))
    assert run(second, range(5, 10)) == expected[5:]
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in second.state_dict().items())
    assert len(set(expected)) == 10


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(SIZE, dtype=torch.long), r"'labels' must be floating of shape \(12, 3\)"),
        (torch.zeros(SIZE, CLASSES, dtype=torch.long), r"call \.float\(\)"),
        (torch.zeros(SIZE, 2), "'labels' must be floating of shape"),
        (torch.full((SIZE, CLASSES), 1.5), r"'labels' must lie in \[0, 1\] \(got 1.5..1.5 in row"),
        (torch.full((SIZE, CLASSES), -0.5), r"'labels' must lie in \[0, 1\]"),
        (torch.tensor([[NAN, 0.0, 1.0]] * SIZE), "NaN in a whole row"),
        (torch.full((SIZE, CLASSES), math.inf), r"'labels' must lie in \[0, 1\]"),
    ],
)
def test_bad_sets_are_named_and_leave_the_bank_as_it_was(labels: Tensor, message: str) -> None:
    bank = filled()
    before = copy.deepcopy(bank.state_dict())
    objective = GraphGuidedObjective(CLASSES, multilabel=True, memory=bank, k=4)
    with pytest.raises(ValueError, match=message):
        objective(rows(), labels, ids=torch.arange(SIZE))
    with pytest.raises(ValueError, match=message):
        bank.enqueue(rows(), labels, torch.arange(SIZE))
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


def test_one_document_has_one_set() -> None:
    objective = GraphGuidedObjective(CLASSES, multilabel=True)
    sets = torch.zeros(3, CLASSES)
    sets[2, 1] = 1.0
    with pytest.raises(ValueError, match=r"same id \(id 5 has other labels in rows 0 and 2\)"):
        objective(rows(3), sets, ids=torch.tensor([5, 6, 5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "poisson"}, "'rule' must be 'harmonic' or 'spreading' with multilabel=True"),
        ({"loss": "published"}, "'loss' must be 'nll' with multilabel=True"),
        ({"loss": "released"}, "'loss' must be 'nll' with multilabel=True"),
        ({"bandwidth": "interclass_min"}, "'bandwidth' must not be 'interclass_min'"),
        ({"memory": MemoryBank(4, DIM)}, "'memory' must be made with num_classes=3"),
        ({"memory": MemoryBank(4, DIM, num_classes=2)}, "'memory' must be made with num_classes=3"),
    ],
)
def test_settings_without_meaning_for_sets(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphGuidedObjective(CLASSES, multilabel=True, **settings)


def test_soft_targets_need_multilabel() -> None:
    objective = GraphGuidedObjective(CLASSES)
    with pytest.raises(ValueError, match=r"argmax\(dim=1\).*multilabel=True"):
        objective(rows(), rows()[:, :CLASSES].softmax(dim=1))
    with pytest.raises(ValueError, match="'memory' must be made with num_classes=None"):
        GraphGuidedObjective(CLASSES, memory=filled())
    with pytest.raises(ValueError, match="'memory' must hold class numbers"):
        MetricLoss("xbm-scl", memory=filled())
    with pytest.raises(ValueError, match="'num_classes' must be an integer"):
        MemoryBank(4, DIM, num_classes=0)


def test_predictions_refuse_scores() -> None:
    objective = GraphGuidedObjective(CLASSES, multilabel=True, memory=filled(), k=4)
    with pytest.raises(ValueError, match="'rule' must not be 'poisson'"):
        objective.predict(rows().float(), rule="poisson")


def test_document_graphs_carry_sets() -> None:
    sets = sets_of(unlabeled=(2,))
    data = build_document_graph(rows(), sets, k=3)
    torch.testing.assert_close(data.y, sets, equal_nan=True)
    assert data.seed_mask.tolist() == [i != 2 for i in range(SIZE)]
    joined = build_document_graph(rows(), sets, torch.arange(SIZE), memory=filled(), k=3)
    assert joined.y.shape == (SIZE + 15, CLASSES)
    with pytest.raises(ValueError, match="kind the bank holds"):
        build_document_graph(rows(), torch.zeros(SIZE, 2), memory=filled(), k=3)
    with pytest.raises(ValueError, match="kind the bank holds"):
        build_document_graph(rows(), sets, memory=MemoryBank(4, DIM), k=3)
