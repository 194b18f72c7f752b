"""Measures of document graphs: printed, of two graphs, and over a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.analysis.measures import GRAPH, measures
from gloss_graph.export.graph_arrays import GraphArrays, edge_homophily, read_arrays
from gloss_graph.graph import build_document_graph
from gloss_graph.training.snapshots import load_snapshots

_COLUMNS = ["scope", "measure", "value"]
_SHARES = (
    *("largest_component", "reach_every_class", "edge_homophily", "homophily", "smoothness"),
    "largest_community",
)
_COUNTS = (
    *("nodes", "labeled", "edges", "components", "isolated", "degree_max"),
    "louvain_communities",
)


def measures_summary(graph: Data | pd.DataFrame, **settings: Any) -> Group:
    """Format measures of a graph and its classes for `rich.console.Console().print`.

    The graph is measured by `measures` with the `settings`, unless it is the result of `measures`
    or `compare_measures`.

    Raises:
        TypeError: Neither a graph nor a table.
        ValueError: A graph that `measures` refuses, or a table with other columns.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> measures_summary(Data(edge_index=edges)).renderables[0].title
        'Document graph'
    """
    table = _table("graph", graph, settings)
    kinds = [name for name in table.columns if name not in ("scope", "measure", "words")]
    numbers = [Column(kind, justify="right") for kind in kinds]
    first = Table("measure", *numbers, title="Document graph", title_justify="left")
    for row in table[table["scope"] == GRAPH].to_dict("records"):
        first.add_row(_words(row["measure"]), *(_shown(row["measure"], row[k]) for k in kinds))
    rest = table[table["scope"] != GRAPH]
    if rest.empty:
        return Group(first)
    pair = [kind for kind in kinds if kind != "change"]
    # The values of two graphs do not fit a terminal side by side.
    title = "Classes" if len(pair) == 1 else f"Classes: {pair[0]}, below it {pair[1]}"
    names = list(rest["measure"].unique())
    heads = [Column(_words(name), justify="right", overflow="fold") for name in names]
    look: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    second = Table(Column("class", no_wrap=True), *heads, title=title, **look)
    for scope, part in rest.groupby("scope", sort=False):
        found = part.set_index("measure")
        cells = [
            "\n".join(_shown(name, found.at[name, kind]) for kind in pair if name in found.index)
            for name in names
        ]
        second.add_row(escape(str(scope)), *cells)
    if "words" not in table:
        return Group(first, second)
    third = Table("class", "words", title="Words of the classes", title_justify="left")
    for scope, words in rest.drop_duplicates("scope")[["scope", "words"]].itertuples(index=False):
        third.add_row(escape(str(scope)), escape(words))
    return Group(first, second, third)


def compare_measures(
    before: Data | pd.DataFrame, after: Data | pd.DataFrame, **settings: Any
) -> pd.DataFrame:
    """Compare the measures of two graphs, such as a corpus before and after a training.

    Both are measured by `measures` with the `settings`, unless they are its results. The table has
    the columns `scope`, `measure`, `before`, `after`, `change`; NaN if only one has a measure.

    Raises:
        TypeError: Neither graphs nor tables.
        ValueError: Graphs that `measures` refuses, or `embeddings`.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> apart, joined = Data(edge_index=edges[:, :0], num_nodes=2), Data(edge_index=edges)
        >>> compare_measures(apart, joined).set_index("measure").at["edges", "change"] == 1
        np.True_
    """
    if "embeddings" in settings:
        raise ValueError(
            "'embeddings' must not be given for two graphs at once. Set graph.x, or pass "
            "measures(graph, embeddings=...) of each."
        )
    keys = ["scope", "measure"]
    left = _table("before", before, settings).set_index(keys)["value"]
    right = _table("after", after, settings).set_index(keys)["value"]
    both = pd.DataFrame({"before": left, "after": right}, index=left.index.append(right.index))
    both = both[~both.index.duplicated()].assign(change=lambda t: t["after"] - t["before"])
    return both.rename_axis(keys).reset_index()


def edge_churn(graphs: Sequence[Data]) -> pd.DataFrame:
    """Measure which share of the edges each step of a training replaced.

    Of two or more snapshots of the document graph in order, documents are matched by `doc_id`, or
    by position without it; edges of documents that only one of two snapshots holds are left out.

    The table has a row per pair of consecutive snapshots: `step` (1 for the first pair),
    `documents` in both, `edges_before`, `edges_after`; `kept` and `lost`, shares of the edges
    before, which sum to 1; `new`, share of the edges after; `jaccard`, edges in both over edges in
    either. NaN without edges.

    Raises:
        TypeError: Not PyG graphs.
        ValueError: Fewer than two graphs, a directed graph, or a `doc_id` that is repeated or
            negative.

    Cost: O(E log E) per snapshot.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> one, two = Data(edge_index=edges), Data(edge_index=edges[:, :2], num_nodes=3)
        >>> edge_churn([one, two])[["kept", "new", "lost"]].iloc[0].tolist()
        [0.5, 0.0, 0.5]
    """
    if isinstance(graphs, Data) or len(graphs) < 2:
        got = "a graph" if isinstance(graphs, Data) else len(graphs)
        raise ValueError(f"'graphs' must be at least two snapshots (got {got}).")
    read = [read_arrays(graph) for graph in graphs]
    for place, ids in enumerate(documents.ids for documents in read):
        if ids.size and (int(ids.min()) < 0 or np.unique(ids).size < ids.size):
            raise ValueError(
                f"'graphs[{place}].doc_id' must be distinct and >= 0, documents are matched by it "
                "(got a negative or repeated one). Give every document a distinct id."
            )
    rows = []
    for before, after in pairwise(read):
        common = np.intersect1d(before.ids, after.ids)
        old, new = _pairs(before, common), _pairs(after, common)
        rows.append((common.size, old.size, new.size, old.intersection(new).size))
    table = pd.DataFrame(rows, columns=["documents", "edges_before", "edges_after", "kept"])
    table.insert(0, "step", range(1, len(read)))
    kept, old, new = table["kept"], table["edges_before"], table["edges_after"]
    either = old + new - kept
    shares = {"kept": kept / old, "new": 1 - kept / new, "lost": 1 - kept / old}
    return table.assign(**shares, jaccard=kept / either)


class RunChange(NamedTuple):
    """The graph of some documents before and after a training, and its changes in between.

    `before` and `after` are graphs of up to 1,000 labeled documents of `split`, with their
    embeddings as `x`, `measures` is the result of `compare_measures`. A row of `churn` tells of the
    graph of a small fixed batch between two moments: `start`, `end`, `homophily` at the end, and
    the columns of `edge_churn`; a row of `epochs` per `epoch`: `edge_churn` (share of the edges
    that are new since the previous epoch), `jaccard` and `homophily`.
    """

    before: Data
    after: Data
    split: str
    measures: pd.DataFrame
    churn: pd.DataFrame
    epochs: pd.DataFrame


def run_change(
    run: str | Path,
    *,
    k: int = 16,
    bandwidth: float | str = "sqrt",
    batch_k: int = 5,
    seed: int = 0,
) -> RunChange:
    """Compare the document graphs of a run before and after its training.

    The `run` is a folder of `gloss-graph train`, trained without `--no-pictures`. The graphs have
    `k` neighbors per document and a `bandwidth` as in `build_document_graph`, those of the fixed
    batch, of about 60 documents, `batch_k` neighbors; `seed` is that of the communities. Tables of
    changes are empty without two recorded moments or epochs.

    Raises:
        ValueError: The folder holds no record, or a damaged one.

    Cost: O(n²) for n <= 1,000 documents: seconds.
    """
    check_positive_int("k", k)
    check_positive_int("batch_k", batch_k)
    found = load_snapshots(run)
    if found is None:
        raise ValueError(
            f"'run' must hold a record of its embeddings (got {run}, which has none). Train it "
            "again without --no-pictures."
        )

    def graph(rows: Tensor, labels: Tensor, ids: Tensor | None, near: int) -> Data:
        data = build_document_graph(rows, labels, ids, k=near, bandwidth=bandwidth)
        data.x, data.label_names = rows, found.label_names
        return data

    def churn_of(passes: Mapping[Any, Tensor]) -> pd.DataFrame:
        ids = torch.arange(found.batch_labels.size(0))
        graphs = [graph(rows, found.batch_labels, ids, batch_k) for rows in passes.values()]
        if len(graphs) < 2:
            return pd.DataFrame()
        moments = pd.DataFrame(pairwise(passes), columns=["start", "end"])
        moments["homophily"] = [edge_homophily(data) for data in graphs[1:]]
        return pd.concat([moments, edge_churn(graphs).drop(columns=["step", "documents"])], axis=1)

    before = graph(found.before, found.labels, found.ids, k)
    after = graph(found.after, found.labels, found.ids, k)
    epochs = churn_of(found.epochs)
    if len(epochs):
        epochs = epochs.rename(columns={"end": "epoch", "new": "edge_churn"})
        epochs = epochs[["epoch", "edge_churn", "jaccard", "homophily"]]
    measured = compare_measures(before, after, seed=seed)
    return RunChange(before, after, found.split, measured, churn_of(found.moments), epochs)


def _pairs(documents: GraphArrays, common: np.ndarray) -> pd.MultiIndex:
    """The pairs of `common` ids that an edge joins."""
    ends = np.sort(documents.ids[documents.edge_index.numpy()], axis=0)
    return pd.MultiIndex.from_arrays(ends[:, np.isin(ends, common).all(axis=0)]).unique()


def _table(name: str, source: Any, settings: dict[str, Any]) -> pd.DataFrame:
    if isinstance(source, Data):
        return measures(source, **settings)
    if not isinstance(source, pd.DataFrame):
        raise TypeError(
            f"'{name}' must be a torch_geometric.data.Data or a table of measures "
            f"(got {type(source).__name__})."
        )
    columns = set(source.columns) - {"words"}
    compared = {"scope", "measure", "before", "after", "change"}
    if columns != {*_COLUMNS} and (name != "graph" or columns != compared):
        raise ValueError(
            f"'{name}' must have the columns {_COLUMNS} (got {list(source.columns)}). "
            "Pass what measures(graph) returns."
        )
    return source


def _words(measure: str) -> str:
    names = {"nmi": "NMI", "ari": "ARI"}
    return " ".join(names.get(word, word) for word in measure.split("_"))


def _shown(measure: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if measure in _COUNTS:
        return f"{value:,.0f}"
    if measure in _SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:,.3f}"
