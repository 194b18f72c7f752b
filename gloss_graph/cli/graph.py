"""`gloss-graph graph`: the graph of a corpus, as files for other programs."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from torch_geometric.data import Data

from gloss_graph.cli.options import LabelColumn, SecondTexts, TextColumn, number_or_name, typed

_FORMATS = {"csr": "npz"}


def graph(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="New or empty folder.")],
    input: Annotated[
        Path | None,
        typer.Option(help="Documents: CSV, TSV, JSONL or Parquet (also .gz, not of Parquet)."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="minilm, a hub id or a folder; a run brings its own.")
    ] = "minilm",
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder: its documents, or those of --input by its encoder."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="npy, pt, safetensors or Parquet, a row a document; or a saved bank."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="graphml, gexf, json, parquet, csv, csr, html; any number."),
    ] = None,
    more_formats: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="FORMAT")] = None,
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
    seed: Annotated[int, typer.Option(help="Of the approximate search.")] = 0,
) -> None:
    """Build the graph of a corpus and write it for Gephi, NetworkX, pandas, Spark or a browser."""
    source = context.get_parameter_source("label")
    run_graph(
        out,
        source=input,
        encoder=encoder,
        run=run,
        features=features,
        formats=[*(formats or []), *(more_formats or [])],
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


def run_graph(
    out: Path,
    *,
    source: Path | None,
    encoder: str,
    run: Path | None,
    features: Path | None,
    formats: list[str],
    max_text: int | None,
    settings: dict[str, Any],
    command: list[str] | None = None,
) -> Data:
    """Build, write and describe the graph; see `gloss-graph graph --help`.

    Raises:
        ValueError: No source or several, an unknown format, and whatever `document_graph` refuses.
        FileExistsError: `out` holds files.
    """
    from rich.console import Console

    from gloss_graph.analysis import document_graph, write_graph, write_html
    from gloss_graph.training.folders import new_folder, write_json
    from gloss_graph.training.provenance import provenance

    suffixes = _suffixes(formats)
    if run is not None and features is not None:
        raise ValueError("'run' and 'features' must not be given together. Leave one out.")
    if source is None and run is None and features is None:
        raise ValueError("'input', 'run' or 'features' must be given.")
    new_folder(out)
    try:
        graph = document_graph(**_source(source, encoder, run, features), **settings, progress=True)
        files: list[Path] = []
        for suffix in suffixes:
            path = out / f"graph.{suffix}"
            if suffix == "html":
                title = f"Document graph of {(source or run or features or out).name}"
                longest = 1000 if max_text is None else max_text
                files.append(write_html(graph, path, title=title, max_text=longest, progress=True))
            else:
                files += write_graph(graph, path, max_text=max_text)
        sources = {"input": source, "run": run, "features": features}
        write_json(
            out / "config.json",
            {
                **{name: None if path is None else str(path) for name, path in sources.items()},
                "encoder": encoder if run is None and features is None else None,
                **settings,
                "max_text": max_text,
                "command": command,
                **provenance(),
            },
        )
    except BaseException:
        # The folder was new or empty: what there is, is ours.
        for file in out.glob("graph.*"):
            file.unlink()
        with suppress(OSError):
            out.rmdir()
        raise
    console = Console()
    console.print(summary_table(graph))
    for file in files:
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        console.print(f"{file} ({size})", highlight=False, markup=False, soft_wrap=True)
    return graph


def _suffixes(formats: list[str]) -> list[str]:
    from gloss_graph.analysis import FORMATS

    names = [part for word in formats for part in word.split(",") if part] or ["graphml"]
    known = sorted({suffix.removeprefix(".") for suffix in FORMATS} | {*_FORMATS, "html"})
    for name in names:
        if name not in known:
            raise ValueError(f"'format' must be one of {', '.join(known)} (got {name!r}).")
    return list(dict.fromkeys(_FORMATS.get(name, name) for name in names))


def _source(
    source: Path | None, encoder: str, run: Path | None, features: Path | None
) -> dict[str, Any]:
    """Arguments of `document_graph` that say what the graph is of."""
    if run is not None:
        if not run.is_dir():
            raise ValueError(f"'run' must be a folder written by gloss-graph train (got {run}).")
        return {"source": run, "documents": source}
    if features is None:
        return {"source": source, "encoder": encoder}
    if features.suffix not in (".npy", ".pt", ".safetensors", ".parquet"):
        raise ValueError(
            "'features' must end in one of .npy, .pt, .safetensors, .parquet "
            f"(got {features.name}). Documents go to --input."
        )
    if features.suffix == ".parquet":
        import torch

        from gloss_graph.text import read_features

        return {"source": torch.from_numpy(read_features(features)), "documents": source}
    return {"source": features, "documents": source}


def summary_table(graph: Data) -> Any:
    """What the graph looks like, as a table for the terminal."""
    import torch
    from rich.table import Table
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size, edge_index = int(graph.num_nodes), graph.edge_index
    degree = torch.bincount(edge_index[0], minlength=size)
    weight = graph.edge_weight
    ones = torch.ones(edge_index.size(1)).numpy()
    matrix = coo_matrix((ones, tuple(edge_index.numpy())), shape=(size, size))
    parts = int(connected_components(matrix, directed=False)[0]) if size else 0
    table = Table(title="Document graph", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("documents", f"{size:,}")
    table.add_row("edges", f"{edge_index.size(1) // 2:,}")
    table.add_row("connected components", f"{parts:,}")
    table.add_row("isolated documents", f"{int((degree == 0).sum()):,}")
    if size:
        table.add_row("degree, mean / largest", f"{degree.float().mean():.1f} / {degree.max()}")
    if weight.numel():
        spread = f"{weight.min():.3g} / {weight.median():.3g} / {weight.max():.3g}"
        table.add_row("weight, least / median / largest", spread)
    sigma = float(graph.bandwidth)
    table.add_row("bandwidth σ", f"{sigma:.3g}" if sigma == sigma else "per document")
    if graph.search == "ivf":
        table.add_row("neighbours found (sample)", f"{100 * graph.recall:.1f} %")
    labels = graph.y[graph.seed_mask]
    table.add_row("labeled documents", f"{labels.numel():,}")
    if labels.numel():
        table.add_row("classes", str(len(Counter(labels.tolist()))))
        ends = graph.y[edge_index]
        both = (ends >= 0).all(dim=0)
        if bool(both.any()):
            alike = (ends[0] == ends[1])[both].float().mean()
            table.add_row("edges within a class", f"{100 * alike:.1f} %")
    return table
