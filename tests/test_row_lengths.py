"""Rows too long or too short for float32: an error that names them, wherever rows come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph, graph_skill
from gloss_graph.analysis import document_graph
from gloss_graph.losses import MetricLoss, PseudoLabelLoss, pair_cosine_loss

SIZE, DIM, CLASSES = 8, 4, 2
LABELS, IDS = torch.arange(SIZE) % CLASSES, torch.arange(SIZE)


def rows(columns: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(SIZE, columns, generator=torch.Generator().manual_seed(seed))


def filled(dim: int = DIM, **settings: Any) -> MemoryBank:
    bank = MemoryBank(20, dim, **settings)
    bank.enqueue(rows(dim, seed=1), LABELS, IDS)
    return bank


def objective(dim: int = DIM, **settings: Any) -> GraphGuidedObjective:
    memory = filled(dim, normalize=settings.get("normalize_embeddings", True))
    return GraphGuidedObjective(CLASSES, memory=memory, **settings)


def views(**call: Tensor) -> Callable[[Tensor], object]:
    """A call of the objective in which one of the views is the argument."""

    def ask(x: Tensor) -> object:
        given = {name: x if value is None else value for name, value in call.items()}
        return objective(2 * DIM if "frozen" in call else DIM)(labels=LABELS, ids=IDS, **given)

    return ask


# What takes rows that it divides by their length.
NORMALIZED: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "embeddings": ("embeddings", views(embeddings=None)),
    "with frozen": ("embeddings", views(embeddings=None, frozen=rows(seed=2))),
    "frozen": ("frozen", views(embeddings=rows(), frozen=None)),
    "target_embeddings": ("target_embeddings", views(embeddings=rows(), target_embeddings=None)),
    "graph": ("embeddings", lambda x: build_document_graph(x, LABELS)),
    "graph beside a bank": ("embeddings", lambda x: build_document_graph(x, memory=filled())),
    "enqueue": ("embeddings", lambda x: filled().enqueue(x, LABELS, IDS)),
    "neighbors": ("embeddings", lambda x: filled().neighbors(x, IDS)),
    "search": ("queries", lambda x: filled().search(x, 2)),
    "prefill": ("embeddings", lambda x: filled().prefill([(x, LABELS, IDS)], lambda part: part)),
    "refresh": ("encode", lambda x: filled().refresh(lambda ids: x[ids], SIZE)),
    "predict": ("embeddings", lambda x: objective().predict(x)),
    "explain": ("embeddings", lambda x: objective().explain(x, mode="transductive")),
    "predict frozen": ("frozen", lambda x: objective(2 * DIM).predict(rows(), frozen=x)),
    "skill": ("embeddings", lambda x: graph_skill(x, LABELS)),
    "document graph": ("source", lambda x: document_graph(x, LABELS)),
    "pairs": ("embeddings", lambda x: pair_cosine_loss(x, LABELS)),
    "metric loss": ("embeddings", lambda x: MetricLoss("cosine")(x, LABELS)),
}


# What takes rows, and what besides takes them as they are.
LONG: dict[str, tuple[str, Callable[[Tensor], object]]] = NORMALIZED | {
    "logits": ("logits", views(embeddings=rows(), logits=None)),
    "metric logits": ("logits", lambda x: MetricLoss("cosine")(rows(), LABELS, logits=x)),
    "pseudo logits": ("logits", lambda x: PseudoLabelLoss(DIM)(x, LABELS, rows())),
    "teacher": ("teacher_logits", lambda x: PseudoLabelLoss(DIM)(rows(), LABELS, x)),
    "plain": (
        "embeddings",
        lambda x: objective(normalize_embeddings=False)(x, LABELS, ids=IDS),
    ),
    "plain graph": ("embeddings", lambda x: build_document_graph(x, normalize_embeddings=False)),
}


@pytest.mark.parametrize("length", [1e19, 1e38, float("nan")])
@pytest.mark.parametrize("name", LONG)
def test_rows_whose_squares_leave_float32_are_named(name: str, length: float) -> None:
    argument, ask = LONG[name]
    x = rows(CLASSES if name == "logits" else DIM)
    ask(x)
    x[3] *= length
    with pytest.raises(ValueError, match=rf"'{argument}' must .* in 1 of 8 rows, .* row 3\)"):
        ask(x)


@pytest.mark.parametrize("length", [1e-13, 1e-38])
@pytest.mark.parametrize("name", NORMALIZED)
def test_rows_too_short_to_be_normalized_are_named(name: str, length: float) -> None:
    argument, ask = NORMALIZED[name]
    x = rows()
    x[3] *= length
    with pytest.raises(ValueError, match=rf"'{argument}' must .* in 1 of 8 rows, .* row 3\)"):
        ask(x)
    x[3] = 0.0
    ask(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [2.0**-36, 2.0**58])
def test_rows_within_the_bounds_give_the_same_answer_in_any_unit(
    unit: float, dtype: torch.dtype
) -> None:
    found = []
    for scale in (1.0, unit):
        made = objective()
        x = (scale * rows()).to(dtype).requires_grad_()
        loss = made(x, LABELS, ids=IDS + 100)
        loss.backward()
        # A power of two: equal bit for bit.
        found.append((loss.detach(), x.grad * scale, made.memory.embeddings))
    assert found[0][2].norm(dim=1).sub(1.0).abs().max() < 1e-6
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1e20, 1e-20])
def test_a_refused_step_changes_nothing(scale: float) -> None:
    made = objective()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(ValueError, match="in 8 of 8 rows, the first is row 0"):
        made(scale * rows(), LABELS, ids=IDS)
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_row_beyond_float16_is_named() -> None:
    bank = MemoryBank(8, DIM, dtype=torch.float16, normalize=False)
    x = rows()
    x[5] = 1e6
    with pytest.raises(ValueError, match=r"exceed float16 in 1 of 8 rows, the first is row 5\."):
        bank.enqueue(x, ids=IDS)
