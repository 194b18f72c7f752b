from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gloss_graph.baselines import TextGCNClassifier, TextGCNConfig, word_document_graph
from gloss_graph.baselines.word_graph import cleaning_notes, split_words
from gloss_graph.text import Corpus, Splits


@given(st.text(st.characters(max_codepoint=127)))
def test_texts_of_ascii_have_the_published_words(text: str) -> None:
    assert split_words(text) == split_words(text, "published")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Двигатель №1: масло!", ["двигатель", "1", "масло", "!"]),
        ("cafe\u0301 — CAFÉ", ["café", "café"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("don’t, 東京（日本）", ["do", "n't", ",", "東京", "(", "日本", ")"]),
        ("Straße ❤️ x²", ["straße", "x²"]),
        ("co\u00adoperate", ["cooperate"]),
    ],
)
def test_words_of_every_script_are_kept(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_the_published_cleaning_keeps_ascii_alone() -> None:
    assert split_words("Мотор café's", "published") == ["caf", "'s"]
    texts = ["мотор шумит", "мотор tea"]
    assert word_document_graph(texts, min_count=1).words == ["tea", "мотор", "шумит"]
    assert word_document_graph(texts, min_count=1, cleaning="published").words == ["tea"]


def test_what_is_lost_is_said() -> None:
    russian, chinese = ["мотор шумит", "tea"], ["我喜欢喝绿茶和咖啡", "green tea"]
    assert "of the letters" in cleaning_notes(russian, "published")[0]
    assert cleaning_notes(russian, "unicode") == []
    assert "without spaces" in cleaning_notes(chinese, "unicode")[0]
    assert cleaning_notes(["我 喜欢 喝 绿茶"], "unicode") == []
    assert cleaning_notes(["green café"] * 9, "unicode") == []
    names = ["a", "b"]
    train = Corpus([*russian, "мотор"], [0, 1, 0], [0, 1, 2], names)
    config = TextGCNConfig(min_count=1, epochs=1, cleaning="published")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TextGCNClassifier(config).fit(Splits(train))
    said = [str(warning.message) for warning in caught]
    assert any("leaves out" in note for note in said)
    assert any("2 of 3 documents hold no word that is kept" in note for note in said)
