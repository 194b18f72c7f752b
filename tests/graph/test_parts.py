"""Bandwidth rules, symmetrisation and the visible split."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import median_distance, undirected
from torch import Tensor

from gloss_graph.graph import estimate_bandwidth, local_scales, symmetrize_links, visible_split
from gloss_graph.graph.links import symmetrize_by_sorting

# ---------------------------------------------------------------- bandwidth


def rows64(size: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("count", [3, 4, 10, 31])
def test_median_rules(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    median = median_distance(x.numpy())
    assert float(estimate_bandwidth("sqrt", x)) == pytest.approx(math.sqrt(median / 3.0))
    assert float(estimate_bandwidth("inflection", x)) == pytest.approx(median / math.sqrt(3.0))


def test_inflection_scales_with_the_data_and_sqrt_does_not() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rule, factor in (("inflection", 4.0), ("sqrt", 2.0)):
        ratio = estimate_bandwidth(rule, 4.0 * x) / estimate_bandwidth(rule, x)
        assert float(ratio) == pytest.approx(factor)


def test_interclass_min_ignores_unlabeled_rows_and_repeated_points() -> None:
    x = torch.tensor([[0.0], [0.0], [6.0], [7.0], [100.0]])
    y = torch.tensor([0, 1, 0, -1, 1])
    # 0 against 0 is a repeated point, 6 against 7 is unlabeled: 0 against 6 remains.
    assert float(estimate_bandwidth("interclass_min", x, y)) == pytest.approx(2.0)
    only_repeated = estimate_bandwidth("interclass_min", x[:2], y[:2])
    assert float(only_repeated) == pytest.approx(1e-6)
    for labels in (None, torch.zeros(5).long(), torch.full((5,), -1)):
        with pytest.raises(ValueError, match="needs labels of at least two classes"):
            estimate_bandwidth("interclass_min", x, labels)


def test_numbers_rules_and_callables() -> None:
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert estimate_bandwidth(0.3, x.double()).dtype == torch.float64
    assert float(estimate_bandwidth(2, x)) == 2.0
    seen: list[tuple[torch.Size, Tensor | None]] = []

    def rule(sample: Tensor, labels: Tensor | None) -> float:
        seen.append((sample.shape, labels))
        return 1.5

    assert float(estimate_bandwidth(rule, x)) == 1.5
    assert seen == [(x.shape, None)]
    for bad in (lambda x, y: float("nan"), lambda x, y: -1.0, lambda x, y: x[0]):
        with pytest.raises(ValueError, match="'bandwidth' rule must return one number >= 0"):
            estimate_bandwidth(bad, x)
    with pytest.raises(ValueError, match="bandwidth='local' has no single value"):
        estimate_bandwidth("local", x)


def test_rules_never_see_more_than_a_sample() -> None:
    x = torch.arange(5000.0).unsqueeze(1)
    y = torch.arange(5000) % 3
    sizes = []

    def rule(sample: Tensor, labels: Tensor | None) -> Tensor:
        sizes.append((len(sample), len(labels)))
        assert torch.equal(sample.squeeze(1).long() % 3, labels)
        assert sample.unique().numel() == len(sample)
        return sample.std()

    sigma = estimate_bandwidth(rule, x, y)
    assert sizes == [(1024, 1024)]
    # A draw from anywhere, the same each time; a number of documents that fits is taken whole.
    assert float(sigma) == pytest.approx(float(x.std()), rel=0.05)
    torch.manual_seed(1)
    assert torch.equal(estimate_bandwidth(rule, x, y), sigma)
    estimate_bandwidth(rule, x[:1024], y[:1024])
    assert sizes[-1] == (1024, 1024)


@pytest.mark.parametrize("period", [2, 5])
def test_the_order_of_documents_does_not_decide_a_bandwidth(period: int) -> None:
    # A wide class and narrow ones by turns: every n-th document is of the same class.
    size = 1024 * period
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    x[torch.arange(size) % period > 0] *= 0.1
    exact = math.sqrt(float(torch.cdist(x, x).median()) / 3.0)
    for order in (torch.arange(size), (torch.arange(size) % period).argsort(stable=True)):
        assert float(estimate_bandwidth("sqrt", x[order])) == pytest.approx(exact, rel=0.1)


def test_interclass_min_looks_at_labeled_rows_of_every_class() -> None:
    x = torch.arange(9000.0).unsqueeze(1)
    few = torch.full((9000,), -1)
    few[::2000] = torch.tensor([0, 0, 0, 0, 1])  # the documents 0, 2000, ... 8000
    assert float(estimate_bandwidth("interclass_min", x, few)) == pytest.approx(2000.0 / 3.0)
    rare = torch.zeros(9000, dtype=torch.long)
    rare[4321] = 1
    # One class is all but absent; which of its neighbors are drawn is chance.
    assert 1 / 3 < float(estimate_bandwidth("interclass_min", x, rare)) < 30.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_points_are_at_distance_0_however_many_rows_there_are(dtype: torch.dtype) -> None:
    x = torch.nn.functional.normalize(rows64(64, 32), dim=1)
    x[1] = x[0]  # one text with two labels
    y = torch.arange(64) % 2
    distance = (x.unsqueeze(1) - x).norm(dim=2)
    between = (y.unsqueeze(1) != y) & (distance > 0)
    expected = float(distance[between].min()) / 3.0
    found = float(estimate_bandwidth("interclass_min", x.to(dtype), y))
    assert found == pytest.approx(expected, rel=1e-5)
    # Divided in another way, so that they differ in the last place: still one point.
    x = x.to(dtype)
    x[1] *= 1.0 + torch.finfo(dtype).eps
    assert float(estimate_bandwidth("interclass_min", x, y)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_medians_of_points_close_together_are_exact(dtype: torch.dtype) -> None:
    x = torch.nn.functional.normalize(rows64(1, 32) + 1e-4 * rows64(64, 32, seed=1), dim=1)
    x = x.to(dtype)
    exact = math.sqrt(median_distance(x.double().numpy()) / 3.0)
    assert float(estimate_bandwidth("sqrt", x)) == pytest.approx(exact, rel=1e-4)
    assert float(estimate_bandwidth("sqrt", x[:1].repeat(64, 1))) == pytest.approx(1e-6)


def test_coinciding_points_have_a_positive_bandwidth() -> None:
    for rule in ("sqrt", "inflection"):
        assert float(estimate_bandwidth(rule, torch.ones(4, 2))) == pytest.approx(1e-6)


def test_local_scales() -> None:
    inf = float("inf")
    lists = torch.tensor([[1.0, 4.0, 9.0], [1.0, 4.0, inf], [inf, inf, inf], [0.0, 0.0, 0.0]])
    assert local_scales(lists).tolist() == pytest.approx([3.0, 2.0, 1.0, 1e-6])
    assert local_scales(torch.empty(2, 0)).tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- symmetrisation


@st.composite
def directed_links(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 12))
    pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
    return n, draw(st.lists(pair, max_size=30, unique=True)) if n > 1 else []


@settings(max_examples=60)
@given(problem=directed_links(), mode=st.sampled_from(["union", "mutual"]))
def test_symmetrize_links(problem: tuple[int, list[tuple[int, int]]], mode: str) -> None:
    n, pairs = problem
    source = torch.tensor([i for i, _ in pairs], dtype=torch.long)
    target = torch.tensor([j for _, j in pairs], dtype=torch.long)
    lists = [[j for i, j in pairs if i == node] for node in range(n)]
    expected = undirected(lists, mode)
    results = [symmetrize_links(source, target, n, mode)]
    if pairs:
        results.append(symmetrize_by_sorting(source, target, n, mode))
    for edge_index, link in results:
        edges = [tuple(edge) for edge in edge_index.T.tolist()]
        assert edges == sorted(expected | {(j, i) for i, j in expected})
        assert edge_index.dtype == link.dtype == torch.long
        of = dict(zip(edges, link.tolist(), strict=True))
        for (i, j), number in of.items():
            assert pairs[number] in ((i, j), (j, i))
            assert of[j, i] == number


def test_both_paths_agree_on_a_large_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 300
    key = torch.randperm(n * n, generator=generator)[:4000]
    key = key[key // n != key % n]
    for mode in ("union", "mutual"):
        by_count = symmetrize_links(key // n, key % n, n, mode)
        by_sort = symmetrize_by_sorting(key // n, key % n, n, mode)
        assert torch.equal(by_count[0], by_sort[0])
        # Either link of a pair will do; both name the same pair.
        for link in (by_count[1], by_sort[1]):
            row, column = (key // n)[link], (key % n)[link]
            ends = torch.stack([torch.minimum(row, column), torch.maximum(row, column)])
            assert torch.equal(ends, torch.stack([by_count[0].amin(0), by_count[0].amax(0)]))
        assert by_count[1].numel() > 100 if mode == "union" else by_count[1].numel() > 0


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match=re.escape("must be one of ['mutual', 'union']")):
        symmetrize_links(torch.tensor([0]), torch.tensor([1]), 2, "both")


# ---------------------------------------------------------------- visible split


def split(
    labels: list[int], fraction: float, seed: int = 0, ids: list[int] | None = None
) -> Tensor:
    return visible_split(
        torch.tensor(labels),
        fraction,
        generator=torch.Generator().manual_seed(seed),
        ids=None if ids is None else torch.tensor(ids),
    )


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(-1, 4), max_size=30),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
)
def test_split_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    visible = split(labels, fraction, seed).tolist()
    assert len(visible) == len(labels)
    for label in set(labels):
        rows = [v for v, other in zip(visible, labels, strict=True) if other == label]
        if label < 0:
            assert not any(rows)
            continue
        kept, wanted = sum(rows), fraction * len(rows)
        if fraction > 0:
            assert kept >= 1
        assert kept in {math.floor(wanted + 1e-6), math.ceil(wanted - 1e-6), min(1, len(rows))}


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_none_and_all(fraction: float) -> None:
    visible = split([0, 0, 1, -1, 2, 2, 2], fraction)
    assert visible.tolist() == [bool(fraction)] * 3 + [False] + [bool(fraction)] * 3


@pytest.mark.parametrize("fraction", [0.25, 0.37, 0.5, 0.9])
def test_mean_share_is_exact(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 7 + [1] * 4 + [2] * 13)
    draws = 1200
    total = torch.zeros(24)
    kept = []
    for _ in range(draws):
        visible = visible_split(labels, fraction, generator=generator)
        total += visible
        kept.append([int(visible[labels == c].sum()) for c in range(3)])
    for c, size in enumerate((7, 4, 13)):
        counts = np.array(kept)[:, c]
        deviation = 4.0 * counts.std() / math.sqrt(draws) + 1e-6
        assert abs(counts.mean() - fraction * size) <= deviation
        # Every document of a class is kept equally often.
        share = total[labels == c] / draws
        assert float((share - fraction).abs().max()) < 4.0 * math.sqrt(0.25 / draws)


def test_a_class_with_one_document_keeps_it() -> None:
    for seed in range(20):
        visible = split([0] * 10 + [1], 0.1, seed)
        assert visible[10]
        assert int(visible[:10].sum()) == 1


def test_same_seed_same_split_and_other_seed_another() -> None:
    labels = [i % 3 for i in range(30)]
    assert torch.equal(split(labels, 0.5, 3), split(labels, 0.5, 3))
    assert any(not torch.equal(split(labels, 0.5, 3), split(labels, 0.5, s)) for s in range(4, 8))


def test_rows_of_one_document_share_their_fate() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 0]
    ids = [5, 6, 5, 7, 9, 9, 8, 5]
    seen = set()
    for seed in range(40):
        visible = split(labels, 0.5, seed, ids).tolist()
        assert visible[0] == visible[2] == visible[7]
        assert visible[4] == visible[5]
        # Three documents of class 0: one or two of them are visible, not rows.
        documents = {id_ for id_, v, c in zip(ids, visible, labels, strict=True) if v and c == 0}
        assert len(documents) in (1, 2)
        seen.add(tuple(visible))
    assert len(seen) > 2


def test_rows_of_one_document_must_agree() -> None:
    message = "'labels' must agree for rows with the same id, which are one document (id 4 has "
    message += "labels 0 and 1)"
    with pytest.raises(ValueError, match=re.escape(message)):
        split([0, 1, 1], 0.5, ids=[4, 5, 4])
    with pytest.raises(ValueError, match="'labels' must agree for rows with the same id"):
        split([0, -1], 0.5, ids=[4, 4])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=re.escape("'visible_fraction' must be in [0.0, 1.0]")):
        split([0, 1], fraction)


def test_global_random_state_is_not_touched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    split([0, 1, 0, 1], 0.5)
    assert torch.equal(torch.rand(3), expected)
