"""Every benchmark runs: all answer `--help` by default, the measurements themselves are slow."""

from __future__ import annotations

import gzip
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scripts import SCRIPTS, number, run

BENCHMARKS = [script for script in SCRIPTS if script.startswith("benchmarks/")]


@pytest.mark.parametrize("script", BENCHMARKS)
def test_help_names_the_benchmark(script: str, tmp_path: Path) -> None:
    assert run(script, "--help", folder=tmp_path).startswith(f"usage: {Path(script).name} ")


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


def test_semi_supervised_benchmark(tmp_path: Path) -> None:
    y = np.arange(90) % 3
    x = 9.0 * np.eye(3)[y] + np.random.default_rng(0).normal(size=(90, 3))
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    small = ("accuracy", "--draws", "1", "--data", str(tmp_path / "rows.npz"))
    output = run("benchmarks/semi_supervised.py", *small, folder=tmp_path)
    assert output.count("PropagationClassifier 100.0") == 3
    output = run(
        "benchmarks/semi_supervised.py", "time", "--rows", "300", "--repeats", "1", folder=tmp_path
    )
    assert len(re.findall(r"300 rows .* s \( .* GiB .* %", output)) == 5


def test_export_benchmark(tmp_path: Path) -> None:
    small = ("--nodes", "200", "--edges", "800", "--repeats", "1", "--table-edges", "500")
    output = run("benchmarks/export.py", *small, folder=tmp_path)
    assert "write_graph .parquet" in output
    assert "gloss_graph to_networkx" in output
    assert "gloss_graph write_graphml" in output


def few_labels(tmp_path: Path, table: Path, methods: list[str], *options: str) -> str:
    """Output of the benchmark; a second call must find nothing left to run."""
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    words = ["--data", ".", "--labels-per-class", "3", "--budget", "40", "--length", "8"]
    words += ["--batch", "4", "--unlabeled-batch", "4", "--threads", "1", *options]
    output = run("benchmarks/few_labels.py", *words, "--methods", *methods, folder=tmp_path)
    again = run("benchmarks/few_labels.py", *words, "--methods", *methods, folder=tmp_path)
    assert "seed 0:" not in again
    assert again.strip() == output[output.index("| method") :].strip()
    return output


def test_few_labels_benchmark_without_training(tmp_path: Path, table: Path) -> None:
    output = few_labels(tmp_path, table, ["static"], "--seeds", "0")
    assert number(r"\| static \| 1 \| [^|]+\| [^|]+\| ([\d.]+)", output) > 60


def test_plain_loop(tmp_path: Path, table: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    words = ("--data", ".", "--label-fraction", "0.2", "--steps", "4", "--length", "8")
    output = run("benchmarks/plain_loop.py", *words, folder=tmp_path)
    assert number(r"seed 0: linear ([\d.]+)", output) > 60
    assert number(r"propagated ([\d.]+)", output) > 60


def boards(tmp_path: Path, table: Path, *words: str) -> str:
    """Output of the boards on a small corpus under the names that the tasks have."""
    rows = table.read_text().splitlines()
    for corpus in ("HWU64", "TREC"):
        (tmp_path / corpus).mkdir(exist_ok=True)
        for name in ("train", "test"):
            whole = gzip.compress(table.read_bytes())
            (tmp_path / corpus / f"{name}.csv.gz").write_bytes(whole)
    # Labels of every fourth document, the texts of the others.
    shots = [rows[0], *rows[1::4]]
    pool = [row.rpartition(",")[0] for row in rows if row == rows[0] or row not in shots]
    for name, lines in (("shots_5", shots), ("pool_5", pool)):
        (tmp_path / f"HWU64/{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    short = ("--data", ".", "--length", "8", "--threads", "1")
    return run("benchmarks/boards.py", *short, *words, folder=tmp_path)


def test_boards_score_methods_on_the_same_labels(tmp_path: Path, table: Path) -> None:
    words = ("--tasks", "HWU64-5", "TREC-8", "--seeds", "0", "1")
    both = (*words, "--methods", "frozen-logistic", "static-propagation")
    output = boards(tmp_path, table, *both)
    assert len(re.findall("(?:HWU64-5|TREC-8) [a-z-]+ seed [01]:", output)) == 8
    assert "| | frozen-logistic | static-propagation | published |" in output
    assert number(r"\| HWU64-5, accuracy \| ([\d.]+) ", output) > 80
    assert number(r"\| TREC-8, accuracy \| [^|]+\| ([\d.]+) ", output) > 80
    assert (tmp_path / "boards.png").stat().st_size > 1000
    assert (tmp_path / "boards.csv").read_text().count("frozen-logistic") == 2
    # A second call finds nothing left to run.
    again = boards(tmp_path, table, *both)
    assert again.strip() == output[output.index("| |") :].strip()


@pytest.mark.slow
def test_boards_train(tmp_path: Path, table: Path) -> None:
    words = ("--tasks", "HWU64-5", "--seeds", "0", "--loop-steps", "4")
    output = boards(tmp_path, table, *words, "--methods", "recipe", "plain-loop", "ce")
    for method in ("recipe", "plain-loop", "ce"):
        assert number(rf"HWU64-5 {method} seed 0: ([\d.]+)", output) > 60


@pytest.mark.slow
def test_few_labels_benchmark(tmp_path: Path, table: Path) -> None:
    methods = ["static", "ce", "warm+bank", "full"]
    output = few_labels(tmp_path, table, methods, "--seeds", "0", "1")
    for method in methods:
        assert f"| {method} | 2 | " in output
    assert number(r"\| static \| 2 \| [^|]+\| [^|]+\| ([\d.]+)", output) > 60
    assert "| full - ce |" in output


def study(tmp_path: Path, table: Path, losses: list[str], seeds: list[str]) -> str:
    """Output of the study; a second call must find nothing left to run."""
    (tmp_path / "tea").mkdir()
    for name in ("train", "val"):
        (tmp_path / "tea" / f"{name}.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    words = ["--folder", ".", "--data", "tea", "--epochs", "0.5", "--length", "8", "--batch", "8"]
    words += ["--threads", "1", "--train-limit", "40", "--seeds", *seeds, "--losses", *losses]
    output = run("benchmarks/study.py", *words, folder=tmp_path)
    for loss in losses:
        assert f"| {loss} |" in output
        assert f"tea-{loss}-{seeds[-1]}: accuracy" in output
    folder = tmp_path / "runs" / "study"
    assert (folder / "study.png").stat().st_size > 10_000
    assert len(list(folder.glob("*/metrics.json"))) == len(losses) * len(seeds)
    again = run("benchmarks/study.py", *words, folder=tmp_path)
    assert f"tea-{losses[0]}-{seeds[-1]}:" not in again
    return output


@pytest.mark.slow  # by default it answers `--help`
def test_study_of_one_loss(tmp_path: Path, table: Path) -> None:
    study(tmp_path, table, ["ce"], ["0"])


@pytest.mark.slow
def test_study(tmp_path: Path, table: Path) -> None:
    study(tmp_path, table, ["ce", "xbm-scl", "gloss"], ["0", "1"])


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
    with pytest.raises(SystemExit, match=re.escape("'--out' holds a study with {'length': 128}")):
        run("benchmarks/study_table.py", *words, folder=tmp_path)
    graph = {"graph_epochs": 20, "graph_rate": 1e-3}
    (tmp_path / "table" / "graph.json").write_text(json.dumps(graph), encoding="utf-8")
    with pytest.raises(SystemExit, match=re.escape("a study with {'graph_epochs': 20}")):
        run("benchmarks/study_table.py", *words[:-2], folder=tmp_path)


def test_released_benchmark(tmp_path: Path) -> None:
    small = ("--batch", "16", "--length", "8", "--bank", "64", "--repeats", "1", "--threads", "1")
    output = run("benchmarks/released.py", *small, folder=tmp_path)
    assert number(r"\| ours, in the batch \| \d+ \| ([\d.]+)", output) > 0
    assert number(r"\| ours, bank of 64 \| \d+ \| ([\d.]+)", output) > 0


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
