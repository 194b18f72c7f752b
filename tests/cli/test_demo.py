"""`gloss-graph demo` with a tiny encoder in place of the real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networkx as nx
import pytest

from gloss_graph.training import TextClassifier

from .conftest import Command

PICTURE = "before_after.png"


@pytest.fixture(scope="module")
def wide_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with positions for the 48 tokens the demo keeps."""
    from text.tiny_models import SIZES, build_tokenizer
    from transformers import BertConfig, BertModel

    from gloss_graph.text import TextEncoder

    config = BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=48)
    encoder = TextEncoder(
        BertModel(config, add_pooling_layer=False), build_tokenizer("bert"), pooling="mean"
    )
    return encoder.save(tmp_path_factory.mktemp("encoder") / "wide")


@pytest.mark.filterwarnings("ignore:Graph skill")
def test_demo_writes_what_it_promises(command: Command, wide_encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    words = ["--encoder", wide_encoder, "--max-documents", 400, "--steps", 2, "--out", out]
    result = command("demo", *words)
    assert result.status == 0, result.err
    files = {PICTURE, "metrics.json", "graph.graphml", "graph.html", "ce", "gloss"}
    assert {path.name for path in out.iterdir()} == files

    metrics = json.loads((out / "metrics.json").read_text())
    for loss in ("ce", "gloss"):
        run = json.loads((out / loss / "metrics.json").read_text())
        config = json.loads((out / loss / "config.json").read_text())
        assert {f"{loss}.{name}" for name in run} < set(metrics)
        assert (out / loss / "report.html").is_file()
        assert config["command"][:2] == ["gloss-graph", "demo"]
        assert metrics[f"{loss}.test.macro_f1"] == run["test.macro_f1"]
        assert (config["loss"], config["seed"], config["labels_per_class"]) == (loss, 0, 5)
        assert (config["max_steps"], config["graph_start_steps"]) == {
            "ce": (2, 0),
            "gloss": (0, 2),
        }[loss]
        assert len(TextClassifier.load(out / loss / "model").label_names) == 12
    assert metrics["seconds.total"] >= metrics["gloss.seconds.total"]
    assert (out / PICTURE).read_bytes().startswith(b"\x89PNG")

    graph = nx.read_graphml(out / "graph.graphml")
    assert graph.number_of_nodes() == config["data"]["test"]
    assert graph.number_of_edges() >= config["data"]["test"] * 8 / 2
    nodes = dict(graph.nodes(data=True))
    attributes = set.intersection(*(set(node) for node in nodes.values()))
    assert {"label", "predicted", "text", "split"} <= attributes
    assert {node["label"] for node in nodes.values()} == set(config["data"]["classes"])
    assert {node["split"] for node in nodes.values()} == {"test"}
    weights = [edge["weight"] for _, _, edge in graph.edges(data=True)]
    assert all(0 < weight <= 1 and math.isfinite(weight) for weight in weights)

    for word in ("cross-entropy", "corpus", "macro-F1", "With 60 labels: "):
        assert word in result.out
    without, with_graph = (100 * metrics[f"{loss}.test.macro_f1"] for loss in ("ce", "gloss"))
    assert f"With 60 labels: {without:.1f} -> {with_graph:.1f} macro-F1 on " in result.out
    page = (out / "graph.html").read_text(encoding="utf-8")
    assert nodes[next(iter(nodes))]["text"][:20] in page
    assert f"Pictures, graph and runs: {out}\n" in result.out


def test_demo_refuses_a_folder_in_use(command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = command("demo", "--out", tmp_path)
    assert result.status == 2
    assert "'out' must be a new or empty folder" in result.complaint()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
