"""`gloss-graph train`: read files, train, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gloss_graph._files import utf8_folder
from gloss_graph._processes import is_main
from gloss_graph._timing import STAGES, stage_seconds
from gloss_graph.analysis import plot_stage_times, plot_training
from gloss_graph.cli.report import run_report
from gloss_graph.text import (
    Corpus,
    FeatureEncoder,
    Splits,
    TextEncoder,
    load_encoder,
    read_features,
    read_splits,
    read_table,
    with_features,
)
from gloss_graph.text.origins import describe_file
from gloss_graph.text.tables import has_column
from gloss_graph.training import RunResult, TrainConfig, train_text, with_unlabeled
from gloss_graph.training.folders import new_folder, write_json
from gloss_graph.training.multilabel import check_multilabel
from gloss_graph.training.parameters import check_run
from gloss_graph.training.processes import join_processes, on_main

if TYPE_CHECKING:
    from gloss_graph.models import GraphModelResult


def run_train(
    train: Path,
    val: Path | None,
    test: Path | None,
    out: Path,
    config: TrainConfig,
    *,
    encoder_name: str,
    pooling: Any,
    max_length: int,
    columns: dict[str, Any],
    unlabeled: Path | None = None,
    features: Path | None = None,
    command: list[str] | None = None,
) -> RunResult:
    """Train on files and print the scores; see `gloss-graph train --help`."""
    check_run(config, on_features=features is not None)
    join_processes(config.device)
    console = Console(quiet=not is_main())
    # Refused before anything is read; given back if nothing comes of it.
    on_main(lambda: new_folder(out))
    try:
        if (encoder_name == "none") != (features is not None):
            raise ValueError("'features' must be given exactly with encoder 'none'.")
        if features is not None and not has_column(train, columns["text"]):
            columns = {**columns, "text": None}
        if "separator" in columns:
            check_multilabel(config)
        splits, config = read_files(train, val, test, unlabeled, config, columns, console)
        files = described_files(train, unlabeled, columns, splits)
        encoder: TextEncoder | FeatureEncoder
        if features is None:
            encoder = load_encoder(encoder_name, pooling=pooling, max_length=max_length)
        else:
            table = read_features(features)
            splits = with_features(splits, table)
            encoder = FeatureEncoder.scaled_to(table, seed=config.seed)
    except BaseException:
        if is_main():
            with suppress(OSError):
                out.rmdir()
        raise
    return train_and_report(splits, encoder, config, out, console, command, files)


def train_and_report(
    splits: Splits,
    encoder: TextEncoder | FeatureEncoder,
    config: TrainConfig,
    out: Path,
    console: Console,
    command: list[str] | None = None,
    files: list[dict[str, Any]] | None = None,
) -> RunResult:
    """Train into a run folder, draw its pictures and print its scores.

    `files`, of `described_files`, lets the run find its documents again.
    """
    result = train_text(
        splits, encoder, config, utf8_folder(out), progress=True, description=config.loss
    )
    if not is_main():
        return result
    if result.skill is not None:
        console.print(str(result.skill), highlight=False)
    notes = []
    if config.loss == "gloss" and not config.few_labels and min(splits.train.labels) >= 0:
        notes.append("No unlabeled documents: the consistency term stays zero.")
    if splits.train.multilabel and config.pictures:
        notes.append("Label sets: no pictures, which color documents by one class.")
    finish_run(out, config.loss, result, score_table({config.loss: result}), notes, command, files)
    return result


def finish_run(
    out: Path,
    name: str,
    result: RunResult | GraphModelResult,
    scores: Table,
    notes: Sequence[str],
    command: list[str] | None,
    files: list[dict[str, Any]] | None = None,
) -> None:
    """Draw the curves of a finished run, print its scores and write its page."""
    console = Console()
    if result.history:
        plot_training({name: result.history}, out / "training.png")
    if stages := stage_seconds(result.metrics):
        plot_stage_times({name: stages}, out / "stages.png")
    console.print(scores)
    for note in notes:
        console.print(note, style="dim")
    note_command(out, command, files)
    run_report(out)
    console.print(f"Run folder: {out}", highlight=False, markup=False, soft_wrap=True)


def read_files(
    train: Path,
    val: Path | None,
    test: Path | None,
    unlabeled: Path | None,
    config: TrainConfig,
    columns: dict[str, Any],
    console: Console,
    *,
    needs_val: bool = False,
) -> tuple[Splits, TrainConfig]:
    """The documents, and the settings with `select` decided.

    Without a validation file a tenth of the labeled documents becomes one where a step is picked
    by it, or with `needs_val`.
    """
    if config.select == "auto" and (unlabeled is not None or config.few_labels):
        config = replace(config, select="last")
    # Where no step is picked every label is used for training.
    share = 0.0 if config.keeps_last and not needs_val else 0.1
    splits = read_splits(train, val, test, val_fraction=share, seed=config.seed, **columns)
    if unlabeled is not None:
        splits = with_unlabeled(splits, _unlabeled(unlabeled, columns, console))
    return splits, config


def _unlabeled(file: Path, columns: dict[str, Any], console: Console) -> Corpus:
    """Documents of a file, their labels ignored."""
    label = columns["label"]
    corpus = read_table(file, text=columns["text"], text_b=columns["text_b"], label=None)
    if not has_column(file, label):
        return corpus
    console.print(f"Column {label!r} of {file} is not read: its documents count as unlabeled.")
    return corpus


def described_files(
    train: Path, unlabeled: Path | None, columns: dict[str, Any], splits: Splits
) -> list[dict[str, Any]]:
    """Where the training documents are from, and their ids: those without labels come last."""
    named = {name: columns[name] for name in ("text", "text_b")}
    files = [describe_file(train, **named)]
    if unlabeled is not None:
        last = describe_file(unlabeled, **named)
        files.append({**last, "first_id": splits.next_id - last["rows"]})
    return files


def note_command(
    out: Path, command: list[str] | None, files: list[dict[str, Any]] | None = None
) -> None:
    """Add the words that were typed, and the files read, to the settings of a finished run."""
    noted = {"command": command, "files": files}
    if noted := {name: value for name, value in noted.items() if value}:
        file = out / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, {**settings, **noted})


def score_table(results: dict[str, RunResult]) -> Table:
    """Scores of runs side by side, with the share of a step each stage takes."""
    table = Table(title="Scores")
    names = [key for result in results.values() for key in result.metrics]
    sets = any(name.endswith(".subset_accuracy") for name in names)
    right = "subset_accuracy" if sets else "accuracy"
    for heading in (
        "run",
        "split",
        "exact sets" if sets else "accuracy",
        *(("micro-F1",) if sets else ()),
        "macro-F1",
        "propagated F1",
        "steps",
        "seconds",
    ):
        table.add_column(
            heading,
            justify="left" if heading in ("run", "split") else "right",
            # What a narrow terminal must not break.
            no_wrap=heading in ("accuracy", "exact sets", "micro-F1", "macro-F1"),
        )
    for name, result in results.items():
        for split in ("val", "test"):
            if f"{split}.macro_f1" in result.metrics:
                spread = result.metrics.get(f"{split}_propagation.macro_f1")
                table.add_row(
                    name,
                    split,
                    f"{100 * result.metrics[f'{split}.{right}']:.1f}",
                    *((f"{100 * result.metrics[f'{split}.micro_f1']:.1f}",) if sets else ()),
                    f"{100 * result.metrics[f'{split}.macro_f1']:.1f}",
                    "" if spread is None else f"{100 * spread:.1f}",
                    f"{result.metrics['steps']:.0f}",
                    f"{result.metrics['seconds.train']:.0f}",
                )
    return table


def time_table(results: dict[str, RunResult]) -> Table:
    """Share of the training time every stage takes, per run."""
    table = Table(title="Share of a training step")
    table.add_column("stage")
    for name in results:
        table.add_column(name, justify="right")
    shares = {name: stage_seconds(result.metrics) for name, result in results.items()}
    for stage in STAGES:
        if any(stage in seconds for seconds in shares.values()):
            cells = [
                f"{100 * seconds.get(stage, 0.0) / sum(seconds.values()):.1f} %"
                for seconds in shares.values()
            ]
            table.add_row(stage, *cells)
    return table
