"""A row never sees its own label through the bandwidth or a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import snapshot
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, graph_skill
from gloss_graph.graph.bandwidth import ScaledBandwidth
from objective.documents import (
    CLASSES,
    DIM,
    SIZE,
    assert_same_state,
    filled,
    half_visible,
    labels_of,
    rows,
    step,
)


def nearest_other_class(sample: Tensor, labels: Tensor | None) -> Tensor:
    """A bandwidth that depends on every label it is shown."""
    if labels is None:
        return sample.new_ones(())
    known = labels >= 0
    distance = torch.cdist(sample[known], sample[known])
    between = labels[known].unsqueeze(1) != labels[known]
    return distance[between].min() / 3.0


@pytest.mark.parametrize(
    ("bandwidth", "stored"),
    [("interclass_min", 0), *((nearest_other_class, stored) for stored in (0, 20, 1100))],
)
def test_a_bandwidth_is_made_from_shown_labels_only(bandwidth: Any, stored: int) -> None:
    x, visible = rows(12), torch.arange(12) < 8
    x[11] = x[0] + 0.05  # so near that the labels of both would decide
    answers = []
    for own in range(CLASSES):
        labels = labels_of(12)
        labels[11] = own
        memory = filled(stored, 1200) if stored else None
        objective = GraphGuidedObjective(CLASSES, memory=memory, bandwidth=bandwidth).eval()
        ids = torch.arange(12)
        out = step(objective, x, labels, ids=ids, visible=visible)
        # The same graph where the edges of the bank are not listed.
        assert float(objective(x, labels, ids=ids, visible=visible)) == pytest.approx(
            float(out.loss), rel=1e-3
        )
        answers.append((out.graph.bandwidth, out.propagated[11]))
    for sigma, propagated in answers[1:]:
        assert torch.equal(sigma, answers[0][0])
        assert torch.equal(propagated, answers[0][1])


def test_a_bandwidth_sees_no_hidden_label_of_the_bank() -> None:
    seen: list[Tensor] = []

    def rule(sample: Tensor, labels: Tensor | None) -> float:
        seen.append(labels)
        return 1.0

    settings = {"bandwidth": rule, "memory_visible_fraction": 0.5, "visible_fraction": 0.5}
    objective = GraphGuidedObjective(CLASSES, memory=filled(), **settings)
    out = step(objective, rows(), labels_of(), ids=torch.arange(SIZE))
    (labels,) = seen
    assert torch.equal(labels >= 0, out.graph.seed_mask)
    assert 0 < int((labels[SIZE:] >= 0).sum()) < 20
    assert torch.equal(labels[labels >= 0], out.graph.y[labels >= 0])


@pytest.mark.parametrize("bandwidth", ["interclass_min", ScaledBandwidth("interclass_min", 2.0)])
def test_a_bandwidth_made_from_labels_is_refused_beside_a_bank(bandwidth: Any) -> None:
    with pytest.raises(ValueError, match=r"'bandwidth' must not be .*interclass_min"):
        GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=bandwidth)
    with pytest.raises(ValueError, match=r"'bandwidth' must not be .*interclass_min"):
        graph_skill(rows().float(), labels_of(), bandwidth=bandwidth)
    # Without a bank, or with one that stores nothing, there is no answer from the whole corpus.
    for memory in (None, MemoryBank(0, DIM)):
        objective = GraphGuidedObjective(CLASSES, memory=memory, bandwidth=bandwidth)
        assert torch.isfinite(objective(rows(), labels_of(), ids=torch.arange(SIZE)))


def test_targets_do_not_depend_on_which_labels_a_step_shows() -> None:
    # The bandwidth of the graph targets come from is made from all labels, as they are.
    x, labels = rows(), labels_of()
    labels[-2:] = -1
    found = []
    for visible in (half_visible() & (labels >= 0), (torch.arange(SIZE) % 4 > 0) & (labels >= 0)):
        objective = GraphGuidedObjective(
            CLASSES, bandwidth="interclass_min", consistency_start=0, consistency_ramp=0
        )
        objective(x, labels, logits=rows(dim=CLASSES), visible=visible)
        found.append(float(objective.parts["consistency"]))
    assert found[0] == found[1] > 0.0


def test_rows_of_one_document_are_shown_or_hidden_together() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    before = snapshot(objective)
    x, labels, ids = rows(6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([5, 5, 6, 7, 8, 9])
    x[1] = x[0]
    told = torch.tensor([True, False, True, False, True, False])
    message = r"'visible' must agree for rows with the same id, .* \(id 5 has visible 0 and 1\)"
    with pytest.raises(ValueError, match=message):
        objective(x, labels, ids=ids, visible=told)
    # Two labels of one document would tell each other, whatever is propagated.
    unlike = torch.tensor([0, 1, 1, 1, 2, 2])
    for labels_now in (unlike, torch.tensor([0, -1, 1, 1, 2, 2])):
        for call in ({}, {"visible": torch.zeros(6, dtype=torch.bool)}):
            with pytest.raises(ValueError, match="'labels' must agree for rows with the same id"):
                objective(x, labels_now, ids=ids, **call)
    alone = GraphGuidedObjective(CLASSES, memory=filled(), graph_weight=0.0)
    with pytest.raises(ValueError, match="'labels' must agree for rows with the same id"):
        alone(x, unlike, ids=ids, logits=rows(6, dim=CLASSES))
    assert_same_state(before, snapshot(objective))
    # Both hidden: nothing tells the label, so another one changes nothing.
    hidden = torch.tensor([False, False, True, False, True, False])
    objective.eval()
    first = step(objective, x, labels, ids=ids, visible=hidden).propagated[:2]
    other = torch.tensor([2, 2, 1, 1, 2, 2])
    assert torch.equal(step(objective, x, other, ids=ids, visible=hidden).propagated[:2], first)
