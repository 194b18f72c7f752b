"""A call that raises leaves the state as it was, and so does one that only looks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from helpers import snapshot
from torch import Tensor, nn

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph._internal.processes import share_state
from gloss_graph.memory import MomentumEncoder
from gloss_graph.neighbors import NeighborLists

DIM, SIZE, CLASSES = 4, 6, 3
NAN = float("nan")


def rows(count: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def bank_of(count: int = 14, **options: Any) -> MemoryBank:
    bank = MemoryBank(12, DIM, **{"k": 3, **options})
    for start in range(0, count, 7):
        ids = torch.arange(start, start + 7)
        labels = torch.eye(CLASSES)[ids % CLASSES] if bank.num_classes else ids % CLASSES
        bank.enqueue(rows(7, start), labels, ids)
    return bank


class Unsound:
    """A policy with state that gives slots no bank can take, or raises."""

    name, whole_batch = "unsound", False


class UnsoundPolicy(Unsound, nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.answer: Any = None

    def choose(self, bank: Any, ids: Tensor, labels: Tensor, refreshed: Tensor) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return (
            torch.arange(len(bank), len(bank) + ids.numel())
            if self.answer is None
            else (self.answer)
        )


def objective_of(**options: Any) -> GraphGuidedObjective:
    settings = {"consistency_start": 0, "refresh_every": 2, "warm_start": True, **options}
    memory = settings.pop("memory") if "memory" in settings else bank_of()
    objective = GraphGuidedObjective(CLASSES, memory=memory, k=3, **settings)
    for seed in range(3):
        step(objective, embeddings=rows(seed=seed))
    return objective


def step(objective: GraphGuidedObjective, **changed: Any) -> Any:
    arguments = {
        "embeddings": rows(seed=9),
        "labels": torch.tensor([0, 1, 2, 0, 1, -1]),
        "ids": torch.arange(20, 26),
        "logits": rows(seed=3)[:, :CLASSES],
        **changed,
    }
    return objective(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)


def raising(*_: Any) -> Tensor:
    raise OSError("the encoder is gone")


def twice(first: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Good for the first batch, bad from the second on."""
    calls: list[int] = []

    def encode(x: Tensor) -> Any:
        calls.append(1)
        return first(x) if len(calls) == 1 else then(x)

    return encode


def batches(**second: Any) -> list[tuple[Any, Any, Any]]:
    one = (rows(seed=1), torch.zeros(SIZE).long(), torch.arange(8, 14))
    two = {"x": rows(seed=2), "labels": torch.zeros(SIZE).long(), "ids": torch.arange(30, 36)}
    return [one, tuple({**two, **second}.values())]


MATRICES = {
    "list": [[1.0] * DIM],
    "none": None,
    "vector": rows()[0],
    "columns": torch.randn(SIZE, DIM + 1),
    "integers": torch.ones(SIZE, DIM).long(),
    "nan": rows().index_fill(0, torch.tensor([2]), NAN),
    "inf": rows().index_fill(0, torch.tensor([2]), float("inf")),
    "sparse": rows().to_sparse(),
    "elsewhere": rows().to("meta"),
}
LABELS = {
    "list": [0] * SIZE,
    "length": torch.zeros(SIZE + 1).long(),
    "floats": torch.zeros(SIZE),
    "bool": torch.zeros(SIZE).bool(),
    "below": torch.full((SIZE,), -2),
    "matrix": torch.zeros(SIZE, CLASSES),
    "sparse": torch.ones(SIZE).long().to_sparse(),
}
IDS = {**{k: v for k, v in LABELS.items() if k != "matrix"}, "negative": torch.full((SIZE,), -1)}
LISTS = {
    "tuple": (torch.ones(SIZE, 2), torch.zeros(SIZE, 2).long()),
    "floats": NeighborLists(torch.ones(SIZE, 2), torch.zeros(SIZE, 2)),
    "bool": NeighborLists(torch.ones(SIZE, 2), torch.zeros(SIZE, 2).bool()),
    "few": NeighborLists(torch.ones(2, 2), torch.zeros(2, 2).long()),
    "no such slot": NeighborLists(torch.ones(SIZE, 2), torch.full((SIZE, 2), 99)),
    "no such row": NeighborLists(torch.ones(SIZE, 2), torch.full((SIZE, 2), -99)),
    "list": NeighborLists(torch.ones(SIZE, 2), [[0, 0]] * SIZE),
    "elsewhere": NeighborLists(torch.ones(SIZE, 2), torch.zeros(SIZE, 2).long().to("meta")),
}
ENCODERS = {
    "none": None,
    "raises": raising,
    "list": lambda x: [[0.0] * DIM] * len(x),
    "few": lambda x: torch.zeros(1, DIM),
    "columns": lambda x: torch.zeros(len(x), DIM + 1),
    "nan": lambda x: torch.full((len(x), DIM), NAN),
    "integers": lambda x: torch.zeros(len(x), DIM).long(),
}
STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "number": lambda state: 3,
    "empty": lambda state: {},
    "foreign": lambda state: {**state, "weight": torch.zeros(2)},
}


def with_entry(name: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {**state, name: change(state[name].clone())}


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def first(value: Any) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x.view(-1)[0] = value
        return x

    return change


ENTRIES: dict[str, list[Callable[[Tensor], Any]]] = {
    "rows": [first(NAN), lambda x: x.bool(), lambda x: x.long(), lambda x: x[:5], lambda x: 3],
    "slot_labels": [first(-2), lambda x: x.float(), lambda x: x.bool()],
    "slot_ids": [first(-1), first(-9), lambda x: x.fill_(5), lambda x: x.float()],
    "written_at": [first(99), first(-1)],
    "cursor": [first(99), first(-1)],
    "count": [first(99), first(-1), first(3), lambda x: x.float()],
    "step": [first(-1), first(0)],
    "anonymous": [first(-1)],
    "links.slots": [first(99), first(-2), first(0), lambda x: x.long()],
    "links.slot_stamps": [first(99), first(-1)],
    "links.squared": [first(NAN), first(-1.0)],
    "links.stamps": [first(-1), first(0)],
}
for entry, changes in ENTRIES.items():
    STATES[f"without {entry}"] = without(entry)
    STATES |= {f"{entry} {n}": with_entry(entry, change) for n, change in enumerate(changes)}
SETS = {
    "labels": with_entry("slot_labels", first(1)),
    "targets": with_entry("slot_targets", first(1.5)),
    "nan": with_entry("slot_targets", first(NAN)),
}
CELLS = {
    "count": with_entry("cells.count", first(99)),
    "cell": with_entry("cells.cell_of", first(99)),
    "none": with_entry("cells.cell_of", first(-1)),
    "centers": with_entry("cells.centers", first(NAN)),
    "overwritten": with_entry("cells.overwritten", first(-1)),
}


def _inside(change: Callable[[dict[str, Any]], Any], state: dict[str, Any]) -> dict[str, Any]:
    bank = {k.removeprefix("memory."): v for k, v in state.items() if k.startswith("memory.")}
    rest = {k: v for k, v in state.items() if not k.startswith("memory.")}
    return {**rest, **{f"memory.{k}": v for k, v in change(bank).items()}}


OBJECTIVE = {
    **{
        name: partial(_inside, change)
        for name, change in STATES.items()
        if name not in ("number", "empty", "foreign")
    },
    "number": lambda state: 3,
    "foreign": lambda state: {**state, "weight": torch.zeros(2)},
    "label": with_entry("memory.slot_labels", first(CLASSES)),
    "steps": with_entry("targets.steps", first(-1)),
    "solved": with_entry("targets.solved_at", first(-2)),
    "table": with_entry("targets.table", first(NAN)),
    "confidence": with_entry("targets.confidence", first(2.0)),
    "mass": with_entry("targets.mass", first(NAN)),
    "warm": with_entry("warm.values", first(NAN)),
    "no generator": without("_extra_state"),
    "generator": with_entry("_extra_state", lambda x: x[:9]),
    "text": with_entry("_extra_state", lambda x: "text"),
}


class Call(NamedTuple):
    """A public call: on what, how, and bad values of each of its arguments."""

    make: Callable[[], nn.Module]
    run: Callable[..., Any]
    bad: dict[str, dict[str, Any]]


def enqueue(bank: MemoryBank, **changed: Any) -> None:
    good = {"embeddings": rows(), "labels": torch.zeros(SIZE).long(), "ids": torch.arange(8, 14)}
    arguments = {**good, **changed}
    bank.enqueue(arguments.pop("embeddings"), **arguments)


def policy(bank: MemoryBank, answer: Any) -> None:
    bank.eviction.answer = answer
    enqueue(bank)


def widened(slow: MomentumEncoder, source: Any) -> None:
    slow._source.weight = nn.Parameter(torch.zeros(5, source))
    slow.update()


def loaded(module: nn.Module, state_dict: Callable[[dict[str, Any]], Any]) -> None:
    module.load_state_dict(state_dict(module.state_dict()))


def momentum() -> MomentumEncoder:
    return MomentumEncoder(nn.Linear(3, 2))


HALF = {"dtype": torch.float16, "normalize": False}
CALLS: dict[str, Call] = {
    "enqueue": Call(
        bank_of,
        enqueue,
        {"embeddings": MATRICES, "labels": LABELS, "ids": IDS, "neighbors": LISTS},
    ),
    "enqueue half": Call(lambda: bank_of(**HALF), enqueue, {"embeddings": {"large": rows() * 1e6}}),
    "enqueue sets": Call(
        lambda: bank_of(num_classes=CLASSES),
        enqueue,
        {
            "labels": {
                "numbers": torch.zeros(SIZE).long(),
                "range": torch.full((SIZE, CLASSES), 2.0),
                "partly": torch.full((SIZE, CLASSES), 0.5).index_fill(1, torch.tensor(0), NAN),
            }
        },
    ),
    "enqueue policy": Call(
        lambda: bank_of(0, eviction=UnsoundPolicy()),
        policy,
        {
            "answer": {
                "raises": RuntimeError("no"),
                "list": [0] * SIZE,
                "floats": torch.zeros(SIZE),
                "gap": torch.arange(3, 3 + SIZE),
            }
        },
    ),
    "store gathered": Call(
        bank_of,
        lambda bank, x: bank.store(bank.checked(x, torch.zeros(SIZE).long()), of_all=True),
        {"x": MATRICES},
    ),
    "prefill": Call(
        bank_of,
        lambda bank, loader=None, encoder=lambda x: x: bank.prefill(loader or batches(), encoder),
        {
            "loader": {
                "number": 3,
                "shape": [(1, 2, 3, 4)],
                **{f"labels {k}": batches(labels=v) for k, v in LABELS.items()},
                **{f"ids {k}": batches(ids=v) for k, v in IDS.items()},
            },
            "encoder": {
                **{k: twice(lambda x: x, v) for k, v in ENCODERS.items() if v},
                "none": None,
            },
        },
    ),
    "refresh": Call(
        bank_of,
        lambda bank, encode=lambda ids: rows(ids.numel()), count=5: bank.refresh(encode, count),
        {"encode": ENCODERS, "count": {"low": -1, "float": 2.0, "none": None}},
    ),
    "set_search": Call(
        bank_of, lambda bank, search: bank.set_search(search), {"search": {"n": "none", "i": 3}}
    ),
    "share_state": Call(
        bank_of, lambda bank, module: share_state(module), {"module": {"text": "x", "none": None}}
    ),
    "bank.load_state_dict": Call(bank_of, loaded, {"state_dict": STATES}),
    "sets.load_state_dict": Call(
        lambda: bank_of(num_classes=CLASSES), loaded, {"state_dict": SETS}
    ),
    "ivf.load_state_dict": Call(
        lambda: bank_of(search=_few_cells()), loaded, {"state_dict": CELLS}
    ),
    "objective.load_state_dict": Call(objective_of, loaded, {"state_dict": OBJECTIVE}),
    "model.load_state_dict": Call(
        lambda: nn.ModuleDict({"objective": objective_of()}),
        lambda model, name: model.load_state_dict(
            {
                **model.state_dict(),
                f"objective.{name}": model.state_dict()[f"objective.{name}"] - 100,
            }
        ),
        {"name": {n: n for n in ("memory.count", "targets.steps", "memory.links.stamps")}},
    ),
    "set_extra_state": Call(
        objective_of,
        lambda objective, state: objective.set_extra_state(state),
        {"state": {"text": "x", "short": torch.zeros(3).byte(), "float": torch.zeros(5056)}},
    ),
    "forward": Call(
        objective_of,
        step,
        {
            "embeddings": {**MATRICES, "no rows": torch.zeros(0, DIM)},
            "labels": {**LABELS, "above": torch.full((SIZE,), CLASSES)},
            "ids": {**IDS, "one document": torch.zeros(SIZE).long()},
            "logits": {k: v for k, v in MATRICES.items() if v is not None},
            "visible": {"list": [True], "length": torch.ones(2).bool(), "long": torch.ones(SIZE)},
            "target_embeddings": {k: v for k, v in MATRICES.items() if v is not None},
            "frozen": {"number": 3, "scalar": torch.tensor(1.0), "columns": rows()},
        },
    ),
    # The bank refuses what the step got through, after targets and warm start were made.
    "forward half": Call(
        lambda: objective_of(memory=bank_of(**HALF), normalize_embeddings=False, bandwidth=1e6),
        step,
        {"embeddings": {"large": rows() * 1e6}},
    ),
    "forward policy": Call(
        lambda: objective_of(memory=bank_of(0, eviction=UnsoundPolicy())),
        lambda objective, answer: (
            setattr(objective.memory.eviction, "answer", answer),
            step(objective, ids=torch.arange(50, 56)),
        ),
        {"answer": {"raises": RuntimeError("no"), "list": [0] * SIZE}},
    ),
    "momentum.update": Call(momentum, widened, {"source": {"wider": 7}}),
    "momentum.load_state_dict": Call(
        momentum,
        loaded,
        {
            "state_dict": {
                "half": without("average.module.weight"),
                "shape": with_entry("average.module.weight", lambda x: x[:1]),
                "bool": with_entry("average.module.weight", lambda x: x.bool()),
            }
        },
    ),
}


def _few_cells() -> Any:
    from gloss_graph.neighbors import IVFSettings

    return IVFSettings(cells=2, probes=1)


CASES = [
    (call, argument, value)
    for call, (_, _, bad) in CALLS.items()
    for argument, values in bad.items()
    for value in values
]


@cache
def made(call: str) -> nn.Module:
    return CALLS[call].make()


def fresh(call: str) -> nn.Module:
    """A copy: training a few steps for every case would take long."""
    return copy.deepcopy(made(call))


def same_state(one: nn.Module, before: dict[str, Any]) -> None:
    after = one.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(("call", "argument", "value"), CASES)
@pytest.mark.filterwarnings("ignore:MemoryBank.enqueue was called without")
def test_a_call_that_raises_changes_nothing(call: str, argument: str, value: str) -> None:
    _, run, bad = CALLS[call]
    thing = fresh(call)
    before = snapshot(thing)
    with pytest.raises((TypeError, ValueError, RuntimeError, OSError)):
        run(thing, **{argument: bad[argument][value]})
    same_state(thing, before)
    if isinstance(thing, MemoryBank) and not isinstance(thing.eviction, Unsound):
        # And it goes on as if nothing had happened, what is derived from the state included.
        twin = fresh(call)
        for bank in (thing, twin):
            bank.enqueue(rows(3, 5), None, torch.tensor([3, 40, 41])) if not bank.num_classes else 0
        same_state(thing, snapshot(twin))
        assert torch.equal(thing.slots_of(torch.arange(42)), twin.slots_of(torch.arange(42)))


def test_a_warning_made_an_error_changes_nothing() -> None:
    bank = bank_of()
    before = snapshot(bank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            bank.enqueue(rows())
    same_state(bank, before)


@pytest.mark.parametrize("count", [0, 7, 14])
def test_a_prefill_that_fails_late_is_undone(count: int) -> None:
    for options in (
        {},
        {"dtype": torch.float16},
        {"eviction": "reservoir"},
        {"num_classes": CLASSES},
    ):
        bank = bank_of(count, **options)
        before, labels = snapshot(bank), None
        encode = twice(lambda x: x, raising)
        with pytest.raises(OSError, match="the encoder is gone"):
            bank.prefill([(x, labels, ids) for x, _, ids in batches()], encode)
        same_state(bank, before)
        assert len(bank) == min(count, 12)


@pytest.mark.parametrize("settings", [{}, {"refresh_every": 0}, {"warm_start": False}])
def test_a_look_in_eval_mode_changes_neither_state_nor_training(settings: dict[str, Any]) -> None:
    objective = objective_of(**settings)
    twin = copy.deepcopy(objective)
    before = snapshot(objective)
    objective.eval()
    seen = [float(step(objective, embeddings=rows(seed=s))) for s in (5, 6, 5)]
    same_state(objective, before)
    assert seen[0] == seen[2]
    objective.train()
    for seed in range(5, 9):
        losses = [step(each, embeddings=rows(seed=seed)) for each in (objective, twin)]
        assert torch.equal(*losses)
    same_state(objective, snapshot(twin))


def test_banks_made_in_inference_mode_are_banks() -> None:
    with torch.inference_mode():
        bank = bank_of()
        bank.neighbors(rows(), torch.arange(SIZE))
        bank.double()
    same_state(bank, snapshot(bank_of().double()))
    bank.enqueue(torch.inference_mode()(rows)(), None, torch.arange(30, 36))
    with torch.inference_mode():
        copied = copy.deepcopy(bank)
        copied.enqueue(rows(), None, torch.arange(40, 46))
    before = snapshot(copied)
    with pytest.raises(RuntimeError, match="inference_mode"):
        copied.enqueue(rows(), None, torch.arange(50, 56))
    same_state(copied, before)


def test_an_objective_made_in_inference_mode_trains() -> None:
    with torch.inference_mode():
        objective = objective_of()
    twin = objective_of()
    assert torch.equal(step(objective), step(twin))
    same_state(objective, snapshot(twin))
