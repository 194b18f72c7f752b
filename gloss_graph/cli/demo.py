"""`gloss-graph demo`: train, compare and draw on a corpus that needs no download."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gloss_graph.cli.options import busy, make_table, option, path_option, say, typed_words
from gloss_graph.cli.train import score_table

if TYPE_CHECKING:
    from gloss_graph.text import Splits
    from gloss_graph.training import RunResult

# Written last: with it the folder is whole.
_METRICS = "metrics.json"
_RUNS = {"cross-entropy": "ce", "memory bank": "gloss"}


def demo(
    context: typer.Context,
    out: Annotated[Path, path_option("New or empty folder for the results.")] = Path("runs/demo"),
    steps: Annotated[int, option("Optimizer steps per run.", min=1)] = 60,
    seed: Annotated[int, option("Seed of both runs.")] = 0,
    encoder: Annotated[str, option("minilm, a hub id or a folder.")] = "minilm",
    max_documents: Annotated[int, option("Size of the corpus.", min=400)] = 2000,
) -> None:
    """Compare cross-entropy with the memory-bank objective on an embedded corpus.

    The corpus is made from the documentation of installed packages, so nothing is downloaded.
    """
    from gloss_graph._internal.folders import check_folder, claim, write_json
    from gloss_graph._internal.timing import stage_seconds
    from gloss_graph.reports import write_run_report
    from gloss_graph.runs import RunFolder
    from gloss_graph.text import docstring_corpus, load_encoder
    from gloss_graph.training import TrainConfig, train_text
    from gloss_graph.visualization import plot_stage_times, plot_training

    start = time.perf_counter()
    check_folder(out, "demo", marker=_METRICS)
    with busy("Collecting documentation of installed packages"):
        splits = docstring_corpus(max_documents=max_documents)
    train = splits.train
    say(f"Corpus: {len(train)} training documents, {train.num_classes} topics.")
    with claim(out, "demo", marker=_METRICS) as claimed:
        draft = claimed.draft
        results: dict[str, RunResult] = {}
        for name, loss in _RUNS.items():
            config = TrainConfig(
                loss=loss, max_steps=steps, batch_size=16, eval_steps=max(1, steps // 2), seed=seed
            )
            untrained = load_encoder(encoder, max_length=48)
            results[name] = train_text(
                splits, untrained, config, draft / loss, progress=True, description=name
            )
        _write_graph(splits, results["memory bank"], draft)
        histories = {name: result.history for name, result in results.items()}
        plot_training(histories, draft / "training.png")
        stages = {name: stage_seconds(result.metrics) for name, result in results.items()}
        plot_stage_times(stages, draft / "stages.png")
        for loss in _RUNS.values():
            RunFolder(draft / loss).note(command=typed_words(context))
            with busy("Drawing pictures"):
                write_run_report(draft / loss, place=out / loss)
        metrics = {
            f"{_RUNS[name]}.{key}": value
            for name, result in results.items()
            for key, value in result.metrics.items()
        }
        seconds = metrics["seconds.total"] = time.perf_counter() - start
        write_json(draft / _METRICS, metrics)
    # Printed last: if the reader closes the pipe the folder is whole.
    for loss in _RUNS.values():
        say(f"Report: {RunFolder(out / loss).page}")
    say(score_table({name: result.metrics for name, result in results.items()}))
    say(_stage_table(stages))
    say(f"Done in {seconds:.0f} s. Pictures, graph and runs: {out}")


def _write_graph(splits: Splits, result: RunResult, out: Path) -> None:
    """The graph of the test documents in the trained space, with labels and predictions."""
    import torch

    from gloss_graph.export import to_networkx, write_graphml
    from gloss_graph.graph import build_document_graph
    from gloss_graph.visualization import plot_graph

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


def _stage_table(runs: dict[str, dict[str, float]]) -> Table:
    """Share of the training time of every stage, per run."""
    from gloss_graph._internal.timing import STAGES

    rows = []
    for stage in STAGES:
        if any(stage in seconds for seconds in runs.values()):
            shares = [100 * found.get(stage, 0) / sum(found.values()) for found in runs.values()]
            rows.append([stage, *(f"{share:.1f} %" for share in shares)])
    return make_table("Share of a training step", ("stage", *runs), rows)
