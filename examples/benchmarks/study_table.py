"""The table of the study: TextGCN, BertGCN, cross-entropy and G-Loss side by side.

Run ``python examples/benchmarks/study_table.py --folder DATA --data R8 MR --out runs/table`` where
``DATA/MR`` holds ``train.csv.gz``, ``val.csv.gz`` and ``test.csv.gz``. Every run is a folder of its
own, as ``gloss-graph train`` makes them; finished ones are skipped, so the command resumes. All
rows see the same documents and labels; the graph models see the texts of the test documents too
(never their labels), which is what transductive means. ``--quick`` shortens the training for small
machines; ``--rows text-gcn`` runs some of the rows.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from study import check_same, splits_of

from gloss_graph.analysis import evaluation_markdown, plot_evaluation
from gloss_graph.models import BertGCNConfig, TextGCNConfig, train_graph_model
from gloss_graph.text import Splits, load_encoder
from gloss_graph.training import TrainConfig, compare_runs, train_text

ROWS = ("text-gcn", "bert-gcn", "ce", "gloss-published", "gloss")
METRICS = ("test.accuracy", "test.macro_f1", "seconds.train")
# Of MR's short texts TextGCN leaves out nothing.
CLEANING: dict[str, dict[str, Any]] = {"MR": {"min_count": 1, "stop_words": False}}


def one_run(row: str, splits: Splits, out: Path, seed: int, settings: argparse.Namespace) -> float:
    """Train one row of the table; gives its test accuracy."""
    cleaning = {"seed": seed, "pictures": False, **CLEANING.get(splits.train.name, {})}
    if row == "text-gcn":
        config = TextGCNConfig(**cleaning)
        return train_graph_model(splits, config, out, progress=True).metrics["test.accuracy"]
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    if row == "bert-gcn":
        graph = BertGCNConfig(
            epochs=settings.graph_epochs,
            fine_tune_epochs=settings.epochs,
            fine_tune_rate=5e-5,
            batch_size=settings.batch,
            patience=settings.patience,
            **cleaning,
        )
        result = train_graph_model(splits, graph, out, encoder=encoder, progress=True)
        return result.metrics["test.accuracy"]
    steps = max(1, len(splits.train) // settings.batch)
    trained = TrainConfig(
        loss=row,
        epochs=settings.epochs,
        eval_steps=max(1, steps // 2),
        patience=2 * settings.patience,
        batch_size=settings.batch,
        graph_weight=0.5,
        pictures=False,
        seed=seed,
    )
    result = train_text(splits, encoder, trained, out, progress=True, description=out.name)
    return result.metrics["test.accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="holds a folder a corpus")
    parser.add_argument("--data", nargs="+", default=["R8", "MR"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--train-limit", type=int, help="training documents, stratified")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--graph-epochs", type=int, default=10, help="joint epochs of bert-gcn")
    parser.add_argument("--patience", type=int, default=3, help="epochs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="1 epoch each, 32 tokens")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.quick:
        settings.epochs, settings.graph_epochs, settings.length = 1, 1, 32
    console = Console()
    same = ("encoder", "train_limit", "epochs", "graph_epochs", "patience", "batch", "length")
    check_same(settings.out, {name: getattr(settings, name) for name in same})
    for data in settings.data:
        for seed in settings.seeds:
            for row in settings.rows:
                out = settings.out / f"{data}-{row}-{seed}"
                if (out / "metrics.json").exists():
                    continue
                shutil.rmtree(out, ignore_errors=True)
                splits = splits_of(settings.folder / data, settings.train_limit, seed)
                score = one_run(row, splits, out, seed, settings)
                console.print(f"{out.name}: accuracy {100 * score:.1f}", highlight=False)
    base = "ce" if "ce" in settings.rows else settings.rows[0]
    evaluation = compare_runs([settings.out], metrics=METRICS, by=["loss"], baseline=base)
    text = evaluation_markdown(evaluation)
    (settings.out / "table.md").write_text(text, encoding="utf-8")
    plot_evaluation(evaluation, settings.out / "table.png")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
