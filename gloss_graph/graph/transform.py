"""`KNNGraph` as a transform of PyG."""

from __future__ import annotations

import copy

import torch
from torch_geometric.data import Data
from torch_geometric.utils import coalesce

from gloss_graph.graph.bandwidth import reads_labels
from gloss_graph.graph.build import build_document_graph
from gloss_graph.graph.settings import KNNGraph


def with_edges(data: Data, graph: KNNGraph) -> Data:
    """A shallow copy of `data` whose rows are connected, each graph of `data.batch` alone."""
    if not isinstance(data, Data):
        raise TypeError(f"'data' must be a torch_geometric.data.Data (got {type(data).__name__}).")
    x = data.get("x") if data.get("pos") is None else data.pos
    if x is None or not len(x):
        raise ValueError("'data' must hold rows, as 'data.pos' or 'data.x' (got none).")
    # Without a bandwidth made from classes `y` may be anything, such as a label per graph.
    labels = data.get("y") if reads_labels(graph.bandwidth) else None
    groups = [torch.arange(len(x), device=x.device)]
    if (batch := data.get("batch")) is not None:
        groups = [(batch == number).nonzero().flatten() for number in batch.unique()]
    parts = [
        build_document_graph(x[rows], None if labels is None else labels[rows], graph=graph)
        for rows in groups
    ]
    ends = [rows[part.edge_index] for rows, part in zip(groups, parts, strict=True)]
    weights = torch.cat([part.edge_weight for part in parts])
    out = copy.copy(data)
    out.edge_index, out.edge_weight = coalesce(torch.cat(ends, 1), weights, num_nodes=len(x))
    sigma = [part.bandwidth for part in parts]
    out.bandwidth = sigma[0] if len(sigma) == 1 else torch.stack(sigma)
    # Attributes of former edges.
    out.edge_attr = None
    return out
