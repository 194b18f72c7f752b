"""The contrast over the classes that the graph of the bank finds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph import GraphContrast, GraphGuidedObjective, MemoryBank
from gloss_graph.inference.agreement import agreed_labels, view_votes

CLASSES, DOCUMENTS, DIM = 3, 60, 8


def corpus(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in three noisy groups, their true classes, and labels of a fifth of them."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(DOCUMENTS) % CLASSES
    rows = torch.eye(CLASSES, DIM)[truth] + 0.25 * torch.randn(DOCUMENTS, DIM, generator=generator)
    return rows, truth, torch.where(torch.arange(DOCUMENTS) < 12, truth, -1)


def made(filled: bool = True, dtype: torch.dtype = torch.float32, **settings: object) -> object:
    rows, _, labels = corpus()
    bank = MemoryBank(DOCUMENTS, DIM, k=0)
    if filled:
        bank.enqueue(rows, labels, torch.arange(DOCUMENTS))
    settings = {"contrast": GraphContrast(rows=DOCUMENTS), "graph_weight": 0.0, **settings}
    return GraphGuidedObjective(CLASSES, memory=bank, **settings)  # type: ignore[arg-type]


def by_hand(
    x: Tensor, labels: Tensor, ids: Tensor, objective: GraphGuidedObjective, stored: Tensor
) -> Tensor:
    """The term pair by pair: batch with batch and with every other document of the bank."""
    found, trust = objective.found_classes()
    temperature = objective.classes.contrast.temperature
    classes = torch.where(labels >= 0, labels, found[ids])
    sure = torch.where(labels >= 0, 1.0, trust[ids]).double()
    others = [
        (F.normalize(row, dim=0), int(c), w) for row, c, w in zip(x, classes, sure, strict=True)
    ]
    for document in range(DOCUMENTS):
        if document not in ids and trust[document] > 0:
            row = F.normalize(stored[document].to(x), dim=0)
            others.append((row, int(found[document]), torch.ones(()).double()))
    terms, weights = [], []
    for i in range(len(ids)):
        pairs = [
            (w * (others[i][0] @ row / temperature).exp(), c == others[i][1], w)
            for j, (row, c, w) in enumerate(others)
            if j >= len(ids) or ids[i] != ids[j]
        ]
        total = sum(share for share, _, _ in pairs)
        own = [(w, share / total) for share, same, w in pairs if same]
        if own:
            count = sum(w for w, _ in own)
            terms.append(-sum(w * share.log() for w, share in own) / count)
            weights.append(sure[i])
    return torch.stack([t * w for t, w in zip(terms, weights, strict=True)]).sum() / sum(weights)


def test_the_term_is_that_of_all_pairs() -> None:
    objective = made()
    rows, _, labels = corpus(1)
    ids = torch.tensor([0, 5, 20, 33, 47, 50, 20])
    x = rows[ids].double().requires_grad_()
    wanted = by_hand(x, labels[ids], ids, objective, objective.memory.embeddings.clone())
    loss = objective(x, labels[ids], ids=ids)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0.0)
    (gradient,) = torch.autograd.grad(loss, x)
    (by_pairs,) = torch.autograd.grad(wanted, x)
    torch.testing.assert_close(gradient, by_pairs, rtol=1e-5, atol=1e-9)
    assert objective.parts["contrast"] == loss.detach()


def test_gradients_are_those_of_finite_differences() -> None:
    objective = made().eval()
    objective.train()
    rows, _, labels = corpus(1)
    objective(rows[:5], labels[:5], ids=torch.arange(5))  # finds the classes
    objective.eval()
    ids = torch.tensor([3, 20, 41])
    x = rows[ids].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, labels[ids], ids=ids), x)


def test_classes_are_those_that_views_agree_on() -> None:
    objective = made()
    rows, truth, labels = corpus()
    found, trust = objective.found_classes()
    assert torch.equal(found[:12], truth[:12])
    assert bool((trust[:12] == 1.0).all())
    assert bool(((trust > 0) & (trust <= 1)).all())
    assert float((found == truth).float().mean()) > 0.9
    wanted = agreed_labels(F.normalize(rows, dim=1), labels, objective.targets.classifier)
    assert torch.equal(found, wanted.labels)
    torch.testing.assert_close(trust, wanted.trust.to(trust))


def test_a_view_is_found_by_id_and_says_nothing_of_other_documents() -> None:
    rows, truth, labels = corpus()
    order = torch.randperm(DOCUMENTS, generator=torch.Generator().manual_seed(1))[:50]
    view = torch.eye(CLASSES)[truth]
    seen = made(views=[(order, view[order])])
    settings = seen.targets.classifier
    whole = torch.where(torch.isin(torch.arange(DOCUMENTS), order).unsqueeze(1), view, 0.0)
    wanted = agreed_labels(
        F.normalize(rows, dim=1), labels, settings, [view_votes(whole, labels, settings)]
    )
    assert torch.equal(seen.found_classes().labels, wanted.labels)
    # Those it knows are surer than before, the others less sure.
    trust, before = seen.found_classes().trust, made().found_classes().trust
    known = torch.isin(torch.arange(DOCUMENTS), order)
    free = labels < 0
    assert bool((trust >= before)[free & known].all())
    assert bool((trust < before)[free & ~known].all())
    # A document that got a label since then is told so.
    seen.memory.enqueue(rows[20:21], torch.tensor([0]), torch.tensor([20]))
    assert int(seen.found_classes().labels[20]) == 0


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([(torch.tensor([1, 1]), torch.eye(2))], r"'views\[0\]' must name every id once"),
        ([(torch.tensor([1]), torch.eye(2))], r"'views\[0\]' must have shape \(2,\)"),
        ([(torch.tensor([0, 1]), torch.full((2, 2), torch.nan))], r"views\[0\]"),
    ],
)
def test_a_wrong_view_is_named(views: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(views=views)


def test_what_cannot_be_contrasted_is_refused() -> None:
    with pytest.raises(ValueError, match="'contrast' needs 'memory'"):
        GraphGuidedObjective(2, contrast=GraphContrast())
    with pytest.raises(TypeError, match="'contrast' must be a GraphContrast"):
        made(contrast=1.0)
    bank = MemoryBank(4, 2, num_classes=3)
    with pytest.raises(ValueError, match="'contrast' must be None with multilabel"):
        GraphGuidedObjective(3, memory=bank, multilabel=True, contrast=GraphContrast())
    views = [(torch.arange(2), torch.eye(2))]
    with pytest.raises(ValueError, match="'views' need a 'contrast'"):
        GraphGuidedObjective(2, memory=MemoryBank(4, 2), views=views)
    plain = GraphGuidedObjective(2, memory=MemoryBank(4, 2))
    with pytest.raises(ValueError, match="'contrast' is None"):
        plain.found_classes()
    with pytest.raises(ValueError, match="'memory' holds no labeled document"):
        made(filled=False).found_classes()
    assert not [name for name in plain.state_dict() if name.startswith("classes")]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weight", -1.0),
        ("start", -1),
        ("refresh_every", 0),
        ("rows", -1),
        ("rows", 1.5),
        ("temperature", 0.0),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"'contrast_{setting}' must be"):
        GraphContrast(**{setting: value})


def test_a_bank_without_label_warns_once_and_compares_nothing() -> None:
    objective = made(filled=False)
    rows, _, _ = corpus()
    x = rows[:6].clone().requires_grad_()

    def step(start: int) -> None:
        loss = objective(x, torch.full((6,), -1), ids=torch.arange(start, start + 6))
        assert float(loss.detach()) == 0.0
        loss.backward()

    step(0)  # an empty bank holds nothing to look at
    with pytest.warns(UserWarning, match="holds no label, so the contrast"):
        step(6)
    step(12)
    assert x.grad is not None
    assert not bool(x.grad.any())


def test_labels_alone_are_contrasted_until_classes_are_found() -> None:
    objective = made(contrast=GraphContrast(rows=0, start=2))
    rows, _, labels = corpus(1)
    ids = torch.tensor([0, 1, 3, 30, 31])

    def moved() -> Tensor:
        x = rows[ids].clone().requires_grad_()
        objective(x, labels[ids], ids=ids).backward()
        return x.grad.abs().sum(dim=1) > 0

    assert moved().tolist() == [True, True, True, False, False]
    moved()
    assert bool(moved().all())


def test_training_resumes_bit_for_bit() -> None:
    rows, _, labels = corpus(1)
    batches = torch.randperm(DOCUMENTS, generator=torch.Generator().manual_seed(0)).split(10)

    def steps(objective: GraphGuidedObjective, which: list[int]) -> list[float]:
        return [
            float(objective(rows[batches[i]], labels[batches[i]], ids=batches[i])) for i in which
        ]

    contrast = GraphContrast(rows=20, refresh_every=4)
    through = made(contrast=contrast)
    all_six = steps(through, [0, 1, 2, 3, 4, 5])
    first = made(contrast=contrast)
    steps(first, [0, 1, 2])
    second = made(filled=False, contrast=contrast)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert steps(second, [3, 4, 5]) == all_six[3:]
    for name, value in through.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_step_that_raises_or_evaluates_leaves_the_state() -> None:
    objective = made()
    rows, _, labels = corpus(1)
    ids = torch.arange(10)
    objective(rows[ids], labels[ids], ids=ids)
    before = copy.deepcopy(objective.state_dict())
    objective.eval()
    objective(rows[20:30], labels[20:30], ids=ids + 20)
    objective.train()
    objective.memory.store = _raises  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        objective(rows[20:30], labels[20:30], ids=ids + 20)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def _raises(*_: object, **__: object) -> None:
    raise ZeroDivisionError


def test_damaged_classes_are_refused_by_name() -> None:
    objective = made()
    state = objective.state_dict()
    state["classes.labels"] = torch.full_like(state["classes.labels"], CLASSES)
    with pytest.raises(ValueError, match=r"classes\.labels"):
        made().load_state_dict(state)


def test_frozen_features_find_the_classes_and_are_not_contrasted() -> None:
    rows, _, labels = corpus(1)
    bank = MemoryBank(DOCUMENTS, 2 * DIM, k=0)
    objective = GraphGuidedObjective(
        CLASSES, memory=bank, graph_weight=0.0, contrast=GraphContrast(rows=DOCUMENTS)
    )
    ids = torch.arange(DOCUMENTS)
    objective(rows, labels, ids=ids, frozen=rows)
    x = rows[:10].clone().requires_grad_()
    loss = objective(x, labels[:10], ids=ids[:10], frozen=rows[:10])
    alone = made()
    alone(rows, labels, ids=ids)
    torch.testing.assert_close(loss, alone(rows[:10], labels[:10], ids=ids[:10]))


def test_a_plain_loop_learns_from_unlabeled_documents() -> None:
    """The encoder separates classes that its few labels alone leave mixed."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % CLASSES
    rows = 1.5 * torch.eye(CLASSES, 30)[truth] + 0.6 * torch.randn(300, 30, generator=generator)
    labels = torch.where(torch.arange(300) < 9, truth, -1)
    ids = torch.arange(300)
    reached = {}
    for name, weight in (("frozen", 0.0), ("contrast", 1.0)):
        torch.manual_seed(0)
        encoder = torch.nn.Linear(30, 16)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
        bank = MemoryBank(300, 16, k=8)
        objective = GraphGuidedObjective(
            CLASSES, memory=bank, graph_weight=0.0, contrast=GraphContrast(weight=weight, rows=128)
        )
        bank.prefill([(rows, labels, ids)], encoder)
        for _ in range(10):
            for batch in torch.randperm(300, generator=generator).split(50):
                loss = objective(encoder(rows[batch]), labels[batch], ids=batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        answers = objective.eval().predict(encoder(rows).detach()[9:]).argmax(dim=1)
        reached[name] = float((answers == truth[9:]).float().mean())
    assert reached["contrast"] > reached["frozen"] + 0.02
