"""The graph of documents and words against a count by hand, in loops, and bad input."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from gloss_graph.baselines import clean_documents, normalized_adjacency, word_document_graph
from gloss_graph.baselines.word_graph import split_words

TEXTS = [
    "a b c a d e a b",
    "b c b b e",
    "d",
    "e d c b a a c d e b a c",
    "a f",
]


def by_hand(texts: list[str], window: int, counting: str) -> dict[tuple[str, str], float]:
    """PMI as TextGCN's released code counts it, window by window."""
    windows = []
    for words in map(str.split, texts):
        last = max(len(words) - window, 0)
        windows += [words[start : start + window] for start in range(last + 1)]
    seen = Counter(word for w in windows for word in set(w))
    met: Counter[tuple[str, str]] = Counter()
    for w in windows:
        pairs = itertools.combinations(w if counting == "pairs" else sorted(set(w)), 2)
        met.update((min(p), max(p)) for p in pairs if p[0] != p[1])
    found = {p: math.log(n * len(windows) / (seen[p[0]] * seen[p[1]])) for p, n in met.items()}
    return {pair: value for pair, value in found.items() if value > 0}


def edges_of(texts: list[str], **settings: object) -> dict[tuple[object, object], float]:
    graph = word_document_graph(texts, min_count=1, stop_words=(), **settings)
    name = [*range(graph.num_documents), *graph.words]
    (rows, columns), weights = graph.edge_index.tolist(), graph.edge_weight.tolist()
    return {(name[i], name[j]): w for i, j, w in zip(rows, columns, weights, strict=True)}


@pytest.mark.parametrize("window", [2, 3, 5, 20])
@pytest.mark.parametrize("counting", ["pairs", "windows"])
def test_word_edges_are_those_of_a_loop_over_windows(window: int, counting: str) -> None:
    found = edges_of(TEXTS, window=window, counting=counting)
    words = {pair: w for pair, w in found.items() if str in {type(pair[0])} & {type(pair[1])}}
    once = {pair: w for pair, w in words.items() if pair[0] < pair[1]}
    expected = by_hand(TEXTS, window, counting)
    assert once == pytest.approx(expected, rel=1e-5)
    assert all(words[b, a] == words[a, b] for a, b in once)


def test_many_documents_in_parts_give_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [edges_of(TEXTS * 3, window=3, counting=c) for c in ("pairs", "windows")]
    monkeypatch.setattr("gloss_graph.baselines.word_graph._CHUNK", 4)
    for expected, counting in zip(whole, ("pairs", "windows"), strict=True):
        assert edges_of(TEXTS * 3, window=3, counting=counting) == pytest.approx(expected)


def test_document_edges_are_the_raw_count_times_the_log_of_rarity() -> None:
    found = edges_of(TEXTS)
    assert found[0, "a"] == pytest.approx(3 * math.log(5 / 3))
    assert found["f", 4] == found[4, "f"] == pytest.approx(math.log(5))
    assert (2, "a") not in found


def test_a_word_of_every_document_has_no_document_edge() -> None:
    found = edges_of(["a b", "a c"])
    assert (0, "a") not in found
    assert found[0, "b"] == pytest.approx(math.log(2))


def test_the_edges_are_undirected_sorted_and_without_loops() -> None:
    graph = word_document_graph(TEXTS, min_count=1, stop_words=())
    assert graph.is_undirected()
    assert not graph.has_self_loops()
    assert graph.is_coalesced()
    assert graph.edge_index.dtype == torch.int64
    assert bool((graph.edge_weight > 0).all())


def test_the_normalized_matrix_is_the_formula() -> None:
    graph = word_document_graph(TEXTS, min_count=1, stop_words=())
    dense = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight.double()
    dense += torch.eye(graph.num_nodes)
    scale = dense.sum(dim=1).rsqrt()
    expected = (scale[:, None] * dense * scale).float()
    assert torch.allclose(normalized_adjacency(graph).to_dense(), expected, atol=1e-6)


def test_documents_without_a_word_stay_nodes() -> None:
    graph = word_document_graph(["tea tea", "", "the of", "!", "tea cup"], min_count=2)
    assert graph.num_documents == 5
    assert graph.empty == [1, 2, 3]
    assert graph.words == ["tea"]
    matrix = normalized_adjacency(graph).to_dense()
    assert matrix[1, 1] == 1
    assert matrix[1].count_nonzero() == 1


def test_cleaning_drops_stop_words_and_rare_words_but_keeps_documents() -> None:
    assert clean_documents(["The cat", "a cat, a dog", ""], min_count=2) == [["cat"], ["cat"], []]
    kept = clean_documents(["The cat", "a cat"], min_count=1, stop_words=())
    assert kept == [["the", "cat"], ["a", "cat"]]
    assert split_words("they've 3 (bad) reasons!\n") == [
        *("they", "'ve", "3", "(", "bad", ")", "reasons", "!")
    ]


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "'texts' must hold a document"),
        ("one text", {}, "'texts' must hold a document"),
        (["the of", "rare"], {}, "'texts' must hold a word that is kept"),
        (["語 語 語"], {"min_count": 1, "cleaning": "published"}, "Letters outside ASCII"),
        (["a"], {"cleaning": "raw"}, "'cleaning' must be one of"),
        (["a"], {"window": 1}, "'window' must be an integer of at least 2"),
        (["a"], {"min_count": 0}, "'min_count' must be an integer of at least 1"),
        (["a"], {"counting": "lines"}, "'counting' must be one of"),
    ],
)
def test_bad_input_is_named(texts: list[str], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        word_document_graph(texts, **settings)
