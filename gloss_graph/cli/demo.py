"""`gloss-graph demo`: train, compare and draw on a corpus that needs no download."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gloss_graph.cli.options import busy, option, path_option, say, typed_words
from gloss_graph.cli.train import score_table

if TYPE_CHECKING:
    from gloss_graph.text import Splits
    from gloss_graph.training import RunResult

# Written last: with it the folder is whole.
_METRICS = "metrics.json"
_LENGTH = 32  # tokens kept of a document
_RUNS = {"cross-entropy": "ce", "corpus graph": "gloss"}


def demo(
    context: typer.Context,
    out: Annotated[Path, path_option("New or empty folder for the results.")] = Path("runs/demo"),
    steps: Annotated[int, option("Optimizer steps of each training.", min=1)] = 60,
    labels_per_class: Annotated[int, option("Labels per topic; the others are hidden.", min=2)] = 5,
    seed: Annotated[int, option("Seed of the draw of labels and of both runs.")] = 0,
    encoder: Annotated[str, option("minilm, a hub id or a folder.")] = "minilm",
    max_documents: Annotated[int, option("Size of the corpus.", min=400)] = 3000,
) -> None:
    """Learn topics from five labels each: from the labels alone, and from the corpus graph too.

    The corpus is made from the documentation of installed packages, so nothing is downloaded.
    """
    from contextlib import ExitStack
    from copy import deepcopy

    import torch

    from gloss_graph._internal.folders import check_folder, claim, write_json
    from gloss_graph.reports import write_run_report
    from gloss_graph.runs import RunFolder
    from gloss_graph.text import load_encoder
    from gloss_graph.training import TrainConfig, train_text
    from gloss_graph.training.config import recipe_settings
    from gloss_graph.visualization import plot_graph_change

    start = time.perf_counter()
    check_folder(out, "demo", marker=_METRICS)
    with busy("Collecting documentation of installed packages"):
        splits = _splits(max_documents)
    train, test = splits.train, splits.parts["test"]
    labeled = labels_per_class * train.num_classes
    say(
        f"Corpus: {len(train)} training documents of {train.num_classes} topics, "
        f"{labeled} of them with a label."
    )
    # Half of the layers are not trained: as good with few labels, in less time.
    plain = {"loss": "ce", "max_steps": steps, "batch_size": 16, "freeze_layers": None}
    few_labels = recipe_settings("few-labels", few_labels=True)
    # Pictures would take a minute of three.
    common = {"labels_per_class": labels_per_class, "seed": seed, "pictures": False}
    settings: dict[str, dict[str, Any]] = {
        "ce": {**common, **plain, "class_balance": True},
        "gloss": {**common, **few_labels, "graph_start_steps": steps},
    }
    with ExitStack() as stack:
        draft = stack.enter_context(claim(out, "demo", marker=_METRICS)).draft
        # The graph, and the picture of what training changes.
        untrained = load_encoder(encoder, max_length=_LENGTH)
        untrained.freeze(None)
        stack.enter_context(untrained.keeping_states(*splits.parts.values()))
        frozen = {name: untrained.embed(part, progress=True) for name, part in splits.parts.items()}
        results: dict[str, RunResult] = {
            name: train_text(
                splits,
                deepcopy(untrained),
                TrainConfig(**settings[loss]),
                draft / loss,
                frozen=frozen,
                progress=True,
                description=name,
            )
            for name, loss in _RUNS.items()
        }
        with busy("Drawing pictures"):
            trained = results["corpus graph"]
            _write_graph(splits, trained, draft)
            plot_graph_change(
                frozen["test"],
                trained.embeddings["test"],
                torch.tensor(test.labels),
                draft / "before_after.png",
                label_names=test.label_names,
                texts=test.texts,
                title="Test documents before and after training",
            )
            for loss in _RUNS.values():
                RunFolder(draft / loss).note(command=typed_words(context))
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
    without, with_graph = (100 * metrics[f"{loss}.test.macro_f1"] for loss in _RUNS.values())
    say(
        f"With {labeled} labels: {without:.1f} -> {with_graph:.1f} macro-F1 on {len(test)} test "
        f"documents ({' -> '.join(_RUNS)}; {len(train) - labeled} documents have no label)."
    )
    say(f"Look at {out / 'before_after.png'}: the test documents, their classes and neighbors.")
    say(f"Look at {out / 'graph.html'}: the test documents with the labels that decide them.")
    say(f"Done in {seconds:.0f} s. Pictures, graph and runs: {out}")


def _splits(max_documents: int) -> Splits:
    """The corpus; no step is chosen by its validation documents, so they are trained on."""
    from dataclasses import replace

    from gloss_graph.text import Splits, docstring_corpus

    parts = docstring_corpus(max_documents=max_documents).parts
    train, val = parts["train"], parts["val"]
    joined = {key: getattr(train, key) + getattr(val, key) for key in ("texts", "labels", "ids")}
    return Splits(replace(train, **joined), test=parts["test"])


def _write_graph(splits: Splits, result: RunResult, out: Path) -> None:
    """The graph of labeled and test documents in the trained space, as page and GraphML."""
    import torch

    from gloss_graph.export import to_networkx, write_graphml
    from gloss_graph.graph import build_document_graph
    from gloss_graph.runs import RunFolder
    from gloss_graph.visualization import write_html

    test, names, embeddings = splits.parts["test"], splits.train.label_names, result.embeddings
    labels, ids = torch.tensor(test.labels), torch.tensor(test.ids)
    answers = torch.from_numpy(result.predictions["test"])
    inner = build_document_graph(embeddings["test"], labels, ids, k=8)
    split = ["test"] * len(test)
    graph = to_networkx(inner, test.texts, label_names=names, predicted=answers, split=split)
    write_graphml(graph, out / "graph.graphml")

    used = set(RunFolder(out / "gloss").read_labels_used().ids)
    known = splits.train.select([n in used for n in splits.train.ids])
    classes = torch.tensor(known.labels)
    data = build_document_graph(
        torch.cat([result.model.encoder.embed(known), embeddings["test"]]),
        torch.cat([classes, labels]),
        torch.cat([torch.tensor(known.ids), ids]),
        k=8,
    )
    data.seed_mask[len(known) :] = False
    data.predicted = torch.cat([classes, answers])
    texts = known.texts + test.texts
    write_html(data, out / "graph.html", texts=texts, label_names=names, title="Documentation")
