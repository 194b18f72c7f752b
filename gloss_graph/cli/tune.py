"""`gloss-graph tune`: the options of a search; `tune_run` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gloss_graph.cli.options import (
    Config,
    LabelColumn,
    MaxLength,
    Pooling,
    SecondTexts,
    Set,
    TextColumn,
    Unlabeled,
    path_option,
)
from gloss_graph.cli.settings import given_settings


def tune(
    context: typer.Context,
    train: Annotated[Path, path_option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    out: Annotated[Path, path_option(help="New folder, or that of a search to go on with.")],
    val: Annotated[Path | None, path_option(help="Validation file; else 10 % of train.")] = None,
    test: Annotated[Path | None, path_option(help="Test file, for --final alone.")] = None,
    trials: Annotated[int, typer.Option(help="Finished trials wanted, all workers together.")] = 30,
    params: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings to search over their declared ranges; else those the loss depends on."
        ),
    ] = None,
    more_params: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="PARAM")] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", help="Search a setting in name=low:high, with :log or :STEP."),
    ] = None,
    choices: Annotated[
        list[str] | None, typer.Option("--choice", help="Search a setting among name=one,two.")
    ] = None,
    config: Config = None,
    settings: Set = None,
    metric: Annotated[
        str,
        typer.Option(
            help="val.macro_f1, val.accuracy, val.macro_silhouette, val_propagation.macro_f1 or "
            "val_propagation.accuracy."
        ),
    ] = "val.macro_f1",
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no further trial starts.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Database URL that workers share; else study.db in --out.")
    ] = None,
    study_name: Annotated[str, typer.Option(help="Of the study in the database.")] = "gloss-graph",
    final: Annotated[
        bool, typer.Option(help="Train the best settings into --out/best and score --test.")
    ] = False,
    keep_runs: Annotated[
        bool, typer.Option("--keep-runs", help="Keep the run folders of complete trials.")
    ] = False,
    encoder: Annotated[str, typer.Option(help="minilm, a hub id or a folder.")] = "minilm",
    unlabeled: Unlabeled = None,
    text: TextColumn = "text",
    label: LabelColumn = "label",
    text_b: SecondTexts = None,
    pooling: Pooling = None,
    max_length: MaxLength = 128,
) -> None:
    """Search for the settings that score best on validation documents (the paper's G-Loss-O).

    Run it again to go on after an interruption, or on many machines with one --storage.
    """
    from gloss_graph.cli.tune_run import Files, run_tune

    run_tune(
        Files(
            train=train,
            val=val,
            test=test,
            unlabeled=unlabeled,
            encoder=encoder,
            pooling=pooling,
            max_length=max_length,
            text=text,
            label=label,
            text_b=text_b,
        ),
        out,
        base=given_settings(context, config, settings or []),
        params=[*(params or []), *(more_params or [])],
        ranges=ranges or [],
        choices=choices or [],
        trials=trials,
        metric=metric,
        timeout=timeout,
        storage=storage,
        study_name=study_name,
        final=final,
        keep_runs=keep_runs,
    )
