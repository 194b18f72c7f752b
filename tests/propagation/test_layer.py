"""The layer's contract: arguments, errors, reports, message passing, class mass, repr."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import reference
import torch
import torch_geometric.typing
from reference import Graph, awkward_graph, dense_weights, one_hot
from torch import Tensor
from torch_geometric.nn import MessagePassing

from gloss_graph import LabelPropagation
from gloss_graph.propagation import class_mass_normalize

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
ENDS = torch.tensor([0, -1, 1])
NOT_CONVERGED = "ignore:Label propagation .* stopped after"


def run(graph: Graph, layer: LabelPropagation) -> Tensor:
    return layer(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)


# ---------------------------------------------------------------- what goes in


def test_labels_as_indices_or_as_rows() -> None:
    graph = awkward_graph()
    layer = LabelPropagation(num_classes=4)
    rows = layer(one_hot(graph.y, 4), graph.edge_index, graph.edge_weight, graph.seeds)
    for dtype in (torch.int64, torch.int32, torch.int8):
        by_index = layer(graph.y.to(dtype), graph.edge_index, graph.edge_weight, graph.seeds)
        assert torch.equal(rows, by_index)


def test_seeds_are_the_labeled_nodes_by_default() -> None:
    graph = awkward_graph()
    layer = LabelPropagation(num_classes=4)
    hidden = torch.where(graph.seeds, graph.y, -1)
    by_default = layer(hidden, graph.edge_index, graph.edge_weight)
    assert torch.equal(by_default, run(graph, layer))


def test_weights_are_ones_by_default() -> None:
    graph = awkward_graph()
    ones = torch.ones(graph.edge_index.size(1))
    layer = LabelPropagation()
    without = layer(graph.y, graph.edge_index, seed_mask=graph.seeds)
    assert torch.equal(without, layer(graph.y, graph.edge_index, ones, graph.seeds))


def test_number_of_classes_is_the_largest_label_plus_one() -> None:
    assert LabelPropagation()(torch.tensor([0, -1, 4]), PATH).shape == (3, 5)
    assert LabelPropagation(num_classes=7)(ENDS, PATH).shape == (3, 7)


@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
def test_graphs_without_edges_or_hidden_nodes(rule: str, solver: str) -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    triangle = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    layer = LabelPropagation(rule, solver=solver, num_classes=2)
    lonely = layer.propagate_labels(torch.tensor([0, -1, 1]), none)
    full = layer.propagate_labels(torch.tensor([0, 1, 0]), triangle)
    blind = layer.propagate_labels(torch.tensor([-1, -1, -1]), triangle)
    assert lonely.reached.tolist() == [True, False, True]
    assert full.reached.tolist() == [True, True, True]
    assert blind.reached.tolist() == [False, False, False]
    for result in (lonely, full, blind):
        assert bool(torch.isfinite(result.values).all())
    prior = [0.5, 0.5] if rule == "harmonic" else [0.0, 0.0]
    assert lonely.values[1].tolist() == prior
    assert blind.values.tolist() == [prior] * 3
    if rule == "harmonic":
        assert full.values.tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "pagerank"}, "'rule' must be one of ['harmonic', 'poisson', 'spreading']"),
        (
            {"normalization": "rows"},
            "'normalization' must be one of ['column', 'hub', 'row', 'symmetric']",
        ),
        ({"solver": "lu"}, "'solver' must be one of ['auto', 'cg', 'dense', 'iterate']"),
        ({"gradient": "none"}, "'gradient' must be one of ['implicit', 'unrolled']"),
        ({"eta": -0.1}, "'eta' must be in [0.0, inf) (got -0.1)"),
        ({"eta": float("nan")}, "'eta' must be in [0.0, inf) (got nan)"),
        ({"eta": float("inf")}, "'eta' must be in [0.0, inf) (got inf)"),
        ({"alpha": 0.0}, "'alpha' must be in (0.0, 1.0) (got 0.0)"),
        ({"alpha": 1.0}, "'alpha' must be in (0.0, 1.0) (got 1.0)"),
        ({"tol": 1.0}, "'tol' must be in [0.0, 1.0) (got 1.0)"),
        ({"max_iter": 0}, "'max_iter' must be an integer of at least 1 (got 0)"),
        ({"max_iter": 2.5}, "'max_iter' must be an integer of at least 1 (got 2.5)"),
        ({"num_classes": True}, "'num_classes' must be an integer of at least 1 (got True)"),
        ({"class_mass": "even"}, "'class_mass' must be one of ['uniform'] (got 'even')"),
        ({"rule": "poisson", "class_mass": "uniform"}, "'class_mass' is not defined for"),
        ({"prior": torch.tensor([0.5, -0.5])}, "'prior' must be (C,) finite values >= 0"),
        ({"prior": torch.zeros(2)}, "'prior' must be (C,) finite values >= 0"),
        ({"prior": torch.tensor([1.0, float("nan")])}, "'prior' must be (C,) finite values"),
        ({"prior": torch.ones(2, 2)}, "'prior' must be (C,) finite values >= 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LabelPropagation(**settings)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), PATH), "'seed_mask' is needed when 'y' holds distributions"),
        ((torch.tensor([-1, -1, -1]), PATH), "'y' holds no label"),
        ((torch.tensor([[0], [1], [0]]), PATH), "'y' must be (N,) integers or (N, C) floats"),
        ((torch.tensor([True, False, True]), PATH), "'y' must be (N,) integers or (N, C) floats"),
        ((torch.rand(3), PATH), "'y' of floating dtype must be (N, C)"),
        ((torch.tensor([[1.0, -1.0]] * 3), PATH, None, ENDS >= 0), "'y' must be finite and >= 0"),
        ((torch.tensor([[1.0, NAN]] * 3), PATH, None, ENDS >= 0), "'y' must be finite and >= 0"),
        ((torch.tensor([[1.0, INF]] * 3), PATH, None, ENDS >= 0), "'y' must be finite and >= 0"),
        ((ENDS, PATH.float()), "'edge_index' must be long of shape (2, E)"),
        ((ENDS, PATH.int()), "'edge_index' must be long of shape (2, E)"),
        ((ENDS, PATH.T), "'edge_index' must be long of shape (2, E)"),
        ((ENDS, PATH + 1), "'edge_index' must lie in 0..2, the rows of 'y' (got 1..3)"),
        ((ENDS, PATH - 1), "'edge_index' must lie in 0..2, the rows of 'y' (got -1..1)"),
        ((ENDS, PATH, torch.ones(3)), "'edge_weight' must have shape (4,) (got (3,))"),
        ((ENDS, PATH, torch.ones(4, 1)), "'edge_weight' must have shape (4,) (got (4, 1))"),
        ((ENDS, PATH, torch.tensor([1.0, 1.0, NAN, NAN])), "'edge_weight' must be finite and"),
        ((ENDS, PATH, torch.tensor([1.0, 1.0, INF, INF])), "'edge_weight' must be finite and"),
        ((ENDS, PATH, torch.tensor([1.0, 1.0, -1.0, -1.0])), "'edge_weight' must be finite and"),
        ((ENDS, PATH, None, torch.ones(3)), "'seed_mask' must be a bool tensor of shape (3,)"),
        ((ENDS, PATH, None, ENDS[:2] >= 0), "'seed_mask' must be a bool tensor of shape (3,)"),
        ((ENDS, PATH, None, ENDS < 9), "'seed_mask' marks rows whose label is -1"),
        ((ENDS, PATH[:, :3]), "'edge_index' must be undirected"),
        ((ENDS, PATH, torch.tensor([1.0, 2.0, 1.0, 1.0])), "'edge_index' must be undirected"),
    ],
)
def test_bad_arguments(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LabelPropagation()(*arguments)


def test_labels_and_priors_of_another_number_of_classes() -> None:
    with pytest.raises(ValueError, match=re.escape("'y' must be below num_classes=2 (got 2)")):
        LabelPropagation(num_classes=2)(torch.tensor([0, -1, 2]), PATH)
    with pytest.raises(ValueError, match=re.escape("'y' must have 3 columns (got 2)")):
        LabelPropagation(num_classes=3)(torch.eye(3)[:, :2], PATH, None, ENDS >= 0)
    with pytest.raises(ValueError, match=re.escape("'prior' must have 2 entries (got 3)")):
        LabelPropagation(prior=torch.ones(3))(ENDS, PATH)
    with pytest.raises(ValueError, match=re.escape("'class_mass' must have 2 entries")):
        LabelPropagation(class_mass=torch.ones(3))(ENDS, PATH)


@pytest.mark.parametrize("position", range(4))
def test_values_that_are_no_tensors(position: int) -> None:
    arguments = [ENDS, PATH, torch.ones(4), ENDS >= 0]
    name = ("y", "edge_index", "edge_weight", "seed_mask")[position]
    arguments[position] = arguments[position].tolist()
    with pytest.raises(TypeError, match=f"'{name}' must be a torch.Tensor"):
        LabelPropagation()(*arguments)


def test_directed_triangle_is_noticed_although_its_degrees_are_balanced() -> None:
    cycle = torch.tensor([[0, 1, 2], [1, 2, 0]])
    with pytest.raises(ValueError, match=re.escape("to_undirected(")):
        LabelPropagation()(ENDS, cycle)


def test_the_callers_tensors_are_left_alone() -> None:
    graph = awkward_graph()
    arguments = (graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
    before = [value.clone() for value in arguments]
    for solver in ("dense", "cg", "iterate"):
        LabelPropagation(solver=solver)(*arguments)
    for value, copied in zip(arguments, before, strict=True):
        assert torch.equal(value, copied)


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("normalization", reference.NORMALIZATIONS)
@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
def test_seeds_keep_their_labels_bit_for_bit(solver: str, normalization: str, fused: bool) -> None:
    graph = awkward_graph()
    labels = torch.rand(graph.num_nodes, 3, generator=torch.Generator().manual_seed(0)) / 3.0
    layer = LabelPropagation(normalization=normalization, solver=solver, fused=fused)
    out = layer(labels, graph.edge_index, graph.edge_weight.float(), graph.seeds)
    assert torch.equal(out[graph.seeds], labels[graph.seeds])
    assert not torch.equal(out[~graph.seeds], labels[~graph.seeds])


@pytest.mark.parametrize("solver", ["dense", "cg", "iterate"])
@pytest.mark.parametrize(
    ("rule", "eta"), [("harmonic", 0.0), ("harmonic", 0.2), ("spreading", None), ("poisson", 0.0)]
)
def test_unreachable_nodes_are_reported_and_get_zeros_or_the_prior(
    rule: str, eta: float | None, solver: str
) -> None:
    graph = awkward_graph()
    layer = LabelPropagation(rule, eta=eta, solver=solver)
    result = layer.propagate_labels(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    expected = reference.reach(w, graph.seeds)
    assert torch.equal(result.reached, expected)
    assert result.report.unreachable == int((~expected).sum()) == 4
    lost = result.values[~expected]
    assert torch.equal(lost, torch.full_like(lost, 0.25 if eta else 0.0))


def test_nodes_tied_by_zero_weights_only_are_unreachable() -> None:
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    result = LabelPropagation(eta=0.0).propagate_labels(torch.tensor([0, 1, -1]), PATH, weight)
    assert result.reached.tolist() == [True, True, False]
    assert result.values[2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("normalization", ["row", "hub"])
@pytest.mark.parametrize("solver", ["dense", "cg"])
@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_rows_sum_to_one(eta: float, solver: str, normalization: str) -> None:
    graph = awkward_graph()
    layer = LabelPropagation(normalization=normalization, eta=eta, solver=solver, tol=1e-13)
    result = layer.propagate_labels(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
    sums = result.values.sum(dim=1)[result.reached]
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.0, atol=1e-12)


def test_solver_is_chosen_by_the_number_of_unknowns() -> None:
    for hidden, expected in ((512, "dense"), (513, "cg")):
        y = torch.full((hidden + 2,), -1)
        y[0], y[1] = 0, 1
        i = torch.arange(2, hidden + 2)
        pairs = torch.cat([torch.stack([i, i % 2]), torch.stack([i[:-1], i[1:]])], dim=1)
        edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
        report = LabelPropagation().propagate_labels(y, edge_index).report
        assert (report.solver, report.converged) == (expected, True)


@pytest.mark.parametrize("max_iter", [1, 9])
@pytest.mark.parametrize("solver", ["cg", "iterate"])
@pytest.mark.filterwarnings(NOT_CONVERGED)
def test_residual_of_the_report_is_that_of_the_values(solver: str, max_iter: int) -> None:
    graph = awkward_graph(sparse=True)
    layer = LabelPropagation(
        "harmonic", "row", eta=0.05, prior="none", solver=solver, max_iter=max_iter
    )
    result = layer.propagate_labels(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    free = result.reached & ~graph.seeds
    laplacian = torch.diag(1.05 * w.sum(dim=1)) - w
    residual = (laplacian @ result.values)[free]
    right = (w[:, graph.seeds] @ result.values[graph.seeds])[free]
    degree = w.sum(dim=1)[free].unsqueeze(1)  # every node in its own unit
    expected = (residual / degree).norm(dim=0).max() / (right / degree).norm(dim=0).max()
    assert float(expected) > 1e-3
    assert not result.report.converged
    assert result.report.iterations == max_iter
    assert result.report.residual == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("solver", ["cg", "iterate"])
def test_not_converging_warns_once_and_names_the_residual(solver: str) -> None:
    graph = awkward_graph()
    layer = LabelPropagation(eta=0.0, solver=solver, max_iter=2)
    with pytest.warns(UserWarning, match="Label propagation") as caught:
        report = layer.propagate_labels(
            graph.y, graph.edge_index, graph.edge_weight, graph.seeds
        ).report
    (warning,) = caught
    assert f"{report.residual:.1e}" in str(warning.message)
    assert f"({solver}) stopped after 2 iterations" in str(warning.message)
    assert "Raise 'max_iter'" in str(warning.message)
    run(graph, layer)  # warnings are errors: a second one would raise


def test_iterating_without_tolerance_runs_the_given_number_of_steps() -> None:
    graph = awkward_graph()
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    t, labels = reference.walk(w, "row"), one_hot(graph.y, 4) * graph.seeds.unsqueeze(1)
    for steps in (1, 3, 7):
        layer = LabelPropagation(
            "harmonic", "row", eta=0.0, solver="iterate", tol=0.0, max_iter=steps
        )
        result = layer.propagate_labels(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
        assert (result.report.iterations, result.report.converged) == (steps, True)
        values = labels.clone()
        for _ in range(steps + 1):  # the first step is the starting point T_ul Y_l
            values = torch.where(graph.seeds.unsqueeze(1), labels, t @ values)
        free = result.reached
        torch.testing.assert_close(result.values[free], values[free], rtol=0.0, atol=1e-12)


def test_conjugate_gradients_do_not_wait_for_a_class_without_labels() -> None:
    g = torch.Generator().manual_seed(0)
    n = 600
    x = torch.randn(n, 2, generator=g)
    near = torch.cdist(x, x).topk(9, largest=False).indices[:, 1:]
    pairs = torch.stack([torch.arange(n).repeat_interleave(8), near.flatten()])
    edge_index = torch.cat([pairs, pairs.flip(0)], dim=1)
    y = torch.where(torch.rand(n, generator=g) < 0.7, (x[:, 0] > 0).long(), -1)
    counts = []
    for classes in (2, 5):  # classes 2, 3 and 4 have no label at all
        layer = LabelPropagation(eta=0.0, solver="cg", num_classes=classes)
        report = layer.propagate_labels(y, edge_index).report
        assert report.converged
        counts.append(report.iterations)
    assert counts[0] == counts[1] <= 15


# ---------------------------------------------------------------- message passing


def test_explicit_messages_go_through_the_message_function() -> None:
    class Counting(LabelPropagation):
        calls = 0

        def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
            type(self).calls += 1
            return super().message(x_j, edge_weight)

    graph = awkward_graph()
    assert issubclass(LabelPropagation, MessagePassing)
    layer = Counting(solver="iterate", tol=0.0, max_iter=5, fused=False)
    run(graph, layer)
    assert Counting.calls >= 5
    Counting.calls = 0
    run(graph, Counting(solver="iterate", tol=0.0, max_iter=5))
    assert Counting.calls == 0


def message_result() -> tuple[Tensor, Tensor]:
    graph = awkward_graph()
    weight = graph.edge_weight.requires_grad_()
    layer = LabelPropagation(solver="cg", fused=False, gradient="implicit", tol=1e-12)
    out = layer(graph.y, graph.edge_index, weight, graph.seeds)
    (gradient,) = torch.autograd.grad(out[~graph.seeds, 0].sum(), weight)
    return out.detach(), gradient


def test_messages_with_and_without_torch_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_scatter")
    if not torch_geometric.typing.WITH_TORCH_SCATTER:
        pytest.skip("this PyG does not use the installed torch-scatter")
    with_scatter = message_result()
    monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SCATTER", False)
    without = message_result()
    graph = awkward_graph()
    fused = LabelPropagation(solver="cg", tol=1e-12)
    expected = fused(graph.y, graph.edge_index, graph.edge_weight, graph.seeds)
    for ours, theirs in zip(with_scatter, without, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(with_scatter[0], expected, rtol=0.0, atol=1e-10)


# ---------------------------------------------------------------- class mass


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_class_mass_normalize_entry_by_entry(power: float) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.rand(8, 4, generator=g, dtype=torch.float64)
    values[:, 2] = 0.0  # a class without mass
    values[5] = 0.0  # a row without mass
    labels = one_hot(torch.arange(8) % 4, 4)
    seeds = torch.tensor([True, True, False, False, False, False, False, True])
    prior = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    actual = class_mass_normalize(values, labels, seeds, 3.0 * prior, power=power)
    expected = reference.class_mass(values, labels, seeds, prior, power)
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(actual.sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert torch.equal(actual[seeds], labels[seeds])


@pytest.mark.parametrize("prior", ["uniform", torch.tensor([4.0, 3.0, 2.0, 1.0])])
@pytest.mark.parametrize("rule", ["harmonic", "spreading"])
def test_class_mass_is_applied_to_the_hit_mass_without_the_leak(
    rule: str, prior: str | Tensor
) -> None:
    graph = awkward_graph()
    w = dense_weights(graph.edge_index, graph.edge_weight, graph.num_nodes)
    labels = one_hot(graph.y, 4)
    if rule == "harmonic":
        # What leaks is lost, not handed to the prior.
        lost = torch.zeros(4, dtype=torch.float64)
        hits = reference.harmonic(w, labels, graph.seeds, "hub", 0.2, prior=lost)
    else:
        hits = reference.spreading(w, labels, graph.seeds, "hub", 0.9)
    target = torch.full((4,), 0.25) if isinstance(prior, str) else prior / prior.sum()
    expected = reference.class_mass(hits, labels, graph.seeds, target, 1.0)
    layer = LabelPropagation(rule, class_mass=prior)
    torch.testing.assert_close(run(graph, layer), expected, rtol=0.0, atol=1e-6)


def test_class_mass_undoes_a_majority_among_the_seeds() -> None:
    # Two equal clusters, three seeds in one and one in the other, joined by weak ties.
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(20, 2, generator=g), torch.randn(20, 2, generator=g) + 2.0])
    w = torch.exp(-torch.cdist(x, x).square() / 2.0).fill_diagonal_(0.0)
    edge_index = w.nonzero().T.contiguous()
    y = torch.full((40,), -1)
    y[[0, 1, 2, 3, 20]] = torch.tensor([0, 0, 0, 0, 1])
    weight = w[edge_index[0], edge_index[1]]

    def predicted(layer: LabelPropagation) -> int:
        return int(layer(y, edge_index, weight)[21:].argmax(dim=1).sum())

    assert predicted(LabelPropagation(class_mass="uniform")) > predicted(LabelPropagation())


@pytest.mark.parametrize("power", [-0.1, 1.1, NAN])
def test_class_mass_power_out_of_range(power: float) -> None:
    labels = torch.eye(2)
    with pytest.raises(ValueError, match=re.escape("'power' must be in [0.0, 1.0]")):
        class_mass_normalize(labels, labels, torch.tensor([True, False]), power=power)


# ---------------------------------------------------------------- the object


def test_repr_is_explicit() -> None:
    assert repr(LabelPropagation()) == (
        "LabelPropagation(rule='harmonic', normalization='hub', eta=0.2, solver='auto', "
        "tol=0.0001, max_iter=1000, gradient='implicit', fused=True)"
    )
    assert "alpha=0.5" in repr(LabelPropagation("spreading", alpha=0.5))
    assert "eta=0.0" in repr(LabelPropagation("poisson"))

    class Named(LabelPropagation):
        pass

    assert repr(Named()).startswith("Named(")


@pytest.mark.parametrize("make", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same(make: object) -> None:
    graph = awkward_graph()
    layer = LabelPropagation(prior=torch.tensor([4.0, 3.0, 2.0, 1.0]), class_mass="uniform")
    twin = make(layer)  # type: ignore[operator]
    assert repr(twin) == repr(layer)
    assert torch.equal(run(graph, twin), run(graph, layer))


def test_the_layer_holds_no_trainable_state() -> None:
    layer = LabelPropagation(prior=torch.ones(3))
    assert not list(layer.parameters())
    assert not layer.state_dict()
