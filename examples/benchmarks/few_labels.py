"""Few labels, many documents: graph consistency and the propagation head against their rivals.

Run ``python examples/benchmarks/few_labels.py --data FOLDER --label-fraction 0.01 --seeds 0 1 2``
on a folder with ``train.csv.gz``, ``val.csv.gz`` and ``test.csv.gz`` (columns ``text,label``).

Every method sees the same draw of labels a seed, the same encoder, the same number of optimiser
steps with as many documents each, and is scored at the last step on the test file, by its linear
head and by propagation over the training documents. Rows are appended to ``--results`` as they
come, so a stopped study goes on where it was; ``static`` is the prediction of propagation over the
untrained encoder's embeddings. The table ends with differences to cross-entropy, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import ttest_rel
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.graph.views import joint_view
from gloss_graph.inference import PropagationHead
from gloss_graph.text import Corpus, Splits, load_encoder, read_splits
from gloss_graph.training import TrainConfig, classification_scores, train_text
from gloss_graph.training.labels import draw_labels

METHODS: dict[str, dict[str, Any]] = {
    "static": {},
    "ce": {"loss": "ce"},
    "in-batch": {"loss": "gloss", "memory_size": 0, "consistency_weight": 0.0, "anchor": 0.0},
    "batch-only": {"loss": "gloss", "memory_size": 0, "graph_weight": 0.0},
    "pseudo": {"loss": "pseudo-label"},
    "static-lp": {"loss": "static-lp"},
    "setfit": {"loss": "setfit"},
    "bank": {"loss": "gloss", "graph_weight": 0.0},
    "warm+ce": {"loss": "ce", "warm_start_steps": 60},
    "warm+bank": {"loss": "gloss", "graph_weight": 0.0, "warm_start_steps": 60},
}


def limited(splits: Splits, rows: Tensor, most: int | None) -> tuple[Splits, Tensor]:
    """Test documents and their embeddings up to a number, evenly through the file."""
    test = splits.test
    if most is None or test is None or len(test) <= most:
        return splits, rows
    keep = np.linspace(0, len(test) - 1, most).astype(int)
    return Splits(splits.train, splits.val, test.select(keep)), rows[keep]


def frozen_views(splits: Splits, settings: argparse.Namespace) -> dict[str, Tensor]:
    """Embeddings of the untrained encoder, once for all methods, seeds and later calls."""
    name = f"{settings.data.name}-{Path(settings.encoder).name}-{settings.length}"
    cache = settings.results.with_name(f"{settings.results.stem}-{name}.safetensors")
    if cache.exists():
        return load_file(cache)
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    views = {
        name: encoder.encode(part.texts, part.texts_b, progress=True)
        for name, part in parts.items()
        if part is not None
    }
    save_file(views, cache)
    return views


def static_scores(
    splits: Splits, frozen: dict[str, Tensor], config: TrainConfig
) -> dict[str, float]:
    """Propagation over untrained embeddings: no training at all."""
    train, test = splits.train, splits.test
    labels = torch.full((len(train),), -1)
    kept = draw_labels(
        train,
        fraction=config.label_fraction,
        per_class=config.labels_per_class,
        seed=config.seed,
    )
    labels[kept] = torch.tensor(train.labels)[kept]
    bank = MemoryBank(len(train), frozen["train"].size(1))
    bank.enqueue(frozen["train"], labels, torch.tensor(train.ids), link=False)
    objective = GraphGuidedObjective(train.num_classes, memory=bank, k=config.k)
    guess = objective.predict(frozen["test"], mode="transductive").argmax(dim=1)
    scores = classification_scores(guess.numpy(), np.asarray(test.labels))
    named = {f"test_propagation.{name}": value for name, value in scores.items()}
    return named | poisson_scores(objective, frozen["test"], test)


def poisson_scores(objective: GraphGuidedObjective, rows: Tensor, test: Corpus) -> dict[str, float]:
    """The same prediction by Poisson learning, for very few labels."""
    memory = objective.memory
    settings = replace(
        objective.targets.settings, rule="poisson", normalization="row", eta=0.02, align=0.5
    )
    labels = torch.cat([memory.labels, torch.full((len(rows),), -1)])
    head = PropagationHead(torch.cat([memory.embeddings, rows]), labels, settings)
    guess = head.probabilities(head.hits)[len(memory) :].argmax(dim=1)
    scores = classification_scores(guess.numpy(), np.asarray(test.labels))
    return {f"test_poisson.{name}": value for name, value in scores.items()}


def run(
    method: str, seed: int, splits: Splits, frozen: dict[str, Tensor], settings: argparse.Namespace
) -> dict[str, float]:
    """Metrics of one run."""
    options = dict(METHODS[method])
    config = TrainConfig(
        **{
            "max_steps": settings.steps,
            "batch_size": settings.batch,
            "unlabeled_batch_size": settings.unlabeled_batch,
            "learning_rate": settings.learning_rate,
            "label_fraction": settings.label_fraction,
            "labels_per_class": settings.labels_per_class,
            "class_balance": settings.class_balance,
            "freeze_layers": settings.freeze_layers,
            "k": 20,
            "seed": seed,
            "eval_batch_size": 64,
            "select": "last",
            **options,
        }
    )
    if method == "static":
        return static_scores(splits, frozen, config)
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    folder = Path(tempfile.mkdtemp())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = train_text(splits, encoder, config, folder / "run", frozen=frozen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = result.embeddings["test"]
    if result.objective.memory.dim > rows.size(1):
        rows = joint_view(rows, frozen["test"], result.objective.anchor)
    return result.metrics | poisson_scores(result.objective, rows, splits.test)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds, differences to cross-entropy by seed."""
    heads = ("test.accuracy", "test.macro_f1", "test_propagation.accuracy")
    columns = (*heads, "test_propagation.macro_f1", "test_poisson.macro_f1")
    titles = ("accuracy", "macro-F1", "accuracy, propagated", "macro-F1, propagated", "Poisson")
    lines = [
        f"| method | seeds | {' | '.join(titles)} | linear minus ce (p) | "
        "propagated minus ce propagated (p) |",
        f"|{'---|' * 9}",
    ]
    by = {(row["method"], row["seed"]): row for row in rows}
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        cells = []
        for column in columns:
            values = [100 * row[column] for row in own if column in row]
            spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
            cells.append(f"{np.mean(values):.1f} ± {spread:.1f}" if values else "")
        for column in ("test.macro_f1", "test_propagation.macro_f1"):
            pairs = [
                (100 * row[column], 100 * by["ce", row["seed"]][column])
                for row in own
                if column in row and ("ce", row["seed"]) in by
            ]
            if method == "ce" or len(pairs) < 2:
                cells.append("")
                continue
            ours, theirs = np.array(pairs).T
            p = ttest_rel(ours, theirs).pvalue
            cells.append(f"{np.mean(ours - theirs):+.1f} ({p:.3f})")
        lines.append(f"| {method} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--label-fraction", type=float)
    parser.add_argument("--labels-per-class", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--unlabeled-batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--class-balance", action="store_true")
    parser.add_argument("--freeze-layers", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--results", type=Path, default=Path("few_labels.jsonl"))
    settings = parser.parse_args()
    if (settings.label_fraction is None) == (settings.labels_per_class is None):
        parser.error("give either --label-fraction or --labels-per-class")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = settings.data
    splits = read_splits(*(data / f"{name}.csv.gz" for name in ("train", "val", "test")))
    frozen = frozen_views(splits, settings)
    splits, frozen["test"] = limited(splits, frozen["test"], settings.test_limit)
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()}
    study = {k: v for k, v in plain.items() if k not in ("methods", "seeds", "results", "threads")}
    rows: list[dict[str, Any]] = []
    if settings.results.exists():
        found = [json.loads(line) for line in settings.results.read_text().splitlines()]
        rows = [row for row in found if row["study"] == study]
    done = {(row["method"], row["seed"]) for row in rows}
    for seed in settings.seeds:
        for method in settings.methods:
            if (method, seed) in done:
                continue
            start = time.perf_counter()
            metrics = run(method, seed, splits, frozen, settings)
            row = {"method": method, "seed": seed, "study": study, **metrics}
            row["seconds"] = time.perf_counter() - start
            rows.append(row)
            with settings.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            linear = 100 * metrics.get("test.macro_f1", float("nan"))
            spread = 100 * metrics.get("test_propagation.macro_f1", float("nan"))
            print(
                f"{method:10s} seed {seed}: macro-F1 {linear:.1f} linear, {spread:.1f} propagated, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    print(table(rows))


if __name__ == "__main__":
    main()
