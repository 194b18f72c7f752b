from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gloss_graph.text.docstrings import MASK, mask_docstring

NUMPY_STYLE = """
frobnicate(x, axis=None)

Compute the frobenius of a matrix.

.. versionadded:: 1.2.0
   Since then it is `sparse`.

It calls `numpy.linalg.norm` on n_rows of `x`, see [1]_ and
https://numpy.org/doc. Like so::

    import numpy as np
    np.frobnicate(x)

The NumPy way, :math:`O(n^3)`, is :func:`~numpy.fast <fast>`.

>>> frobnicate(1)
1

Parameters
----------
x : array
    Never seen.
"""


def test_prose_stays_and_markup_goes() -> None:
    text = mask_docstring(NUMPY_STYLE.strip(), {"frobnicate", "numpy"})
    assert text == (
        "Compute the frobenius of a matrix. It calls NAME on NAME of x, see and Like so "
        "The NAME way,, is NAME."
    )


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        ("A layer.\n\nArgs:\n    x: Gone.", "A layer."),
        ("A layer.\n\nShape:\n    - Gone.", "A layer."),
        ("A layer.\n\n**Examples:**\n    Gone.", "A layer."),
        ("A layer.\n\n:param x: gone", "A layer."),
        ("Notes on waves.", "Notes on waves."),
        ("Set the %(name)s of {klass}.", "Set the of."),
        ("Use KMeans, relu6, DataFrame.apply and f(x).", "Use NAME and NAME."),
        ("See `the guide <https://x.y>`_ for |more|.", "See the guide for."),
        ("Keep PCA and 2D data.", "Keep PCA and 2D data."),
        ("STATS and Stats, not statistics.", "NAME and NAME, not statistics."),
        ("", ""),
    ],
)
def test_cases(doc: str, expected: str) -> None:
    assert mask_docstring(doc, {"stats"}) == expected


def test_texts_end_at_a_word() -> None:
    text = mask_docstring("word " * 500, set(), max_characters=23)
    assert text == "word word word word"
    assert mask_docstring("x" * 50, set(), max_characters=10) == "x" * 10


@given(st.text(max_size=300), st.sets(st.sampled_from(["graph", "stats"])))
def test_masked_names_never_stay(doc: str, names: set[str]) -> None:
    text = mask_docstring(f"{doc} Graph of stats", names)
    words = {word.lower() for word in re.findall("[A-Za-z]+", text)} - {MASK.lower()}
    assert not words & names
    assert "\n" not in text
    assert len(text) <= 600
