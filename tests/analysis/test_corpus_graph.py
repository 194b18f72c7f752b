"""The graph of a whole corpus, from every source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from text.tiny_models import WORDS
from training.tiny import CLASSES, tiny_corpus, tiny_encoder

from gloss_graph import MemoryBank, build_document_graph
from gloss_graph.analysis import document_graph
from gloss_graph.neighbors.corpus import corpus_neighbors
from gloss_graph.text import Corpus


def rows(size: int = 40, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetrize", ["union", "mutual"])
@pytest.mark.parametrize("bandwidth", ["sqrt", "inflection", "interclass_min", "local", 0.7])
def test_edges_of_build_document_graph(symmetrize: str, bandwidth: str | float) -> None:
    x, labels = rows(1100), torch.arange(1100) % 3 - 1
    settings = {"k": 6, "symmetrize": symmetrize, "bandwidth": bandwidth}
    expected = build_document_graph(x, labels, **settings)
    found = document_graph(x, labels, **settings)
    for name in ("edge_index", "edge_weight", "y", "doc_id", "seed_mask"):
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found.bandwidth.isnan(), expected.bandwidth.isnan())
    assert (found.k, found.symmetrize, found.search, found.recall) == (6, symmetrize, "exact", 1.0)


def test_recall_is_measured_on_documents_from_anywhere() -> None:
    # Of a half of the documents nearly all neighbors are found, of the others few.
    size = 2048
    near = torch.eye(16)[torch.arange(size) % 16] + 0.001 * rows(size, 16)
    found = []
    for order in (torch.arange(2 * size), torch.arange(2 * size).view(size, 2).T.flatten()):
        x = torch.stack([near, rows(size, 16, seed=1)], dim=1).flatten(0, 1)[order]
        found.append(corpus_neighbors(x, 8, exact_up_to=0, probes=1))
        exact = corpus_neighbors(x, 8).squared_distances[:, -1:]
        true = (found[-1].squared_distances <= exact * (1 + 1e-6)).float().mean()
        assert abs(found[-1].recall - float(true)) < 0.06
    again = corpus_neighbors(x, 8, exact_up_to=0, probes=1)
    assert again.recall == found[-1].recall


def test_columns_of_plain_features() -> None:
    x = rows(3).numpy().astype(np.float16)
    texts = ["a\x00", "b", "c"]
    found = document_graph(x, [0, -1, 1], [7, 8, 9], texts=texts, label_names=["x", "y"], k=1)
    assert found.text == texts
    assert found.label_names == ["x", "y"]
    assert found.doc_id.tolist() == [7, 8, 9]
    assert found.seed_mask.tolist() == [True, False, True]
    assert "x" not in found
    kept = document_graph(x, k=1, keep_features=True)
    assert torch.equal(kept.x, torch.from_numpy(x).float())
    assert kept.y.tolist() == [-1] * 3
    assert "text" not in kept


def test_weak_edges_are_dropped() -> None:
    x = rows()
    every = document_graph(x, k=5)
    limit = float(every.edge_weight.median())
    some = document_graph(x, k=5, min_weight=limit)
    keep = every.edge_weight >= limit
    assert 0 < int(keep.sum()) < keep.numel()
    assert torch.equal(some.edge_index, every.edge_index[:, keep])
    assert torch.equal(some.edge_weight, every.edge_weight[keep])
    assert some.is_undirected()
    assert document_graph(x, k=5, min_weight=1.0).edge_index.size(1) == 0


@pytest.mark.parametrize("exact_up_to", [50_000, 0])
@pytest.mark.parametrize("bandwidth", ["sqrt", "local", 0.5])
def test_the_smallest_and_the_most_equal(exact_up_to: int, bandwidth: str | float) -> None:
    settings = {"exact_up_to": exact_up_to, "bandwidth": bandwidth}
    for size in (0, 1):
        found = document_graph(torch.ones(size, 4), texts=["t"] * size, k=3, **settings)
        assert found.num_nodes == size
        assert found.edge_index.shape == (2, 0)
        assert found.edge_weight.shape == (0,)
        assert len(found.text) == size
    found = document_graph(torch.ones(90, 4), k=3, **settings)
    degree = torch.bincount(found.edge_index[0], minlength=90)
    assert degree.min() >= 3
    assert (found.edge_weight == 1).all()
    assert not found.has_self_loops()
    # More neighbors than there are documents: everyone is connected to everyone.
    found = document_graph(rows(6), k=9, bandwidth=bandwidth)
    assert found.edge_index.size(1) == 6 * 5


def test_inverted_file_finds_nearly_all_and_the_same_again() -> None:
    # Like texts, in groups; without any structure approximate search is hopeless.
    centers = rows(60, 16, seed=1).repeat_interleave(50, dim=0)
    x = centers + 0.7 * rows(3000, 16)
    exact = corpus_neighbors(x, 8)
    found = corpus_neighbors(x, 8, exact_up_to=2999)
    assert (exact.search, found.search) == ("exact", "ivf")
    ours = [set(row) for row in found.indices.tolist()]
    shared = [len(a & set(b)) for a, b in zip(ours, exact.indices.tolist(), strict=True)]
    assert abs(found.recall - sum(shared) / (8 * 3000)) < 0.02
    assert 0.9 < found.recall < 1
    # Distances are those of the rows, and no row is its own neighbor.
    true = (x.unsqueeze(1) - x[found.indices]).square().sum(dim=-1)
    torch.testing.assert_close(found.squared_distances, true)
    assert (found.indices != torch.arange(3000).unsqueeze(1)).all()
    again = corpus_neighbors(x, 8, exact_up_to=2999)
    assert torch.equal(again.indices, found.indices)
    more = corpus_neighbors(x, 8, exact_up_to=0, probes=10_000)
    assert more.recall == 1.0
    assert torch.equal(more.squared_distances, exact.squared_distances)
    graph = document_graph(x, k=8, exact_up_to=0)
    assert graph.search == "ivf"
    assert (
        graph.recall == corpus_neighbors(torch.nn.functional.normalize(x), 8, exact_up_to=0).recall
    )


def test_banks_in_memory_and_saved(tmp_path: Path) -> None:
    bank = MemoryBank(capacity=50, dim=5)
    labels = torch.arange(40) % 3 - 1
    bank.enqueue(rows(), labels, torch.arange(40) + 100)
    found = document_graph(bank, k=4)
    assert found.doc_id.tolist() == list(range(100, 140))
    assert torch.equal(found.y, labels)
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    for file in (tmp_path / "bank.pt", bank.save(tmp_path / "bank.safetensors")):
        saved = document_graph(file, k=4)
        assert torch.equal(saved.edge_index, found.edge_index)
        assert torch.equal(saved.edge_weight, found.edge_weight)
    nameless = MemoryBank(capacity=9, dim=5)
    with pytest.warns(UserWarning, match="ids"):
        nameless.enqueue(rows(6))
    assert document_graph(nameless, k=2).doc_id.tolist() == list(range(6))
    sets = MemoryBank(capacity=9, dim=5, num_classes=2)
    sets.enqueue(rows(6), torch.ones(6, 2), torch.arange(6))
    with pytest.raises(ValueError, match="bank of class numbers"):
        document_graph(sets)
    torch.save({"slot_ids": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="must be the state of a MemoryBank"):
        document_graph(tmp_path / "odd.pt")


def test_documents_and_an_encoder(tmp_path: Path) -> None:
    corpus = tiny_corpus(20)
    encoder = tiny_encoder()
    found = document_graph(corpus, encoder=encoder, k=3)
    assert found.text == corpus.texts
    assert found.label_names == CLASSES
    same = document_graph(encoder.encode(corpus.texts), documents=corpus, k=3)
    assert torch.equal(same.edge_index, found.edge_index)
    assert same.text == corpus.texts
    labels = [CLASSES[c] if i % 2 else "" for i, c in enumerate(corpus.labels)]
    frame = pd.DataFrame({"text": corpus.texts, "label": labels, "class": "one", "more": "m"})
    file = tmp_path / "docs.csv"
    frame.to_csv(file, index=False)
    read = document_graph(file, encoder=encoder, k=3)
    assert torch.equal(read.edge_index, found.edge_index)
    assert read.seed_mask.tolist() == [False, True] * 10
    assert document_graph(file, encoder=encoder, label="class", k=3).label_names == ["one"]
    pairs = document_graph(file, encoder=encoder, text_b="more", k=3)
    assert pairs.text[0] == corpus.texts[0] + "\nm"
    frame[["text"]].to_csv(file, index=False)
    bare = document_graph(file, encoder=str(encoder.save(tmp_path / "encoder")), k=3)
    assert "label_names" not in bare
    assert torch.equal(bare.edge_index, found.edge_index)
    np.save(tmp_path / "rows.npy", encoder.encode(corpus.texts).numpy())
    features = document_graph(tmp_path / "rows.npy", documents=file, k=3)
    assert torch.equal(features.edge_index, found.edge_index)
    assert features.text == corpus.texts


def test_a_corpus_with_features_needs_no_encoder() -> None:
    x = rows(12)
    corpus = Corpus([WORDS[3]] * 12, [0] * 12, list(range(12)), ["a", "b"], features=x.numpy())
    assert torch.equal(document_graph(corpus, k=2).edge_index, document_graph(x, k=2).edge_index)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "'k' must be an integer of at least 1"),
        ({"symmetrize": "both"}, "'symmetrize' must be one of"),
        ({"bandwidth": "wide"}, "'bandwidth' must be a positive number"),
        ({"min_weight": 2.0}, "'min_weight' must be in"),
        ({"min_weight": float("nan")}, "'min_weight' must be in"),
        ({"exact_up_to": -1}, "'exact_up_to' must be an integer"),
        ({"probes": 0}, "'probes' must be an integer"),
        ({"kernel": "cosine", "normalize_embeddings": False}, "needs normalize_embeddings"),
        ({"labels": [0]}, "'labels' must hold one integer per document"),
        ({"labels": [0.5] * 40}, "'labels' must hold one integer per document"),
        ({"labels": [-2] * 40}, "'labels' must be at least -1"),
        ({"ids": [-1] * 40}, "'ids' must be at least 0"),
        ({"texts": ["a"]}, "'texts' must hold one per document .got 1 for 40"),
        ({"texts": [None] * 40}, "'texts' must hold strings .got NoneType"),
        ({"labels": [3] * 40, "label_names": ["a"]}, "'label_names' must name every class"),
        ({"encoder": "minilm"}, "'encoder' must be left out here"),
        ({"documents": tiny_corpus(3)}, "one document per row of features .got 3 for 40"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        document_graph(rows(), **settings)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'source' must be features"):
        document_graph(3)
    with pytest.raises(ValueError, match=r"must be finite .*row 4"):
        document_graph(rows().index_fill(0, torch.tensor([4]), torch.nan))
    with pytest.raises(ValueError, match="must be a floating point"):
        document_graph(torch.ones(3, 2).long())
    with pytest.raises(ValueError, match="'encoder' must be given"):
        document_graph(tiny_corpus(3))
    with pytest.raises(ValueError, match="written by gloss-graph train"):
        document_graph(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither"):
        document_graph(tmp_path / "missing.npy")
    with pytest.raises(ValueError, match="'path' must be a file"):
        document_graph(tmp_path / "missing.csv", encoder=tiny_encoder())
    for name in ("bad.pt", "bad.safetensors", "bad.npy"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be read"):
            document_graph(tmp_path / name)
