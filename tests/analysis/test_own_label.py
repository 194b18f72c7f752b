"""What a graph says of a document does not depend on the label the document has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from gloss_graph import build_document_graph
from gloss_graph.analysis import audit, explain
from gloss_graph.analysis.explanation import top_masses
from gloss_graph.export.graph_arrays import read_arrays


def labeled(own: int, known: int) -> Data:
    """Three clusters of eight, the first `known` documents with a label; of document 4 `own`."""
    truth = torch.arange(24) % 3
    noise = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(24) < known, truth, -1)
    labels[4] = own
    rows = torch.eye(5)[truth] + 0.3 * noise
    return build_document_graph(rows, labels, torch.arange(24), k=4)


@pytest.mark.parametrize("known", [9, 24], ids=["few labels", "all labels"])
@pytest.mark.parametrize("normalization", ["hub", "row"])
def test_reasons_and_suggestions_stay(known: int, normalization: str) -> None:
    tables, suspects, masses = [], [], []
    for own in range(3):
        graph = labeled(own, known)
        told = explain(graph, 4, normalization=normalization, top=None)
        assert 4 not in told.table["node"].tolist()
        tables.append(told.table)
        row = audit(graph, normalization=normalization).table.set_index("node").loc[4]
        suspects.append(row[["suggested", "support", "mass"]])
        found = top_masses(read_arrays(graph), np.array([4]), normalization=normalization)
        assert 4 not in found.nodes
        masses.append(found)
    for own in (1, 2):
        pd.testing.assert_frame_equal(tables[own], tables[0], check_exact=True)
        assert suspects[own]["suggested"] == suspects[0]["suggested"]
        # The audit takes the return of the label off all that arrives: equal to rounding.
        for name in ("support", "mass"):
            assert suspects[own][name] == pytest.approx(suspects[0][name], rel=1e-9)
        np.testing.assert_array_equal(masses[own].mass, masses[0].mass)
        # Sums of the same masses, in another layout.
        np.testing.assert_allclose(masses[own].by_class, masses[0].by_class, rtol=1e-14)
