"""`gloss-graph graph` on files as they come: what it makes of odd ones, what it refuses."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from training.tiny import MAX_LENGTH

from cli.conftest import Command, rows, write
from gloss_graph.export import read_graph

EVERY = "graphml,gexf,json,parquet,csv,csr,html"


def some_labels_missing() -> pd.DataFrame:
    frame = rows(9)
    frame.loc[3:, "label"] = ""
    return frame


ODD = {
    "one row": (rows(1), 1, 0),
    "one text": (rows(6).assign(text="the same tea"), 6, None),
    "labels missing": (some_labels_missing(), 9, None),
    "no label": (rows(6).assign(label=""), 6, None),
    "one class": (rows(6).assign(label="tea"), 6, 15),
    "numbers": (pd.DataFrame({"text": [12, 7, 3, 40], "label": [0, 1, 1, 0]}), 4, 6),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_answered_in_full(
    command: Command, encoder_folder: Path, tmp_path: Path, name: str
) -> None:
    """Every question is answered, or refused in a line when no label is there to answer it."""
    frame, size, edges = ODD[name]
    file = write(frame, tmp_path / "docs.csv")
    words = ["--input", file, "--encoder", encoder_folder, "--max-length", MAX_LENGTH]
    words += ["--out", tmp_path / "out", "--measures", "--pictures", "--format", EVERY]
    labeled = bool((frame["label"].astype(str) != "").any())
    if labeled:
        words += ["--audit", "--explain", 0]
    result = command("graph", *words)
    assert result.status == 0, result.err
    assert "Traceback" not in result.err
    for suffix in ("graphml", "gexf", "json", "parquet", "csv", "npz"):
        graph = read_graph(tmp_path / "out" / f"graph.{suffix}")
        assert graph.num_nodes == size, suffix
        assert edges is None or graph.edge_index.size(1) == 2 * edges, suffix
        if suffix != "npz":
            assert graph.text == frame["text"].astype(str).tolist(), suffix
            known = (frame["label"].astype(str) != "").tolist()
            assert (graph.y >= 0).tolist() == known, suffix
    assert (tmp_path / "out" / "map.png").exists()
    assert (tmp_path / "out" / "reach.png").exists() == labeled
    if name == "one text":
        assert graph.edge_weight.tolist() == pytest.approx([1.0] * graph.edge_index.size(1))


REFUSED = {
    "no rows": ("docs.csv", "text,label\n", "holds no rows"),
    "empty": ("docs.csv", "", "is empty"),
    "no header": ("docs.csv", "tea\nrain\n", "has no column 'text'"),
    "ragged": ("docs.csv", "text,label\ntea,a,b\n", "expected 2 fields"),
    "no text": ("docs.csv", "text,label\n,a\ntea,b\n", "must not be empty"),
    "numbers": ("docs.jsonl", '{"text": 12}\n', "must hold strings"),
    "null": ("docs.jsonl", '{"text": null}\n', "must hold strings"),
    "extension": ("docs.xlsx", "text,label\ntea,a\n", "must end in one of .csv"),
    "not UTF-8": ("docs.csv", b"text,label\ncaf\xe9,a\n", "is not UTF-8"),
    "missing": ("docs.csv", None, "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused_leave_nothing(
    command: Command, encoder_folder: Path, tmp_path: Path, name: str
) -> None:
    file, content, message = REFUSED[name]
    if content is not None:
        given = content if isinstance(content, bytes) else content.encode()
        (tmp_path / file).write_bytes(given)
    out = tmp_path / "out"
    words = ["--input", tmp_path / file, "--encoder", encoder_folder, "--out", out]
    result = command("graph", *words)
    assert result.status == 2, result.out
    assert message in result.complaint()
    assert str(tmp_path / file) in result.err or name == "extension"
    assert not out.exists()


def test_targets_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(9))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "graph.graphml").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for out in ("file", "file/out", "used"):
        result = command("graph", "--features", tmp_path / "x.npy", "--out", tmp_path / out)
        assert result.status == 2, result.out
        assert str(tmp_path / "file") in result.complaint() or out == "used"
        assert sorted(tmp_path.rglob("*")) == before
    assert "'out' must be a new or empty folder" in result.complaint()
    assert (tmp_path / "used" / "graph.graphml").read_text() == "mine"


def test_communities_are_found_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 4)))
    seen = []
    plain = nx.community.louvain_communities

    def counted(graph: nx.Graph, **settings: object) -> list[set[int]]:
        seen.append(len(graph))
        return plain(graph, **settings)

    monkeypatch.setattr(nx.community, "louvain_communities", counted)
    words = ["--features", tmp_path / "x.npy", "--out", tmp_path / "out", "--k", 3]
    assert command("graph", *words, "--measures", "--pictures").status == 0
    assert seen == [30]


def test_a_disk_that_fills_up_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.eye(9))
    out = tmp_path / "deep" / "out"

    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gloss_graph.export.tables.parquet.ParquetWriter", full)
    words = ["--features", tmp_path / "x.npy", "--out", out, "--format", "graphml,parquet"]
    result = command("graph", *words)
    assert result.status == 2
    assert "No space left" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert not out.exists()
