"""Adapters whose library is absent say which extra brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gloss_graph.adapters


@pytest.mark.parametrize(
    ("name", "module", "library", "extra"),
    [
        ("GraphGuidedModule", "lightning", "lightning", "lightning"),
        (
            "GraphGuidedLoss",
            "sentence_transformers",
            "sentence_transformers",
            "sentence-transformers",
        ),
    ],
)
def test_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gloss_graph.adapters.{module}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "gloss-graph\[{extra}\]"'):
        getattr(gloss_graph.adapters, name)


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        gloss_graph.adapters.Nothing  # noqa: B018


def test_the_package_does_not_import_the_libraries() -> None:
    code = "import sys, gloss_graph.adapters; print({'lightning', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
