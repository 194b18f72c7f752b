"""Which settings count: what is said to, changes a training, and nothing else does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny import tiny_encoder, tiny_splits

from gloss_graph.studies.text_classifiers import NO_FACTORS, used_settings
from gloss_graph.training import TrainConfig, train_text

SMALL: dict[str, Any] = {
    "max_steps": 4,
    "batch_size": 8,
    "unlabeled_batch_size": 8,
    "k": 3,
    "select": "last",
    "learning_rate": 5e-3,
    "pictures": False,
}
FEW = {"labels_per_class": 4}
WITH_BANK = {"loss": "gloss", "visible_fraction": 0.3, "refresh_rows_every": 1}


TRAINED: dict[str, torch.Tensor] = {}


def trained(folder: Path, config: TrainConfig) -> torch.Tensor:
    """What a training comes to: embeddings and head together; equal ones are done once."""
    key = repr(config)
    if key not in TRAINED:
        result = train_text(tiny_splits(), tiny_encoder(), config, folder)
        logits = result.model.head(result.embeddings["test"]).detach()
        TRAINED[key] = torch.cat([result.embeddings["test"], logits], dim=1)
    return TRAINED[key]


@pytest.mark.parametrize(
    ("settings", "name", "values", "expected"),
    [
        ({"loss": "static-lp", **FEW}, "memory_size", (None, 12), True),
        ({"loss": "static-lp", **FEW}, "half_life", (None, 1.0), False),
        ({"loss": "static-lp", **FEW}, "memory_visible_fraction", (1.0, 0.2), False),
        ({"loss": "static-lp"}, "memory_size", (None, 12), False),
        (
            {**WITH_BANK, "refresh_rows": 8, "refresh_rows_every": 1},
            "teacher_decay",
            (0, 0.9),
            True,
        ),
        (WITH_BANK, "teacher_decay", (0, 0.9), False),
        (WITH_BANK, "refresh_rows_every", (2, 3), False),
        ({**WITH_BANK, "memory_size": 0}, "half_life", (None, 1.0), False),
        ({**WITH_BANK, "mode": "standalone"}, "graph_weight", (0.1, 0.9), False),
        ({**WITH_BANK, "mode": "standalone"}, "head_learning_rate", (1e-3, 1e-2), False),
        ({"loss": "xbm-scl"}, "memory_size", (4, 30), True),
        ({"loss": "xbm-scl"}, "half_life", (None, 1.0), False),
        ({"loss": "ce", **FEW, "graph_start_steps": 2}, "unlabeled_batch_size", (4, 8), True),
        ({"loss": "ce", **FEW}, "unlabeled_batch_size", (4, 8), False),
        (
            {"loss": "ce", **FEW, "graph_start_steps": 4},
            "graph_start_classes",
            ("agreed", "auto"),
            True,
        ),
        ({"loss": "ce", **FEW}, "graph_start_classes", ("agreed", "auto"), False),
        (
            {"loss": "ce", **FEW, "graph_start_steps": 4},
            "graph_start_classes",
            ("agreed", "co-training"),
            True,
        ),
        ({"loss": "ce", **FEW, "graph_start_steps": 2}, "graph_start_rate", (None, 1e-3), True),
        ({"loss": "ce", **FEW, "graph_start_steps": 2}, "warm_start_rate", (1e-4, 1e-3), True),
        (
            {"loss": "ce", **FEW, "graph_start_steps": 2, "graph_start_rate": 1e-4},
            "warm_start_rate",
            (1e-4, 1e-3),
            False,
        ),
        ({"loss": "ce", **FEW}, "graph_start_rate", (None, 1e-3), False),
        ({"loss": "setfit", **FEW}, "freeze_layers", (0, 1), True),
        ({"loss": "pseudo-label"}, "teacher_decay", (0.5, 0.9), False),
    ],
)
def test_what_counts_changes_a_training(
    tmp_path: Path, settings: dict[str, Any], name: str, values: tuple[Any, Any], expected: bool
) -> None:
    arms = [TrainConfig(**{**SMALL, **settings, name: value}) for value in values]
    unlabeled = "labels_per_class" in settings
    said = [name in used_settings(arm, unlabeled=unlabeled) for arm in arms]
    one, other = (trained(tmp_path / str(n), arm) for n, arm in enumerate(arms))
    assert torch.equal(one, other) != expected
    assert said == [expected] * 2


def test_every_setting_counts_somewhere() -> None:
    arms: list[dict[str, Any]] = [
        {"loss": "gloss", "refresh_rows": 4, "lora_rank": 2},
        {"loss": "xbm-scl"},
        {"loss": "triplet", "warm_start_steps": 2, "graph_start_steps": 2},
        # Settings that came later count where they are not at their default.
        {"kernel": "cosine", "symmetrize": "mutual", "batch_edges": "all", "max_iter": 10},
        {"rule": "spreading", "alpha": 0.8, "solver": "cg", "tol": 1e-3, "gradient": "unrolled"},
        {"normalize": False, "consistency_start": 1, "consistency_ramp": 1},
        {"contrast_weight": 0.5, "contrast_start": 1, "contrast_refresh_every": 5},
        {"graph_start_steps": 2, "contrast_rows": 8},
    ]
    used = set().union(*(used_settings(TrainConfig(**arm), unlabeled=True) for arm in arms))
    assert used == {field.name for field in fields(TrainConfig)} - set(NO_FACTORS)
