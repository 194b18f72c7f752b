"""`gloss-graph train`: read files, train, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gloss_graph._internal.processes import is_main
from gloss_graph._internal.timing import STAGES, stage_seconds
from gloss_graph.cli.report import draw_report
from gloss_graph.cli.signals import keeping
from gloss_graph.runs import RunFolder, read_run
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
from gloss_graph.text.readers import describe_file
from gloss_graph.text.tables import has_column
from gloss_graph.training import RunResult, TrainConfig, train_text, with_unlabeled
from gloss_graph.training.checkpoints import Checkpoints, different
from gloss_graph.training.config import DEFAULTS
from gloss_graph.training.multilabel import check_multilabel
from gloss_graph.training.parameters import check_run
from gloss_graph.training.processes import check_same_everywhere, join_processes, on_main
from gloss_graph.visualization import plot_stage_times, plot_training

if TYPE_CHECKING:
    from gloss_graph.baselines import GraphModelResult


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
    resume: bool = False,
    save_steps: int | None = None,
) -> RunResult | None:
    """Train on files and print the scores; see `gloss-graph train --help`.

    Returns None where `resume` finds a finished run.
    """
    check_run(config, on_features=features is not None)
    join_processes(config.device)
    check_same_everywhere({"command": (command or [])[1:]})
    console = Console(quiet=not is_main())
    if resume and RunFolder(out).is_finished:
        _check_finished(out, config)
        console.print(
            f"The run is finished, there is nothing to resume. Run folder: {out}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return None
    # Refused before anything is read.
    on_main(RunFolder(out).check_new)
    if resume and not Checkpoints(out).begun:
        console.print("Nothing to resume: the run starts.", style="dim")
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
    with keeping(Checkpoints(out).kept):
        return train_and_report(
            splits, encoder, config, out, console, command, files, resume, save_steps
        )


def _check_finished(out: Path, config: TrainConfig) -> None:
    stored = read_run(out).settings
    # What "auto" stands for depends on the files.
    asked = {k: v for k, v in config.as_dict().items() if (k, v) != ("select", "auto")}
    changes = different({name: stored.get(name, DEFAULTS[name]) for name in asked}, asked)
    if changes:
        raise ValueError(
            f"'resume' must find a run of these settings ({changes}), and that in {out} is "
            "finished. Train into another folder."
        )


def train_and_report(
    splits: Splits,
    encoder: TextEncoder | FeatureEncoder,
    config: TrainConfig,
    out: Path,
    console: Console,
    command: list[str] | None = None,
    files: list[dict[str, Any]] | None = None,
    resume: bool = False,
    save_steps: int | None = None,
) -> RunResult:
    """Train into a run folder, draw its pictures and print its scores.

    `files`, of `described_files`, lets the run find its documents again.
    """
    notes = []
    spec, unlabeled = config.loss_spec, min(splits.train.labels) < 0
    if spec.fills_bank and spec.uses_unlabeled and not config.few_labels and not unlabeled:
        notes.append("No unlabeled documents: the consistency term stays zero.")
    if splits.train.multilabel and config.pictures:
        notes.append("Label sets: no pictures, which color documents by one class.")

    def finish(draft: Path, result: RunResult) -> None:
        finish_run(draft, out, config.loss, result, command, files)

    result = train_text(
        splits,
        encoder,
        config,
        out,
        progress=True,
        description=config.loss,
        finish=finish,
        resume=resume,
        save_steps=save_steps,
    )
    if not is_main():
        return result
    # Said last: who closes the pipe has a whole run.
    if result.skill is not None:
        console.print(str(result.skill), highlight=False)
    say_run(out, score_table({config.loss: result}), notes)
    return result


def finish_run(
    draft: Path,
    out: Path,
    name: str,
    result: RunResult | GraphModelResult,
    command: list[str] | None,
    files: list[dict[str, Any]] | None = None,
) -> None:
    """Draw the curves of a run and write its page, before it is whole in `out`."""
    folder = RunFolder(draft)
    if result.history:
        plot_training({name: result.history}, folder.curves)
    if stages := stage_seconds(result.metrics):
        plot_stage_times({name: stages}, folder.stages)
    folder.note(command=command, files=files)
    draw_report(draft, place=out)


def say_run(out: Path, scores: Table, notes: Sequence[str] = ()) -> None:
    """Print the scores of a finished run and where it is."""
    console = Console()
    console.print(scores)
    for note in notes:
        console.print(note, style="dim")
    for line in (f"Report: {RunFolder(out).page}", f"Run folder: {out}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    files = (train, val, test, unlabeled)
    return read_parts(files, columns, console, val_share=share, seed=config.seed), config


def read_parts(
    files: tuple[Path, Path | None, Path | None, Path | None],
    columns: dict[str, Any],
    console: Console,
    *,
    val_share: float,
    seed: int,
) -> Splits:
    """The documents of the training, validation, test and unlabeled file.

    Without a validation file `val_share` of the labeled training documents becomes one.
    """
    train, val, test, unlabeled = files
    splits = read_splits(train, val, test, val_fraction=val_share, seed=seed, **columns)
    if unlabeled is not None:
        splits = with_unlabeled(splits, _unlabeled(unlabeled, columns, console))
    return splits


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
