"""Which labels a step shows."""

from __future__ import annotations

import pytest
import torch

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.graph.visibility import visible_split


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_class_supplied_from_elsewhere_needs_none_in_the_batch() -> None:
    labels = torch.arange(6).repeat(200)  # every class is common
    single = torch.arange(1_000, 1_400)  # every class has one document
    assert visible_split(single, 0.5, generator=generator()).all()
    shown = visible_split(single, 0.5, generator=generator(), supplied=single.repeat(2))
    assert 150 < int(shown.sum()) < 250
    # Only the supplied ones are let go.
    shown = visible_split(single, 0.5, generator=generator(), supplied=single[:100])
    assert shown[100:].all()
    assert not shown[:100].all()
    assert int(visible_split(labels, 0.5, generator=generator()).sum()) == 600
    assert not visible_split(single, 0.0, generator=generator(), supplied=single[:5]).any()


@pytest.mark.parametrize("own_copy", [False, True])
def test_a_batch_of_one_is_scored_where_the_bank_holds_its_class(own_copy: bool) -> None:
    x = torch.randn(6, 4, generator=generator())
    bank = MemoryBank(8, 4)
    # With `own_copy` the bank's only document of the class is the batch's own, which is masked.
    bank.enqueue(x, torch.tensor([1, 0, 0, 0, 0, 0 if own_copy else 1]), torch.arange(6))
    hidden = []
    for seed in range(40):  # an objective in eval() draws the same split every time
        objective = GraphGuidedObjective(2, memory=bank, visible_fraction=0.3, seed=seed).eval()
        out = objective(x[:1], torch.tensor([1]), ids=torch.tensor([0]), return_output=True)
        hidden.append(bool(out.hidden[0]))
    assert any(hidden) != own_copy
    assert not all(hidden)
