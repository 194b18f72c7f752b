"""The map of ids does what a dict does."""

from __future__ import annotations

import pytest
import torch

from gloss_graph.memory import incoming


@pytest.mark.parametrize("changed", [0, 5, 10_000])
def test_a_map_agrees_with_a_dict(changed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_CHANGED", changed)
    generator = torch.Generator().manual_seed(changed)
    ids = torch.randperm(200, generator=generator)[:60] * 2**40 - 2**43
    ours = incoming.SlotMap(ids)
    plain = {id_: slot for slot, id_ in enumerate(ids.tolist())}
    for _ in range(40):
        known = list(plain)
        gone = [known[i] for i in torch.randperm(len(known), generator=generator)[:4].tolist()]
        new = (torch.randperm(200, generator=generator)[:6] * 2**40 - 2**43).tolist()
        slots = torch.randint(60, (6,), generator=generator).tolist()
        ours.move(gone, new, slots)
        for id_ in gone:
            del plain[id_]
        plain.update(zip(new, slots, strict=True))
        asked = torch.arange(200) * 2**40 - 2**43
        assert ours.find(asked) == [plain.get(id_, -1) for id_ in asked.tolist()]


def test_an_empty_map() -> None:
    empty = incoming.SlotMap(torch.empty(0, dtype=torch.long))
    assert empty.find(torch.tensor([5, -1])) == [-1, -1]
    assert empty.find(torch.empty(0, dtype=torch.long)) == []
