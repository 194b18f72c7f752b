"""`gloss-graph demo`: the whole main job on a corpus that needs no download."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

from gloss_graph._internal.folders import check_folder, claim, write_json
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.cli.report import draw_report
from gloss_graph.cli.train import score_table, time_table
from gloss_graph.export import to_networkx, write_graphml
from gloss_graph.graph import build_document_graph
from gloss_graph.runs import RunFolder
from gloss_graph.text import Splits, docstring_corpus, load_encoder
from gloss_graph.training import RunResult, TrainConfig, train_text
from gloss_graph.visualization import plot_graph, plot_stage_times, plot_training

# With it the folder is whole.
_METRICS = "metrics.json"
_RUNS = {"cross-entropy": "ce", "memory bank": "gloss"}


def run_demo(
    out: Path,
    *,
    steps: int,
    seed: int,
    encoder_name: str,
    max_documents: int,
    command: list[str] | None = None,
) -> dict[str, RunResult]:
    """Train by cross-entropy and by the memory-bank objective, on the same seeds, and compare.

    Writes `metrics.json`, `graph.graphml`, `graph.png`, `training.png`, `stages.png` and a run
    folder with its report for each loss into `out`.
    """
    console = Console()
    start = time.perf_counter()
    check_folder(out, "demo", marker=_METRICS)
    with console.status("Collecting documentation of installed packages"):
        splits = docstring_corpus(max_documents=max_documents)
    console.print(
        f"Corpus: {len(splits.train)} training documents, {splits.train.num_classes} topics.",
        highlight=False,
    )
    with claim(out, "demo", marker=_METRICS) as claimed:
        results, metrics = _train_both(
            splits, claimed.draft, out, steps, seed, encoder_name, command
        )
        metrics["seconds.total"] = time.perf_counter() - start
        write_json(claimed.draft / _METRICS, metrics)
    # Said last: who closes the pipe has a whole folder.
    for loss in _RUNS.values():
        console.print(
            f"Report: {RunFolder(out / loss).page}", highlight=False, markup=False, soft_wrap=True
        )
    console.print(score_table(results))
    console.print(time_table(results))
    console.print(
        f"Done in {metrics['seconds.total']:.0f} s. Pictures, graph and runs: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return results


def _train_both(
    splits: Splits,
    draft: Path,
    out: Path,
    steps: int,
    seed: int,
    encoder_name: str,
    command: list[str] | None,
) -> tuple[dict[str, RunResult], dict[str, float]]:
    """Train, compare and draw in `draft`, on its way to `out`; results and numbers."""
    results: dict[str, RunResult] = {}
    for name, loss in _RUNS.items():
        encoder = load_encoder(encoder_name, max_length=48)
        config = TrainConfig(
            loss=loss, max_steps=steps, batch_size=16, eval_steps=max(1, steps // 2), seed=seed
        )
        results[name] = train_text(
            splits, encoder, config, draft / loss, progress=True, description=name
        )
    metrics = {
        f"{_RUNS[name]}.{key}": value
        for name, result in results.items()
        for key, value in result.metrics.items()
    }
    _export(splits, results["memory bank"], draft)
    histories = {name: result.history for name, result in results.items()}
    plot_training(histories, draft / "training.png")
    stages = {name: stage_seconds(result.metrics) for name, result in results.items()}
    plot_stage_times(stages, draft / "stages.png")
    for loss in _RUNS.values():
        RunFolder(draft / loss).note(command=command)
        draw_report(draft / loss, place=out / loss)
    return results, metrics


def _export(splits: Splits, result: RunResult, out: Path) -> None:
    """The graph of the test documents in the trained space, with labels and predictions."""
    test = splits.test
    if test is None:
        raise ValueError("'splits' must have a test part.")
    labels = torch.tensor(test.labels)
    data = build_document_graph(result.embeddings["test"], labels, torch.tensor(test.ids), k=8)
    graph = to_networkx(
        data,
        test.texts,
        label_names=test.label_names,
        predicted=torch.from_numpy(result.predictions["test"]),
        split=["test"] * len(test),
    )
    write_graphml(graph, out / "graph.graphml")
    plot_graph(graph, out / "graph.png", title="Test documents in the trained space")
