"""The table of the study: TextGCN, BertGCN, cross-entropy and G-Loss side by side.

Run ``python examples/benchmarks/study_table.py --folder DATA --data R8 MR --out runs/table`` where
``DATA/MR`` holds ``train.csv.gz``, ``val.csv.gz`` and ``test.csv.gz``. Every run is a folder of its
own, as ``gloss-graph train`` makes them; finished ones are skipped, so the command resumes. All
rows see the same documents and labels; the graph models see the texts of the test documents too
(never their labels), which is what transductive means. BertGCN begins with the encoder that
cross-entropy fine-tuned under the same seed, as in its paper, with a head fitted anew, and trains
it on beside the graph network; its seconds are those of that second training alone.
``--quick`` shortens the training for small machines; ``--rows text-gcn`` runs some of the rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from study import arguments, begin, new_run, run_loss, say, show, splits_of

from gloss_graph.baselines import BertGCNConfig, TextGCNConfig, train_graph_model
from gloss_graph.training import TextClassifier

ROWS = ("text-gcn", "ce", "bert-gcn", "gloss-published", "gloss")
METRICS = ("test.accuracy", "test.macro_f1", "seconds.train")
# Of MR's short texts TextGCN leaves out nothing.
CLEANING: dict[str, dict[str, Any]] = {"MR": {"min_count": 1, "stop_words": False}}


def run_graph_model(settings: argparse.Namespace, data: str, row: str, seed: int) -> None:
    """Train TextGCN or BertGCN, unless that was done."""
    start = None if row == "text-gcn" else run_loss(settings, data, "ce", seed)
    out, wanted = new_run(settings, data, row, seed)
    if not wanted:
        return
    splits = splits_of(settings.folder / data, settings.train_limit, seed)
    common = {"seed": seed, "pictures": False, "cleaning": "published", **CLEANING.get(data, {})}
    if start is None:
        result = train_graph_model(splits, TextGCNConfig(**common), out, progress=True)
    else:
        graph = BertGCNConfig(
            epochs=settings.graph_epochs,
            head_learning_rate=settings.graph_rate,
            fine_tune_epochs=0,
            patience=3,
            freeze_layers=settings.freeze_layers,
            bf16=settings.bf16,
            **common,
        )
        encoder = TextClassifier.load(start / "model").encoder
        result = train_graph_model(splits, graph, out, encoder=encoder, progress=True)
    say(out, result.metrics)


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0], Path("runs/table"))
    parser.add_argument("--data", nargs="+", default=["R8", "MR"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--graph-epochs", type=int, default=10, help="joint epochs of bert-gcn")
    parser.add_argument("--graph-rate", type=float, default=1e-3, help="learning rate of its GNN")
    settings = parser.parse_args()
    if settings.quick:
        settings.epochs, settings.graph_epochs, settings.length = 1.0, 1, 32
    begin(settings, ("graph_epochs", "graph_rate"))
    for data in settings.data:
        for seed in settings.seeds:
            for row in settings.rows:
                if row in ("text-gcn", "bert-gcn"):
                    run_graph_model(settings, data, row, seed)
                else:
                    run_loss(settings, data, row, seed)
    base = "ce" if {"ce", "bert-gcn"} & set(settings.rows) else settings.rows[0]
    show(settings, "table", METRICS, base)


if __name__ == "__main__":
    main()
