"""Runs on data of other shapes, their progress on a terminal, and what they refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from gloss_graph.text import Corpus, Splits
from gloss_graph.training import GraphGuidedTrainer, train_text

from .tiny import quick, run, tiny_corpus, tiny_encoder, tiny_splits


def unlabeled(corpus: Corpus) -> Corpus:
    return replace(corpus, labels=[-1] * len(corpus))


def test_no_test_documents(tmp_path: Path) -> None:
    result = run(tmp_path / "run", splits=tiny_splits(test=0))
    assert not any(name.startswith("test.") for name in result.metrics)
    assert set(result.predictions) == set(result.embeddings) == {"val"}


def test_unlabeled_test_documents_are_predicted(tmp_path: Path) -> None:
    splits = tiny_splits()
    result = run(tmp_path / "run", splits=replace(splits, test=unlabeled(splits.test)))
    assert not any(name.startswith("test.") for name in result.metrics)
    assert result.predictions["test"].shape == (15,)


def test_a_class_with_one_test_document_has_no_silhouette(tmp_path: Path) -> None:
    """JSON knows no NaN: the file says null."""
    test = tiny_corpus(3, first_id=100)
    run(tmp_path / "run", splits=replace(tiny_splits(), test=test))
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["test.macro_silhouette"] is None


@pytest.mark.filterwarnings("ignore:Graph skill")
@pytest.mark.parametrize("loss", ["ce", "gloss", "gloss-published", "static-lp", "setfit", "scl"])
def test_mostly_unlabeled_training_documents(tmp_path: Path, loss: str) -> None:
    splits = tiny_splits()
    labels = [label if i < 9 else -1 for i, label in enumerate(splits.train.labels)]
    splits = replace(splits, train=replace(splits.train, labels=labels))
    result = run(tmp_path / "run", quick(loss=loss, batch_size=6), splits)
    assert np.isfinite([row["loss"] for row in result.history]).all()


def test_pairs_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second texts reach training, scoring and the estimate of the bandwidth."""

    def paired(corpus: Corpus) -> Corpus:
        return replace(corpus, texts_b=corpus.texts[::-1])

    splits = tiny_splits()
    splits = Splits(paired(splits.train), paired(splits.val), paired(splits.test))
    encoder = tiny_encoder()
    seen: list[bool] = []
    encode = type(encoder).encode

    def watched(self: Any, texts: list[str], texts_b: Any = None, **options: Any) -> Any:
        seen.append(texts_b is not None and len(texts_b) == len(texts))
        return encode(self, texts, texts_b, **options)

    monkeypatch.setattr(type(encoder), "encode", watched)
    train_text(splits, encoder, quick(loss="gloss-released"), tmp_path / "run")
    # Bandwidth, bank, validation and test; the pictures' documents, five passes of a batch and the
    # one at the end of the last epoch, whose weights are not those that are kept.
    assert seen == [True] * (4 + 7)


# ------------------------------------------------------------------ progress


def test_bars_are_on_stderr_and_only_on_demand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    train_text(
        tiny_splits(),
        tiny_encoder(),
        quick(),
        tmp_path / "shown",
        progress=True,
        description="Mine",
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"Mine .*4/4.*loss \d\.\d{3}  val F1 0\.\d{3}", err)


def test_a_failure_on_the_way_stops_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the terminal keeps its hidden cursor and the thread that draws."""
    calls: list[str] = []
    for name in ("start", "stop"):
        plain = getattr(Progress, name)

        def noted(self: Progress, name: str = name, plain: Any = plain) -> None:
            calls.append(name)
            plain(self)

        monkeypatch.setattr(Progress, name, noted)

    def fail(self: Any, *_: Any, **__: Any) -> None:
        calls.append("fail")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(GraphGuidedTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_text(tiny_splits(), tiny_encoder(), quick(), tmp_path / "run", progress=True)
    assert calls == ["start", "fail", "stop"]


# ------------------------------------------------------------------ refusals


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".hidden"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="'out' must be a new or empty folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]
    with pytest.raises(FileExistsError, match=r"\.hidden"):
        run(file)
    assert file.read_text() == "mine"


def test_an_empty_folder_and_a_deep_one_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", quick(max_steps=1))
    run(tmp_path / "a" / "b" / "c", quick(max_steps=1))
    assert (tmp_path / "a" / "b" / "c" / "metrics.json").is_file()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(PermissionError, match=r"'out' cannot be written .*file/run"):
        run(file / "run")
    assert file.read_text() == "mine"

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(PermissionError, match="Read-only file system"):
        run(tmp_path / "new")


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_without_labels(tmp_path: Path, part: str) -> None:
    splits = tiny_splits()
    blank = replace(splits, **{part: unlabeled(getattr(splits, part))})
    with pytest.raises(ValueError, match=f"'splits.{part}' must hold a labeled document"):
        run(tmp_path / "run", splits=blank)
    assert not (tmp_path / "run").exists()


def test_no_validation_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a validation part"):
        run(tmp_path / "run", splits=replace(tiny_splits(), val=None))
    assert not (tmp_path / "run").exists()
