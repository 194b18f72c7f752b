"""torch's default dtype decides nothing: every tensor of the library names its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph, graph_skill
from gloss_graph.analysis import document_graph
from gloss_graph.export import from_networkx, to_networkx

SIZE, DIM, CLASSES = 60, 6, 3


@pytest.fixture(autouse=True)
def float32_afterwards() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def corpus(dtype: torch.dtype, sets: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, DIM, generator=generator, dtype=torch.float64).to(dtype)
    logits = torch.randn(SIZE, CLASSES, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.arange(SIZE) % CLASSES
    unlabeled = torch.randperm(SIZE, generator=generator) < SIZE // 2
    if sets:
        labels = torch.nn.functional.one_hot(labels, CLASSES).to(dtype)
    labels[unlabeled] = torch.nan if sets else -1
    return x, labels, logits


def training(dtype: torch.dtype, sets: bool, settings: dict[str, Any], bank: Any) -> list[Tensor]:
    x, labels, logits = corpus(dtype, sets)
    memory = None
    if bank is not None:
        memory = MemoryBank(SIZE, DIM, k=4, num_classes=CLASSES if sets else None, **bank)
    objective = GraphGuidedObjective(
        CLASSES,
        memory=memory,
        multilabel=sets,
        consistency_start=1,
        consistency_ramp=1,
        **({"refresh_every": 2} | settings),
    )
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(4):
        ids = torch.randperm(SIZE, generator=generator)[:24]
        z = x[ids].clone().requires_grad_()
        call = {"ids": ids, "logits": logits[ids], "return_output": step % 2 == 0}
        out = objective(z, labels[ids], **call)
        loss = out if isinstance(out, Tensor) else out.loss
        loss.backward()
        found += [loss.detach(), z.grad]
    if memory is not None:
        found += [*objective.explain(x[:8], ids=torch.arange(8))]
        found += [objective.predict(x, mode="transductive"), memory.embeddings, *memory.edges()]
        found += memory.search(x, 3)
    return [*found, *(v for v in objective.state_dict().values() if isinstance(v, Tensor))]


def same_under_both(answer: Callable[[], list[Tensor]]) -> None:
    torch.set_default_dtype(torch.float32)
    expected = answer()
    torch.set_default_dtype(torch.float64)
    found = answer()
    assert len(expected) == len(found)
    for number, (first, second) in enumerate(zip(expected, found, strict=True)):
        assert first.dtype == second.dtype, number
        torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sets", [False, True], ids=["classes", "sets"])
@pytest.mark.parametrize(
    ("settings", "bank"),
    [
        ({}, None),
        ({}, {}),
        ({"refresh_every": 0}, {}),
        ({"warm_start": True}, {}),
        ({"rule": "spreading", "symmetrize": "mutual", "bandwidth": "local"}, {}),
        ({"half_life": 3.0, "restandardize": True, "hops": 2}, {}),
        ({"memory_visible_fraction": 0.5}, {"search": "descent"}),
        ({"class_weight": [1.0, 2.0, 3.0]}, {"dtype": torch.float16, "eviction": "reservoir"}),
    ],
    ids=str,
)
def test_training_and_prediction(
    settings: dict[str, Any], bank: dict[str, Any] | None, sets: bool, dtype: torch.dtype
) -> None:
    if "class_weight" in settings:
        settings = settings | {"class_weight": torch.tensor(settings["class_weight"])}
    same_under_both(lambda: training(dtype, sets, settings, bank))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graphs_and_what_is_read_from_them(dtype: torch.dtype) -> None:
    def answer() -> list[Tensor]:
        x, labels, _ = corpus(dtype, sets=False)
        data = build_document_graph(x, labels)
        found = document_graph(x, labels)
        back = from_networkx(to_networkx(found))
        parts = [data.edge_weight, data.bandwidth, found.edge_weight, found.bandwidth]
        skill = torch.tensor(graph_skill(x, labels, repeats=2, warn=False), dtype=torch.float64)
        return [*parts, back.edge_weight, back.bandwidth, skill]

    same_under_both(answer)
