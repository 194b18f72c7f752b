"""Laws of the document graph on arbitrary embeddings and bank histories."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph import MemoryBank, build_document_graph

DIM = 3
SETTINGS = st.fixed_dictionaries(
    {
        "k": st.integers(1, 8),
        "symmetrize": st.sampled_from(["union", "mutual"]),
        "batch_edges": st.sampled_from(["auto", "knn", "all"]),
        "bandwidth": st.sampled_from(["sqrt", "inflection", "local", 0.1, 3.0]),
        "kernel": st.sampled_from(["gaussian", "cosine"]),
        "hops": st.sampled_from([None, 1, 2]),
    }
)


@st.composite
def embeddings(draw: st.DrawFn, min_size: int = 1) -> Tensor:
    """Few distinct coordinates: repeated points, ties, opposite points and zero vectors."""
    coordinate = st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0])
    rows = draw(st.lists(st.tuples(*[coordinate] * DIM), min_size=min_size, max_size=9))
    return torch.tensor(rows, dtype=torch.float64).view(-1, DIM)


@st.composite
def banks(draw: st.DrawFn) -> MemoryBank:
    bank = MemoryBank(draw(st.integers(0, 8)), DIM, k=draw(st.integers(1, 5)))
    for batch in draw(st.lists(embeddings(), max_size=3)):
        ids = draw(st.lists(st.integers(0, 9), min_size=len(batch), max_size=len(batch)))
        bank.enqueue(batch, torch.tensor([i % 3 - 1 for i in ids]), torch.tensor(ids))
    return bank


def check(data: Data) -> None:
    data.validate()
    assert data.is_coalesced()
    assert not data.has_self_loops()
    edges = {
        (i, j): w
        for (i, j), w in zip(data.edge_index.T.tolist(), data.edge_weight.tolist(), strict=True)
    }
    assert len(edges) == data.num_edges
    for (i, j), weight in edges.items():
        assert edges[j, i] == weight  # bit for bit
        assert 0.0 <= weight <= 1.0
    assert data.edge_kind.tolist() == [
        2 - int(data.in_batch[i]) - int(data.in_batch[j]) for i, j in data.edge_index.T.tolist()
    ]


@settings(max_examples=80)
@given(x=embeddings(), bank=banks(), build=SETTINGS, data=st.data())
def test_graph_of_batch_and_bank(
    x: Tensor, bank: MemoryBank, build: dict[str, Any], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, 9), min_size=len(x), max_size=len(x)))
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    x.requires_grad_()
    graph = build_document_graph(x, ids=torch.tensor(ids), memory=bank, **build)
    check(graph)
    remembered = graph.doc_id[len(x) :].tolist()
    assert not set(remembered) & set(ids)
    if build["hops"] is None:
        assert sorted(remembered) == sorted(set(bank.ids.tolist()) - set(ids))
    if build["symmetrize"] == "union" and graph.num_nodes > len(x) > 0 and build["k"] > 1:
        lonely = set(range(len(x))) - set(graph.edge_index[0].tolist())
        assert not lonely, "a batch row lists no one although there is someone"
    for name, value in bank.state_dict().items():
        assert torch.equal(value, before[name])
    graph.edge_weight.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


@settings(max_examples=40)
@given(x=embeddings(), build=SETTINGS)
def test_graph_of_a_corpus(x: Tensor, build: dict[str, Any]) -> None:
    graph = build_document_graph(x, **build)
    check(graph)
    size = len(x)
    degree = torch.bincount(graph.edge_index[0], minlength=size)
    if build["batch_edges"] == "all" or build["k"] >= size - 1:
        assert graph.num_edges == size * (size - 1)
    elif build["symmetrize"] == "union":
        assert int(degree.min()) >= build["k"]
    else:
        assert int(degree.max()) <= build["k"]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), build=SETTINGS, size=st.integers(2, 12))
def test_renaming_the_documents_renames_the_nodes(
    seed: int, build: dict[str, Any], size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, DIM, generator=generator, dtype=torch.float64)  # no ties
    order = torch.randperm(size, generator=generator)
    graph = build_document_graph(x, **build)
    other = build_document_graph(x[order], **build)

    def edges(data: Data, name: list[int]) -> dict[tuple[int, int], float]:
        ends = data.edge_index.T.tolist()
        return {
            (name[i], name[j]): w for (i, j), w in zip(ends, data.edge_weight.tolist(), strict=True)
        }

    plain, renamed = edges(graph, list(range(size))), edges(other, order.tolist())
    assert plain.keys() == renamed.keys()
    for edge, weight in plain.items():
        assert abs(weight - renamed[edge]) < 1e-9
