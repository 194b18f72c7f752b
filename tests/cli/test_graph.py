"""`gloss-graph graph`, through files."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from training.tiny import MAX_LENGTH

from cli.conftest import Command, rows, write
from cli.test_train import fast
from gloss_graph.analysis import document_graph, read_graph
from gloss_graph.text import load_encoder

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A run with some unlabeled documents."""
    from gloss_graph.cli import main

    folder = tmp_path_factory.mktemp("graph")
    train = write(rows(36), folder / "train.csv")
    words = ["train", "--train", train, "--labels-per-class", 3, "--unlabeled-batch-size", 4]
    words += fast(encoder_folder, folder / "run")
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def test_every_format_of_a_file(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    out = tmp_path / "out"
    words = ["--input", files[0], "--encoder", encoder_folder, "--out", out, "--k", 4]
    formats = ["--format", "graphml", "gexf", "json", "parquet", "csv", "csr", "html"]
    result = command("graph", *words, "--max-length", MAX_LENGTH, "--max-text", 9, *formats)
    assert result.status == 0, result.err
    names = {"graph.graphml", "graph.gexf", "graph.json", "graph.npz", "graph.schema.json"}
    names |= {"graph.html"}
    names |= {f"graph.{part}.{kind}" for part in ("nodes", "edges") for kind in ("csv", "parquet")}
    assert {file.name for file in out.iterdir()} == names | {"config.json"}
    encoder = load_encoder(str(encoder_folder), max_length=MAX_LENGTH)
    expected = document_graph(files[0], encoder=encoder, k=4)
    for suffix in ("graphml", "gexf", "json", "parquet", "csv", "npz"):
        found = read_graph(out / f"graph.{suffix}")
        assert torch.equal(found.edge_index, expected.edge_index), suffix
        assert torch.equal(found.edge_weight, expected.edge_weight), suffix
        if suffix != "npz":
            assert torch.equal(found.y, expected.y)
            assert found.label_names == expected.label_names
            assert max(map(len, found.text)) == 9
    page = (out / "graph.html").read_text(encoding="utf-8")
    assert f"<title>Document graph of {files[0].name}</title>" in page
    assert "documents" in result.out
    assert f"{expected.edge_index.size(1) // 2}" in result.out
    config = json.loads((out / "config.json").read_text())
    assert config["k"] == 4
    assert config["command"][:2] == ["gloss-graph", "graph"]
    again = command("graph", *words)
    assert again.status == 2
    assert "'out' must be a new or empty folder" in again.complaint()


def test_a_run_and_other_documents_by_its_encoder(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    assert command("graph", "--run", trained, "--out", tmp_path / "a", "--k", 3).status == 0
    graph = read_graph(tmp_path / "a" / "graph.graphml")
    texts = rows(36)["text"].tolist()
    assert graph.num_nodes == 36
    assert [graph.text[i] for i in range(36)] == [texts[i] for i in graph.doc_id.tolist()]
    used = pd.read_csv(trained / "labels_used.csv").set_index("id")["label"]
    labeled = graph.doc_id[graph.seed_mask].tolist()
    assert sorted(labeled) == sorted(used.index)
    names = [graph.label_names[c] for c in graph.y[graph.seed_mask].tolist()]
    assert names == used.loc[labeled].tolist()
    # The bank as a file is the same graph, without names.
    bank = document_graph(trained / "memory" / "objective.safetensors", k=3)
    assert torch.equal(bank.edge_index, graph.edge_index)
    other = write(rows(10, seed=4), tmp_path / "other.csv")
    words = ["--run", trained, "--input", other, "--out", tmp_path / "b", "--format", "json"]
    assert command("graph", *words, "--k", 3).status == 0
    graph = read_graph(tmp_path / "b" / "graph.json")
    assert graph.text == rows(10, seed=4)["text"].tolist()
    assert bool(graph.seed_mask.all())


def test_a_run_whose_file_has_moved(trained: Path, tmp_path: Path) -> None:
    file = trained.parent / "train.csv"
    file.rename(tmp_path / "moved.csv")
    try:
        graph = document_graph(trained, k=3)
    finally:
        (tmp_path / "moved.csv").rename(file)
    known = [bool(text) for text in graph.text]
    assert known == graph.seed_mask.tolist()


def test_features_alone_and_with_texts(command: Command, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    pd.DataFrame(x, columns=list("abcd")).to_parquet(tmp_path / "x.parquet")
    graphs = []
    for name in ("x.npy", "x.parquet"):
        out = tmp_path / f"from {name}"
        result = command("graph", "--features", tmp_path / name, "--out", out, "--bandwidth", 0.5)
        assert result.status == 0, result.err
        graphs.append(nx.read_graphml(out / "graph.graphml"))
    assert nx.utils.graphs_equal(*graphs)
    file = write(rows(20), tmp_path / "docs.csv")
    words = ["--features", tmp_path / "x.npy", "--input", file, "--out", tmp_path / "c"]
    assert command("graph", *words, "--format", "parquet", "--bandwidth", "local").status == 0
    assert read_graph(tmp_path / "c" / "graph.parquet").text == rows(20)["text"].tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "'input', 'run' or 'features' must be given"),
        (["--run", "x", "--features", "y.npy"], "must not be given together"),
        (["--run", "x"], "'run' must be a folder written by gloss-graph train"),
        (["--features", "y.csv"], "Documents go to --input"),
        (["--features", "y.npy"], "must be a file or a run folder"),
        (["--input", "FILE", "--format", "xlsx"], "'format' must be one of csr, csv"),
        (["--input", "FILE", "--k", 0], "'k' must be an integer of at least 1"),
        (["--input", "FILE", "--label", "topic"], "topic"),
        (["--input", "FILE", "--text", "body"], "body"),
    ],
)
def test_bad_words_leave_nothing(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    words: list[object],
    message: str,
) -> None:
    words = [files[0] if word == "FILE" else word for word in words]
    out = tmp_path / "out"
    result = command("graph", *words, "--encoder", encoder_folder, "--out", out)
    assert result.status == 2, result.out
    assert message in result.complaint()
    assert not out.exists()
