"""Every setting is checked when the configuration is made."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from gloss_graph import GraphGuidedObjective
from gloss_graph.training import LOSSES, TrainConfig, make_loss

NAN, INF = float("nan"), float("inf")
COUNTS = ("batch_size", "eval_batch_size", "gradient_accumulation", "patience", "k")
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in (*COUNTS, "eval_steps") for value in (0, -1, 2.0, True)),
    *(("max_steps", value) for value in (-1, 2.0, True)),
    *((name, None) for name in COUNTS),
    *(("search", value) for value in ("faiss", "annoy", None)),
    *(("memory_size", value) for value in (-1, 10.0, True)),
    *(("seed", value) for value in (-1, 0.5, None)),
    *(("epochs", value) for value in (0, -1.0, INF, NAN, True)),
    *(
        (name, value)
        for name in ("learning_rate", "head_learning_rate")
        for value in (0, -1e-5, 1.5, NAN, True)
    ),
    *(
        (name, value)
        for name in ("warmup", "weight_decay", "visible_fraction", "graph_weight")
        for value in (-0.01, 1.01, NAN, True)
    ),
    *(("dropout", value) for value in (-0.1, 1.0, NAN)),
    *(("eta", value) for value in (-0.1, INF, NAN)),
    *(("bandwidth", value) for value in (0.0, -1.0, INF, NAN, "median", True, len)),
    *(("loss", value) for value in ("", "GLOSS", "gloss ", None, 3)),
    *(("rule", value) for value in ("", "poison", None)),
    *(("normalization", value) for value in ("", "Hub", None)),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' must be"):
        TrainConfig(**{name: value})


GOOD = [
    *({"loss": loss} for loss in LOSSES),
    {"max_steps": 0, "loss": "ce"},
    {"max_steps": None, "eval_steps": 1, "memory_size": 0},
    {"epochs": 0.25, "learning_rate": 1, "head_learning_rate": 1e-12},
    {"visible_fraction": 0, "graph_weight": 1, "warmup": 0, "weight_decay": 1, "dropout": 0},
    {"bandwidth": "local", "eta": 0, "rule": "poisson", "normalization": "symmetric"},
    {"bandwidth": 1, "loss": "gloss-released"},
]


@pytest.mark.parametrize("settings", GOOD)
def test_values_at_the_edge_are_kept(settings: dict[str, Any]) -> None:
    config = TrainConfig(**settings)
    plain = config.as_dict()
    assert {name: plain[name] for name in settings} == settings
    assert set(plain) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert TrainConfig(**json.loads(json.dumps(plain))) == config


def test_the_known_names_are_listed() -> None:
    names = r"'ce', 'cosine', 'gloss', 'gloss-published', 'gloss-released', 'pseudo-label'"
    with pytest.raises(ValueError, match=names):
        TrainConfig(loss="glos")
    with pytest.raises(ValueError, match=r"'harmonic'.*'poisson'.*'spreading'.*'poison'"):
        TrainConfig(rule="poison")


@pytest.mark.parametrize("loss", ["gloss-published", "gloss-released"])
def test_in_batch_forms_take_one_rule_of_bandwidth(loss: str) -> None:
    assert TrainConfig(loss=loss, bandwidth=0.5).bandwidth == 0.5
    with pytest.raises(
        ValueError, match=f"'bandwidth' of loss='{loss}' must be a number or 'sqrt'"
    ):
        TrainConfig(loss=loss, bandwidth="local")


def test_a_bandwidth_made_from_labels_is_refused_where_the_corpus_is_remembered() -> None:
    for loss in ("gloss", "static-lp"):
        with pytest.raises(ValueError, match="'bandwidth' must not be 'interclass_min'"):
            TrainConfig(loss=loss, bandwidth="interclass_min")
    batches = TrainConfig(loss="gloss", bandwidth="interclass_min", memory_size=0)
    assert batches.bandwidth == "interclass_min"


def test_settings_are_frozen_and_by_name() -> None:
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.k = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig("ce")  # type: ignore[misc]
    with pytest.raises(TypeError, match="lamda"):
        TrainConfig(lamda=0.3)  # type: ignore[call-arg]


@pytest.mark.parametrize("loss", ["static-lp", "pseudo-label", "gloss-published"])
def test_no_steps_only_where_a_head_can_be_fitted(loss: str) -> None:
    with pytest.raises(ValueError, match="'max_steps' must be an integer of at least 1"):
        TrainConfig(loss=loss, max_steps=0)


@pytest.mark.parametrize("search", ["auto", "exact", "ivf", "descent"])
def test_the_bank_searches_as_told(search: str) -> None:
    loss = make_loss(TrainConfig(search=search), 3, 16, [0, 1, 2] * 4)
    assert isinstance(loss, GraphGuidedObjective)
    assert loss.memory is not None
    assert loss.memory.search_backend == search
