"""`gloss-graph graph`, through files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import skew
from training.tiny import MAX_LENGTH

from cli.conftest import Command, rows, write
from cli.test_train import fast
from gloss_graph.analysis import document_graph
from gloss_graph.export import read_graph
from gloss_graph.export.attributes import clean_text
from gloss_graph.reports import run_change
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
        with pytest.warns(UserWarning, match=rf"27 of 36 .* \({re.escape(str(file))} does not"):
            graph = document_graph(trained, k=3)
    finally:
        (tmp_path / "moved.csv").rename(file)
    known = [bool(text) for text in graph.text]
    assert known == graph.seed_mask.tolist()


def test_texts_that_are_named_are_not_looked_for(trained: Path, tmp_path: Path) -> None:
    file = trained.parent / "train.csv"
    file.rename(tmp_path / "moved.csv")
    try:
        graph = document_graph(trained, k=3, texts=[f"text {i}" for i in range(36)])
    finally:
        (tmp_path / "moved.csv").rename(file)
    assert graph.text[5] == "text 5"


def test_a_run_whose_file_has_changed(trained: Path) -> None:
    """Rows of another file of that name are not taken for the documents."""
    file = trained.parent / "train.csv"
    content = file.read_text()
    complete = document_graph(trained, k=3)
    assert all(complete.text)
    relabeled = rows(36).assign(label="fox", note="corrected")
    unlabeled_one = rows(36)
    used = pd.read_csv(trained / "labels_used.csv")["id"]
    unlabeled_one.loc[min(set(range(36)) - set(used)), "text"] = "another text"
    changes = [rows(36).iloc[::-1], rows(36, seed=5), rows(3), unlabeled_one]
    try:
        write(relabeled, file)
        assert document_graph(trained, k=3).text == complete.text
        for changed in changes:
            write(changed, file)
            message = rf"27 of 36 .* {re.escape(str(file))} holds other texts .* Put back the file"
            with pytest.warns(UserWarning, match=message):
                graph = document_graph(trained, k=3)
            expected = [
                text if seed else ""
                for text, seed in zip(complete.text, graph.seed_mask.tolist(), strict=True)
            ]
            assert graph.text == expected
    finally:
        file.write_text(content)


def test_a_run_that_names_no_files(trained: Path, tmp_path: Path) -> None:
    """As one that Python code trained, or an older version."""
    shutil.copytree(trained, tmp_path / "bare")
    config = tmp_path / "bare" / "config.json"
    settings = json.loads(config.read_text())
    del settings["files"]
    config.write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="does not say which files"):
        graph = document_graph(tmp_path / "bare", k=3)
    assert [bool(text) for text in graph.text] == graph.seed_mask.tolist()


def test_a_run_from_another_folder_and_its_unlabeled_file(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gloss_graph.cli import main

    write(rows(12), tmp_path / "train.csv")
    write(rows(24, seed=3), tmp_path / "more.csv")
    monkeypatch.chdir(tmp_path)
    words = ["train", "--train=train.csv", "--unlabeled=more.csv", "--no-pictures"]
    words += ["--unlabeled-batch-size", "4", *fast(encoder_folder, tmp_path / "run")]
    assert main(words) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    graph = document_graph(tmp_path / "run", k=3)
    texts = [*rows(12)["text"], *rows(24, seed=3)["text"]]
    assert graph.num_nodes == 36
    assert graph.text == [texts[id_] for id_ in graph.doc_id.tolist()]


def test_a_run_of_pairs_has_both_texts(encoder_folder: Path, tmp_path: Path) -> None:
    """Its columns are found whether an option and its value are one word or two."""
    from gloss_graph.cli import main

    frame = rows(36).rename(columns={"text": "body"})
    frame["more"] = [f"second {number}\nline" for number in range(36)]
    train = write(frame, tmp_path / "train.csv")
    words = ["train", "--labels-per-class", 3, "--unlabeled-batch-size", 4, "--no-pictures"]
    words += ["--train", train, "--text=body", "--text-b", "more"]
    assert main([str(w) for w in (*words, *fast(encoder_folder, tmp_path / "run"))]) == 0
    graph = document_graph(tmp_path / "run", k=3)
    both = (frame["body"] + "\n" + frame["more"]).tolist()
    assert graph.num_nodes == 36
    assert not graph.seed_mask.all()
    assert graph.text == [both[id_] for id_ in graph.doc_id.tolist()]


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


def test_every_question_of_a_run(command: Command, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--run", trained, "--out", out, "--k", 3, "--measures", "--audit", "--explain", 1]
    result = command("graph", *words, "--pictures", "--compare", "--format", "html,json")
    assert result.status == 0, result.err
    tables = ("measures", "audit", "duplicates", "confusion", "explanation", "compare")
    tables += ("churn", "epochs", "communities")
    pictures = ("map", "adjacency", "degrees", "reach", "explanation", "change")
    names = {f"{name}.csv" for name in tables} | {f"{name}.png" for name in pictures}
    names |= {"explanation.graphml", "graph.html", "graph.json", "config.json"}
    assert {file.name for file in out.iterdir()} == names
    assert all(str(out / name) in result.out for name in names - {"config.json"})
    graph = read_graph(out / "graph.json")
    found = pd.read_csv(out / "measures.csv").set_index(["scope", "measure"])["value"]
    assert found["graph", "nodes"] == 36
    expected = skew(graph.in_degree.double().numpy())
    assert found["graph", "in_degree_skew"] == pytest.approx(expected)
    assert int(graph.in_degree.sum()) == 36 * 3
    told = pd.read_csv(out / "measures.csv").set_index("scope").loc[graph.label_names[0], "words"]
    assert told.nunique() == 1
    assert 1 <= len(told.iloc[0].split(", ")) <= 5
    communities = pd.read_csv(out / "communities.csv")
    assert communities["words"].iloc[0] in result.out
    assert communities["documents"].is_monotonic_decreasing
    suspects = pd.read_csv(out / "audit.csv")
    assert sorted(suspects["doc_id"]) == sorted(graph.doc_id[graph.seed_mask].tolist())
    assert suspects["suspicion"].is_monotonic_decreasing
    masses = pd.read_csv(out / "explanation.csv")
    assert masses["mass"].sum() == pytest.approx(1)
    assert nx.read_graphml(out / "explanation.graphml").number_of_nodes() > 1
    change = pd.read_csv(out / "compare.csv").set_index(["scope", "measure"])
    assert {"before", "after", "change"} <= set(change.columns)
    assert change.loc[("graph", "macro_silhouette")].notna().all()
    churn = pd.read_csv(out / "churn.csv")
    assert churn["start"].iloc[0] == "start"
    assert churn["start"].tolist()[1:] == churn["end"].tolist()[:-1]
    np.testing.assert_allclose(churn["kept"] + churn["lost"], 1)
    # Three steps of five: the epoch is a broken one.
    epochs = pd.read_csv(out / "epochs.csv")
    assert list(epochs) == ["epoch", "edge_churn", "jaccard", "homophily"]
    assert len(epochs) == 1
    assert epochs["epoch"].between(0, 1, inclusive="neither").all()
    assert epochs["edge_churn"].between(0, 1).all()
    for words_ in (
        "labels contradicted",
        "Edge churn by epoch",
        "Before and after",
        "Edges of a fixed batch",
        "Classes",
        "Words of the classes",
        "Communities",
    ):
        assert words_ in result.out


def test_a_run_without_a_record_cannot_be_compared(trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("pictures"))
    with pytest.raises(ValueError, match="without --no-pictures"):
        run_change(bare)
    with pytest.raises(ValueError, match="'k' must"):
        run_change(trained, k=0)


@pytest.mark.filterwarnings("ignore:The font:UserWarning")
def test_texts_of_any_kind_reach_every_file(command: Command, tmp_path: Path) -> None:
    texts = ["nul \x00 tea", 'fox 🦊, "quoted"\r\nline', "é" * 1_000_000, "a", "b", "c"]
    frame = pd.DataFrame({"text": texts, "label": ["x", "y 🦊", "x", "y 🦊", "x", ""]})
    frame.to_parquet(tmp_path / "d.parquet", index=False)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 3)))
    out = tmp_path / "out"
    words = ["--features", tmp_path / "x.npy", "--input", tmp_path / "d.parquet", "--out", out]
    words += ["--format", "graphml,gexf,json,parquet,csv,html", "--audit", "--explain", 1]
    words += ["--pictures"]
    result = command("graph", *words, "--k", 2)
    assert result.status == 0, result.err
    clean = [clean_text(text) for text in texts]
    for suffix in ("graphml", "gexf", "json", "parquet", "csv"):
        assert read_graph(out / f"graph.{suffix}").text == clean, suffix
    found = pd.read_csv(out / "audit.csv", keep_default_na=False, lineterminator="\n")
    assert {text[:30] for text in found["text"]} == {text[:30] for text in clean[:5]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "BARE", "--audit"], "'audit' needs labeled documents (got none of 36)"),
        (["--input", "BARE", "--explain", 2], "'explain' needs labeled documents"),
        (["--input", "FILE", "--explain", 99], "ids go from 0 to 35"),
        (["--features", "x.npy", "--audit"], "'audit' needs labeled documents (got none of 9)"),
        (["--input", "FILE", "--compare"], "'compare' needs a finished run"),
        (["--input", "FILE", "--top", 0], "top"),
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
    write(rows(36)[["text"]], tmp_path / "bare.csv")
    np.save(tmp_path / "x.npy", np.eye(9))
    named = {"FILE": files[0], "BARE": tmp_path / "bare.csv", "x.npy": tmp_path / "x.npy"}
    words = [named.get(str(word), word) for word in words]
    out = tmp_path / "out"
    result = command("graph", *words, "--encoder", encoder_folder, "--out", out)
    assert result.status == 2, result.out
    assert message in result.complaint()
    assert not out.exists()
