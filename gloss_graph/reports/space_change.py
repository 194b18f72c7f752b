"""What a training did to the document graph, from what the run recorded."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.export.edges import edge_homophily
from gloss_graph.graph import build_document_graph
from gloss_graph.reports.measure_tables import compare_measures, edge_churn

__all__ = ["RunChange", "run_change"]


class RunChange(NamedTuple):
    """The graph of the same documents before and after a training, and the way between.

    `before` and `after`, graphs of up to 1,000 labeled documents of `split` with their embeddings
    as `x`; `measures`, see `compare_measures`; `churn`, of the graphs of a small fixed batch at
    moments of the training: `start` and `end` of a part of the way, `homophily`, share of edges
    within a class at its end, and the columns of `edge_churn`. `epochs`, of the same batch: for
    every recorded `epoch` its `edge_churn`, the share of the neighbour edges at its end that were
    not there at the end of the epoch before (0 is the start of the training), `jaccard`, edges at
    both over edges at either, and `homophily` at its end.
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
    """Compare the untrained with the trained space of a run as document graphs.

    Args:
        run: Folder of `gloss-graph train`, which records embeddings unless told `--no-pictures`.
        k: Neighbours a document, before and after.
        bandwidth: Of both graphs, see `build_document_graph`.
        batch_k: Neighbours in the graphs of the fixed batch, of some 60 documents.
        seed: Of the communities.

    Returns:
        Graphs, measures and churn. A run that recorded fewer than two moments has no churn, one
        without epochs no churn by epoch.

    Raises:
        ValueError: The folder holds no record, or a damaged one.

    Cost: O(n²) for n <= 1,000 documents: seconds.

    See also: `plot_graph_change`, for the two graphs as a picture.
    """
    from gloss_graph.training.snapshots import load_snapshots

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

    before = graph(found.before, found.labels, found.ids, k)
    after = graph(found.after, found.labels, found.ids, k)

    def churn_of(passes: Collection[Tensor]) -> pd.DataFrame:
        ids = torch.arange(found.batch_labels.size(0))
        graphs = [graph(rows, found.batch_labels, ids, batch_k) for rows in passes]
        if len(graphs) < 2:
            return pd.DataFrame()
        homophily = [edge_homophily(data) for data in graphs[1:]]
        return edge_churn(graphs).assign(homophily=homophily)

    churn = churn_of(found.moments.values())
    if len(churn):
        churn = churn.drop(columns=["step", "documents"])
        churn.insert(0, "start", [one for one, _ in pairwise(found.moments)])
        churn.insert(1, "end", [two for _, two in pairwise(found.moments)])
        churn.insert(2, "homophily", churn.pop("homophily"))
    epochs = churn_of(found.epochs.values())
    if len(epochs):
        epochs = epochs.assign(epoch=list(found.epochs)[1:], edge_churn=epochs["new"])
        epochs = epochs[["epoch", "edge_churn", "jaccard", "homophily"]]
    measured = compare_measures(before, after, seed=seed)
    return RunChange(before, after, found.split, measured, churn, epochs)
