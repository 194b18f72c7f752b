"""Propagation as a classifier: exact values, new rows, reasons, the bank behind it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph import GraphGuidedObjective, LabelPropagation, MemoryBank, graph_skill
from gloss_graph.graph import KNNGraph
from gloss_graph.inference import GraphClassifier, PropagationHead
from gloss_graph.propagation import PropagationSettings
from gloss_graph.propagation.alignment import align_classes, entropy_confidence, row_shares

CLASSES, DIM = 3, 6


def settings(**changes: object) -> GraphClassifier:
    chosen = {"k": 4, "bandwidth": 0.7, "rule": "harmonic", "eta": 0.2} | changes
    graph = {name: chosen.pop(name) for name in ("k", "bandwidth", "kernel") if name in chosen}
    own = ("num_classes", "align", "multilabel")
    more = {"num_classes": CLASSES} | {name: chosen.pop(name) for name in own if name in chosen}
    return GraphClassifier(
        graph=KNNGraph(**graph), propagation=PropagationSettings(**chosen), **more
    )


def clusters(per_class: int = 12, seed: int = 0, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat(per_class)
    centers = torch.eye(DIM)[:CLASSES]
    noise = torch.randn(labels.numel(), DIM, generator=generator, dtype=torch.float64)
    return centers[labels].double() + spread * noise, labels


def few(labels: Tensor, count: int = 2) -> Tensor:
    shown = torch.full_like(labels, -1)
    for label in range(CLASSES):
        shown[(labels == label).nonzero().squeeze(1)[:count]] = label
    return shown


def filled(anchor: float | None = None) -> tuple[GraphGuidedObjective, Tensor, Tensor, Tensor]:
    """An objective over a bank of clusters, with frozen features if `anchor` is given."""
    x, labels = clusters()
    frozen = clusters(seed=1)[0]
    rows = x.float() if anchor is None else None
    bank = MemoryBank(36, DIM if anchor is None else 2 * DIM)
    objective = GraphGuidedObjective(CLASSES, memory=bank, k=4, frozen_weight=anchor or 0.5)
    if rows is None:
        left = (1.0 - objective.frozen_weight) ** 0.5 * F.normalize(x, dim=1)
        right = objective.frozen_weight**0.5 * F.normalize(frozen, dim=1)
        rows = torch.cat([left, right], dim=1).float()
    bank.enqueue(rows, few(labels), torch.arange(100, 136))
    return objective, x.float(), frozen.float(), labels


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("normalization", ["row", "hub", "symmetric", "column"])
def test_an_attached_row_gets_what_its_own_equation_says(normalization: str) -> None:
    """With its neighbors' values fixed, a new node solves (1 + eta) m g = sum w g."""
    x, labels = clusters()
    head = PropagationHead(x, few(labels), settings(normalization=normalization))
    query = clusters(1, seed=5)[0]
    unit, known = F.normalize(query, dim=1), F.normalize(x, dim=1)
    squared = torch.cdist(unit, known).square()
    near = squared.topk(4, dim=1, largest=False)
    weight = torch.exp(-near.values / (2 * 0.7**2)) * head.factors[near.indices]
    values = torch.einsum("bk,bkc->bc", weight, head.hits[near.indices])
    expected = values / (1.2 * weight.sum(dim=1, keepdim=True))
    torch.testing.assert_close(head.hits_of(head.attach(query)), expected)


def test_hits_are_the_harmonic_values_without_what_leaks() -> None:
    x, labels = clusters()
    head = PropagationHead(x, few(labels), settings())
    graph = head.graph
    whole = LabelPropagation(eta=0.2, num_classes=CLASSES, tol=1e-10)(
        few(labels), graph.edge_index, graph.edge_weight
    )
    lost = 1.0 - head.hits.sum(dim=1, keepdim=True)
    assert bool((lost[~head.seeds] > 0).all())
    torch.testing.assert_close(head.hits + lost / CLASSES, whole, rtol=0, atol=1e-6)


def test_relabeling_equals_a_new_head() -> None:
    x, labels = clusters()
    head = PropagationHead(x, few(labels, 1), settings())
    head.relabel(few(labels, 3))
    fresh = PropagationHead(x, few(labels, 3), settings())
    assert torch.equal(head.hits, fresh.hits)
    assert torch.equal(head.mass, fresh.mass)


def test_shares_of_the_deciding_documents_are_exact() -> None:
    """Propagating every seed as a class of its own splits the hit mass by seed."""
    x, labels = clusters()
    shown = few(labels)
    head = PropagationHead(x, shown, settings())
    seeds = head.seeds.nonzero().squeeze(1)
    where = (~head.seeds).nonzero().squeeze(1)[:5]
    names, shares = head.deciding(head.known(where), top=seeds.numel())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(5, dtype=shares.dtype))
    totals = torch.zeros(5, CLASSES, dtype=shares.dtype)
    totals.scatter_add_(1, shown[names], shares)
    torch.testing.assert_close(totals, row_shares(head.hits[where]), rtol=0, atol=1e-5)
    assert bool((shares[:, :-1] >= shares[:, 1:]).all())


def test_own_copies_do_not_vote() -> None:
    x, labels = clusters()
    head = PropagationHead(x, labels, settings())
    own = torch.arange(len(x))
    attached = head.attach(x, own)
    assert not bool((attached.indices == own.unsqueeze(1)).any())
    assert bool((attached.indices >= 0).all())
    # Without the exclusion every row finds itself first.
    assert bool((head.attach(x).indices[:, 0] == own).all())


# ------------------------------------------------------------------ alignment


def test_alignment_moves_the_class_means_to_the_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = row_shares(torch.rand(500, 3, generator=generator) * torch.tensor([5.0, 1.0, 0.5]))
    prior = torch.full((3,), 1 / 3)
    before = (shares.mean(dim=0) - prior).abs().sum()
    gentle = align_classes(shares, prior, shares.mean(dim=0), 0.5)
    full = align_classes(shares, prior, shares.mean(dim=0), 1.0)
    assert (full.mean(dim=0) - prior).abs().sum() < (gentle.mean(dim=0) - prior).abs().sum()
    assert (gentle.mean(dim=0) - prior).abs().sum() < before
    torch.testing.assert_close(align_classes(shares, prior, shares.mean(dim=0), 0.0), shares)


def test_nothing_known_stays_nothing() -> None:
    hits = torch.tensor([[0.0, 0.0], [0.2, 0.0]])
    aligned = align_classes(row_shares(hits), torch.ones(2) / 2, torch.tensor([1.0, 0.0]), 0.5)
    assert aligned.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert entropy_confidence(aligned).tolist() == [0.0, 1.0]
    assert entropy_confidence(torch.tensor([[0.5, 0.5]])).tolist() == [0.0]


# ------------------------------------------------------------------ predictions over a bank


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
@pytest.mark.parametrize("anchor", [None, 0.5])
def test_predictions_find_the_clusters(mode: str, anchor: float | None) -> None:
    objective, *_ = filled(anchor)
    query, truth = clusters(20, seed=9)
    extra = {} if anchor is None else {"frozen": clusters(20, seed=8)[0].float()}
    answer = objective.predict(query.float(), mode=mode, **extra)
    torch.testing.assert_close(answer.sum(dim=1), torch.ones(60))
    assert float(answer.min()) >= 0.99 * 1e-3 / CLASSES
    assert float((answer.argmax(dim=1) == truth).float().mean()) > 0.85


def test_inductive_predictions_do_not_depend_on_the_company() -> None:
    objective, x, *_ = filled()
    whole = objective.predict(x)
    for row in range(3):
        torch.testing.assert_close(objective.predict(x[row : row + 1])[0], whole[row])


def test_the_solve_is_kept_until_the_bank_changes() -> None:
    objective, x, *_ = filled()
    first = objective.predict(x[:4])
    head = objective._inference._head
    objective.predict(x[4:8])
    assert objective._inference._head is head
    bank = objective.memory
    bank.enqueue(x[:3].flip(0), torch.tensor([0, 1, 2]), torch.tensor([100, 101, 102]))
    assert not torch.equal(objective.predict(x[:4]), first)
    state = objective.state_dict()
    again = GraphGuidedObjective(CLASSES, memory=MemoryBank(36, DIM), k=4)
    again.load_state_dict(state)
    torch.testing.assert_close(again.predict(x[:4]), objective.predict(x[:4]))


def test_another_anchor_reweighs_the_views() -> None:
    objective, x, frozen, _ = filled(0.5)
    learned = objective.predict(x[:5])  # without frozen features: the learned view alone
    plain = GraphGuidedObjective(CLASSES, memory=MemoryBank(36, DIM), k=4)
    rows = objective.memory.embeddings[:, :DIM]
    plain.memory.enqueue(rows, objective.memory.labels, objective.memory.ids)
    torch.testing.assert_close(learned, plain.predict(x[:5]))
    torch.testing.assert_close(
        objective.predict(x[:5], frozen=frozen[:5], frozen_weight=0.0), learned
    )
    mixed = objective.predict(x[:5], frozen=frozen[:5])
    torch.testing.assert_close(
        objective.predict(x[:5], frozen=frozen[:5], frozen_weight=0.5), mixed
    )
    assert not torch.allclose(mixed, learned)
    assert not torch.allclose(objective.predict(x[:5], frozen=frozen[:5], frozen_weight=0.9), mixed)


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_another_rule_for_a_prediction(mode: str) -> None:
    objective, x, _, labels = filled()
    plain = objective.predict(x, mode=mode)
    poisson = objective.predict(x, mode=mode, rule="poisson")
    assert not torch.allclose(plain, poisson)
    torch.testing.assert_close(poisson.sum(dim=1), torch.ones(36))
    assert float((poisson.argmax(dim=1) == labels).float().mean()) > 0.85
    torch.testing.assert_close(objective.predict(x, mode=mode, rule="harmonic"), plain)
    with pytest.raises(ValueError, match="'rule' must be one of"):
        objective.predict(x, rule="magic")


@pytest.mark.parametrize("mode", ["inductive", "transductive"])
def test_reasons_name_labeled_documents_by_id(mode: str) -> None:
    objective, x, _, labels = filled()
    shown = few(labels)
    answer = objective.explain(x[10:14], mode=mode, ids=torch.arange(110, 114))
    assert answer.ids.shape == answer.shares.shape == (4, 3)
    named = answer.ids[answer.ids >= 0] - 100
    assert bool((shown[named] >= 0).all())
    assert bool((answer.shares.sum(dim=1) <= 1.0 + 1e-6).all())
    # The strongest reason is of the predicted class in well separated clusters.
    assert torch.equal(shown[answer.ids[:, 0] - 100], answer.probabilities.argmax(dim=1))


def test_a_class_without_labels_stays_at_the_floor() -> None:
    x, labels = clusters()
    shown = torch.where(labels == 2, -1, few(labels))
    bank = MemoryBank(36, DIM)
    bank.enqueue(x.float(), shown, torch.arange(36))
    answer = GraphGuidedObjective(CLASSES, memory=bank, k=4).predict(x.float())
    torch.testing.assert_close(answer[:, 2], torch.full((36,), 1e-3 / 3))


# ------------------------------------------------------------------ refused


def test_predictions_need_a_bank_with_labels() -> None:
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="'memory' is None"):
        GraphGuidedObjective(CLASSES).predict(x)
    bank = MemoryBank(8, DIM)
    objective = GraphGuidedObjective(CLASSES, memory=bank)
    with pytest.raises(ValueError, match="'memory' is empty"):
        objective.predict(x)
    bank.enqueue(x, ids=torch.arange(2))
    with pytest.raises(ValueError, match="holds no labeled document"):
        objective.predict(x)


def test_bad_queries_are_named() -> None:
    objective, x, frozen, _ = filled(0.5)
    with pytest.raises(ValueError, match="'mode' must be one of"):
        objective.predict(x, mode="both")
    with pytest.raises(ValueError, match="'embeddings' must be finite"):
        objective.predict(torch.full((1, DIM), torch.nan))
    with pytest.raises(ValueError, match=r"for frozen_weight=0\.3"):
        objective.predict(x, frozen_weight=0.3)
    with pytest.raises(ValueError, match="'frozen' must have 6 columns"):
        objective.predict(x, frozen=frozen[:, :3])
    plain, x, frozen, _ = filled()
    with pytest.raises(ValueError, match="need a bank that holds frozen features"):
        plain.predict(x, frozen=frozen)
    with pytest.raises(ValueError, match="name every labeled document"):
        plain.predict(x, ids=torch.arange(100, 136), mode="transductive")


# ------------------------------------------------------------------ skill


def test_skill_tells_a_fitting_graph_from_a_misleading_one() -> None:
    x, labels = clusters(40)
    good = graph_skill(x.float(), few(labels, 10), k=5)
    assert good.helps
    assert good.macro_f1 > 0.9
    # Neighbors share a topic, the label is a small shift that a linear classifier sees.
    generator = torch.Generator().manual_seed(3)
    topics = torch.randn(40, 8, generator=generator).repeat_interleave(6, dim=0)
    mood = torch.arange(240) % 2
    x = torch.cat([topics, 0.9 * (mood - 0.5).unsqueeze(1)], dim=1)
    x = x + 0.05 * torch.randn(240, 9, generator=generator)
    with pytest.warns(UserWarning, match="alone does not suit"):
        bad = graph_skill(x, mood, k=5)
    assert not bad.helps
    assert bad.linear_macro_f1 > bad.macro_f1


def test_skill_is_reproducible_and_reads() -> None:
    x, labels = clusters()
    first = graph_skill(x.float(), labels, k=4, seed=1)
    assert first == graph_skill(x.float(), labels, k=4, seed=1)
    assert "hidden labels" in str(first)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(36, dtype=torch.long), "two classes"),
        (torch.full((36,), -1), "two classes"),
        (torch.tensor([0, 1] + [-1] * 34), "one of them twice"),
    ],
)
def test_skill_needs_labels_to_hide(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_skill(clusters()[0].float(), labels)


def test_skill_does_not_depend_on_the_numbers_of_the_classes() -> None:
    x, labels = clusters()
    plain = graph_skill(x.float(), labels, k=4, repeats=3, warn=False)
    for numbers in (torch.tensor([7, 10**8, 2**62]), torch.tensor([0, 1, 10**8])):
        assert graph_skill(x.float(), numbers[labels], k=4, repeats=3, warn=False) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": [1]}, "'seed' must be an integer"),
        ({"seed": 1.5}, "'seed' must be an integer"),
        ({"normalization": 1000}, "'normalization' must be one of"),
        ({"rule": 3}, "'rule' must be one of"),
        ({"eta": "x"}, "'eta' must be a number"),
        ({"align": 2.0}, r"'align' must be in \[0\.0, 1\.0\]"),
        ({"k": 0}, "'k' must be an integer of at least 1"),
        ({"holdout": [0.1]}, "'holdout' must be a number"),
    ],
)
def test_settings_of_the_skill_are_refused_by_name(settings: dict, message: str) -> None:
    x, labels = clusters()
    with pytest.raises(ValueError, match=message):
        graph_skill(x.float(), labels, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": -1}, "'top' must be an integer of at least 0"),
        ({"top": None}, "'top' must be an integer of at least 0"),
        ({"frozen_weight": "x"}, "'frozen_weight' must be a number"),
        ({"frozen_weight": 2.0}, r"'frozen_weight' must be in \[0\.0, 1\.0\]"),
        ({"frozen": torch.tensor(1.0)}, r"'frozen' must have shape \(N, D\)"),
        ({"frozen": [1.0]}, "'frozen' must be a torch.Tensor"),
    ],
)
def test_options_of_a_prediction_are_refused_by_name(options: dict, message: str) -> None:
    objective, x, *_ = filled(0.5)
    with pytest.raises((ValueError, TypeError), match=message):
        objective.explain(x, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1.5}, "'seed' must be an integer"),
        ({"seed": 2**63}, "'seed' must be an integer"),
        ({"generator": 3}, "'generator' must be a torch.Generator"),
    ],
)
def test_settings_of_an_objective_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        GraphGuidedObjective(CLASSES, **settings)
