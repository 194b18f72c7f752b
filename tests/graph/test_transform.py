"""`KNNGraph` as a transform of PyG."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset

from gloss_graph import KNNGraph, build_document_graph, knn_graph


def rows(size: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [{}, {"symmetrize": "mutual"}, {"bandwidth": "local"}])
def test_edges_are_those_of_the_document_graph(settings: dict[str, str]) -> None:
    graph = KNNGraph(k=4, **settings)
    data = Data(x=rows(), y=torch.arange(30) % 3, note="kept")
    found = graph(data)
    wanted = build_document_graph(data.x, graph=graph)
    assert torch.equal(found.edge_index, wanted.edge_index)
    assert torch.equal(found.edge_weight, wanted.edge_weight)
    assert found.note == "kept"
    assert data.edge_index is None
    found.validate()


def test_positions_come_before_features_and_edges_are_both_ways_of_knn_graph() -> None:
    data = Data(pos=rows(seed=1), x=rows(seed=2), edge_attr=torch.ones(3))
    found = KNNGraph(k=3, normalize=False)(data)
    listed = set(map(tuple, knn_graph(data.pos, 3).t().tolist()))
    both = listed | {(target, source) for source, target in listed}
    assert set(map(tuple, found.edge_index.t().tolist())) == both
    assert found.edge_attr is None


def test_graphs_of_a_batch_stay_apart() -> None:
    graph, parts = KNNGraph(k=2), [Data(x=rows(size, size)) for size in (7, 1, 5)]
    together = graph(Batch.from_data_list(parts))
    apart = Batch.from_data_list([graph(part) for part in parts])
    assert torch.equal(together.edge_index, apart.edge_index)
    assert torch.equal(together.edge_weight, apart.edge_weight)
    torch.testing.assert_close(together.bandwidth, apart.bandwidth, equal_nan=True)
    shuffled = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    mixed = graph(Data(x=together.x[shuffled], batch=together.batch[shuffled]))
    assert mixed.is_coalesced()
    assert mixed.num_edges == together.num_edges


def test_labels_are_read_only_by_a_bandwidth_of_classes() -> None:
    data = Data(x=rows(), y=torch.tensor([[1.5]]))
    assert KNNGraph()(data).num_edges > 0
    with pytest.raises(ValueError, match="interclass_min"):
        KNNGraph(bandwidth="interclass_min")(Data(x=rows()))
    labeled = Data(x=rows(), y=torch.arange(30) % 2)
    assert KNNGraph(bandwidth="interclass_min")(labeled).bandwidth > 0


def test_it_composes_and_prepares_a_data_set(tmp_path: Path) -> None:
    class Points(InMemoryDataset):
        def __init__(self, pre_transform: KNNGraph) -> None:
            super().__init__(str(tmp_path), pre_transform=pre_transform)
            self.load(self.processed_paths[0])

        @property
        def processed_file_names(self) -> str:
            return "points.pt"

        def process(self) -> None:
            assert self.pre_transform is not None
            self.save(
                [self.pre_transform(Data(pos=rows(9, i))) for i in range(3)],
                self.processed_paths[0],
            )

    graph = KNNGraph(k=3, normalize=False)
    composed = T.Compose([graph, T.Distance(norm=False)])
    assert composed(Data(pos=rows())).edge_attr.shape[1] == 1
    assert "KNNGraph(k=3" in repr(composed)
    points = Points(graph)
    assert len(points) == 3
    assert torch.equal(points[2].edge_index, graph(Data(pos=rows(9, 2))).edge_index)
    # A second look reads the file, and finds the transform that made it.
    assert len(Points(KNNGraph(k=3, normalize=False))) == 3


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"must hold rows, as 'data\.pos' or 'data\.x'"):
        KNNGraph()(Data(y=torch.ones(3)))
    with pytest.raises(ValueError, match="must hold rows"):
        KNNGraph()(Data(x=torch.empty(0, 3)))
    with pytest.raises(TypeError, match="'data' must be a torch_geometric"):
        KNNGraph()(HeteroData())
