"""What `gloss-graph graph` can be asked about the graph it built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch_geometric.data import Data

__all__ = ["Questions", "answer", "busy", "check_documents", "summary_table"]

_EPOCH_ROWS = 20


class Questions(NamedTuple):
    """What is wanted beside the graph; see `gloss-graph graph --help`."""

    measures: bool = False
    audit: bool = False
    explain: int | None = None
    pictures: bool = False
    compare: bool = False
    top: int = 10

    def check(self, run: Path | None) -> None:
        """Refuse what needs a run where there is none, or one without a record.

        Raises:
            ValueError: See above.
        """
        if not self.compare:
            return
        if run is None:
            raise ValueError("'compare' needs a finished run. Name it with --run.")
        from gloss_graph.training.snapshots import load_snapshots

        if load_snapshots(run) is None:
            raise ValueError(
                f"'compare' needs the record of the run's embeddings ({run} has none). Train it "
                "again without --no-pictures."
            )


def check_documents(questions: Questions, labels: Sequence[int], ids: Sequence[int]) -> None:
    """Refuse questions that these documents cannot answer.

    Raises:
        ValueError: No label, no document of that id, no document to draw.
    """
    for name in ("audit", "explain"):
        wanted = getattr(questions, name)
        if wanted is not None and wanted is not False and max(labels, default=-1) < 0:
            raise ValueError(
                f"'{name}' needs labeled documents (got none of {len(ids):,}). Name the column of "
                "the labels with --label."
            )
    if questions.explain is not None and questions.explain not in set(ids):
        raise ValueError(
            f"'explain' must be the id of a document (got {questions.explain}; ids go from "
            f"{min(ids)} to {max(ids)}). Ids are the column doc_id of the node table."
        )
    if questions.pictures and not len(ids):
        raise ValueError("'pictures' needs documents (got none).")


def answer(
    graph: Data,
    questions: Questions,
    out: Path,
    *,
    run: Path | None,
    settings: dict[str, Any],
    max_text: int | None,
) -> tuple[list[Any], list[Path]]:
    """Answer in files of `out`.

    Returns:
        What to print, and the files written.
    """
    from gloss_graph.analysis import audit, louvain_communities, measures
    from gloss_graph.export.graph_arrays import read_arrays
    from gloss_graph.reports import measures_summary

    said: list[Any] = []
    files: list[Path] = []

    def table(frame: pd.DataFrame, name: str) -> None:
        files.append(_write_csv(frame, out / f"{name}.csv", max_text))

    @cache
    def communities() -> np.ndarray:
        with busy("Finding communities"):
            return louvain_communities(read_arrays(graph).links, seed=settings["seed"])

    if questions.measures:
        groups = communities()
        with busy("Measuring"):
            found = measures(graph, communities=groups, seed=settings["seed"])
        said.append(measures_summary(found))
        table(found, "measures")
    if questions.audit:
        suspects = audit(graph, seed=settings["seed"], progress=True)
        said.append(suspects.summary(questions.top))
        table(suspects.table, "audit")
        table(suspects.duplicates, "duplicates")
        table(suspects.confusion.reset_index(), "confusion")
    if questions.explain is not None:
        said.append(_explained(graph, questions, out, files, max_text))
    if questions.pictures:
        files += _drawn(graph, out, communities(), settings["seed"], said)
    if questions.compare and run is not None:
        said += _compared(run, settings, out, questions.pictures, files)
    return said, files


def _explained(
    graph: Data, questions: Questions, out: Path, files: list[Path], max_text: int | None
) -> Any:
    from rich.text import Text

    from gloss_graph.analysis import explain
    from gloss_graph.export import write_graph
    from gloss_graph.visualization import plot_explanation

    node = int((graph.doc_id == questions.explain).nonzero()[0])
    reasons = explain(graph, node, top=None)
    files.append(_write_csv(reasons.table, out / "explanation.csv", max_text))
    plot_explanation(reasons, out / "explanation.png")
    files.append(out / "explanation.png")
    shown = reasons.head(questions.top)
    files += write_graph(shown.to_networkx(), out / "explanation.graphml", max_text=max_text)
    return Text(str(shown), no_wrap=True, overflow="ellipsis")


def _drawn(
    graph: Data, out: Path, communities: np.ndarray, seed: int, said: list[Any]
) -> list[Path]:
    from gloss_graph.visualization import plot_adjacency, plot_communities, plot_degrees, plot_reach

    files = [out / f"{name}.png" for name in ("map", "adjacency", "degrees", "reach")]
    with busy("Drawing the map"):
        plot_communities(graph, files[0], communities=communities, seed=seed)
    with busy("Drawing matrix and histograms"):
        plot_adjacency(graph, files[1], communities=communities)
        plot_degrees(graph, files[2])
        if bool(graph.seed_mask.any()):
            plot_reach(graph, files[3])
            return files
    said.append("No reach.png: no document has a label.")
    return files[:3]


def _compared(
    run: Path, settings: dict[str, Any], out: Path, pictures: bool, files: list[Path]
) -> list[Any]:
    from gloss_graph.reports import measures_summary, run_change
    from gloss_graph.visualization import plot_graph_change

    with busy("Comparing before and after"):
        change = run_change(
            run, k=settings["k"], bandwidth=settings["bandwidth"], seed=settings["seed"]
        )
        if pictures:
            files.append(out / "change.png")
            plot_graph_change(
                change.before.x,
                change.after.x,
                change.before.y,
                files[-1],
                label_names=change.before.label_names,
                seed=settings["seed"],
            )
    files.append(_write_csv(change.measures, out / "compare.csv", None))
    size = int(change.before.num_nodes)
    said = [
        f"\nBefore and after training, {size:,} labeled documents of the {change.split} part:",
        measures_summary(change.measures),
    ]
    if len(change.churn):
        files.append(_write_csv(change.churn, out / "churn.csv", None))
        said.append(_churn_table(change.churn))
    if len(change.epochs):
        files.append(_write_csv(change.epochs, out / "epochs.csv", None))
        said.append(_epoch_table(change.epochs))
    return said


def _churn_table(churn: pd.DataFrame) -> Any:
    from rich.table import Table

    table = Table(title="Edges of a fixed batch on the way", title_justify="left")
    names = {"kept": "kept", "new": "new", "jaccard": "Jaccard", "homophily": "within a class"}
    table.add_column("from")
    table.add_column("to")
    for heading in names.values():
        table.add_column(heading, justify="right")
    for row in churn.to_dict("records"):
        table.add_row(str(row["start"]), str(row["end"]), *(_percent(row[name]) for name in names))
    return table


def _epoch_table(epochs: pd.DataFrame) -> Any:
    from rich.table import Table

    title = "Edge churn by epoch, fixed batch"
    shown = epochs
    if len(epochs) > _EPOCH_ROWS:
        chosen = np.linspace(0, len(epochs) - 1, _EPOCH_ROWS).round().astype(int)
        shown = epochs.iloc[chosen]
        title += f" ({_EPOCH_ROWS} of {len(epochs)}, all in epochs.csv)"
    table = Table(title=title, title_justify="left")
    for heading in ("epoch", "edge churn", "within a class"):
        table.add_column(heading, justify="right")
    for row in shown.to_dict("records"):
        table.add_row(f"{row['epoch']:g}", _percent(row["edge_churn"]), _percent(row["homophily"]))
    return table


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f} %"


def busy(message: str) -> AbstractContextManager[Any]:
    """A spinner on stderr."""
    from rich.console import Console

    return Console(stderr=True).status(message)


def _write_csv(frame: pd.DataFrame, file: Path, max_text: int | None) -> Path:
    """Write a table whole or not at all; texts as every other format has them."""
    from gloss_graph._internal.files import atomic_write
    from gloss_graph.export.attributes import clean_text
    from gloss_graph.text.tables import csv_bytes

    frame = frame.copy()
    for name in frame.columns:
        if frame[name].map(lambda value: isinstance(value, str)).any():
            limit = max_text if name in ("text", "other_text") else None
            frame[name] = [clean_text(str(value), limit) for value in frame[name]]
    frame.columns = [clean_text(str(name)) for name in frame.columns]
    with atomic_write(file) as draft:
        draft.write(csv_bytes(frame))
    return file


def summary_table(graph: Data) -> Any:
    """What the graph looks like, as a table for the terminal."""
    import torch
    from rich.table import Table
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    from gloss_graph.export import edge_homophily

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
        if (alike := edge_homophily(graph)) == alike:
            table.add_row("edges within a class", _percent(alike))
    return table
