"""Banks and objectives saved by version 0.1: they find what they found, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.analysis import document_graph

DATA = Path(__file__).parents[1] / "data" / "before_0_2"


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(DATA / "expected.safetensors")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", ["bank_fifo", "bank_reservoir_sets", "bank_ivf", "bank_hnsw"])
def test_a_saved_bank_finds_what_it_found(
    name: str, mmap: bool, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = DATA / f"{name}.safetensors"
    if name == "bank_hnsw":
        with pytest.warns(UserWarning, match="saved with search='hnsw', which version 0.2 removed"):
            bank = MemoryBank.load(file, mmap=mmap)
        assert bank.search_backend == "ivf"
    else:
        bank = MemoryBank.load(file, mmap=mmap)
    for each in (bank, MemoryBank.load(bank.save(tmp_path / "again.safetensors"))):
        found = each.search(expected["queries"], 3)
        source, target, squared = each.edges()
        assert torch.equal(found.slots, expected[f"{name}.slots"])
        assert torch.equal(found.distances, expected[f"{name}.distances"])
        assert torch.equal(torch.stack([source, target]), expected[f"{name}.edges"])
        assert torch.equal(squared, expected[f"{name}.squared"])
        assert torch.equal(each.age, expected[f"{name}.age"])
        torch.testing.assert_close(each.labels, expected[f"{name}.labels"], equal_nan=True)


def test_a_saved_objective_goes_on(expected: dict[str, torch.Tensor]) -> None:
    objective = GraphGuidedObjective(
        3,
        memory=MemoryBank(20, 6, k=4),
        k=4,
        seed=2,
        consistency_start=0,
        consistency_ramp=1,
        refresh_every=2,
        graph_weight=0.5,
        warm_start=True,
    )
    objective.load_state_dict(load_file(DATA / "objective.safetensors"))
    predictions = objective.predict(expected["queries"])
    torch.testing.assert_close(predictions, expected["objective.predictions"])
    x, y = expected["objective.x"], expected["objective.y"]
    loss = objective(x, y, ids=torch.arange(8), logits=expected["objective.logits"])
    torch.testing.assert_close(loss, expected["objective.loss"])


def test_a_bank_of_few_bits_is_refused_by_name_and_the_argument_warns() -> None:
    file = DATA / "bank_bits.safetensors"
    with pytest.raises(ValueError, match=r"4 bits per entry \('bits'\).*Fill a new bank"):
        MemoryBank.load(file)
    with pytest.raises(ValueError, match=r"'rows.codes' belongs to a bank with 'bits'.*again"):
        MemoryBank(12, 6, k=2).load_state_dict(load_file(file))
    with pytest.raises(ValueError, match=r"a bank with 'bits', which version 0\.2 removed"):
        document_graph(file)
    with pytest.warns(DeprecationWarning, match="'bits' has no effect"):
        bank = MemoryBank(12, 6, bits=4)
    assert bank.rows.dtype is torch.float32
