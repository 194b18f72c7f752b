"""Filling a bank in one pass of an encoder."""

from __future__ import annotations

import re
from collections import namedtuple

import numpy as np
import pytest
import torch
from reference import nearest, unit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gloss_graph import MemoryBank


class Encoder(nn.Module):
    """A linear map whose dropout would be noticed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(3, affine=False)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x @ self.weight)


def documents(count: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return x, torch.arange(count) % 3, torch.arange(count) + 100


def check_exact(bank: MemoryBank, k: int) -> None:
    lists: dict[int, list[int]] = {i: [] for i in range(len(bank))}
    for source, target in zip(*(end.tolist() for end in bank.edges()[:2]), strict=True):
        lists[source].append(target)
    expected = nearest(bank.embeddings.numpy(), k)
    assert [set(lists[i]) for i in range(len(bank))] == [set(row) for row in expected]


@pytest.mark.parametrize("search", ["faiss", "matmul"])
def test_every_row_lists_its_exact_neighbors(search: str) -> None:
    x, labels, ids = documents()
    loader = DataLoader(TensorDataset(x, labels, ids), batch_size=7)
    bank, encoder = MemoryBank(50, 3, k=4, search=search), Encoder()
    assert bank.prefill(loader, encoder) == len(bank) == 30
    assert bank.ids.tolist() == ids.tolist()
    assert bank.labels.tolist() == labels.tolist()
    expected = unit((x @ encoder.weight).detach().numpy())
    np.testing.assert_allclose(bank.embeddings.numpy(), expected, atol=1e-6)
    check_exact(bank, 4)


def test_relink_makes_inherited_lists_exact_again() -> None:
    x, _, ids = documents()
    bank = MemoryBank(50, 4, k=5)
    for batch, names in zip(x.split(6), ids.split(6), strict=True):
        bank.enqueue(batch, ids=names)
    with pytest.raises(AssertionError):
        check_exact(bank, 5)  # earlier rows cannot know later ones
    bank.relink()
    check_exact(bank, 5)


def test_every_module_goes_back_into_the_mode_it_was_in() -> None:
    x, labels, ids = documents()
    encoder = Encoder()
    assert (encoder.training, encoder.dropout.training, encoder.frozen.training) == (
        True,
        True,
        False,
    )
    MemoryBank(50, 3).prefill([(x, labels, ids)], encoder)
    assert encoder.training
    assert encoder.dropout.training
    assert not encoder.frozen.training, "a layer frozen by the user was thawed"
    encoder.eval()
    MemoryBank(50, 3).prefill([(x, labels, ids)], encoder)
    assert not encoder.training


def test_mode_is_restored_after_an_error() -> None:
    x, labels, ids = documents()
    encoder, bank = Encoder(), MemoryBank(50, 3)
    bad = x.clone()
    bad[3] = float("nan")
    with pytest.raises(ValueError, match="'embeddings' must be finite"):
        bank.prefill([(x[:10], labels[:10], ids[:10]), (bad, labels, ids)], encoder)
    assert encoder.training
    assert len(bank) == 0


def test_no_gradient_is_kept() -> None:
    x, labels, ids = documents()
    bank = MemoryBank(50, 3)
    bank.prefill([(x, labels, ids)], Encoder())
    assert not bank.embeddings.requires_grad


Batch = namedtuple("Batch", ["inputs", "labels", "ids"])


@pytest.mark.parametrize("shape", ["mapping", "tuple", "list", "namedtuple", "pair", "single"])
@pytest.mark.filterwarnings("ignore:MemoryBank.enqueue was called without")
def test_shapes_of_a_batch(shape: str) -> None:
    x, labels, ids = documents(6)
    batch = {
        "mapping": {"x": x, "labels": labels, "ids": ids},
        "tuple": (x, labels, ids),
        "list": [x, labels, ids],
        "namedtuple": Batch(x, labels, ids),
        "pair": (x, labels),
        "single": (x,),
    }[shape]
    bank = MemoryBank(8, 3)
    bank.prefill([batch], Encoder())
    assert bank.labels.tolist() == ([-1] * 6 if shape == "single" else labels.tolist())
    named = shape not in ("pair", "single")
    assert bank.ids.tolist() == (ids.tolist() if named else [-2 - i for i in range(6)])
    if shape == "mapping":
        assert set(batch) == {"x", "labels", "ids"}, "the caller's batch was emptied"


@pytest.mark.parametrize("batch", [torch.ones(2, 4), 3, (), (1, 2, 3, 4), "text"])
def test_other_shapes_are_refused(batch: object) -> None:
    message = "'loader' must yield mappings or tuples (inputs[, labels[, ids]])"
    with pytest.raises(ValueError, match=re.escape(message)):
        MemoryBank(8, 3).prefill([batch], Encoder())


def test_a_plain_function_and_a_full_ring() -> None:
    x, labels, ids = documents()
    bank = MemoryBank(10, 4, k=3)
    assert bank.prefill([(x, labels, ids)], lambda batch: batch) == 10
    assert bank.ids.tolist() == ids[-10:].tolist()
    check_exact(bank, 3)


def test_more_rows_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from gloss_graph.neighbors import lists as module

    monkeypatch.setattr(module, "_QUERIES", 7)
    x, labels, ids = documents()
    bank = MemoryBank(30, 4, k=3)
    bank.prefill([(x, labels, ids)], lambda batch: batch)
    check_exact(bank, 3)


def test_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    x, labels, ids = documents()
    quiet, loud = MemoryBank(30, 4), MemoryBank(30, 4)
    quiet.prefill([(x, labels, ids)], lambda batch: batch)
    assert capsys.readouterr().out == ""
    loud.prefill([(x, labels, ids)], lambda batch: batch, progress=True)
    assert "Filling the memory bank" in capsys.readouterr().out
    for name, value in quiet.state_dict().items():
        assert torch.equal(value, loud.state_dict()[name])
