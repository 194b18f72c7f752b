"""`gloss-graph graph`: build the graph of a corpus, write it, and answer questions about it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gloss_graph.cli import options
from gloss_graph.cli.options import busy, make_table, of_documents, option, path_option, say

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch_geometric.data import Data

    from gloss_graph.text import Corpus

_FEATURES = (".npy", ".pt", ".safetensors", ".parquet")
_EPOCH_ROWS = 20
_COMMUNITIES = 12  # most communities printed
# Columns of the tables of a comparison and their headings.
_CHURN = {"start": "from", "end": "to", "kept": "kept", "new": "new", "jaccard": "Jaccard"}
_EPOCHS = {"epoch": "epoch", "edge_churn": "edge churn"}
_Words = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="FORMAT")]
of_edges = partial(option, panel="Edges")


def graph(
    context: typer.Context,
    out: Annotated[Path, path_option("New or empty folder.")],
    input: Annotated[Path | None, path_option("Documents: CSV, TSV, JSONL or Parquet.")] = None,
    encoder: Annotated[
        str, option("minilm, a hub id, a folder, or none for --features; a run brings its own.")
    ] = "minilm",
    run: Annotated[Path | None, path_option("Run folder: its documents and its encoder.")] = None,
    features: Annotated[
        Path | None, path_option("npy, pt, safetensors or Parquet, a row per document; or a bank.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        option("graphml (default), gexf, json, parquet, csv, csr, html; any number.", "--format"),
    ] = None,
    more_formats: _Words = None,
    measures: Annotated[bool, option("Measure graph and classes; a table.", "--measures")] = False,
    audit: Annotated[bool, option("Rank labels that the others contradict.", "--audit")] = False,
    explain: Annotated[
        int | None,
        option("Labels that decide it; explanation.csv, .png and .graphml.", metavar="DOC_ID"),
    ] = None,
    pictures: Annotated[bool, option("Draw map, matrix, degrees and reach.", "--pictures")] = False,
    compare: Annotated[bool, option("Of a run: before and after training.", "--compare")] = False,
    top: Annotated[int, option("Rows printed of the audit and the explanation.", min=1)] = 10,
    k: Annotated[int, of_edges("Neighbors per document.")] = 16,
    symmetrize: Annotated[
        str, of_edges("union: either lists the other; mutual: both do.")
    ] = "union",
    bandwidth: Annotated[
        str, of_edges("σ: a number, sqrt, inflection, interclass_min or local.")
    ] = "sqrt",
    min_weight: Annotated[float, of_edges("Drop edges of a smaller weight.")] = 0.0,
    exact_up_to: Annotated[
        int, of_edges("Documents up to which every pair is compared.", min=0)
    ] = 50_000,
    text: options.TextColumn = "text",
    label: options.LabelColumn = "label",
    text_b: options.SecondTexts = None,
    max_length: Annotated[
        int | None, of_documents("Tokens kept per document; else the encoder's.", min=1)
    ] = None,
    max_text: Annotated[
        int | None, of_documents("Longest text in characters; else all of it.", min=1)
    ] = None,
    seed: Annotated[int, option("Of approximate search, communities, samples and places.")] = 0,
) -> None:
    """Build the graph of a corpus, write it for other programs, measure, audit and draw it."""
    from gloss_graph._internal.folders import check_folder, claim, write_json
    from gloss_graph.analysis import document_graph
    from gloss_graph.runs.provenance import provenance
    from gloss_graph.training.config import parse_value
    from gloss_graph.training.snapshots import load_snapshots

    # Whatever can be refused is refused before anything is embedded.
    suffixes = _suffixes((formats or []) + (more_formats or []))
    check_folder(out, "graph", marker="config.json")
    if run is not None and features is not None:
        raise ValueError("'run' and 'features' must not be given together. Leave one out.")
    if input is None and run is None and features is None:
        raise ValueError("'input', 'run' or 'features' must be given.")
    # The default column may be missing; one that was named must be there.
    named = label if options.was_typed(context, "label") else None
    columns = {"text": text, "label": named, "text_b": text_b}
    corpus, source = _source(input, encoder, run, features, columns)
    if compare and run is None:
        raise ValueError("'compare' needs a finished run. Name it with --run.")
    if compare and run is not None and load_snapshots(run) is None:
        raise ValueError(
            f"'compare' needs the record of the run's embeddings ({run} has none). Train it again "
            "without --no-pictures."
        )
    if corpus is not None:
        _check_documents(context, corpus.labels, corpus.ids)
    sigma: Any = parse_value("bandwidth", bandwidth)
    with claim(out, "graph", marker="config.json") as claimed:
        built = document_graph(
            **source,
            k=k,
            symmetrize=symmetrize,
            bandwidth=sigma,
            min_weight=min_weight,
            max_length=max_length,
            exact_up_to=exact_up_to,
            seed=seed,
            keep_features=measures or audit,
            progress=True,
        )
        labels = built.y.where(built.seed_mask, -1)
        _check_documents(context, labels.tolist(), built.doc_id.tolist())
        answers = _Answers(built, claimed.draft, seed, max_text)
        answers.write(suffixes, f"Document graph of {(input or run or features or out).name}")
        if measures:
            answers.measure()
        if audit:
            answers.audit(top)
        if explain is not None:
            answers.explain(explain, top)
        if pictures:
            answers.draw()
        if compare and run is not None:
            answers.compare(run, k, sigma, pictures)
        noted = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in {**context.params, "bandwidth": sigma, **columns}.items()
            if name not in ("out", "formats", "more_formats")
        }
        if run is not None or features is not None:
            noted["encoder"] = None
        noted["command"] = options.typed_words(context)
        write_json(claimed.draft / "config.json", {**noted, **provenance()})
    say(_summary(built))
    for part in answers.said:
        say(part)
    for file in (out / draft.name for draft in answers.files):
        size = file.stat().st_size
        say(f"{file} ({f'{size / 1e6:.1f} MB' if size >= 1e5 else f'{size / 1e3:.1f} kB'})")


def _suffixes(formats: list[str]) -> list[str]:
    from gloss_graph.export import FORMATS

    names = [part for word in formats for part in word.split(",") if part] or ["graphml"]
    known = sorted({suffix.removeprefix(".") for suffix in FORMATS} | {"csr", "html"})
    for name in names:
        if name not in known:
            raise ValueError(f"'format' must be one of {', '.join(known)} (got {name!r}).")
    return list(dict.fromkeys("npz" if name == "csr" else name for name in names))


def _source(
    file: Path | None,
    encoder: str,
    run: Path | None,
    features: Path | None,
    columns: dict[str, str | None],
) -> tuple[Corpus | None, dict[str, Any]]:
    """The documents of a table, and the arguments of `document_graph` that name its documents."""
    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.analysis.document_graph import class_names, read_corpus
    from gloss_graph.text.encoders import NO_ENCODER

    if run is not None and not run.is_dir():
        raise ValueError(f"'run' must be a folder written by gloss-graph train (got {run}).")
    if features is not None and features.suffix not in _FEATURES:
        raise ValueError(
            f"'features' must end in one of {', '.join(_FEATURES)} (got {features.name}). "
            "Documents go to --input."
        )
    names = class_names(run) if run is not None and file is not None else None
    corpus = None if file is None else read_corpus(file, columns, names)
    if run is not None:
        return corpus, {"source": utf8_folder(run), "documents": corpus}
    if features is None:
        if encoder == NO_ENCODER:
            raise ValueError(
                f"'encoder' is {encoder!r}, so 'features' must be given: a row per document of "
                "--input. Name the file with --features, or an encoder."
            )
        return corpus, {"source": corpus, "encoder": encoder}
    source: Any = features
    if features.suffix == ".parquet":
        from gloss_graph.text import read_features

        source = read_features(features)
    return corpus, {"source": source, "documents": corpus}


def _check_documents(context: typer.Context, labels: Sequence[int], ids: Sequence[int]) -> None:
    """Refuse questions that these documents cannot answer."""
    audit, explain = context.params["audit"], context.params["explain"]
    name = "audit" if audit else "explain"
    if (audit or explain is not None) and max(labels, default=-1) < 0:
        raise ValueError(
            f"'{name}' needs labeled documents (got none of {len(ids):,}). Name the column of "
            "the labels with --label."
        )
    if explain is not None and explain not in set(ids):
        raise ValueError(
            f"'explain' must be the id of a document (got {explain}; ids go from {min(ids)} to "
            f"{max(ids)}). Ids are the column doc_id of the node table."
        )
    if context.params["pictures"] and not len(ids):
        raise ValueError("'pictures' needs documents (got none).")


class _Answers:
    """Writes files about a graph into a folder, and collects what to print about them."""

    def __init__(self, graph: Data, out: Path, seed: int, max_text: int | None) -> None:
        self.graph, self.out, self.seed, self.max_text = graph, out, seed, max_text
        self.said: list[Any] = []
        self.files: list[Path] = []

    def write(self, suffixes: list[str], title: str) -> None:
        from gloss_graph.export import write_graph
        from gloss_graph.visualization import write_html

        for suffix in suffixes:
            if suffix == "html":
                page = self._file("graph.html")
                longest = self.max_text or 1000
                write_html(self.graph, page, title=title, max_text=longest, progress=True)
                continue
            path = self.out / f"graph.{suffix}"
            with busy(f"Writing {path.name}"):
                self.files += write_graph(self.graph, path, max_text=self.max_text)

    @cached_property
    def communities(self) -> np.ndarray:
        """The community of every document."""
        from gloss_graph.analysis import louvain_communities
        from gloss_graph.export.graph_arrays import read_arrays

        with busy("Finding communities"):
            return louvain_communities(read_arrays(self.graph).links, seed=self.seed)

    def measure(self) -> None:
        """Measure graph and classes; name the communities if there are texts."""
        import numpy as np
        import pandas as pd

        from gloss_graph.analysis import group_words, measures
        from gloss_graph.export.graph_arrays import read_arrays
        from gloss_graph.reports import measures_summary
        from gloss_graph.visualization.graph_pictures import community_names

        found = self.communities
        with busy("Measuring"):
            measured = measures(self.graph, communities=found, seed=self.seed)
        self.said.append(measures_summary(measured))
        self._table(measured, "measures")
        if self.graph.get("text") is None:
            return
        documents = read_arrays(self.graph)
        with busy("Finding words"):
            words = group_words(documents.text or (), found)
        table = pd.DataFrame(
            {
                "community": community_names(found, documents.y, documents.names),
                "words": [", ".join(words[community]) for community in sorted(words)],
                "documents": np.bincount(found[found >= 0]),
            }
        )
        self._table(table, "communities")
        shown, title = table.head(_COMMUNITIES), "Communities"
        if len(shown) < len(table):
            title += f", the largest {len(shown)} of {len(table):,} (all in communities.csv)"
        rows = [[escape(name), word, f"{size:,}"] for name, word, size in shown.to_numpy()]
        self.said.append(make_table(title, list(table), rows, left=2))

    def audit(self, top: int) -> None:
        from gloss_graph.analysis import audit

        suspects = audit(self.graph, seed=self.seed, progress=True)
        self.said.append(suspects.summary(top))
        self._table(suspects.table, "audit")
        self._table(suspects.duplicates, "duplicates")
        self._table(suspects.confusion.reset_index(), "confusion")

    def explain(self, document: int, top: int) -> None:
        from gloss_graph.analysis import explain
        from gloss_graph.export import write_graph
        from gloss_graph.visualization import plot_explanation

        node = int((self.graph.doc_id == document).nonzero()[0])
        reasons = explain(self.graph, node, top=None)
        self._table(reasons.table, "explanation")
        plot_explanation(reasons, self._file("explanation.png"))
        shown = reasons.head(top)
        place = self.out / "explanation.graphml"
        self.files += write_graph(shown.to_networkx(), place, max_text=self.max_text)
        self.said.append(Text(str(shown), no_wrap=True, overflow="ellipsis"))

    def draw(self) -> None:
        from gloss_graph import visualization as draw

        graph, communities = self.graph, self.communities
        with busy("Drawing the map"):
            file = self._file("map.png")
            draw.plot_communities(graph, file, communities=communities, seed=self.seed)
        with busy("Drawing matrix and histograms"):
            draw.plot_adjacency(graph, self._file("adjacency.png"), communities=communities)
            draw.plot_degrees(graph, self._file("degrees.png"))
            if bool(graph.seed_mask.any()):
                draw.plot_reach(graph, self._file("reach.png"))
            else:
                self.said.append("No reach.png: no document has a label.")

    def compare(self, run: Path, k: int, bandwidth: Any, pictures: bool) -> None:
        """Compare the graphs of a run before and after training."""
        from gloss_graph.reports import measures_summary, run_change
        from gloss_graph.visualization import plot_graph_change

        with busy("Comparing before and after"):
            change = run_change(run, k=k, bandwidth=bandwidth, seed=self.seed)
            before, after = change.before, change.after
            if pictures:
                file, names = self._file("change.png"), before.label_names
                plot_graph_change(
                    before.x, after.x, before.y, file, label_names=names, seed=self.seed
                )
        self._table(change.measures, "compare")
        size = int(before.num_nodes)
        self.said += [
            f"\nBefore and after training, {size:,} labeled documents of the {change.split} part:",
            measures_summary(change.measures),
        ]
        if len(change.churn):
            self._table(change.churn, "churn")
            churn = change.churn.astype({"start": str, "end": str})
            self._shares("Edges of a fixed batch on the way", churn, _CHURN, left=2)
        if len(change.epochs):
            self._table(change.epochs, "epochs")
            title, step = "Edge churn by epoch, fixed batch", -(-len(change.epochs) // _EPOCH_ROWS)
            if step > 1:
                title += f" (1 in {step}, all in epochs.csv)"
            epochs = change.epochs.iloc[::step]
            epochs = epochs.assign(epoch=epochs["epoch"].map("{:g}".format))
            self._shares(title, epochs, _EPOCHS, left=0)

    def _shares(self, title: str, frame: pd.DataFrame, headings: dict[str, str], left: int) -> None:
        """Print columns of a frame by heading and the homophily, shares in percent."""
        headings = {**headings, "homophily": "within a class"}
        rows = [
            [cell if isinstance(cell, str) else _percent(cell) for cell in row]
            for row in frame[list(headings)].itertuples(index=False)
        ]
        self.said.append(make_table(title, headings.values(), rows, left=left))

    def _file(self, name: str) -> Path:
        self.files.append(self.out / name)
        return self.files[-1]

    def _table(self, frame: pd.DataFrame, name: str) -> None:
        """Write a table, with texts as in every other format."""
        from gloss_graph.export.attributes import clean_text
        from gloss_graph.text.tables import csv_bytes

        frame = frame.copy()
        for column in frame.columns:
            if frame[column].map(lambda value: isinstance(value, str)).any():
                limit = self.max_text if column in ("text", "other_text") else None
                frame[column] = [clean_text(str(value), limit) for value in frame[column]]
        frame.columns = [clean_text(str(column)) for column in frame.columns]
        self._file(f"{name}.csv").write_bytes(csv_bytes(frame))


def _summary(graph: Data) -> Table:
    import torch
    from scipy.sparse.csgraph import connected_components
    from torch_geometric.utils import to_scipy_sparse_matrix

    from gloss_graph.export import edge_homophily

    size, edge_index, weight = int(graph.num_nodes), graph.edge_index, graph.edge_weight
    degree = torch.bincount(edge_index[0], minlength=size)
    matrix = to_scipy_sparse_matrix(edge_index, num_nodes=size)
    parts = int(connected_components(matrix, directed=False)[0]) if size else 0
    figures = {
        "documents": f"{size:,}",
        "edges": f"{edge_index.size(1) // 2:,}",
        "connected components": f"{parts:,}",
        "isolated documents": f"{int((degree == 0).sum()):,}",
    }
    if size:
        figures["degree, mean / largest"] = f"{degree.float().mean():.1f} / {degree.max()}"
    if weight.numel():
        spread = f"{weight.min():.3g} / {weight.median():.3g} / {weight.max():.3g}"
        figures["weight, least / median / largest"] = spread
    sigma = float(graph.bandwidth)
    figures["bandwidth σ"] = f"{sigma:.3g}" if sigma == sigma else "per document"
    if graph.search == "ivf":
        figures["neighbors found (sample)"] = f"{100 * graph.recall:.1f} %"
    labels = graph.y[graph.seed_mask]
    figures["labeled documents"] = f"{labels.numel():,}"
    if labels.numel():
        figures["classes"] = str(labels.unique().numel())
        if (alike := edge_homophily(graph)) == alike:
            figures["edges within a class"] = _percent(alike)
    return make_table("Document graph", ("figure", "value"), list(figures.items()))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f} %"
