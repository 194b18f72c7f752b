"""Build the graph of a corpus, write it, and answer what was asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch_geometric.data import Data

from gloss_graph.cli.graph_answers import (
    Questions,
    answer,
    check_documents,
    summary_table,
)

__all__ = ["Questions", "run_graph"]

_FORMATS = {"csr": "npz"}
_COLUMNS = ("text", "label", "text_b")


def run_graph(
    out: Path,
    *,
    source: Path | None,
    encoder: str,
    run: Path | None,
    features: Path | None,
    formats: list[str],
    questions: Questions,
    max_text: int | None,
    settings: dict[str, Any],
    command: list[str] | None = None,
) -> Data:
    """Build, write and describe the graph; see `gloss-graph graph --help`.

    Whatever can be refused is refused before anything is embedded. Files appear all at once, when
    all are whole.

    Raises:
        ValueError: No source or several, an unknown format, a question the documents cannot
            answer, and whatever `document_graph` refuses.
        FileExistsError: `out` holds files.
        BlockingIOError: Another process writes into `out`.
    """
    from rich.console import Console

    from gloss_graph._internal.folders import check_folder, claim, write_json
    from gloss_graph.analysis import document_graph
    from gloss_graph.runs.provenance import provenance

    suffixes = _suffixes(formats)
    check_folder(out, "graph", marker="config.json")
    if run is not None and features is not None:
        raise ValueError("'run' and 'features' must not be given together. Leave one out.")
    if source is None and run is None and features is None:
        raise ValueError("'input', 'run' or 'features' must be given.")
    columns = {name: settings[name] for name in _COLUMNS}
    given = _source(source, encoder, run, features, columns)
    questions.check(run)
    if source is not None:
        corpus = given["source"] if run is None and features is None else given["documents"]
        check_documents(questions, corpus.labels, corpus.ids)
    with claim(out, "graph", marker="config.json") as claimed:
        draft = claimed.draft
        graph = document_graph(
            **given,
            **{name: value for name, value in settings.items() if name not in _COLUMNS},
            keep_features=questions.measures or questions.audit,
            progress=True,
        )
        labels = graph.y.where(graph.seed_mask, -1)
        check_documents(questions, labels.tolist(), graph.doc_id.tolist())
        title = f"Document graph of {(source or run or features or out).name}"
        files = _written(graph, draft, suffixes, title, max_text)
        sources = {"input": source, "run": run, "features": features}
        said, more = answer(graph, questions, draft, run=run, settings=settings, max_text=max_text)
        write_json(
            draft / "config.json",
            {
                **{name: None if path is None else str(path) for name, path in sources.items()},
                "encoder": encoder if run is None and features is None else None,
                **settings,
                **questions._asdict(),
                "max_text": max_text,
                "command": command,
                **provenance(),
            },
        )
    console = Console()
    for part in (summary_table(graph), *said):
        console.print(part)
    for file in (out / draft.name for draft in (*files, *more)):
        size = file.stat().st_size
        shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
        console.print(f"{file} ({shown})", highlight=False, markup=False, soft_wrap=True)
    return graph


def _written(
    graph: Data, out: Path, suffixes: list[str], title: str, max_text: int | None
) -> list[Path]:
    from gloss_graph.cli.graph_answers import busy
    from gloss_graph.export import write_graph
    from gloss_graph.visualization import write_html

    files: list[Path] = []
    for suffix in suffixes:
        path = out / f"graph.{suffix}"
        if suffix == "html":
            longest = 1000 if max_text is None else max_text
            files.append(write_html(graph, path, title=title, max_text=longest, progress=True))
        else:
            with busy(f"Writing {path.name}"):
                files += write_graph(graph, path, max_text=max_text)
    return files


def _suffixes(formats: list[str]) -> list[str]:
    from gloss_graph.export import FORMATS

    names = [part for word in formats for part in word.split(",") if part] or ["graphml"]
    known = sorted({suffix.removeprefix(".") for suffix in FORMATS} | {*_FORMATS, "html"})
    for name in names:
        if name not in known:
            raise ValueError(f"'format' must be one of {', '.join(known)} (got {name!r}).")
    return list(dict.fromkeys(_FORMATS.get(name, name) for name in names))


def _source(
    source: Path | None,
    encoder: str,
    run: Path | None,
    features: Path | None,
    columns: dict[str, str | None],
) -> dict[str, Any]:
    """Arguments of `document_graph` that say what the graph is of; tables are read here."""
    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.analysis.document_graph import class_names, read_corpus
    from gloss_graph.text.pretrained import NO_ENCODER

    if run is not None:
        if not run.is_dir():
            raise ValueError(f"'run' must be a folder written by gloss-graph train (got {run}).")
        corpus = None if source is None else read_corpus(source, columns, class_names(run))
        return {"source": utf8_folder(run), "documents": corpus}
    if features is not None and features.suffix not in (".npy", ".pt", ".safetensors", ".parquet"):
        raise ValueError(
            "'features' must end in one of .npy, .pt, .safetensors, .parquet "
            f"(got {features.name}). Documents go to --input."
        )
    corpus = None if source is None else read_corpus(source, columns, None)
    if features is None:
        if encoder == NO_ENCODER:
            raise ValueError(
                f"'encoder' is {encoder!r}, so 'features' must be given: a row per document of "
                "--input. Name the file with --features, or an encoder."
            )
        return {"source": corpus, "encoder": encoder}
    if features.suffix == ".parquet":
        import torch

        from gloss_graph.text import read_features

        return {"source": torch.from_numpy(read_features(features)), "documents": corpus}
    return {"source": features, "documents": corpus}
