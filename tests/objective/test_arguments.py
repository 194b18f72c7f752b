"""Arguments of a call, settings, and the objective as a module."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, LabelPropagation, MemoryBank, ObjectiveOutput
from gloss_graph.graph import KNNGraph, build
from gloss_graph.step import Consistency, GraphContrast, Staleness
from objective.documents import (
    CLASSES,
    DIM,
    SIZE,
    assert_same_state,
    filled,
    half_visible,
    labels_of,
    rows,
    step,
)


@pytest.mark.parametrize("name", ["embeddings", "labels", "ids", "logits", "visible"])
def test_values_that_are_no_tensors(name: str) -> None:
    call: dict[str, Any] = {
        "embeddings": rows(4),
        "labels": labels_of(4),
        "ids": torch.arange(4),
        "logits": torch.zeros(4, CLASSES),
        "visible": half_visible(4),
    }
    call[name] = call[name].tolist()
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    before = snapshot(objective)
    with pytest.raises(TypeError, match=f"'{name}' must be a torch.Tensor"):
        objective(**call)
    assert_same_state(before, snapshot(objective))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    logits = torch.zeros(4, CLASSES)
    logits[2, 1] = value
    before = snapshot(objective.memory)
    with pytest.raises(ValueError, match="'logits' must be finite"):
        objective(rows(4), labels_of(4), ids=torch.arange(4), logits=logits)
    assert_same_state(before, snapshot(objective.memory))


def test_a_memory_and_a_generator_of_another_kind() -> None:
    with pytest.raises(TypeError, match="'memory' must be a MemoryBank"):
        GraphGuidedObjective(CLASSES, memory=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=re.escape("loss='nll' needs probabilities")):
        GraphGuidedObjective(CLASSES, rule="poisson", loss="nll")


@pytest.mark.parametrize(
    "weight", [torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3), torch.tensor([1.0, 1.0, math.nan])]
)
def test_bad_class_weights(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="'class_weight' must have shape"):
        GraphGuidedObjective(CLASSES, class_weight=weight)


def test_labels_and_ids_of_any_integer_dtype() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled()).eval()
    call: dict[str, Any] = {"visible": half_visible()}
    expected = objective(rows(), labels_of(), ids=torch.arange(SIZE), **call)
    for dtype in (torch.int8, torch.int16, torch.int32):
        ids = torch.arange(SIZE, dtype=dtype)
        assert torch.equal(objective(rows(), labels_of().to(dtype), ids=ids, **call), expected)


def test_the_callers_tensors_are_left_alone() -> None:
    call = [rows(), labels_of(), torch.arange(SIZE), half_visible(), rows(SIZE, 3, CLASSES)]
    before = [value.clone() for value in call]
    x, labels, ids, visible, logits = call
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    objective(x, labels, ids=ids, visible=visible, logits=logits)
    for value, copied in zip(call, before, strict=True):
        assert torch.equal(value, copied)


def test_unnormalized_embeddings() -> None:
    bank = filled(normalize=False)
    objective = GraphGuidedObjective(
        CLASSES, memory=bank, normalize_embeddings=False, bandwidth="inflection"
    )
    x = rows().requires_grad_()
    out = step(objective, x, labels_of(), ids=torch.arange(SIZE))
    out.loss.backward()
    assert bool(torch.isfinite(x.grad).all())
    # Lengths matter: radial parts of the gradient are not zero.
    assert float((x.grad * x.detach()).sum(dim=1).abs().max()) > 1e-6
    stored = bank.embeddings[bank.slots_of(torch.arange(SIZE))]
    assert torch.equal(stored, x.detach().float())


def test_settings_are_keyword_only_and_shared_with_the_parts() -> None:
    objective = inspect.signature(GraphGuidedObjective.__init__).parameters
    positional = [n for n, p in objective.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["self", "num_classes"]
    assert not [n for n, p in objective.items() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    parts: dict[str, inspect.Parameter] = {}
    for part in (LabelPropagation.__init__, build.build_document_graph):
        parts |= inspect.signature(part).parameters
    shared = set(objective) & set(parts) - {"self", "num_classes", "memory"}
    assert {"rule", "normalization", "eta", "alpha", "solver", "k", "bandwidth"} <= shared
    # A short form that is not given leaves the part as it is.
    assert all(objective[name].default is None for name in shared)


def test_short_forms_set_their_part_and_must_not_contradict_it() -> None:
    short = GraphGuidedObjective(
        CLASSES, k=7, rule="spreading", alpha=0.8, consistency_start=3, half_life=9.0
    )
    parts = GraphGuidedObjective(
        CLASSES,
        graph=KNNGraph(k=7),
        propagation=LabelPropagation("spreading", alpha=0.8),
        consistency=Consistency(start=3),
        staleness=Staleness(half_life=9.0),
    )
    assert repr(short) == repr(parts)
    assert repr(GraphGuidedObjective(CLASSES, propagation="spreading", alpha=0.8, k=7)) != ""
    # Said twice is fine, said differently is not.
    GraphGuidedObjective(CLASSES, graph=KNNGraph(k=7), k=7)
    for name, value, part in (
        ("k", 8, {"graph": KNNGraph(k=7)}),
        ("eta", 0.5, {"propagation": LabelPropagation(eta=0.1)}),
        ("align", 0.1, {"consistency": Consistency(align=0.2)}),
        ("half_life", 1.0, {"staleness": Staleness(half_life=2.0)}),
    ):
        with pytest.raises(
            ValueError, match=f"'{name}' is {value}, but .* in '{next(iter(part))}'"
        ):
            GraphGuidedObjective(CLASSES, **{name: value}, **part)
    for name in ("graph", "propagation", "consistency", "staleness"):
        with pytest.raises(TypeError, match=f"'{name}' must be a "):
            GraphGuidedObjective(CLASSES, **{name: 3})


def test_none_in_a_part_says_nothing() -> None:
    for name, value, part in (
        ("eta", 0.2, {"propagation": LabelPropagation()}),
        ("hops", 2, {"graph": KNNGraph(k=7)}),
        ("half_life", 1.0, {"staleness": Staleness(ramp_steps=3)}),
    ):
        objective = GraphGuidedObjective(CLASSES, **{name: value}, **part)
        assert f"{name}={value}" in repr(objective)
    assert objective.staleness == Staleness(half_life=1.0, ramp_steps=3)
    objective = GraphGuidedObjective(CLASSES, propagation=LabelPropagation("spreading"), eta=0.3)
    assert objective.propagation.rule == "spreading"
    assert build.build_document_graph(rows(), k=3, hops=1, graph=KNNGraph(k=3)).num_nodes == SIZE


def test_prior_and_messages_of_the_propagation_reach_the_step() -> None:
    def made(**settings: Any) -> ObjectiveOutput:
        layer = LabelPropagation(eta=0.5, solver="cg", tol=1e-10, **settings)
        objective = GraphGuidedObjective(CLASSES, memory=filled(), propagation=layer)
        assert objective.propagation.fused == layer.fused
        return step(objective, rows(), labels_of(), ids=torch.arange(SIZE), visible=half_visible())

    kept, lost = made(), made(prior="none")
    # What leaks is lost: the hidden rows keep the mass that arrives, less than 1.
    torch.testing.assert_close(kept.propagated.sum(dim=1), torch.ones(SIZE).double())
    assert float(lost.propagated[lost.hidden].sum(dim=1).max()) < 0.9
    leaked = (1.0 - lost.propagated.sum(dim=1, keepdim=True)) / CLASSES
    torch.testing.assert_close(lost.propagated + leaked, kept.propagated, rtol=0.0, atol=1e-6)
    assert float(lost.loss) != float(kept.loss)
    prior = made(prior=torch.tensor([0.8, 0.1, 0.1]))
    assert float(prior.propagated[prior.hidden, 0].mean()) > float(
        kept.propagated[kept.hidden, 0].mean()
    )
    torch.testing.assert_close(made(fused=False).loss, kept.loss)


@pytest.mark.parametrize(
    ("layer", "settings", "message"),
    [
        ({"num_classes": 5}, {}, "'propagation' must have num_classes=3 or none"),
        ({"class_mass": "uniform"}, {}, "'propagation' must not rescale classes"),
        (
            {"prior": torch.ones(CLASSES)},
            {"multilabel": True},
            "'propagation' must not have a 'prior' with multilabel=True",
        ),
    ],
)
def test_a_propagation_that_an_objective_cannot_follow(
    layer: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GraphGuidedObjective(CLASSES, propagation=LabelPropagation(**layer), **settings)


def test_former_names_work_and_warn() -> None:
    former = {"form": "nll", "anchor": 0.3, "memory_start": 2, "memory_ramp": 4}
    with pytest.warns(DeprecationWarning, match="is now") as seen:
        old = GraphGuidedObjective(CLASSES, **former)
    assert {str(one.message) for one in seen} == {
        "'form' is now 'loss'.",
        "'anchor' is now 'frozen_weight'.",
        "'memory_start' is now 'warmup_steps'.",
        "'memory_ramp' is now 'ramp_steps'.",
    }
    now = {"loss": "nll", "frozen_weight": 0.3, "warmup_steps": 2, "ramp_steps": 4}
    assert repr(old) == repr(GraphGuidedObjective(CLASSES, **now))
    with pytest.raises(TypeError, match="'anchor' is the former name of 'frozen_weight'"):
        GraphGuidedObjective(CLASSES, anchor=0.3, frozen_weight=0.3)
    x = rows()
    with pytest.warns(DeprecationWarning, match="'reference' is now 'target_embeddings'"):
        old(x, labels_of(), reference=x)


@pytest.mark.parametrize("make", [GraphGuidedObjective.published, GraphGuidedObjective.released])
def test_paper_forms_take_no_other_settings(make: Any) -> None:
    objective = make(CLASSES, 0.4, graph_weight=0.9, visible_fraction=0.3, seed=5)
    assert (objective.graph_weight, objective.visible_fraction) == (0.9, 0.3)
    assert objective.memory is None
    with pytest.raises(TypeError, match="eta"):
        make(CLASSES, 0.4, eta=0.2)
    with pytest.raises(ValueError, match="'bandwidth'"):
        make(CLASSES, 0.0)


def test_repr_shows_settings_and_parts() -> None:
    text = repr(GraphGuidedObjective(4, memory=filled(), k=7, hops=2, graph_weight=0.25))
    for part in ("num_classes=4", "k=7", "bandwidth='sqrt'", "loss='nll'", "graph_weight=0.25"):
        assert part in text
    assert "(memory): MemoryBank(20/60 rows" in text
    assert "(propagation): LabelPropagation(rule='harmonic'" in text

    def wide(x: Tensor, labels: Tensor | None) -> float:
        return 1.0

    assert "bandwidth=wide" in repr(GraphGuidedObjective(4, bandwidth=wide))


def test_repr_shows_every_setting() -> None:
    values = {
        "multilabel": False, "k": 5, "kernel": "cosine", "bandwidth": 0.7, "symmetrize": "mutual",
        "batch_edges": "knn", "hops": 3, "visible_fraction": 0.4, "memory_visible_fraction": 0.6,
        "graph_weight": 0.3, "loss": "nll", "rule": "harmonic", "normalization": "row",
        "eta": 0.15, "alpha": 0.55, "solver": "cg", "tol": 1e-5, "max_iter": 77,
        "gradient": "unrolled", "warm_start": True, "normalize_embeddings": True,
        "consistency_weight": 0.12, "consistency_start": 71, "consistency_ramp": 72,
        "refresh_every": 73, "frozen_weight": 0.77, "align": 0.33, "half_life": 74.0,
        "restandardize": True, "warmup_steps": 75, "ramp_steps": 76,
        "class_weight": torch.tensor([0.5, 0.25, 0.75]), "generator": None, "seed": 78,
    }  # fmt: skip
    names = inspect.signature(GraphGuidedObjective.__init__).parameters.keys()
    parts = {"graph", "propagation", "consistency", "contrast", "staleness"}
    assert names - {"self", "num_classes", "memory", "views"} - parts == values.keys()
    text = repr(GraphGuidedObjective(CLASSES, memory=filled(), **values)).split("\n  (memory")[0]
    for name, value in values.items():
        shown = str(value.tolist()) if isinstance(value, Tensor) else repr(value)
        assert f"{name}={shown}" in text
    for paper in (GraphGuidedObjective.published, GraphGuidedObjective.released):
        text = repr(paper(CLASSES, sigma=1.0))
        assert all(f"{name}=" in text for name in values.keys() | parts | {"views"})
    views = [(torch.arange(2), torch.eye(2))]
    objective = GraphGuidedObjective(
        CLASSES, memory=filled(), contrast=GraphContrast(rows=9), views=views
    )
    assert "views=1" in repr(objective)
    assert "rows=9" in repr(objective)


@pytest.mark.parametrize("settings", [{"symmetrize": "mutual"}, {"bandwidth": "local"}])
def test_a_bank_without_links_serves_every_graph(settings: dict[str, Any]) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=MemoryBank(60, DIM, k=0), k=3, **settings)
    for number in range(3):
        x, ids = rows(seed=number).requires_grad_(), torch.arange(SIZE) + SIZE * number
        out = step(objective, x, labels_of(), ids=ids, visible=half_visible())
        out.loss.backward()
        assert bool(torch.isfinite(x.grad).all())
        # Both ends must list each other, and the bank's rows list none.
        if "symmetrize" in settings:
            assert int((out.graph.edge_kind > 0).sum()) == 0


@pytest.mark.parametrize("seed", [1.5, "x", None, True, -1])
def test_a_seed_is_a_number(seed: Any) -> None:
    with pytest.raises(ValueError, match="'seed' must be an integer"):
        GraphGuidedObjective(CLASSES, seed=seed)


def test_seconds_by_stage() -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled())
    assert not objective.seconds
    objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert len(objective.seconds) >= 3
    assert all(value >= 0 for value in objective.seconds.values())
    objective.seconds.clear()
    assert not objective.seconds


def test_the_objective_follows_a_module_it_is_part_of() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(DIM, DIM)
            self.objective = GraphGuidedObjective(CLASSES, memory=filled())

    model = Model()
    names = {name for name, _ in model.named_parameters()}
    assert names == {"encoder.weight", "encoder.bias"}
    assert any(name.startswith("objective.memory.") for name in model.state_dict())
    model.eval()
    before = len(model.objective.memory)
    model.objective(rows(), labels_of(), ids=torch.arange(SIZE))
    assert len(model.objective.memory) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_objective_survives_the_conversion_of_a_whole_model(dtype: torch.dtype) -> None:
    objective = GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=0.6)
    exact = GraphGuidedObjective(CLASSES, memory=filled(), bandwidth=0.6)
    objective.to(dtype)
    for number in range(2):
        call = {"ids": torch.arange(SIZE) + 5 * number, "visible": half_visible()}
        loss = objective(rows(seed=number).to(dtype), labels_of(), **call)
        expected = exact(rows(seed=number), labels_of(), **call)
        assert loss.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_encoder_trains_the_same(backend: str) -> None:
    def run(compiled: bool) -> tuple[list[float], Tensor]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(DIM, 8), nn.Tanh(), nn.Linear(8, DIM))
        call = torch.compile(encoder, backend=backend) if compiled else encoder
        objective = GraphGuidedObjective(CLASSES, memory=filled())
        losses = []
        for _ in range(2):
            loss = objective(call(rows().float()), labels_of(), ids=torch.arange(SIZE))
            loss.backward()
            losses.append(loss.item())
        return losses, encoder[0].weight.grad

    losses, gradient = run(compiled=False)
    same_losses, same_gradient = run(compiled=True)
    assert losses == pytest.approx(same_losses, rel=1e-5)
    torch.testing.assert_close(gradient, same_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        objective = GraphGuidedObjective(CLASSES, memory=filled()).to(device)
        x = rows().to(device).requires_grad_()
        out = step(
            objective,
            x,
            labels_of().to(device),
            ids=torch.arange(SIZE, device=device),
            visible=half_visible().to(device),
        )
        (gradient,) = torch.autograd.grad(out.loss, x)
        assert out.propagated.device.type == device
        results.append((out.loss.detach().cpu(), gradient.cpu(), objective.memory.rows.cpu()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
