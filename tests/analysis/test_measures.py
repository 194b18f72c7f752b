"""Measures of graphs equal NetworkX's and scikit-learn's; tables of them; churn."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import save_file
from scipy.stats import skew
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
)
from sklearn.neighbors import NearestNeighbors
from torch_geometric.data import Data

from gloss_graph import build_document_graph, to_networkx
from gloss_graph.analysis import louvain_communities, measures
from gloss_graph.analysis.measures import macro_silhouette
from gloss_graph.export import edge_homophily
from gloss_graph.export.graph_arrays import read_arrays
from gloss_graph.reports import compare_measures, edge_churn, measures_summary, run_change

NAMES = ["tea", "rain", "war"]


def made(size: int = 90, seed: int = 0, unlabeled: float = 0.3, k: int = 3) -> Data:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (size,), generator=generator)
    x = F.one_hot(y, 5).double() + 0.6 * torch.randn(size, 5, generator=generator).double()
    y[torch.rand(size, generator=generator) < unlabeled] = -1
    graph = build_document_graph(x, y, k=k, symmetrize="mutual", bandwidth="inflection")
    graph.x, graph.label_names = x, NAMES
    return graph


def values(table: pd.DataFrame, scope: str = "graph") -> dict[str, float]:
    part = table[table["scope"] == scope]
    return dict(zip(part["measure"], part["value"], strict=True))


def test_equal_networkx_and_sklearn() -> None:
    graph = made()
    found = values(measures(graph, seed=3))
    plain = to_networkx(graph)
    y = graph.y.numpy()
    known = [i for i in plain if y[i] >= 0]
    inner = plain.subgraph(known)
    parts = [{i for i in known if y[i] == c} for c in range(3)]
    communities = nx.community.louvain_communities(plain, weight="weight", seed=3)
    of = {node: number for number, group in enumerate(communities) for node in group}
    groups = [of[i] for i in known]
    components = list(nx.connected_components(plain))
    degree = np.array([d for _, d in plain.degree()])
    reaching = sum(len(c) for c in components if {0, 1, 2} <= {y[i] for i in c})
    # Newman's assortativity by class is the adjusted homophily.
    nx.set_node_attributes(plain, {i: int(y[i]) for i in plain}, "class")
    laplacian = nx.laplacian_matrix(inner, weight="weight").toarray()
    one_hot = np.eye(3)[[y[i] for i in inner]]
    weighted = np.diag(np.diag(laplacian))
    wanted = {
        "nodes": len(plain),
        "labeled": len(known),
        "edges": plain.number_of_edges(),
        "components": len(components),
        "largest_component": max(map(len, components)) / 90,
        "isolated": len(list(nx.isolates(plain))),
        "degree_mean": degree.mean(),
        "degree_max": degree.max(),
        "degree_skew": skew(degree),
        "reach_every_class": reaching / 90,
        "edge_homophily": edge_homophily(graph),
        "adjusted_homophily": nx.attribute_assortativity_coefficient(inner, "class"),
        "label_modularity": nx.community.modularity(inner, parts),
        "smoothness": np.trace(one_hot.T @ laplacian @ one_hot)
        / np.trace(one_hot.T @ weighted @ one_hot),
        "louvain_communities": len(communities),
        "louvain_modularity": nx.community.modularity(plain, communities),
        "louvain_nmi": normalized_mutual_info_score(y[known], groups),
        "louvain_ari": adjusted_rand_score(y[known], groups),
        "macro_silhouette": macro_silhouette(graph.x, graph.y),
    }
    assert 1 < len(components) < 90
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_classes_equal_networkx_and_sklearn() -> None:
    graph = made()
    table = measures(graph)
    plain, y = to_networkx(graph), graph.y.numpy()
    inner = plain.subgraph([i for i in plain if y[i] >= 0])
    unit = F.normalize(graph.x.float(), dim=1).numpy()
    silhouettes = silhouette_samples(unit[y >= 0], y[y >= 0])
    total = 0.0
    for label, name in enumerate(NAMES):
        found = values(table, name)
        mine = [i for i in inner if y[i] == label]
        ends = [y[j] == label for i in mine for j in inner.adj[i]]
        cut = nx.cut_size(inner, mine, weight="weight")
        volume = nx.volume(inner, mine, weight="weight")
        assert found["nodes"] == len(mine)
        assert found["homophily"] == pytest.approx(np.mean(ends))
        assert found["smoothness"] == pytest.approx(cut / volume, rel=1e-5)
        assert found["silhouette"] == pytest.approx(
            silhouettes[y[y >= 0] == label].mean(), rel=1e-5
        )
        assert found["degree_mean"] == pytest.approx(np.mean([plain.degree(i) for i in mine]))
        assert 0 < found["largest_community"] <= 1
        total += found["label_modularity"]
    assert total == pytest.approx(values(table)["label_modularity"])


def test_hubness_names_what_it_counts() -> None:
    graph = made()
    graph.in_degree = torch.arange(90) ** 2
    found = values(measures(graph))
    assert "degree_skew" not in found
    assert found["in_degree_skew"] == pytest.approx(skew(np.arange(90.0) ** 2))
    graph.in_degree = torch.arange(3)
    with pytest.raises(ValueError, match=r"'graph.in_degree' must have 90 entries"):
        measures(graph)


def test_reach_counts_visible_labels_only() -> None:
    edges = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    graph = Data(edge_index=edges, y=torch.tensor([0, 1, 0, 1]))
    assert values(measures(graph))["reach_every_class"] == 1.0
    graph.seed_mask = torch.tensor([True, True, True, False])
    assert values(measures(graph))["reach_every_class"] == 0.5


def test_sampled_silhouette_is_close_and_seeded() -> None:
    graph = made(900, unlabeled=0.0)
    settings = {"communities": False, "silhouette_limit": 400}
    whole, part = values(measures(graph)), values(measures(graph, **settings))
    assert part["macro_silhouette"] != whole["macro_silhouette"]
    assert part["macro_silhouette"] == pytest.approx(whole["macro_silhouette"], abs=0.03)
    assert "louvain_nmi" not in part
    assert measures(graph, **settings).equals(measures(graph, **settings))


def empty(size: int) -> Data:
    return Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=size)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_graphs_without_edges_or_labels(size: int) -> None:
    found = values(measures(empty(size)))
    assert found["nodes"] == found["components"] == found["isolated"] == size
    assert found["edges"] == found["labeled"] == 0
    for name in ("edge_homophily", "adjusted_homophily", "label_modularity", "smoothness"):
        assert math.isnan(found[name])
    for name in ("louvain_nmi", "louvain_ari", "louvain_modularity", "macro_silhouette"):
        assert math.isnan(found[name])
    assert math.isnan(found["reach_every_class"])
    assert set(measures(empty(size))["scope"]) == {"graph"}


def test_identical_documents_and_one_class() -> None:
    graph = build_document_graph(torch.ones(5, 3), torch.zeros(5, dtype=torch.long), k=2)
    graph.x = torch.ones(5, 3)
    found = values(measures(graph))
    assert found["edge_homophily"] == 1.0
    assert found["reach_every_class"] == 1.0
    assert math.isnan(found["adjusted_homophily"])
    assert math.isnan(found["macro_silhouette"])


def test_bad_input() -> None:
    graph = made()
    with pytest.raises(TypeError, match="'graph' must be"):
        measures(graph.edge_index)
    with pytest.raises(ValueError, match="label sets"):
        measures(Data(edge_index=graph.edge_index, y=torch.rand(90, 3)))
    with pytest.raises(ValueError, match="'embeddings' must have 90 rows"):
        measures(graph, embeddings=torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"'graph\.doc_id' must have 90 entries"):
        measures(Data(edge_index=graph.edge_index, num_nodes=90, doc_id=torch.arange(3)))
    with pytest.raises(ValueError, match="'silhouette_limit' must be"):
        measures(graph, silhouette_limit=0)


def printed(thing: object) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(thing)
    return console.file.getvalue()


def test_summary_and_comparison() -> None:
    before, after = made(seed=0), made(seed=0, k=6)
    before.label_names = after.label_names = ["[red]tea", "graph", "graph"]
    table = measures(before)
    assert set(table["scope"]) == {"graph", "[red]tea", "graph (1)", "graph (2)"}
    text = printed(measures_summary(before, communities=False))
    assert "[red]tea" in text
    assert "louvain" not in text
    both = compare_measures(table, after)
    assert list(both.columns) == ["scope", "measure", "before", "after", "change"]
    assert len(both) == len(table)
    one = both.set_index(["scope", "measure"]).loc[("graph", "edges")]
    assert one["change"] == after.num_edges / 2 - before.num_edges / 2 > 0
    assert one["change"] == one["after"] - one["before"]
    assert "Classes: before, below it after" in printed(measures_summary(both))
    lost = compare_measures(before, empty(2))
    assert lost.set_index(["scope", "measure"]).at[("[red]tea", "nodes"), "after"] != 0
    with pytest.raises(ValueError, match="'embeddings' must not be given"):
        compare_measures(before, after, embeddings=before.x)
    with pytest.raises(ValueError, match="'after' must have the columns"):
        compare_measures(table, both)
    with pytest.raises(TypeError, match="'before' must be"):
        compare_measures(3, after)  # type: ignore[arg-type]


def undirected(pairs: list[tuple[int, int]], ids: list[int]) -> Data:
    edges = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    both = torch.cat([edges, edges.flip(0)], dim=1)
    return Data(edge_index=both, doc_id=torch.tensor(ids), num_nodes=len(ids))


def test_communities_at_hand_are_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = made()
    found = louvain_communities(read_arrays(graph).links, seed=3)
    expected = measures(graph, seed=3)
    monkeypatch.delattr("networkx.community.louvain_communities")
    pd.testing.assert_frame_equal(measures(graph, communities=found, seed=3), expected)
    for given in (found[1:], found.astype(float), np.array(True)):
        with pytest.raises(ValueError, match="'communities' must be a boolean or 90 integers"):
            measures(graph, communities=given)


def test_churn_matches_documents_by_id() -> None:
    first = undirected([(0, 1), (1, 2), (2, 3)], [10, 11, 12, 13])
    # The same documents in another order: 10-11 kept, 11-12 and 12-13 lost, 10-13 new.
    second = undirected([(3, 2), (0, 3)], [13, 12, 11, 10])
    # 14 is new here, so its edge is not counted.
    third = undirected([(0, 1), (1, 2), (3, 0)], [10, 11, 13, 14])
    table = edge_churn([first, second, third])
    assert table["step"].tolist() == [1, 2]
    assert table["documents"].tolist() == [4, 3]
    assert table["edges_before"].tolist() == [3, 2]
    assert table["edges_after"].tolist() == [2, 2]
    assert table["kept"].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert table["lost"].tolist() == pytest.approx([2 / 3, 1 / 2])
    assert table["new"].tolist() == pytest.approx([1 / 2, 1 / 2])
    assert table["jaccard"].tolist() == pytest.approx([1 / 4, 1 / 3])


def test_churn_without_common_documents_or_edges() -> None:
    apart = edge_churn([undirected([(0, 1)], [1, 2]), undirected([(0, 1)], [3, 4])])
    assert apart.loc[0, "documents"] == 0
    assert math.isnan(apart.loc[0, "kept"])
    same = edge_churn([undirected([(0, 1)], [1, 2]), undirected([], [1, 2])])
    assert same.loc[0, ["kept", "lost"]].tolist() == [0.0, 1.0]
    assert math.isnan(same.loc[0, "new"])


def test_churn_of_every_epoch_is_that_of_the_nearest_neighbors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    rows = [torch.nn.functional.normalize(torch.randn(12, 4, generator=generator), dim=1)]
    for _ in range(2):
        moved = rows[-1] + 0.4 * torch.randn(12, 4, generator=generator)
        rows.append(torch.nn.functional.normalize(moved, dim=1))
    tensors = {"before": rows[0], "after": rows[-1], "labels": labels, "ids": torch.arange(12)}
    tensors |= {"batch": torch.stack(rows[::2]), "batch_labels": labels.clone()}
    tensors |= {"batch_ids": torch.arange(12), "epochs": torch.stack(rows)}
    record = {"format": "gloss_graph.snapshots.1", "label_names": ["a", "b", "c"]}
    record |= {"split": "test", "split_size": 12, "batch_split": "val", "class_counts": {}}
    record |= {"moments": ["start", "end"], "epochs": [0.0, 1.0, 1.5]}
    folder = tmp_path / "pictures"
    folder.mkdir()
    save_file(tensors, folder / "data.safetensors")
    (folder / "data.json").write_text(json.dumps(record))
    change = run_change(tmp_path, k=3, batch_k=3)

    def edges(x: torch.Tensor) -> set[tuple[int, int]]:
        near = NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors(x.numpy())[1]
        return {(min(i, j), max(i, j)) for i, line in enumerate(near.tolist()) for j in line[1:]}

    found = [edges(x) for x in rows]
    pairs = list(pairwise(found))
    table = change.epochs
    assert list(table) == ["epoch", "edge_churn", "jaccard", "homophily"]
    assert table["epoch"].tolist() == [1.0, 1.5]
    expected = [len(two - one) / len(two) for one, two in pairs]
    assert 0 < min(expected) < max(expected) < 1
    assert table["edge_churn"].tolist() == pytest.approx(expected)
    assert table["jaccard"].tolist() == pytest.approx([len(a & b) / len(a | b) for a, b in pairs])
    same = [sum((i - j) % 3 == 0 for i, j in pairs) / len(pairs) for pairs in found[1:]]
    assert table["homophily"].tolist() == pytest.approx(same)
    # A record without epochs, as an older version made, and a damaged one.
    (folder / "data.json").write_text(json.dumps({**record, "epochs": []}))
    assert run_change(tmp_path, k=3).epochs.empty
    (folder / "data.json").write_text(json.dumps({**record, "epochs": [0.0, 2.0, 1.0]}))
    with pytest.raises(ValueError, match="'pictures' of a run must be"):
        run_change(tmp_path, k=3)


def test_churn_of_bad_input() -> None:
    graph = undirected([(0, 1)], [1, 2])
    for given in ([], [graph], graph):
        with pytest.raises(ValueError, match="at least two snapshots"):
            edge_churn(given)  # type: ignore[arg-type]
    for ids in ([1, 1], [-1, 2]):
        with pytest.raises(ValueError, match=r"graphs\[1\].doc_id"):
            edge_churn([graph, undirected([(0, 1)], ids)])
