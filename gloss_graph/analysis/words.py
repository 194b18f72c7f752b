"""The words that tell groups of documents apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.text.corpora import string_list

# `\w` has neither the vowel signs of Indic scripts nor the joiners within Persian words.
_MARKS = "".join(c for c in map(chr, range(0x300, 0xFE30)) if unicodedata.category(c)[0] == "M")
_WORD = rf"[^\W\d_][\w{_MARKS}\u200c\u200d]+"


def group_words(
    texts: Sequence[str],
    groups: Any,
    *,
    top: int = 5,
    stop_words: list[str] | str | None = "english",
) -> dict[Any, list[str]]:
    r"""Find the most telling words of every group of documents, by class-based TF-IDF.

    The weight of a word in a group is \(t \log(1 + A / f)\): t is its share of the group's words,
    f its count over all groups, A the mean number of words per group (BERTopic, Grootendorst,
    2022). A word starts with a letter of any script, has at least two characters, and is counted
    in lower case. Words of equal weight are in alphabetical order.

    The N `groups` are names or numbers, such as classes or communities; -1, None or NaN for a
    document without a group. `stop_words`, which are not counted, are `"english"`, a list for
    another language, or None.

    Returns:
        At most `top` words of every group, the most telling one first.

    Raises:
        ValueError: Texts that are not strings, another number of groups, or `top` below 1.

    Cost: about a second per 2 million words.

    Example:
        >>> group_words(["hot tea", "green tea", "the train is late"], ["drink", "drink", "rail"])
        {'drink': ['tea', 'green', 'hot'], 'rail': ['late', 'train']}

    See also: `louvain_communities`, for groups that a graph has without labels.
    """
    check_positive_int("top", top)
    if isinstance(stop_words, str):
        check_choice("stop_words", stop_words, ("english",))
    texts, column = string_list("texts", texts), pd.Series(groups)
    if len(column) != len(texts):
        raise ValueError(
            f"'groups' must hold one per document (got {len(column)} for {len(texts)})."
        )
    members = np.flatnonzero((column.notna() & (column != -1)).to_numpy())
    codes, names = pd.factorize(column.iloc[members], sort=True)
    found: dict[Any, list[str]] = {name: [] for name in names.tolist()}
    vectorizer = CountVectorizer(token_pattern=_WORD, stop_words=stop_words)
    split = vectorizer.build_analyzer()
    if not any(split(texts[row]) for row in members):
        return found
    by_document = vectorizer.fit_transform([texts[row] for row in members])
    place = (codes, np.arange(members.size))
    by_group = sparse.csr_array(sparse.csr_array((np.ones(members.size), place)) @ by_document)
    total = by_group.sum(axis=1)
    rarity = np.log1p(total.mean() / by_group.sum(axis=0))
    vocabulary = vectorizer.get_feature_names_out()
    for group, (start, end) in enumerate(zip(by_group.indptr, by_group.indptr[1:], strict=False)):
        words = by_group.indices[start:end]
        # Every count has the same divisor here; the vocabulary is in alphabetical order.
        weight = by_group.data[start:end] / max(total[group], 1) * rarity[words]
        best = np.lexsort((words, -weight))[:top]
        found[names[group]] = vocabulary[words[best]].tolist()
    return found
