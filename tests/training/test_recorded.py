from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gloss_graph.text import Corpus
from gloss_graph.training.data import cache_folder, recorded_embeddings


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GLOSS_GRAPH_CACHE", str(tmp_path / "file" / "cache"))
    corpus = Corpus(["a"], [-1], [0], [])

    class Encoder:
        def eval(self) -> Encoder:
            return self

        def embed(self, corpus: Corpus, **_: Any) -> torch.Tensor:
            return torch.ones(len(corpus), 2)

    make: Any = Encoder
    with pytest.warns(UserWarning, match="cannot be written .*GLOSS_GRAPH_CACHE"):
        rows = recorded_embeddings({"train": corpus}, make, {"encoder": "x"})
    assert rows["train"].shape == (1, 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GLOSS_GRAPH_CACHE", "~/c")
    assert cache_folder() == tmp_path / "c"
