from __future__ import annotations

import gc
import hashlib
import os
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from gloss_graph.text import Splits, docstring_corpus, docstrings


@pytest.fixture(scope="module")
def corpus() -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = docstring_corpus()
    assert gc.isenabled()
    return splits


def parts(splits: Splits) -> list[docstrings.Corpus]:
    assert splits.val is not None
    assert splits.test is not None
    return [splits.train, splits.val, splits.test]


def test_size_and_classes(corpus: Splits) -> None:
    sizes = [len(part) for part in parts(corpus)]
    assert 2_000 <= sum(sizes) <= 4_000
    assert corpus.train.num_classes >= 8
    assert sizes[0] / sum(sizes) == pytest.approx(0.6, abs=0.01)
    assert sizes[1] / sum(sizes) == pytest.approx(0.1, abs=0.01)
    counts = np.sum([part.class_counts for part in parts(corpus)], axis=0)
    assert counts.min() >= 100
    assert counts.max() / counts.sum() < 0.2
    assert all(min(part.class_counts) >= 5 for part in parts(corpus))


def test_texts_are_distinct_prose(corpus: Splits) -> None:
    texts = [text for part in parts(corpus) for text in part.texts]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == " ".join(text.split())
        assert 20 <= len(text) <= 600
        assert not re.search(r">>>|https?:|:\w+:`|versionadded|import \w+ as", text), text


def test_no_class_is_named_in_its_texts(corpus: Splits) -> None:
    telling: dict[str, set[str]] = {
        topic: {
            name.lower().removesuffix(".py") for name in re.split(r"[ /]", docstrings.TOPICS[topic])
        }
        for topic in docstrings.TOPICS
    }
    found: defaultdict[str, set[str]] = defaultdict(set)
    for part in parts(corpus):
        for text, label in zip(part.texts, part.labels, strict=True):
            topic = part.label_names[label]
            found[topic] |= telling[topic].intersection(re.findall(r"\w+", text.lower()))
    assert not any(found.values()), dict(found)


def test_seed_and_size(corpus: Splits) -> None:
    assert docstring_corpus() == corpus
    small, other = docstring_corpus(max_documents=200), docstring_corpus(max_documents=200, seed=1)
    for splits in (small, other):
        assert 180 <= sum(map(len, parts(splits))) <= 200
        assert all(min(part.class_counts) >= 1 for part in parts(splits))
    assert small.train.texts != other.train.texts
    text_of = {
        document: text
        for part in parts(corpus)
        for document, text in zip(part.ids, part.texts, strict=True)
    }
    for document, text in zip(other.train.ids, other.train.texts, strict=True):
        assert text_of.get(document, text) == text
    with pytest.raises(ValueError, match=r"'max_documents' must be at least 120.*\(got 20\)"):
        docstring_corpus(max_documents=20)


def test_topics_share_the_cut(corpus: Splits) -> None:
    whole = np.sum([part.class_counts for part in parts(corpus)], axis=0)
    cut = parts(docstring_corpus(max_documents=2_000))
    counts = np.sum([part.class_counts for part in cut], axis=0)
    assert np.array_equal(counts, np.minimum(whole, counts.max()))
    assert counts.sum() <= 2_000 < np.minimum(whole, counts.max() + 1).sum()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"give 0 .*too few for: dates and.*scipy/fft"):
        docstrings._pool.__wrapped__()


def test_sources_are_parsed_and_never_run(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(
        "raise SystemExit\n"
        'def shown():\n    """Shown \\d."""\n'
        'def _hidden():\n    """Hidden."""\n'
        'class Outer:\n    """Outer doc."""\n    def inner(self):\n        """Inner doc."""\n'
        'add_newdoc("erf", r"""erf(x)\n\n    Attached.""")\n'
        'lin = _add_docstr(_c.lin, r"""Formatted {x}.""".format(x=1))\n'
        "add_newdoc(name, doc)\n"
    )
    found = {doc: names for names, doc in docstrings.docstrings_of(good)}
    assert found == {
        "Shown \\d.": {"shown"},
        "Outer doc.": {"outer"},
        "Inner doc.": {"outer", "inner"},
        "erf(x)\n\nAttached.": {"erf"},
        "Formatted {x}.": {"lin"},
    }
    bad = tmp_path / "bad.py"
    for content in (b"def (:", b"\x00", b"# coding: nonsense\n", b"\xff"):
        bad.write_bytes(content)
        assert list(docstrings.docstrings_of(bad)) == []
    assert list(docstrings.docstrings_of(tmp_path / "absent.py")) == []


@pytest.mark.slow
def test_same_corpus_in_every_process() -> None:
    script = (
        "import hashlib; from gloss_graph.text import docstring_corpus; s = docstring_corpus(); "
        "print(hashlib.sha256(repr([(p.texts, p.labels, p.ids) for p in (s.train, s.val, s.test)])"
        ".encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", imports + script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed, imports in (("1", ""), ("2", "import sklearn.svm, scipy.stats; "))
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
