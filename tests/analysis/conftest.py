"""Document graphs in the form of ``build_document_graph``, made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import coalesce

MakeGraph = Callable[..., Data]


def document_graph(
    num_nodes: int = 40, num_edges: int = 120, num_classes: int = 4, seed: int = 0
) -> Data:
    """A random undirected graph with every column a document graph has; it mostly has clusters."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(num_classes, (num_nodes,), generator=generator)
    ends = torch.randint(num_nodes, (2, num_edges), generator=generator)
    # Four edges of five stay within their class.
    keep = (y[ends[0]] == y[ends[1]]) | (torch.rand(num_edges, generator=generator) < 0.2)
    ends = ends[:, keep & (ends[0] != ends[1])]
    pairs = coalesce(ends.sort(dim=0).values, num_nodes=num_nodes)
    weight = torch.rand(pairs.size(1), generator=generator)
    in_batch = torch.arange(num_nodes) < num_nodes // 4
    kind = 2 - in_batch[pairs].long().sum(dim=0)
    edge_index, columns = coalesce(
        torch.cat([pairs, pairs.flip(0)], dim=1),
        [weight.repeat(2), kind.repeat(2).float()],
        num_nodes=num_nodes,
    )
    unlabeled = torch.rand(num_nodes, generator=generator) < 0.2
    return Data(
        edge_index=edge_index,
        edge_weight=columns[0].requires_grad_(),
        edge_kind=columns[1].long(),
        num_nodes=num_nodes,
        y=y.masked_fill(unlabeled, -1),
        doc_id=torch.arange(num_nodes) + 1000,
        in_batch=in_batch,
        seed_mask=~unlabeled & (torch.arange(num_nodes) % 2 == 0),
        age=torch.arange(num_nodes),
    )


@pytest.fixture(name="document_graph")
def document_graph_fixture() -> MakeGraph:
    return document_graph
