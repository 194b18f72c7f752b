"""The consistency term: targets, their timing, both ways they are made, and what it must not do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.graph import build
from gloss_graph.inference import PropagationHead
from gloss_graph.losses import PseudoLabelLoss, pair_cosine_loss, soft_cross_entropy
from gloss_graph.step.terms import StepGraph

CLASSES, DIM, SIZE = 3, 8, 60


def corpus(seed: int = 0, spread: float = 0.25) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(SIZE) % CLASSES
    return torch.eye(DIM)[labels] + spread * torch.randn(SIZE, DIM, generator=generator), labels


def few(labels: Tensor, count: int = 6) -> Tensor:
    return torch.where(torch.arange(labels.numel()) < count, labels, -1)


def made(*, bank: bool = True, extra: int = 0, **settings: object) -> GraphGuidedObjective:
    memory = MemoryBank(SIZE, DIM + extra, k=5) if bank else None
    plain = {
        "k": 5,
        "graph_weight": 0.0,
        "consistency_start": 0,
        "consistency_ramp": 1,
        "refresh_every": 10,
    }
    return GraphGuidedObjective(CLASSES, memory=memory, **(plain | settings))


def prefilled(**settings: object) -> tuple[GraphGuidedObjective, Tensor, Tensor]:
    objective = made(**settings)
    x, truth = corpus()
    assert objective.memory is not None
    objective.memory.enqueue(x, few(truth), torch.arange(SIZE))
    return objective, x, few(truth)


def consistency(objective: GraphGuidedObjective) -> float:
    return float(objective.parts["consistency"])


# ------------------------------------------------------------------ the value


@pytest.mark.parametrize("align", [0.0, 0.5])
def test_the_term_is_the_confidence_weighted_cross_entropy_of_the_banks_solve(
    align: float,
) -> None:
    objective, x, shown = prefilled(align=align)
    head = PropagationHead(x, shown, objective.targets.classifier)
    target = head.probabilities(head.hits)
    batch = torch.arange(20)
    logits = torch.randn(20, CLASSES, generator=torch.Generator().manual_seed(1))
    objective(x[batch], shown[batch], ids=batch, logits=logits)
    free = batch[shown[batch] < 0]
    q = target[free]
    confidence = 1.0 + (q * q.clamp(min=1e-30).log()).sum(dim=1) / math.log(CLASSES)
    entropy = -(q * logits[free].log_softmax(dim=1)).sum(dim=1)
    assert consistency(objective) == pytest.approx(float((confidence * entropy).mean()), rel=1e-5)


def test_targets_carry_no_gradient_and_reach_only_unlabeled_logits() -> None:
    objective, x, shown = prefilled(graph_weight=1.0)
    batch = torch.arange(12)
    rows = x[batch].clone().requires_grad_()
    logits = torch.zeros(12, CLASSES, requires_grad=True)
    # With graph_weight 1 cross-entropy has no weight; with all labels shown L_G is zero.
    visible = shown[batch] >= 0
    objective(rows, shown[batch], ids=batch, logits=logits, visible=visible).backward()
    moved = logits.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == (shown[batch] < 0).tolist()
    assert not bool(rows.grad.any())


def test_the_per_step_form_shows_all_labels() -> None:
    """Hiding is for L_G only: the target graph is the same whatever the split."""
    values = []
    for seed in range(3):
        objective, x, shown = prefilled(refresh_every=0, graph_weight=0.5, seed=seed)
        logits = torch.zeros(20, CLASSES)
        objective(x[:20], shown[:20], ids=torch.arange(20), logits=logits)
        values.append(consistency(objective))
    assert values[0] == values[1] == values[2] > 0


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize(
    ("least", "settings"),
    [
        (10**9, {}),
        (10**9, {"half_life": 2.0, "restandardize": True, "rule": "poisson"}),
        (10**9, {"bank": False}),
        (1, {}),
        (1, {"hops": 2, "symmetrize": "union"}),
    ],
)
def test_the_per_step_form_reuses_the_graph_of_the_loss_bit_for_bit(
    least: int, settings: dict[str, Any], output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "LEAST_ROWS", least)
    made_here: list[Any] = []
    connect = StepGraph.connect

    def counted(self: StepGraph, *args: Any, **more: Any) -> Any:
        made_here.append(connect(self, *args, **more))
        return made_here[-1]

    monkeypatch.setattr(StepGraph, "connect", counted)
    x, truth = corpus()
    shown, batch = few(truth, 30), torch.arange(20, 50)
    found, counts = [], []
    # The same rows as a view of their own make a graph of their own.
    for own_view in (False, True):
        objective = made(refresh_every=0, graph_weight=0.5, **settings)
        if objective.memory is not None:
            objective.memory.enqueue(x, shown, torch.arange(SIZE))
        rows = (x[batch] + 0.01).requires_grad_()
        logits = torch.linspace(-1, 1, 90).view(30, 3).requires_grad_()
        reference = rows.detach() if own_view else None
        made_here.clear()
        result = objective(
            rows,
            shown[batch],
            ids=batch,
            logits=logits,
            target_embeddings=reference,
            return_output=output,
        )
        counts.append(len(made_here))
        assert all((one.bank is not None) == (least == 1) for one in made_here[output:])
        loss = result.loss if output else result
        loss.backward()
        assert consistency(objective) > 0
        # The lists that are stored of a view of their own were searched again.
        state = objective.state_dict().items()
        kept = [value for name, value in state if not name.startswith("memory.links.")]
        found.append([loss.detach(), rows.grad, logits.grad, *kept])
    assert counts == [2 if output else 1, 2]
    for value, expected in zip(*found, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("bank", [False, True])
def test_a_graph_of_the_batch_alone(bank: bool) -> None:
    objective = made(bank=bank, refresh_every=0)
    x, truth = corpus()
    logits = torch.zeros(SIZE, CLASSES, requires_grad=True)
    loss = objective(x, few(truth), ids=torch.arange(SIZE), logits=logits)
    loss.backward()
    # Gradient descent on the logits moves towards the true classes.
    free = few(truth) < 0
    guess = (-logits.grad).argmax(dim=1)
    assert float((guess[free] == truth[free]).float().mean()) > 0.9


# ------------------------------------------------------------------ when


def test_start_ramp_and_refresh() -> None:
    objective, x, shown = prefilled(consistency_start=2, consistency_ramp=4, refresh_every=3)
    logits, ids = torch.zeros(SIZE, CLASSES), torch.arange(SIZE)
    seen, solved = [], []
    for _ in range(10):
        objective(x, shown, ids=ids, logits=logits)
        seen.append(consistency(objective))
        solved.append(int(objective.targets.solved_at))
    assert seen[:2] == [0.0, 0.0]
    full = seen[5]
    assert seen[2:6] == pytest.approx([full / 4, full / 2, 3 * full / 4, full])
    assert solved == [-1, -1, 2, 2, 2, 5, 5, 5, 8, 8]


def test_evaluation_counts_no_step_and_solves_nothing() -> None:
    objective, x, shown = prefilled()
    objective.eval()
    objective(x, shown, ids=torch.arange(SIZE), logits=torch.zeros(SIZE, CLASSES))
    assert int(objective.targets.steps) == 0
    assert int(objective.targets.solved_at) == -1
    assert consistency(objective) == 0.0


def test_state_restores_targets_bit_for_bit() -> None:
    def step(objective: GraphGuidedObjective, x: Tensor, shown: Tensor) -> Tensor:
        logits = torch.randn(SIZE, CLASSES, generator=torch.Generator().manual_seed(4))
        return objective(x, shown, ids=torch.arange(SIZE), logits=logits)

    first, x, shown = prefilled(refresh_every=4)
    for _ in range(3):
        step(first, x, shown)
    second = made(refresh_every=4)
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        assert torch.equal(step(first, x, shown), step(second, x, shown))


def test_a_replaced_document_loses_its_target() -> None:
    objective, x, shown = prefilled(refresh_every=1000)
    logits = torch.zeros(SIZE, CLASSES)
    objective(x, shown, ids=torch.arange(SIZE), logits=logits)
    assert consistency(objective) > 0
    # Another document takes every slot; its targets are not those of the old tenants.
    others = torch.arange(1000, 1000 + SIZE)
    objective.memory.enqueue(x, torch.full((SIZE,), -1), others)
    objective(x, torch.full((SIZE,), -1), ids=others, logits=logits)
    assert consistency(objective) == 0.0


# ------------------------------------------------------------------ views


def test_the_bank_keeps_the_reference_not_the_noisy_row() -> None:
    objective = made()
    x, truth = corpus()
    noisy = (x + 0.5).requires_grad_()
    objective(
        noisy, few(truth), ids=torch.arange(SIZE), target_embeddings=x, logits=torch.zeros(SIZE, 3)
    )
    torch.testing.assert_close(objective.memory.embeddings, F.normalize(x, dim=1))


@pytest.mark.parametrize("anchor", [0.0, 0.3, 1.0])
def test_similarity_is_a_mixture_of_both_views(anchor: float) -> None:
    objective = made(extra=4, frozen_weight=anchor)
    x, truth = corpus()
    frozen = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(2))
    objective(x, few(truth), ids=torch.arange(SIZE), frozen=frozen, logits=torch.zeros(SIZE, 3))
    rows = objective.memory.embeddings
    learned, still = F.normalize(x, dim=1), F.normalize(frozen, dim=1)
    expected = (1 - anchor) * learned @ learned.T + anchor * still @ still.T
    torch.testing.assert_close(rows @ rows.T, expected, rtol=0, atol=1e-5)


def test_static_targets_ignore_what_is_learned() -> None:
    frozen, truth = corpus(seed=3)
    targets = []
    for seed in (0, 1):
        objective = made(extra=DIM, frozen_weight=1.0, refresh_every=10**6)
        learned = corpus(seed=seed, spread=5.0)[0]
        ids, logits = torch.arange(SIZE), torch.zeros(SIZE, CLASSES)
        for _ in range(2):
            objective(learned, few(truth), ids=ids, frozen=frozen, logits=logits)
        targets.append(objective.targets.table.clone())
    torch.testing.assert_close(targets[0], targets[1])
    assert float(targets[0].sum()) > 0


# ------------------------------------------------------------------ defined behavior


def test_no_unlabeled_rows_no_term() -> None:
    objective, x, _ = prefilled()
    _, truth = corpus()
    objective(x, truth, ids=torch.arange(SIZE), logits=torch.zeros(SIZE, CLASSES))
    assert consistency(objective) == 0.0


def test_a_bank_without_labels_warns_once_and_gives_zero() -> None:
    objective = made()
    x, _ = corpus()
    objective.memory.enqueue(x, ids=torch.arange(SIZE))
    blank, logits = torch.full((SIZE,), -1), torch.zeros(SIZE, CLASSES, requires_grad=True)
    with pytest.warns(UserWarning, match="holds no label"):
        objective(x, blank, ids=torch.arange(SIZE), logits=logits)
    # Warnings are errors here: the second call must be silent.
    loss = objective(x, blank, ids=torch.arange(SIZE), logits=logits)
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_a_class_without_labels_is_no_target() -> None:
    objective, x, shown = prefilled()
    objective.memory.slot_labels[objective.memory.slot_labels == 2] = -1
    objective(x, shown, ids=torch.arange(SIZE), logits=torch.zeros(SIZE, CLASSES))
    assert float(objective.targets.table[:, 2].sum()) == 0.0
    assert bool(torch.isfinite(objective.targets.table).all())


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"target_embeddings": torch.ones(SIZE, 2)}, "'target_embeddings' must have the shape"),
        (
            {"target_embeddings": torch.full((SIZE, DIM), torch.nan)},
            "'target_embeddings' must be finite",
        ),
        ({"frozen": torch.ones(SIZE, 4)}, "'frozen' must have 0 columns"),
        ({"frozen": torch.full((SIZE, 4), torch.inf)}, "'frozen' must be finite"),
    ],
)
def test_bad_views_leave_everything_as_it_was(views: dict[str, Tensor], message: str) -> None:
    objective = made()
    x, truth = corpus()
    with pytest.raises(ValueError, match=message):
        objective(x, truth, ids=torch.arange(SIZE), logits=torch.zeros(SIZE, CLASSES), **views)
    assert len(objective.memory) == 0
    assert int(objective.targets.steps) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"consistency_weight": -1.0},
        {"frozen_weight": 1.5},
        {"align": -0.1},
        {"refresh_every": -1},
        {"consistency_ramp": 0.5},
    ],
)
def test_bad_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(settings))}' must be"):
        GraphGuidedObjective(CLASSES, **settings)


# ------------------------------------------------------------------ it teaches


def test_unlabeled_documents_teach_a_linear_head() -> None:
    """Two long, bent clusters and one label each: a linear head needs the others' targets."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.linspace(0.0, 2.4, 100).repeat(2)
    side = torch.arange(2).repeat_interleave(100)
    height = torch.where(side == 0, 0.0, 0.7)
    x = torch.stack([angle.cos(), angle.sin(), height], dim=1)
    x = x + 0.02 * torch.randn(200, 3, generator=generator)
    shown = torch.full((200,), -1)
    shown[0], shown[199] = 0, 1
    accuracy = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        head = torch.nn.Linear(3, 2)
        bank = MemoryBank(200, 3, k=6)
        bank.enqueue(x, shown, torch.arange(200))
        objective = GraphGuidedObjective(
            2,
            memory=bank,
            k=6,
            graph_weight=0.0,
            consistency_weight=weight,
            eta=0.01,
            consistency_start=0,
            consistency_ramp=1,
            bandwidth=0.1,
            align=0.0,
        )
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            loss = objective(x, shown, ids=torch.arange(200), logits=head(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy[weight] = float((head(x).argmax(dim=1) == side).float().mean())
    assert accuracy[1.0] > 0.95 > accuracy[0.0]


# ------------------------------------------------------------------ the rivals' losses


def test_soft_cross_entropy_of_one_hot_targets_is_cross_entropy() -> None:
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(7) % 4
    soft = soft_cross_entropy(logits, F.one_hot(target, 4).float(), torch.ones(7))
    torch.testing.assert_close(soft, F.cross_entropy(logits, target))
    assert float(soft_cross_entropy(logits[:0], torch.empty(0, 4), torch.empty(0))) == 0.0


def test_pair_loss_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, 1, -1])
    half = math.sqrt(0.5)
    expected = 0.5 * (1.0 + half**2)
    assert float(pair_cosine_loss(x, labels)) == pytest.approx(expected)
    assert float(pair_cosine_loss(x, torch.full((4,), -1))) == 0.0


def test_pseudo_labels_take_confident_rows_only() -> None:
    loss = PseudoLabelLoss(2, threshold=0.9, start=0, ramp=1)
    logits = torch.zeros(3, 2, requires_grad=True)
    teacher = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.1]])
    loss(logits, torch.tensor([-1, -1, -1]), teacher).backward()
    assert (logits.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False]
    assert loss.parts["consistency"] == pytest.approx(2 / 3 * math.log(2))
