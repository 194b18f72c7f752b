"""One call with many rows: the memory it takes, and that it gives what small calls give."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from gloss_graph import MemoryBank
from gloss_graph.memory import bank as bank_module
from gloss_graph.neighbors import lists as links

pytest.importorskip("resource")

# Peaks only rise, so every call has a process. All pairs of 15,000 rows took 2.2 to 5.1 GiB.
SCRIPT = """
import resource, sys, torch
from gloss_graph import MemoryBank
torch.set_num_threads(1)
count, dim = {count}, {dim}
x = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
ids = torch.arange(count)
bank = MemoryBank(count, dim, k=16, search="exact", **{options})
if {stored}:
    bank.enqueue(x, ids=ids, link=False)
def peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
before = peak()
{call}
print(peak() - before)
"""
CALLS = {
    "enqueue": ("bank.enqueue(x, ids=ids)", False, {}),
    "neighbors": ("bank.neighbors(x)", True, {}),
    "refresh": ("bank.refresh(lambda ids: x[ids].flip(0), count // 2)", True, {}),
    "search": ("bank.search(x, 16, exclude_ids=ids[::2])", True, {"dtype": torch.float16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("dim", [24, 384])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_15000_rows_takes_no_square_of_them(name: str, dim: int) -> None:
    assert growth(name, dim, 15_000) < 700


def test_a_large_enqueue_takes_no_square_of_its_rows() -> None:
    assert growth("enqueue", 16, 9_000) < 400  # all pairs: 1,800


def growth(name: str, dim: int, count: int) -> float:
    """MiB by which the peak of a process rises; one float of all pairs of 15,000 rows is 858."""
    call, stored, options = CALLS[name]
    code = SCRIPT.format(call=call, stored=stored, options=options, dim=dim, count=count)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {"search": "matmul"},
        {"search": "faiss"},
        {"search": "descent"},
        {"dtype": torch.float16},
    ],
)


@OPTIONS
def test_blocks_give_the_lists_of_one_block(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same neighbors; lengths up to the rounding of the products they come from."""
    bank = MemoryBank(400, 8, k=5, **options)
    bank.enqueue(rows(400, 0), ids=torch.arange(400))
    x, ids = rows(150, 1), torch.arange(300, 450)
    whole, found = bank.neighbors(x, ids), bank.search(x, 7, exclude_ids=ids)
    monkeypatch.setattr(bank_module, "_QUERIES", 32)
    monkeypatch.setattr(links, "_QUERIES", 32)
    monkeypatch.setattr(links, "_ALL_PAIRS", 32)
    parts, again = bank.neighbors(x, ids), bank.search(x, 7, exclude_ids=ids)
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.squared_distances, parts.squared_distances)
    assert torch.equal(found.slots, again.slots)
    torch.testing.assert_close(found.distances, again.distances)
    assert bool((whole.indices <= -2).any() & (whole.indices >= 0).any())


def test_a_large_batch_lists_what_a_dense_search_lists() -> None:
    x = rows(1500, 2)
    bank = MemoryBank(1500, 8, k=6, normalize=False)
    bank.enqueue(x, ids=torch.arange(1500))
    exact = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf)
    distance, index = exact.topk(6, largest=False)
    assert torch.equal(bank.links.slots.long(), index)
    torch.testing.assert_close(bank.links.squared.double().sqrt(), distance, rtol=1e-5, atol=0)
