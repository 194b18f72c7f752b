"""The paper's two in-batch forms, against values computed with its released code.

The recorded values live outside the repository; the same forms written out step by step (the
`literal_*` functions) are compared everywhere, and the recorded values also check them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import dense_weights, one_hot, walk
from torch import Tensor

from gloss_graph import GraphGuidedObjective, LabelPropagation, build_document_graph
from gloss_graph.graph import estimate_bandwidth

TOLERANCE = 1e-9
CASES = range(4)


class Case(NamedTuple):
    x: Tensor
    y: Tensor
    known: Tensor
    sigma: float
    values: dict[str, np.ndarray]

    @property
    def classes(self) -> int:
        # A class may have no document at all, as in the third recorded case.
        recorded = self.values.get("code_F")
        return int(self.y.max()) + 1 if recorded is None else recorded.shape[1]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.values[name]))


@pytest.fixture(params=CASES, ids=lambda i: f"case{i}")
def case(request: pytest.FixtureRequest, parity_file: Path) -> Case:
    with np.load(parity_file) as recorded:
        prefix = f"case{request.param}/"
        values = {
            key.removeprefix(prefix): recorded[key] for key in recorded if key.startswith(prefix)
        }
    return Case(
        torch.from_numpy(values["x"]),
        torch.from_numpy(values["y"]),
        torch.from_numpy(values["known"]),
        float(values["sigma"]),
        values,
    )


def random_case(seed: int) -> Case:
    g = torch.Generator().manual_seed(seed)
    classes = 2 + seed
    y = torch.arange(14 + seed) % classes
    x = torch.randn(y.numel(), 5, generator=g, dtype=torch.float64)
    known = torch.rand(y.numel(), generator=g) < 0.5
    known[:classes] = True
    known[-1] = False
    return Case(x, y, known, 0.4 + 0.2 * seed, {})


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((actual - expected).abs().max()) <= tolerance * scale


def literal_propagation(x: Tensor, y: Tensor, known: Tensor, sigma: float, form: str) -> Tensor:
    """F of the hidden rows in index order, from the equations."""
    x = x / x.norm(dim=1, keepdim=True)
    n = x.size(0)
    w = torch.zeros(n, n, dtype=x.dtype)
    for i in range(n):
        for j in range(n):
            if i != j:
                value = torch.exp(-((x[i] - x[j]) ** 2).sum() / (2.0 * sigma**2))
                w = w.index_put((torch.tensor(i), torch.tensor(j)), value)
    t = walk(w, "column" if form == "published" else "hub")
    hidden, seeds = (~known).nonzero().squeeze(1), known.nonzero().squeeze(1)
    labels = one_hot(y, int(y.max()) + 1)[seeds]
    identity = torch.eye(hidden.numel(), dtype=x.dtype)
    return torch.linalg.solve(identity - t[hidden][:, hidden], t[hidden][:, seeds] @ labels)


def literal_loss(values: Tensor, target: Tensor, form: str) -> Tensor:
    if form == "released":
        return F.cross_entropy(values, target) / target.numel()
    return -torch.stack([values[i, c].log() for i, c in enumerate(target.tolist())]).mean()


def run(case: Case, form: str) -> tuple[Tensor, Tensor, Tensor]:
    """Propagated hidden rows, loss and gradient of the library's form."""
    x = case.x.clone().requires_grad_()
    if form == "nll of released":
        objective = GraphGuidedObjective(
            case.classes,
            bandwidth=case.sigma,
            batch_edges="all",
            normalization="hub",
            eta=0.0,
            loss="published",
            solver="dense",
        )
    else:
        objective = getattr(GraphGuidedObjective, form)(case.classes, case.sigma)
    out = objective(x, case.y, visible=case.known, return_output=True)
    assert torch.equal(out.hidden, ~case.known)
    (gradient,) = torch.autograd.grad(out.loss, x)
    return out.propagated[~case.known].detach(), out.loss.detach(), gradient


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["published", "released"])
def test_forms_equal_the_equations_written_out(form: str, seed: int) -> None:
    case = random_case(seed)
    x = case.x.clone().requires_grad_()
    expected = literal_propagation(x, case.y, case.known, case.sigma, form)
    loss = literal_loss(expected, case.y[~case.known], form)
    (gradient,) = torch.autograd.grad(loss, x)
    values, actual_loss, actual_gradient = run(case, form)
    assert_relative(values, expected.detach())
    assert_relative(actual_loss, loss.detach())
    assert_relative(actual_gradient, gradient)


@pytest.mark.parametrize(("form", "prefix"), [("released", "code"), ("published", "paper")])
def test_forms_equal_the_recorded_values(case: Case, form: str, prefix: str) -> None:
    values, loss, gradient = run(case, form)
    assert_relative(values, case.tensor(f"{prefix}_F"))
    assert_relative(loss, case.tensor(f"{prefix}_loss"))
    assert_relative(gradient, case.tensor(f"{prefix}_grad"))


def test_log_likelihood_of_the_released_walk_equals_the_recorded_values(case: Case) -> None:
    values, loss, gradient = run(case, "nll of released")
    assert_relative(values, case.tensor("code_F"))
    assert_relative(loss, case.tensor("code_F_nll"))
    assert_relative(gradient, case.tensor("code_F_nll_grad"))


@pytest.mark.parametrize(("normalization", "prefix"), [("hub", "code"), ("column", "paper")])
@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_undamped_layer_equals_the_recorded_propagation(
    case: Case, normalization: str, prefix: str, solver: str
) -> None:
    data = build_document_graph(case.x, case.y, bandwidth=case.sigma, batch_edges="all")
    layer = LabelPropagation(
        "harmonic",
        normalization,
        eta=0.0,
        solver=solver,
        tol=1e-13,
        num_classes=case.classes,
    )
    values = layer(case.y, data.edge_index, data.edge_weight, case.known)
    assert_relative(values[~case.known], case.tensor(f"{prefix}_F"))
    labels = one_hot(case.y, case.classes)
    assert torch.equal(values[case.known], labels[case.known])


def test_recorded_weights_come_from_the_whole_kernel_matrix(case: Case) -> None:
    data = build_document_graph(case.x, bandwidth=case.sigma, batch_edges="all")
    x = F.normalize(case.x, dim=1)
    squared = torch.stack([((row - x) ** 2).sum(dim=1) for row in x])
    expected = torch.exp(-squared / (2.0 * case.sigma**2)).fill_diagonal_(0.0)
    assert_relative(dense_weights(data.edge_index, data.edge_weight, len(x)), expected, 1e-12)


@pytest.mark.parametrize("rule", ["sqrt", "interclass_min"])
def test_bandwidth_rules_equal_the_recorded_values(case: Case, rule: str) -> None:
    sigma = estimate_bandwidth(rule, F.normalize(case.x, dim=1), case.y)
    assert_relative(sigma, case.tensor(f"sigma_{rule}"))


@pytest.mark.parametrize("classes", [2, 8, 52])
def test_released_form_cannot_fall_below_the_floor_of_its_second_softmax(classes: int) -> None:
    # Every document has a visible twin and nothing else near it: F is the truth itself.
    x = torch.eye(classes, dtype=torch.float64).repeat(2, 1)
    y = torch.arange(classes).repeat(2)
    known = torch.arange(2 * classes) < classes
    objective = GraphGuidedObjective.released(classes, 0.1)
    out = objective(x, y, visible=known, return_output=True)
    assert_relative(out.propagated[classes:], torch.eye(classes, dtype=torch.float64))
    floor = np.log((np.e + classes - 1.0) / np.e)
    assert float(out.loss) * classes == pytest.approx(floor, rel=1e-9)
    published = GraphGuidedObjective.published(classes, 0.1)(x, y, visible=known)
    assert float(published) == pytest.approx(0.0, abs=1e-9)
