"""Every example and benchmark runs on its own, small, offline, and prints what it promises."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))

TOPICS = {
    "tea": ("green tea", "a cup of black tea", "the tea pot", "herbal infusion"),
    "trains": ("the night train", "a railway station", "the express", "an old locomotive"),
    "weather": ("heavy rain", "a clear sky", "strong wind from the west", "morning fog"),
}
ENDINGS = (
    "was there yesterday",
    "came late",
    "is what we talked about",
    "will be back soon",
    "surprised everyone",
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty labeled texts of three topics."""
    rows = [
        f"{start} {end},{topic}" for topic in TOPICS for start in TOPICS[topic] for end in ENDINGS
    ]
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def run(script: str, *arguments: str, folder: Path) -> str:
    """Run a script in `folder` and give back what it printed."""
    done = start(script, *arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def start(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
    }
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def number(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    assert found, f"{pattern!r} not in:\n{output}"
    return float(found.group(1).replace(",", ""))


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
    check_analysis(
        output, tmp_path / "graph.graphml", "clustering and projection", "text generation"
    )


def test_few_labels(tmp_path: Path) -> None:
    small = ("--documents", "400", "--labels", "3", "--steps", "2", "--length", "12")
    output = run("05_few_labels.py", *small, folder=tmp_path)
    assert "54 labels" in output
    assert "Graph skill" in output
    for way in ("cross-entropy", "SetFit", "labels, then corpus graph"):
        assert number(rf"{way} *│ *[\d.]+ │ *([\d.]+)", output) > 100 / 18 / 2
    assert output.count("% confident") == 3
    assert "% from: " in output


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


def test_lightning(tmp_path: Path, table: Path) -> None:
    pytest.importorskip("lightning", reason='needs the extra: pip install "gloss-graph[lightning]"')
    small = ("--batch-size", "9", "--max-length", "12", "--out", "run")
    output = run("07_lightning.py", "--train", table.name, *small, folder=tmp_path)
    assert number(r"after epoch 1 +([\d.]+)", output) >= 0
    assert number(r"after epoch 2 +[\d.]+ +([\d.]+)", output) > 60
    assert "Rows of the bank in the checkpoint: 54" in output
    assert (tmp_path / "run" / "after-1.ckpt").is_file()


@pytest.mark.parametrize("markdown", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_objective_benchmark(tmp_path: Path, markdown: bool) -> None:
    small = ["--repeats", "1", "--threads", "1", "--length", "8", "--batch", "8"]
    small += ["--bank", "0", "512", *(["--markdown"] if markdown else [])]
    output = run("benchmarks/objective.py", *small, folder=tmp_path)
    for name in ("published: gloss_graph", "hub: dense, float64", "hub: dense, float32"):
        assert name in output
    assert "MiniLM step" in output
    assert re.search(r"bank of 512.* %", output)
    assert "1 threads, torch" in output
    assert ("| bank of 0 |" in output) == markdown


def test_export_benchmark(tmp_path: Path) -> None:
    small = ("--nodes", "200", "--edges", "800", "--repeats", "1", "--table-edges", "500")
    output = run("benchmarks/export.py", *small, folder=tmp_path)
    assert "write_graph .parquet" in output
    assert "gloss_graph to_networkx" in output
    assert "gloss_graph write_graphml" in output


def test_few_labels_benchmark(tmp_path: Path, table: Path) -> None:
    for name in ("train", "val", "test"):
        text = gzip.compress(table.read_bytes())
        (tmp_path / f"{name}.csv.gz").write_bytes(text)
    small = ["--data", ".", "--labels-per-class", "3", "--seeds", "0", "1", "--budget", "40"]
    small += ["--length", "8", "--batch", "4", "--unlabeled-batch", "4", "--threads", "1"]
    methods = ["static", "ce", "warm+bank", "full"]
    output = run("benchmarks/few_labels.py", *small, "--methods", *methods, folder=tmp_path)
    for method in methods:
        assert f"| {method} | 2 | " in output
    assert number(r"\| static \| 2 \| [^|]+\| [^|]+\| ([\d.]+)", output) > 60
    assert "| full - ce |" in output
    # A stopped study goes on where it was: nothing is left to run.
    again = run("benchmarks/few_labels.py", *small, "--methods", *methods, folder=tmp_path)
    assert "seed 0:" not in again
    assert again.strip() == output[output.index("| method") :].strip()


def test_study(tmp_path: Path, table: Path) -> None:
    (tmp_path / "tea").mkdir()
    for name in ("train", "val"):
        (tmp_path / "tea" / f"{name}.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    small = ["--folder", ".", "--data", "tea", "--seeds", "0", "1", "--epochs", "0.5"]
    small += ["--length", "8", "--batch", "8", "--threads", "1", "--train-limit", "40"]
    losses = ["ce", "xbm-scl", "gloss"]
    output = run("benchmarks/study.py", *small, "--losses", *losses, folder=tmp_path)
    assert "tea-xbm-scl-1: accuracy" in output
    for loss in losses:
        assert f"| {loss} |" in output
    folder = tmp_path / "runs" / "study"
    assert (folder / "study.png").stat().st_size > 10_000
    assert len(list(folder.glob("*/metrics.json"))) == 6
    again = run("benchmarks/study.py", *small, "--losses", *losses, folder=tmp_path)
    assert "tea-xbm-scl-1:" not in again


@pytest.mark.slow
def test_table_of_the_study(tmp_path: Path, table: Path) -> None:
    folder = tmp_path / "tea"
    folder.mkdir()
    lines = table.read_text(encoding="utf-8").splitlines()
    for part, rows in (("train", lines[1::2]), ("val", lines[2::4]), ("test", lines[4::4])):
        with gzip.open(folder / f"{part}.csv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join([lines[0], *rows]) + "\n")
    small = ("--folder", ".", "--data", "tea", "--seeds", "0", "--quick", "--length", "12")
    output = run("benchmarks/study_table.py", *small, "--out", "table", folder=tmp_path)
    for row in ("text-gcn", "bert-gcn", "ce", "gloss-published", "gloss"):
        assert f"tea-{row}-0: accuracy" in output
        assert f"| {row} " in output
    assert (tmp_path / "table" / "table.png").is_file()


def test_a_table_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    note = {"encoder": "minilm", "train_limit": None, "epochs": 10.0, "freeze_layers": 0}
    note |= {"patience": 3, "batch": 32, "length": 128, "bf16": False}
    (tmp_path / "table" / "settings.json").write_text(json.dumps(note), encoding="utf-8")
    words = ("--folder", "nowhere", "--data", "tea", "--out", "table", "--length", "64")
    done = start("benchmarks/study_table.py", *words, folder=tmp_path)
    assert done.returncode == 1
    assert "'--out' holds a study with {'length': 128}" in done.stderr
    graph = {"graph_epochs": 20, "graph_rate": 1e-3}
    (tmp_path / "table" / "graph.json").write_text(json.dumps(graph), encoding="utf-8")
    done = start("benchmarks/study_table.py", *words[:-2], folder=tmp_path)
    assert done.returncode == 1
    assert "'--out' holds a study with {'graph_epochs': 20}" in done.stderr


def test_released_benchmark(tmp_path: Path) -> None:
    small = ("--batch", "16", "--length", "8", "--bank", "64", "--repeats", "1", "--threads", "1")
    output = run("benchmarks/released.py", *small, folder=tmp_path)
    assert number(r"\| ours, in the batch \| \d+ \| ([\d.]+)", output) > 0
    assert number(r"\| ours, bank of 64 \| \d+ \| ([\d.]+)", output) > 0


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


def test_audit_benchmark(tmp_path: Path, table: Path) -> None:
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    small = ("--data", ".", "--flip", "0.1", "--seeds", "7", "8", "--k", "8", "--length", "12")
    output = run("benchmarks/audit.py", *small, folder=tmp_path)
    assert "54 documents, 5 labels flipped" in output
    assert number(r"\| audit \(graph\) \| ([\d.]+)", output) >= 60
    assert ("cleanlab, self_confidence" in output) == (find_spec("cleanlab") is not None)
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_search_benchmark(tmp_path: Path) -> None:
    small = ("--rows", "5000", "--repeats", "1")
    output = run("benchmarks/search.py", *small, "--k", "4", "--markdown", folder=tmp_path)
    rows = [line for line in output.splitlines() if line.startswith("|")]
    assert any("exact" in row for row in rows)
    assert any("ivf" in row for row in rows)
    assert sum("descent" in row for row in rows) == 3


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_documented(script: str) -> None:
    source = (EXAMPLES / script).read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(source)) or ""
    assert f"python examples/{script}" in doc
    assert 'if __name__ == "__main__":' in source


def test_every_script_is_run() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [script for script in SCRIPTS if f'"{script}"' not in tests] == []


def test_ablate_your_code(tmp_path: Path) -> None:
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
    before = sorted((tmp_path / "forest" / "trials").iterdir())
    run("11_ablate_your_code.py", *small, folder=tmp_path)
    assert sorted((tmp_path / "forest" / "trials").iterdir()) == before
