"""Rows of documents by their words alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from gloss_graph.text import Corpus, docstring_corpus, lexical_rows


def corpus_of(texts: list[str], texts_b: list[str] | None = None) -> Corpus:
    return Corpus(texts, [-1] * len(texts), [*range(len(texts))], ["a", "b"], texts_b)


def test_they_are_what_scikit_learn_makes_of_tf_idf() -> None:
    corpus = docstring_corpus().train
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_df=0.5)
    expected = TruncatedSVD(16, random_state=3).fit_transform(words.fit_transform(corpus.texts))
    ours = lexical_rows(corpus, 16, seed=3)
    assert ours is not None
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)
    again = lexical_rows(corpus, 16, seed=3)
    assert again is not None
    assert torch.equal(ours, again)


def test_no_label_is_read() -> None:
    texts = ["oil rises", "oil falls", "wheat rises", "wheat falls"]
    one, other = corpus_of(texts), Corpus(texts, [0, 1, 0, 1], [9, 8, 7, 6], ["x", "y"])
    first, second = lexical_rows(one), lexical_rows(other)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    # Four words, each of two documents.
    assert first.shape == (4, 4)


def test_documents_without_common_words_are_zero() -> None:
    rows = lexical_rows(corpus_of(["oil up", "oil up", "lonely", "", "oil", "up", "???"]), 2)
    assert rows is not None
    said = rows.abs().sum(dim=1) > 1e-6
    assert said.tolist() == [True, True, False, False, True, True, False]


def test_both_texts_of_a_pair_count() -> None:
    corpus = corpus_of(["oil"] * 2 + ["gas"] * 2, ["up", "down"] * 2)
    rows = lexical_rows(corpus)
    assert rows is not None
    assert torch.cdist(rows, rows).fill_diagonal_(1.0).min() > 0.1


@pytest.mark.parametrize(
    "texts", [[], [""], ["one two"], ["???", "!!!"], ["a b", "c d"], ["same", "same", "same"]]
)
def test_nothing_to_compare_gives_no_rows(texts: list[str]) -> None:
    assert lexical_rows(corpus_of(texts)) is None


def test_a_dimension_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="'dim'"):
        lexical_rows(corpus_of(["a b"]), 0)
