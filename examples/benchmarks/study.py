"""The table of the G-Loss study: losses side by side on labeled corpora, several seeds.

Run ``python examples/benchmarks/study.py --data MR R8 --folder DATA --out runs/study`` where
``DATA/MR`` holds ``train.csv.gz``, ``val.csv.gz`` and ``test.csv.gz`` (without the last the
validation file is split in two). Every run is a folder of its own, as ``gloss-graph train`` makes
them; finished ones are skipped, so the command resumes. The table, the paired tests and the
picture are those of ``gloss-graph evaluate``; ``--quick`` shortens the training for small machines.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gloss_graph.reports import evaluation_markdown, plot_evaluation
from gloss_graph.runs import compare_runs
from gloss_graph.text import Splits, load_encoder, read_splits, stratified_draw
from gloss_graph.training import TrainConfig, train_text

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {},
    "scl": {"graph_weight": 0.5},
    "xbm-scl": {"graph_weight": 0.5},
    "gloss-published": {"graph_weight": 0.5},
    "gloss": {"graph_weight": 0.5},
}
METRICS = (
    "test.accuracy",
    "test.macro_f1",
    "test.macro_silhouette",
    "epochs_to_stop",
    "seconds.per_step",
)


def splits_of(folder: Path, most: int | None, seed: int) -> Splits:
    """The parts of a corpus, at most `most` training documents, stratified."""
    train, val, test = (folder / f"{name}.csv.gz" for name in ("train", "val", "test"))
    splits = read_splits(train, val, test if test.exists() else None)
    part, held_out, scored = splits.train, splits.val, splits.test
    if scored is None:
        half = stratified_draw(held_out.labels, 0.5, seed=0)
        rest = sorted(set(range(len(held_out))).difference(half))
        held_out, scored = held_out.select(half), held_out.select(rest)
    if most is not None and len(part) > most:
        part = part.select(stratified_draw(part.labels, most / len(part), seed=seed))
    # The tables are headed by the name.
    return Splits(replace(part, name=folder.name), held_out, scored)


def check_same(out: Path, given: dict[str, Any], name: str = "settings") -> None:
    """Note the settings of a study; other ones would mix their runs with those it holds.

    Raises:
        SystemExit: The folder holds a study with other settings.
    """
    note = out / f"{name}.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        other = {name: found.get(name) for name in given if found.get(name) != given[name]}
        if other:
            raise SystemExit(f"'--out' holds a study with {other}. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(given, indent=2), encoding="utf-8")


def arguments(description: str, out: Path) -> argparse.ArgumentParser:
    """The options of a study."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True, help="holds a folder a corpus")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--train-limit", type=int, help="training documents, stratified")
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--patience", type=int, default=3, help="evaluations, two an epoch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--freeze-layers", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--quick", action="store_true", help="short, on 32 tokens")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def begin(settings: argparse.Namespace, more: tuple[str, ...] = ()) -> None:
    """Note what must be the same in all runs of a folder; `more` in a note of its own."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    same = (
        *("encoder", "train_limit", "epochs", "patience", "batch", "length"),
        *("freeze_layers", "bf16"),
    )
    check_same(settings.out, {name: getattr(settings, name) for name in same})
    if more:
        check_same(settings.out, {name: getattr(settings, name) for name in more}, "graph")


def new_run(settings: argparse.Namespace, data: str, loss: str, seed: int) -> tuple[Path, bool]:
    """The folder of a run, emptied of an interrupted one, and whether it is to be trained."""
    out = settings.out / f"{data}-{loss}-{seed}"
    wanted = not (out / "metrics.json").exists()
    if wanted:
        shutil.rmtree(out, ignore_errors=True)
    return out, wanted


def run_loss(settings: argparse.Namespace, data: str, loss: str, seed: int) -> Path:
    """Train an encoder with a loss, unless that was done; gives its run folder."""
    out, wanted = new_run(settings, data, loss, seed)
    if not wanted:
        return out
    splits = splits_of(settings.folder / data, settings.train_limit, seed)
    steps = max(1, len(splits.train) // settings.batch)
    config = TrainConfig(
        loss=loss,
        epochs=settings.epochs,
        eval_steps=max(1, steps // 2),
        patience=settings.patience,
        batch_size=settings.batch,
        freeze_layers=settings.freeze_layers,
        bf16=settings.bf16,
        pictures=False,
        seed=seed,
        **LOSSES[loss],
    )
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    result = train_text(splits, encoder, config, out, progress=True, description=out.name)
    say(out, result.metrics)
    return out


def say(out: Path, metrics: dict[str, float]) -> None:
    """One line a run."""
    accuracy, macro = (100 * metrics[f"test.{name}"] for name in ("accuracy", "macro_f1"))
    Console().print(f"{out.name}: accuracy {accuracy:.1f}, macro-F1 {macro:.1f}", highlight=False)


def show(settings: argparse.Namespace, name: str, metrics: tuple[str, ...], base: str) -> None:
    """Write and print the table and the picture of all runs of the folder."""
    evaluation = compare_runs([settings.out], metrics=metrics, by=["loss"], baseline=base)
    text = evaluation_markdown(evaluation)
    (settings.out / f"{name}.md").write_text(text, encoding="utf-8")
    plot_evaluation(evaluation, settings.out / f"{name}.png")
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0], Path("runs/study"))
    parser.add_argument("--data", nargs="+", default=["MR", "R8", "SST-2"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    settings = parser.parse_args()
    if settings.quick:
        settings.epochs, settings.length = 2.0, 32
    begin(settings)
    for data in settings.data:
        for seed in settings.seeds:
            for loss in settings.losses:
                run_loss(settings, data, loss, seed)
    show(settings, "study", METRICS, "ce")


if __name__ == "__main__":
    main()
