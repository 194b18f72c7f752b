"""`gloss-graph graph`: the graph of a corpus, as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gloss_graph.cli.options import (
    LabelColumn,
    SecondTexts,
    TextColumn,
    number_or_name,
    path_option,
    typed,
)


def graph(
    context: typer.Context,
    out: Annotated[Path, path_option(help="New or empty folder.")],
    input: Annotated[
        Path | None,
        path_option(help="Documents: CSV, TSV, JSONL or Parquet (also .gz, not of Parquet)."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="minilm, a hub id, a folder, or none for --features; a run brings its own."
        ),
    ] = "minilm",
    run: Annotated[
        Path | None,
        path_option(help="Run folder: its documents, or those of --input by its encoder."),
    ] = None,
    features: Annotated[
        Path | None,
        path_option(help="npy, pt, safetensors or Parquet, a row a document; or a saved bank."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="graphml (default), gexf, json, parquet, csv, csr, html; any number."
        ),
    ] = None,
    more_formats: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="FORMAT")] = None,
    measures: Annotated[
        bool, typer.Option("--measures", help="Measure graph and classes; measures.csv.")
    ] = False,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Rank labels the neighbourhood contradicts; audit.csv."),
    ] = False,
    explain: Annotated[
        int | None,
        typer.Option(
            metavar="DOC_ID",
            help="Which labels decide this document; explanation.csv, .png and .graphml.",
        ),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", help="map.png, adjacency.png, degrees.png and reach.png."),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Of a run: measures before and after training, edges replaced on the way "
            "and in every epoch; compare.csv, churn.csv and epochs.csv.",
        ),
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, help="Rows printed of the audit and the explanation.")
    ] = 10,
    k: Annotated[int, typer.Option(help="Neighbours a document.")] = 16,
    symmetrize: Annotated[
        str, typer.Option(help="union: either lists the other; mutual: both do.")
    ] = "union",
    bandwidth: Annotated[
        str, typer.Option(help="σ: a number, sqrt, inflection, interclass_min or local.")
    ] = "sqrt",
    min_weight: Annotated[float, typer.Option(help="Drop edges of a smaller weight.")] = 0.0,
    max_text: Annotated[
        int | None, typer.Option(min=1, help="Longest text in characters; else all of it.")
    ] = None,
    text: TextColumn = "text",
    label: LabelColumn = "label",
    text_b: SecondTexts = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens kept of a document; else the encoder's.")
    ] = None,
    exact_up_to: Annotated[
        int, typer.Option(min=0, help="Documents up to which every pair is compared.")
    ] = 50_000,
    seed: Annotated[
        int, typer.Option(help="Of approximate search, communities, samples and places.")
    ] = 0,
) -> None:
    """Build the graph of a corpus, write it for other programs, measure, audit and draw it."""
    from gloss_graph.cli.graph_run import Questions, run_graph

    source = context.get_parameter_source("label")
    run_graph(
        out,
        source=input,
        encoder=encoder,
        run=run,
        features=features,
        formats=[*(formats or []), *(more_formats or [])],
        questions=Questions(
            measures=measures,
            audit=audit,
            explain=explain,
            pictures=pictures,
            compare=compare,
            top=top,
        ),
        max_text=max_text,
        command=typed(context),
        settings={
            "k": k,
            "symmetrize": symmetrize,
            "bandwidth": number_or_name(bandwidth),
            "min_weight": min_weight,
            "text": text,
            # The default is a wish, a column that is named must be there.
            "label": None if source is None or source.name == "DEFAULT" else label,
            "text_b": text_b,
            "max_length": max_length,
            "exact_up_to": exact_up_to,
            "seed": seed,
        },
    )
