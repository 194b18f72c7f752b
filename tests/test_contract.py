"""What a step promises: no leakage, nothing from copies, exact gradients, clear errors."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F

from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph

B, D, C = 24, 6, 3


@pytest.fixture
def batch(generator):
    x = torch.randn(B, D, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.arange(B) % C
    visible = torch.rand(B, generator=generator) < 0.5
    return x, labels, torch.arange(B), visible


def filled(generator, size=40, capacity=200, k=5, offset=1000):
    bank = MemoryBank(capacity, D, k=k)
    rows = torch.randn(size, D, generator=generator)
    bank.enqueue(rows, torch.arange(size) % C, torch.arange(size) + offset)
    return bank


def loss_and_gradient(objective, batch):
    x, labels, ids, visible = batch
    loss = objective(x, labels, ids=ids, visible=visible)
    return loss, *torch.autograd.grad(loss, x)


def test_empty_bank_and_bank_of_the_batch_itself_equal_the_batch_alone(batch):
    alone = loss_and_gradient(GraphGuidedObjective(C), batch)
    nothing = GraphGuidedObjective(C, memory=MemoryBank(0, D))
    copies = GraphGuidedObjective(C, memory=MemoryBank(100, D))
    for objective in (nothing, copies, copies, copies):
        for ours, theirs in zip(loss_and_gradient(objective, batch), alone, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(copies.memory) == B
    assert len(nothing.memory) == 0


@pytest.mark.parametrize("named", [True, False])
def test_shuffled_labels_stay_unpredictable_only_with_ids(generator, named):
    """The second epoch meets the first one's rows; without ids it meets its own labels."""
    documents, epochs = 240, 3
    x = F.normalize(torch.randn(documents, 32, generator=generator), dim=1)
    labels = torch.randint(0, C, (documents,), generator=generator)
    objective = GraphGuidedObjective(
        C, memory=MemoryBank(documents * epochs, 32), bandwidth=0.2, visible_fraction=0.3
    )
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not named else "error")
        for _ in range(epochs):
            for rows in torch.randperm(documents, generator=generator).split(40):
                ids = rows if named else None
                losses.append(float(objective(x[rows], labels[rows], ids=ids)))
    last = sum(losses[-6:]) / 6
    if named:
        assert last > 0.9 * math.log(C)
    else:
        assert last < 0.5 * math.log(C)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"normalization": "row", "eta": 0.0},
        {"symmetrize": "mutual", "batch_edges": "all"},
        {"rule": "spreading", "normalization": "symmetric"},
        {"rule": "poisson", "eta": 0.1},
        {"kernel": "cosine", "solver": "cg", "tol": 1e-12},
        {"hops": 2, "memory_visible_fraction": 0.5, "gradient": "unrolled"},
    ],
)
def test_gradient_of_the_whole_step(generator, batch, settings):
    """Finite differences through search, graph, propagation and loss; sigma fixed."""
    x, labels, ids, visible = (part[:12] for part in batch)
    x = x.detach().requires_grad_()
    bank = filled(generator)
    objective = GraphGuidedObjective(C, memory=bank, k=5, bandwidth=0.6, **settings).eval()
    state = objective.generator.get_state()

    def loss(rows):
        objective.generator.set_state(state)
        return objective(rows, labels, ids=ids, visible=visible)

    assert torch.autograd.gradcheck(loss, (x,), atol=1e-6)
    loss(x).backward()
    assert bool((x.grad != 0).any())


def test_graph_of_batch_and_bank_against_dense_reference(generator, batch):
    """Edges by brute force: merged k nearest of a batch row, inherited lists of a stored row."""
    x, labels, ids, _ = batch
    k = 5
    bank = filled(generator, k=k)
    bank.enqueue(torch.randn(4, D, generator=generator), None, ids[:4])  # copies, to be masked
    data = build_document_graph(x, labels, ids, memory=bank, k=k, bandwidth=0.7)
    kept = [slot for slot in range(len(bank)) if int(bank.ids[slot]) not in set(ids.tolist())]
    rows = torch.cat([F.normalize(x, dim=1), bank.embeddings[kept].double()])
    distance = torch.cdist(rows, rows)
    wanted = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for i in range(B):
        order = [j for j in distance[i].argsort().tolist() if j != i][:k]
        wanted[i, order] = True
    source, target, _ = bank.edges()
    node = {slot: B + position for position, slot in enumerate(kept)}
    for a, b in zip(source.tolist(), target.tolist(), strict=True):
        if a in node and b in node:
            wanted[node[a], node[b]] = True
    wanted |= wanted.T.clone()
    assert torch.equal(data.edge_index, wanted.nonzero().T)
    reference = torch.exp(-distance.square() / (2 * 0.49))
    row, column = data.edge_index
    torch.testing.assert_close(data.edge_weight, reference[row, column], rtol=1e-5, atol=1e-6)
    assert data.doc_id.tolist() == ids.tolist() + bank.ids[kept].tolist()
    assert torch.equal(data.edge_kind, (row >= B).long() + (column >= B).long())
    assert data.is_undirected()
    assert data.is_coalesced()


def test_loss_is_the_weighted_sum_and_unlabeled_rows_conduct(generator, batch):
    x, labels, ids, visible = batch
    logits = torch.randn(B, C, generator=generator, dtype=torch.float64, requires_grad=True)
    objective = GraphGuidedObjective(C, graph_weight=0.3)
    out = objective(x, labels, ids=ids, logits=logits, visible=visible, return_output=True)
    torch.testing.assert_close(out.cross_entropy, F.cross_entropy(logits, labels))
    torch.testing.assert_close(out.loss, 0.3 * out.graph_loss + 0.7 * out.cross_entropy)
    assert out.propagated.shape == (B, C)
    assert torch.equal(out.hidden, ~visible)

    partly = labels.masked_fill(torch.arange(B) >= 18, -1)
    shown = visible & (partly >= 0)
    whole = objective(x, partly, visible=shown, return_output=True)
    assert not whole.hidden[18:].any()
    without = objective(x[:18], partly[:18], visible=shown[:18])
    assert abs((whole.graph_loss - without).detach().item()) > 1e-4


@pytest.mark.parametrize("labels", [[-1] * 6, [0] * 6, [0, 1, 2, 0, 1, 2]])
def test_batches_with_little_to_compare(labels):
    bank = MemoryBank(10, D)
    objective = GraphGuidedObjective(C, memory=bank, visible_fraction=1.0)
    x = torch.randn(6, D, requires_grad=True)
    logits = torch.zeros(6, C, requires_grad=True)
    out = objective(x, torch.tensor(labels), ids=torch.arange(6), logits=logits, return_output=True)
    out.loss.backward()
    assert out.graph_loss.detach() == 0
    assert bool(torch.isfinite(x.grad).all())
    assert len(bank) == 6


@pytest.mark.parametrize("rule", ["harmonic", "spreading", "poisson"])
@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_degenerate_batches_give_finite_losses(rule, eta):
    objective = GraphGuidedObjective(C, rule=rule, eta=eta, visible_fraction=0.5)
    zero = torch.zeros(8, D, requires_grad=True)
    same = torch.ones(8, D, requires_grad=True)
    for x, labels in (
        (zero, torch.arange(8) % C),
        (same, torch.arange(8) % C),
        (torch.randn(1, D, requires_grad=True), torch.tensor([1])),
        (torch.randn(2, D, requires_grad=True), torch.tensor([0, 1])),
    ):
        loss = objective(x, labels)
        loss.backward()
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(x.grad).all())


def test_same_document_twice_in_a_batch_shares_its_fate():
    objective = GraphGuidedObjective(2, memory=MemoryBank(10, D), visible_fraction=0.5)
    ids = torch.tensor([5, 5, 6, 6, 7, 7, 8, 8])
    x = torch.randn(8, D)
    out = objective(x, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), ids=ids, return_output=True)
    assert torch.equal(out.hidden[::2], out.hidden[1::2])
    assert sorted(objective.memory.ids.tolist()) == [5, 6, 7, 8]
    with pytest.raises(ValueError, match="must agree for rows with the same id"):
        objective(x, torch.tensor([0, 1, 1, 1, 0, 0, 1, 1]), ids=ids)


def bad_calls():
    x, y, ids = torch.randn(6, D), torch.arange(6) % C, torch.arange(6)
    nan = x.clone()
    nan[3, 1] = torch.nan
    inf = x.clone()
    inf[0, 0] = torch.inf
    return {
        "'embeddings' must be finite .*row 3": ((nan, y), {"ids": ids}),
        "'embeddings' must be finite .*row 0": ((inf, y), {"ids": ids}),
        r"'embeddings' must have shape \(N, D\)": ((x[0], y), {}),
        f"'embeddings' must have {D} columns": ((torch.randn(6, D + 1), y), {}),
        "'embeddings' must be a floating": ((torch.ones(6, D, dtype=torch.long), y), {}),
        "at least one row": ((x[:0], y[:0]), {}),
        r"'labels' must have shape \(6,\)": ((x, y[:5]), {}),
        "'labels' must lie in 0..2": ((x, y + 1), {}),
        "'labels' must be an integer": ((x, y.float()), {}),
        r"'ids' must have shape \(6,\)": ((x, y), {"ids": ids[:2]}),
        "'ids' must be >= 0": ((x, y), {"ids": ids - 1}),
        r"'logits' must have shape \(6, 3\)": ((x, y), {"logits": torch.zeros(6, 2)}),
        "'visible' must be a bool": ((x, y), {"visible": y}),
        "'visible' marks rows whose label is -1": (
            (x, y - 1),
            {"visible": torch.ones(6, dtype=torch.bool)},
        ),
        "on meta but 'memory' is on cpu": ((x.to("meta"), y.to("meta")), {}),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_names_the_argument_and_leaves_the_bank(generator, message):
    args, kwargs = bad_calls()[message]
    objective = GraphGuidedObjective(C, memory=filled(generator))
    before = {name: value.clone() for name, value in objective.memory.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        objective(*args, **kwargs)
    after = objective.memory.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("rule", "magic", r"'rule' must be one of \['harmonic', 'poisson', 'spreading'\]"),
        ("normalization", "none", "'normalization' must be one of"),
        ("kernel", "rbf", r"'kernel' must be one of \['cosine', 'gaussian'\]"),
        ("bandwidth", "wide", "'bandwidth' must be a positive number, a callable or one of"),
        ("bandwidth", 0.0, "'bandwidth'"),
        ("solver", "lu", "'solver' must be one of"),
        ("gradient", "none", "'gradient' must be one of"),
        ("loss", "mse", "'loss' must be one of"),
        ("symmetrize", "both", "'symmetrize' must be one of"),
        ("batch_edges", "some", "'batch_edges' must be one of"),
        ("k", 0, "'k' must be an integer of at least 1"),
        ("visible_fraction", 1.5, r"'visible_fraction' must be in \[0.0, 1.0\]"),
        ("graph_weight", -0.1, "'graph_weight'"),
        ("eta", -1.0, "'eta'"),
        ("num_classes", 1, "'num_classes'"),
        ("class_weight", torch.ones(2), "'class_weight' must have shape"),
        ("memory", MemoryBank(4, 2, normalize=False), "'normalize_embeddings' is True"),
    ],
)
def test_settings_are_checked_when_they_are_made(setting, value, message):
    with pytest.raises(ValueError, match=message):
        GraphGuidedObjective(**{"num_classes": C, setting: value})


def test_state_travels_and_copies_work(tmp_path, batch):
    x, labels, ids = batch[0].detach(), *batch[1:3]
    first = GraphGuidedObjective(C, memory=MemoryBank(30, D))
    first(x, labels, ids=ids)
    torch.save(first.state_dict(), tmp_path / "objective.pt")
    second = GraphGuidedObjective(C, memory=MemoryBank(30, D), seed=7)
    second.load_state_dict(torch.load(tmp_path / "objective.pt", weights_only=True))
    third, fourth = copy.deepcopy(first), pickle.loads(pickle.dumps(first))
    losses = [o(x.roll(1, 0), labels, ids=ids + 9).item() for o in (first, second, third, fourth)]
    assert losses == [losses[0]] * 4
    for other in (second, third, fourth):
        for name, value in first.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(ValueError, match="'capacity' must be that of the saved bank"):
        GraphGuidedObjective(C, memory=MemoryBank(31, D)).load_state_dict(first.state_dict())


def test_eval_stores_nothing_and_autocast_changes_nothing(generator):
    objective = GraphGuidedObjective(C, memory=filled(generator), bandwidth=0.5)
    x, labels, ids = torch.randn(8, D, generator=generator), torch.arange(8) % C, torch.arange(8)
    visible = torch.arange(8) < 4
    objective.eval()
    plain = objective(x, labels, ids=ids, visible=visible)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = objective(x, labels, ids=ids, visible=visible)
    assert torch.equal(plain, cast)
    assert plain.dtype == torch.float32
    assert len(objective.memory) == 40
    low = objective(x.bfloat16(), labels, ids=ids, visible=visible)
    assert low.dtype == torch.float32
