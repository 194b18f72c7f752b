"""Every numbered example runs, small and offline, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from scripts import EXAMPLES, ROOT, SCRIPTS, number, run
from sklearn.datasets import load_digits

from gloss_graph.studies import read_results


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_documented(script: str) -> None:
    source = (EXAMPLES / script).read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    assert f"python examples/{script}" in doc
    assert 'if __name__ == "__main__":' in source


def test_every_script_is_run() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [script for script in SCRIPTS if f'"{script}"' not in tests] == []


@pytest.mark.slow  # by default it runs in this process
def test_an_example_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "01_torch_loop.py"), "--seeds", "1", "--steps", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert "same predictions: True" in done.stdout


def test_torch_loop(tmp_path: Path) -> None:
    output = run("01_torch_loop.py", "--seeds", "1", "--steps", "8", folder=tmp_path)
    assert "SolverReport(solver='cg'" in output
    assert "converged=True" in output
    assert "size=1257" in output
    assert "anonymous=0" in output
    for method in ("cross-entropy", "graph-guided"):
        for head in ("linear head", "propagation"):
            # Ten classes: chance is 10 %, and even eight steps do better.
            assert number(rf"{method}, {head} +([\d.]+) \+-", output) > 15
    assert "loaded 1257 rows; same predictions: True" in output


def test_gnn_encoder(tmp_path: Path) -> None:
    small = ("--seeds", "1", "--steps", "20", "--nodes-per-class", "80")
    output = run("02_gnn_encoder.py", *small, folder=tmp_path)
    assert "Data(x=[320, 16]" in output
    for method in ("GCN, cross-entropy", "GCN, graph-guided", "propagation, all links equal"):
        assert number(rf"{method} +([\d.]+)", output) > 30  # four classes
    assert number(r"Learning which links to trust: ([+-][\d.]+) points", output) > 0
    assert "The graph term: " in output


def test_hf_trainer_on_a_table(tmp_path: Path, table: Path) -> None:
    small = ("--steps", "2", "--batch-size", "4", "--max-length", "12", "--out", "run")
    output = run("03_hf_trainer.py", "--train", table.name, *small, folder=tmp_path)
    assert "54 documents, 3 classes, 0 unlabeled), 6 documents held out" in output
    # Propagation over the pretrained space needs no training on topics as plain as these.
    assert number(r"before +[\d.]+ +([\d.]+)", output) > 60
    assert number(r"after 2 steps +([\d.]+)", output) >= 0
    assert "Resumed from step 1: same weights and bank as without a stop: True" in output
    assert "Loaded again: " in output
    assert (tmp_path / "run" / "model" / "classifier.json").is_file()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "objective.safetensors").is_file()


def check_analysis(output: str, file: Path, first: str, last: str) -> None:
    assert "Louvain communities" in output
    steps = int(number(r"in (\d+) steps:", output))
    path = output.split("steps:\n")[1].splitlines()[: steps + 1]
    assert path[0].startswith(f"  [{first}] ")
    assert path[-1].startswith(f"  [{last}] ")
    graph = nx.read_graphml(file)
    assert len(graph) == int(number(r"Graph with (\d+) nodes", output))
    assert {"text", "label", "community", "pagerank"} <= set(graph.nodes["0"])
    assert all(edge["length"] >= 0 for _, _, edge in graph.edges(data=True))


def test_networkx_analysis_of_a_table(tmp_path: Path, table: Path) -> None:
    output = run("04_networkx_analysis.py", "--train", table.name, "--k", "9", folder=tmp_path)
    assert number(r"communities and topics: ([\d.]+)", output) > 0.3
    check_analysis(output, tmp_path / "documents.graphml", "tea", "weather")


@pytest.mark.slow
def test_networkx_analysis_of_docstrings(tmp_path: Path) -> None:
    small = ("--documents", "180", "--k", "5", "--out", "graph.graphml")
    output = run("04_networkx_analysis.py", *small, folder=tmp_path)
    assert number(r"communities and topics: ([\d.]+)", output) > 0
    check_analysis(output, tmp_path / "graph.graphml", "dates and times", "threads and tasks")


def check_few_labels(output: str, chance: float) -> None:
    assert "Graph skill" in output
    for way in ("cross-entropy", "SetFit", "corpus graph"):
        assert number(rf"{way} *│ *[\d.]+ │ *([\d.]+)", output) > chance / 2
    assert output.count("% confident") == 3
    assert "% from: " in output


@pytest.mark.slow  # by default the README and `training/test_few_labels.py` take the recipe
def test_few_labels_of_a_table(tmp_path: Path, table: Path) -> None:
    small = ("--train", table.name, "--labels", "3", "--steps", "1", "--length", "12")
    output = run("05_few_labels.py", *small, folder=tmp_path)
    assert "54 training documents, 9 labels, 6 test documents" in output
    check_few_labels(output, 100 / 3)


@pytest.mark.slow
def test_few_labels_of_docstrings(tmp_path: Path) -> None:
    small = ("--documents", "400", "--labels", "3", "--steps", "2", "--length", "12")
    output = run("05_few_labels.py", *small, folder=tmp_path)
    assert "36 labels" in output
    check_few_labels(output, 100 / 12)


def test_sentence_transformers(tmp_path: Path, table: Path) -> None:
    extra = 'needs the extra: pip install "gloss-graph[sentence-transformers]"'
    pytest.importorskip("sentence_transformers", reason=extra)
    pytest.importorskip("datasets", reason=extra)
    small = ("--steps", "3", "--batch-size", "6", "--max-length", "12", "--out", "run")
    output = run("06_sentence_transformers.py", "--train", table.name, *small, folder=tmp_path)
    for moment in ("before", "after 3 steps"):
        # Topics this plain need no training.
        assert number(rf"{moment} +[\d.]+ +([\d.]+)", output) > 60
        assert number(rf"{moment} +([\d.]+)", output) > 60
    assert "Bank loaded again from the checkpoint: 54 rows\nSame rows: True" in output
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "modules.json").is_file()


@pytest.mark.slow  # by default `adapters/test_lightning.py` stops and goes on
def test_lightning(tmp_path: Path, table: Path) -> None:
    pytest.importorskip("lightning", reason='needs the extra: pip install "gloss-graph[lightning]"')
    small = ("--batch-size", "9", "--max-length", "12", "--out", "run")
    output = run("07_lightning.py", "--train", table.name, *small, folder=tmp_path)
    assert number(r"after epoch 1 +([\d.]+)", output) >= 0
    assert number(r"after epoch 2 +[\d.]+ +([\d.]+)", output) > 60
    assert "Rows of the bank in the checkpoint: 54" in output
    assert (tmp_path / "run" / "after-1.ckpt").is_file()


def test_images(tmp_path: Path) -> None:
    output = run("08_images.py", "--steps", "10", folder=tmp_path)
    for way in ("cross-entropy", "contrastive start, labels then graph"):
        assert number(rf"{way} *│ *[\d.]+ │ *([\d.]+)", output) > 60
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_audit_of_labels(tmp_path: Path, table: Path) -> None:
    small = ("--flip", "0.1", "--k", "8", "--top", "4", "--out", "found.csv")
    output = run("10_audit_labels.py", "--train", table.name, *small, folder=tmp_path)
    assert "Flipped labels: 5 of 54" in output
    assert number(r"as many suspects: ([\d.]+) %", output) >= 60
    assert "labels contradicted" in output
    assert "edge homophily" in output
    assert re.search(r"Document \d+, labeled \w+: (tea|trains|weather)\n", output)
    lines = (tmp_path / "found.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("node,doc_id,label,suggested,suspicion")
    assert len(lines) == 55
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_analyse_corpus(tmp_path: Path, table: Path) -> None:
    words = ("--input", table.name, "--k", "16", "--start", "Green tea", "--end", "heavy rain")
    output = run("09_analyse_corpus.py", *words, folder=tmp_path)
    assert "exact search, Graph with 60 nodes" in output
    assert number(r"(\d+) communities of three", output) >= 2
    assert "Documents between the subjects:\n  0." in output
    steps = int(number(r"in (\d+) steps:", output))
    path = output.split("steps:\n")[1].splitlines()[: steps + 1]
    assert path[0].startswith("  green tea ")
    assert path[-1].startswith("  heavy rain ")
    assert "the communities are the same: True" in output
    written = {"corpus.gexf", "corpus.nodes.parquet", "corpus.edges.parquet"}
    assert written <= {file.name for file in tmp_path.iterdir()}
    assert {"community", "betweenness", "class"} <= set(
        nx.read_gexf(tmp_path / "corpus.gexf").nodes["0"]
    )


def test_ablate_your_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_digits(return_X_y=True)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **_: (x[:400], y[:400]))
    small = ("--seeds", "2", "--out", "forest")
    output = run("11_ablate_your_code.py", *small, folder=tmp_path)
    assert "Study(grid, 18 arms, 2 seeds;" in output
    # More trees are better on digits, whatever else.
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line[:1].isdigit()}
    assert float(rows["100"][0]) > float(rows["10"][0])
    page = (tmp_path / "forest" / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') >= 7
    assert "What matters in a random forest" in page
    assert "http" not in page.split("<main>")[1]
    before = read_results(tmp_path / "forest").table
    monkeypatch.setattr("gloss_graph.studies.write_report", lambda results: None)
    run("11_ablate_your_code.py", *small, folder=tmp_path)
    # Nothing ran again: the seconds are those of the first time.
    assert read_results(tmp_path / "forest").table.equals(before)
