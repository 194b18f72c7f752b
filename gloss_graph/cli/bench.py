"""`gloss-graph bench`: measure a step, propagation beside its peers, or memory over many steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gloss_graph.cli.options import path_option

if TYPE_CHECKING:
    import pandas as pd

    from gloss_graph.bench import StageSettings

Sizes = Annotated[list[int] | None, typer.Option(help="Rows of a bank; repeatable.")]


def bench(
    out: Annotated[Path, path_option(help="Folder for tables and picture; replaced there.")],
    what: Annotated[
        str, typer.Option(help="stages, corpus, endurance or all (stages and corpus).")
    ] = "all",
    quick: Annotated[bool, typer.Option(help="Small sizes, about a minute.")] = False,
    bank: Sizes = None,
    dim: Annotated[list[int] | None, typer.Option(help="Dimension; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Documents a step.")] = 128,
    k: Annotated[int, typer.Option(help="Neighbours a document.")] = 16,
    labeled: Annotated[float, typer.Option(help="Share of the bank's rows with a label.")] = 0.7,
    encoder: Annotated[str, typer.Option(help="minilm, a hub id, a folder, or none.")] = "minilm",
    length: Annotated[int, typer.Option(help="Tokens a document of the encoder's step.")] = 32,
    corpus: Annotated[
        Path | None, path_option(help="Labeled file whose texts are embedded; else made points.")
    ] = None,
    made: Annotated[int | None, typer.Option(help="Points of the made corpus.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of endurance.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of every library; else theirs.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, of the stages.")] = "cpu",
    search: Annotated[str, typer.Option(help="Of the banks: auto, exact, descent, ivf.")] = "auto",
    hops: Annotated[int, typer.Option(help="Of the steps near the batch; 0: without them.")] = 2,
) -> None:
    """Measure the stages of a step, whole-corpus propagation beside peers, or memory over time."""
    import pandas as pd
    import torch
    from rich.console import Console

    from gloss_graph._internal.checks import check_choice, check_positive_int
    from gloss_graph.bench import (
        StageSettings,
        limited_threads,
        memory_growth,
        plot_stages,
        stage_table,
        write_tables,
    )
    from gloss_graph.bench.report import markdown

    check_choice("what", what, ("all", "stages", "corpus", "endurance"))
    rounds = (2 if quick else 5) if repeats is None else repeats
    count = (200 if quick else 10_000) if steps is None else steps
    points = (3_000 if quick else 50_000) if made is None else made
    check_positive_int("made", points, minimum=64)
    check_positive_int("steps", count, minimum=10)
    settings = StageSettings(
        banks=tuple(bank or ((0, 1_024, 4_096) if quick else StageSettings.banks)),
        dims=tuple(dim or ((64,) if quick else StageSettings.dims)),
        batch=batch_size,
        k=k,
        labeled=labeled,
        dense_rows=1_024 if quick else StageSettings.dense_rows,
        unrolled_rows=4_096 if quick else StageSettings.unrolled_rows,
        repeats=rounds,
        encoder="none" if quick and encoder == "minilm" else encoder,
        length=length,
        device=device,
        search=search,
        hops=hops,
    )
    console, load = Console(), os.getloadavg()[0]
    tables: dict[str, pd.DataFrame] = {}
    with limited_threads(threads):
        out.mkdir(parents=True, exist_ok=True)
        if what in ("all", "stages"):
            tables["stages: one step"] = stage_table(settings, progress=True)
            plot_stages(tables["stages: one step"], out / "stages.png")
        if what in ("all", "corpus"):
            tables.update(_corpora(corpus, points, quick, settings, out))
        if what == "endurance":
            growth = [
                memory_growth(count, rows=rows, dim=width, settings=settings, progress=True)
                for width in dim or (64,)
                for rows in bank or (4_096,)
            ]
            tables["endurance: resident memory"] = pd.DataFrame(growth)
        used = torch.get_num_threads()
    note = (
        f"{used} threads, torch {torch.__version__}, device {device}; load "
        f"average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end. Medians of "
        f"{rounds} rounds by turns; compare within a row."
    )
    write_tables(tables, out, note)
    for title, table in tables.items():
        console.print(f"\n{title}\n", highlight=False)
        typer.echo(markdown(table))
    console.print(f"{note} Written to {out}.", highlight=False, soft_wrap=True, markup=False)


def _corpora(
    corpus: Path | None, made: int, quick: bool, settings: StageSettings, out: Path
) -> dict[str, pd.DataFrame]:
    import torch

    from gloss_graph.bench.peers import corpus_table, made_corpus
    from gloss_graph.text import load_encoder, read_table
    from gloss_graph.training import encoder_identity, recorded_embeddings

    draws = 2 if quick else 5
    same = {"k": settings.k, "repeats": settings.repeats}
    tables: dict[str, pd.DataFrame] = {}
    if corpus is not None:
        documents = read_table(corpus)
        y = torch.tensor(documents.labels)
        if bool((y < 0).any()):
            raise ValueError(f"'corpus' must have a label in every row ({corpus} does not).")
        x = recorded_embeddings(
            {"corpus": documents},
            lambda: load_encoder("minilm", max_length=64),
            encoder_identity("minilm", max_length=64),
            folder=out,
            progress=True,
        )["corpus"]
        tables[f"corpus {corpus.name}"] = corpus_table(x, y, draws=draws, **same, progress=True)
    x, y = made_corpus(made)
    tables[f"made corpus of {made:,} points"] = corpus_table(
        x, y, draws=min(draws, 3), **same, progress=True
    )
    return tables
