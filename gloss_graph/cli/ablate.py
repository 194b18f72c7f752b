"""`gloss-graph ablate`: the options of a study; `ablate_run` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gloss_graph.cli.options import path, path_option


def ablate(
    study: Annotated[
        Path | None, typer.Argument(parser=path, help="YAML file of the study.")
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="replay: an adapter on recorded embeddings; full: the encoder."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, time one trial (kept), and stop.")
    ] = False,
    out: Annotated[
        Path | None, path_option(help="Folder; else runs/ablations/STUDY-COST-DATA.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    data: Annotated[
        Path | None, path_option(help="Folder with train.csv and others, or demo; else the file's.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(help="Keep so many training documents; else the file's.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="minilm, a hub id or a folder; else the file's.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; else the file's.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Do failed trials again.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="Database URL that machines share; else optuna.db in --out.")
    ] = None,
    report: Annotated[
        Path | None, path_option(help="Write the report of this study folder again, and stop.")
    ] = None,
) -> None:
    """Vary settings, compare every arm with a baseline over the same seeds, and report.

    Run it again to go on after an interruption or an added value; finished trials are kept.
    """
    from gloss_graph.cli.ablate_run import run_ablate, run_ablation_report

    if (study is None) == (report is None):
        raise ValueError("'ablate' takes either a study file or --report FOLDER.")
    if report is not None:
        run_ablation_report(report)
    elif study is not None:
        run_ablate(
            study,
            out,
            overrides={
                "cost": cost,
                "data": data,
                "documents": documents,
                "encoder": encoder,
                "seeds": seeds,
            },
            dry_run=dry_run,
            workers=workers,
            retry=retry,
            storage=storage,
        )
