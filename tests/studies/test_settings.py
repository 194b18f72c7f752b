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
STARTED = {"loss": "ce", **FEW, "graph_start_steps": 4}


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
    ("settings", "changes", "expected"),
    [
        ({"loss": "static-lp", **FEW}, {"memory_size": 12}, True),
        ({"loss": "static-lp", **FEW}, {"half_life": 1.0, "memory_visible_fraction": 0.2}, False),
        ({"loss": "static-lp"}, {"memory_size": 12}, False),
        ({**WITH_BANK, "refresh_rows": 8}, {"teacher_decay": 0.9}, True),
        (WITH_BANK, {"teacher_decay": 0.9, "refresh_rows_every": 3}, False),
        ({**WITH_BANK, "memory_size": 0}, {"half_life": 1.0}, False),
        (
            {**WITH_BANK, "mode": "standalone"},
            {"graph_weight": 0.9, "head_learning_rate": 1e-2},
            False,
        ),
        ({"loss": "xbm-scl"}, {"memory_size": 4}, True),
        ({"loss": "xbm-scl"}, {"half_life": 1.0}, False),
        (STARTED, {"unlabeled_batch_size": 4}, True),
        (STARTED, {"graph_start_classes": "agreed"}, True),
        (
            {**STARTED, "graph_start_classes": "agreed"},
            {"graph_start_classes": "co-training"},
            True,
        ),
        (STARTED, {"graph_start_rate": 1e-3}, True),
        (STARTED, {"warm_start_rate": 1e-3}, True),
        ({**STARTED, "graph_start_rate": 1e-4}, {"warm_start_rate": 1e-3}, False),
        (
            {"loss": "ce", **FEW},
            {
                "unlabeled_batch_size": 4,
                "graph_start_classes": "agreed",
                "graph_start_rate": 1e-3,
            },
            False,
        ),
        ({"loss": "setfit", **FEW}, {"freeze_layers": 1}, True),
        ({"loss": "pseudo-label"}, {"teacher_decay": 0.9}, False),
    ],
)
def test_what_counts_changes_a_training(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], expected: bool
) -> None:
    """Settings that do not count change nothing, even all of them at once."""
    arms = [TrainConfig(**{**SMALL, **settings, **more}) for more in ({}, changes)]
    unlabeled = "labels_per_class" in settings
    said = [name in used_settings(arm, unlabeled=unlabeled) for arm in arms for name in changes]
    one, other = (trained(tmp_path / str(n), arm) for n, arm in enumerate(arms))
    assert torch.equal(one, other) != expected
    assert said == [expected] * (2 * len(changes))


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
        {"graph_start_steps": 2, "contrast_rows": 8, "contrast_temperature": 0.2},
    ]
    used = set().union(*(used_settings(TrainConfig(**arm), unlabeled=True) for arm in arms))
    assert used == {field.name for field in fields(TrainConfig)} - set(NO_FACTORS)
