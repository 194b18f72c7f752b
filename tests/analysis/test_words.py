"""The most telling words of groups, in tables and pictures."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch_geometric.data import Data

from gloss_graph.analysis import group_words, measures
from gloss_graph.reports import compare_measures, measures_summary
from gloss_graph.visualization import plot_communities

TEXTS = [
    "The kettle boils the tea, tea!",
    "Green tea in a cup",
    "a train and a platform",
    "The train is late, platform 9",
]
WORDS = st.sampled_from(["tea", "cup", "rain", "war", "été", "мир"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(WORDS, max_size=6), st.integers(-1, 3)), min_size=1, max_size=9))
def test_weights_are_those_of_class_based_tf_idf(documents):
    found = group_words([" ".join(words) for words, _ in documents], [g for _, g in documents])
    counts = {}
    for words, group in documents:
        if group >= 0:
            counts.setdefault(group, Counter()).update(words)
    everywhere = sum(counts.values(), Counter())
    mean = everywhere.total() / max(len(counts), 1)
    assert set(found) == set(counts)
    for group, count in counts.items():
        weight = {
            word: number / count.total() * math.log(1 + mean / everywhere[word])
            for word, number in count.items()
        }
        assert len(found[group]) == min(5, len(count))
        ranked = [weight[word] for word in found[group]]
        np.testing.assert_allclose(ranked, sorted(weight.values(), reverse=True)[:5])


def test_groups_are_names_or_numbers_of_any_container():
    wanted = {0: ["tea", "boils"], 1: ["platform", "train"]}
    for groups in ([0, 0, 1, 1], np.array([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])):
        assert group_words(TEXTS, groups, top=2) == wanted
    series = pd.Series(["b", "b", None, "a"], index=[7, 7, 3, 1])
    assert list(group_words(pd.Series(TEXTS), series)) == ["a", "b"]
    assert group_words(TEXTS, [0, -1, -1, -1], top=9) == {0: ["tea", "boils", "kettle"]}
    assert group_words(TEXTS[:2], [None, float("nan")]) == {}
    assert group_words(["", "9 §"], [0, 1]) == {0: [], 1: []}
    assert group_words([], []) == {}


def test_stop_words_and_other_scripts():
    assert "the" in group_words(TEXTS, [0, 0, 1, 1], top=9, stop_words=None)[0]
    assert "tea" not in group_words(TEXTS, [0, 0, 1, 1], stop_words=["tea"])[0]
    # Vowel signs and joiners belong to their word.
    texts = ["हिन्दी हिन्दी", "می\u200cخواهم", "Straße ÉTÉ", "x_1 42 7up"]
    found = group_words(texts, range(4))
    assert found == {0: ["हिन्दी"], 1: ["می\u200cخواهم"], 2: ["straße", "été"], 3: ["x_1"]}


@pytest.mark.parametrize(
    ("texts", "groups", "options", "message"),
    [
        (TEXTS, [0], {}, "'groups' must hold one per document"),
        ("tea", [0], {}, "'texts' must be a list"),
        ([None], [0], {}, "'texts' must hold strings"),
        (TEXTS, [0, 0, 1, 1], {"top": 0}, "'top'"),
        (TEXTS, [0, 0, 1, 1], {"stop_words": "latin"}, "'stop_words' must be"),
    ],
)
def test_bad_input_is_named(texts, groups, options, message):
    with pytest.raises(ValueError, match=message):
        group_words(texts, groups, **options)


def graph() -> Data:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    return Data(edge_index=edges, y=torch.tensor([0, 0, 1, 1]), label_names=["[red]tea", "train"])


def test_measures_of_a_graph_with_texts_name_its_classes():
    plain, told = graph(), graph()
    told.text = TEXTS
    assert "words" not in measures(plain)
    table = measures(told)
    assert set(table.loc[table["scope"] == "graph", "words"]) == {""}
    assert set(table.loc[table["scope"] == "train", "words"]) == {"platform, train, late"}
    pd.testing.assert_frame_equal(table.drop(columns="words"), measures(plain))
    console = Console(file=io.StringIO(), width=100)
    console.print(measures_summary(table))
    console.print(measures_summary(compare_measures(table, plain)))
    printed = console.file.getvalue()
    assert "platform, train" in printed
    assert printed.count("Words of the classes") == 1


def test_the_map_carries_words_of_communities():
    told = graph()
    places = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [1.0, 0.9]])

    def written(**options):
        panels = plot_communities(told, **{"places": places, **options}).axes
        assert not panels[0].texts
        return [text.get_text() for text in panels[1].texts]

    assert written() == []
    told.text = TEXTS
    assert written() == ["tea\nboils\ncup", "platform\ntrain\nlate"]
    # Words over other words are left out.
    assert len(written(places=np.zeros((4, 2)))) == 1
    told.text = ["$x$ $y$", "", "42", ""]
    assert written() == []
    assert written(communities=np.array([-1, -1, -1, -1])) == []
