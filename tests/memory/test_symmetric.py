"""The cached undirected graph of the bank: always the one a build from scratch gives."""

import copy

import pytest
import torch

from gloss_graph import MemoryBank
from gloss_graph.neighbors import adjacency as symmetric
from gloss_graph.neighbors import exact as search

from .helpers import built_graph


def same_graph(bank: MemoryBank) -> None:
    kept = bank.links.symmetric(len(bank))
    fresh = built_graph(bank)
    assert torch.equal(kept.pointer, fresh.pointer)
    assert torch.equal(kept.column, fresh.column)
    assert torch.equal(kept.squared, fresh.squared)


def batch(generator: torch.Generator, documents: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randperm(documents, generator=generator)[:12]
    return torch.randn(12, 6, generator=generator), ids


# More documents than slots evict; fewer are refreshed in place; both at once in between.
@pytest.mark.parametrize("documents", [100, 160, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_updated_graph_is_the_one_built_anew(documents: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(documents)
    bank = MemoryBank(120, 6, k=5, dtype=dtype)
    plain = copy.deepcopy(bank)
    updates = 0
    for _ in range(40):
        x, ids = batch(generator, documents)
        bank.enqueue(x, ids=ids)
        plain.enqueue(x, ids=ids)
        updates += bank.links.kept_graph() is not None
        same_graph(bank)
    assert updates > 15, "the graph was not updated but built"
    for name, value in plain.state_dict().items():
        assert torch.equal(value, bank.state_dict()[name]), name


def test_no_other_change_goes_unnoticed() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(120, 6, k=5)
    for _ in range(15):
        x, ids = batch(generator, 300)
        bank.enqueue(x, ids=ids)
    other = MemoryBank(120, 6, k=5)
    other.load_state_dict(bank.state_dict())
    same_graph(bank)
    bank.relink()
    same_graph(bank)
    bank.load_state_dict(other.state_dict())
    same_graph(bank)
    bank.links.squared.mul_(2.0)
    same_graph(bank)
    assert copy.deepcopy(bank).links.kept_graph() is None
    bank.reset()
    assert bank.links.symmetric(0).column.numel() == 0


def test_memory_in_use_is_not_written_again() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(120, 6, k=5)
    for _ in range(15):
        x, ids = batch(generator, 300)
        bank.enqueue(x, ids=ids)
    held = []
    for _ in range(6):
        graph = bank.links.symmetric(len(bank))
        held.append((graph, graph.column.clone(), graph.squared.clone()))
        x, ids = batch(generator, 300)
        bank.enqueue(x, ids=ids)
    for graph, column, squared in held:
        assert torch.equal(graph.column, column)
        assert torch.equal(graph.squared, squared)
    places = {graph.column.data_ptr() for graph, _, _ in held}
    assert len(places) == len(held)
    del held, graph
    seen = set()
    for _ in range(8):
        x, ids = batch(generator, 300)
        bank.enqueue(x, ids=ids)
        seen.add(bank.links.symmetric(len(bank)).column.data_ptr())
    assert len(seen) <= 4, "memory is not used again"


def test_entries_of_slots_in_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = MemoryBank(60, 6, k=4)
    bank.enqueue(torch.randn(60, 6, generator=generator), ids=torch.arange(60))
    graph = bank.links.symmetric(60)
    slots = torch.tensor([3, 17, 40])
    row = torch.arange(60).repeat_interleave(graph.pointer.diff().long())
    expected = torch.isin(row, slots) | torch.isin(graph.column.long(), slots)
    found = torch.zeros_like(expected)
    found[torch.from_numpy(graph.touching(slots.numpy()))] = True
    assert torch.equal(found, expected)


@pytest.mark.parametrize("block", [7, 60, 1_000])
def test_blocks_give_the_graph_of_all_links(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "_BLOCK_ROWS", block)
    generator = torch.Generator().manual_seed(4)
    bank = MemoryBank(60, 6, k=4)
    for _ in range(12):
        bank.enqueue(*batch(generator, 500)[:1], ids=batch(generator, 500)[1])
    dead = int((bank.links.slots >= 0).sum()) - bank.edges()[0].numel()
    assert dead > 0, "no link died, so nothing shows that dead ones are left out"
    bank.links.forget_graph()
    same_graph(bank)


def test_lists_without_a_link() -> None:
    bank = MemoryBank(5, 2, k=3)
    bank.enqueue(torch.ones(3, 2), ids=torch.arange(3), link=False)
    graph = bank.links.symmetric(3)
    assert graph.pointer.tolist() == [0, 0, 0, 0]
    assert graph.column.numel() == graph.squared.numel() == 0


def test_a_large_write_is_measured_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(50, 6, generator=generator)
    whole, tiled = (MemoryBank(60, 6, k=4, dtype=torch.float16) for _ in range(2))
    whole.enqueue(x, ids=torch.arange(50))
    monkeypatch.setattr(search, "_ENTRIES", 6 * 7)
    tiled.enqueue(x, ids=torch.arange(50))
    assert torch.equal(whole.links.squared, tiled.links.squared)


def test_the_graph_among_rows_and_within_hops() -> None:
    generator = torch.Generator().manual_seed(1)
    bank = MemoryBank(60, 6, k=3)
    bank.enqueue(torch.randn(60, 6, generator=generator), ids=torch.arange(60))
    graph = bank.links.symmetric(60)
    full = torch.zeros(60, 60)
    row = torch.arange(60).repeat_interleave(graph.pointer.diff().long())
    full[row, graph.column.long()] = graph.squared
    rows = torch.randperm(60, generator=generator)[:25].sort().values
    pointer, column, squared = graph.among(rows.numpy())
    part = torch.zeros(25, 25)
    own = torch.arange(25).repeat_interleave(torch.from_numpy(pointer).diff().long())
    part[own, torch.from_numpy(column).long()] = torch.from_numpy(squared)
    assert torch.equal(part, full[rows][:, rows])

    start, left_out = torch.tensor([3, 3, 40]), torch.tensor([40, 7])
    reach = torch.zeros(60).bool()
    reach[3] = True
    for hops in range(4):
        found = graph.within(start.numpy(), hops, left_out.numpy())
        assert found.tolist() == reach.nonzero().squeeze(1).tolist()
        reach = reach | (full[reach] > 0).any(dim=0)
        reach[left_out] = False


@pytest.mark.parametrize("watched", [False, True])
def test_an_update_is_in_place_unless_someone_looks(watched: bool) -> None:
    generator = torch.Generator().manual_seed(9)
    bank = MemoryBank(400, 6, k=5)
    bank.enqueue(torch.randn(400, 6, generator=generator), ids=torch.arange(400))
    place = bank.links.symmetric(400).column.data_ptr()
    for number in range(30):
        view = bank.links.symmetric(400) if watched else None
        ids = torch.randperm(800, generator=generator)[:12]
        bank.enqueue(torch.randn(12, 6, generator=generator), ids=ids)
        moved = bank.links.kept_graph().column.data_ptr() != place
        assert moved == watched or number > 0
        same_graph(bank)
        del view
    assert watched or bank.links.kept_graph().column.data_ptr() == place


def test_blocks_move_up_and_down_over_each_other() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(200):
        sizes, gaps, holes = (torch.randint(0, 6, (8,), generator=generator) for _ in range(3))
        start = (sizes + gaps).cumsum(0) - sizes
        target = (sizes + holes).cumsum(0) - sizes
        blocks = torch.stack([start, start + sizes, target], dim=1).numpy()
        before = torch.arange(100).numpy()
        after = before.copy()
        symmetric._shift(after, blocks)
        for first, stop, to in blocks.tolist():
            assert after[to : to + stop - first].tolist() == before[first:stop].tolist()
