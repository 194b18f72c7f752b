"""Run folders made on the spot: settings and numbers, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gloss_graph.training import TrainConfig

DATA = {"name": "R8", "classes": ["acq", "earn", "ship"], "train": 90, "val": 10, "test": 20}


def write_run(
    folder: Path,
    loss: str,
    seed: int,
    metrics: Mapping[str, float | None],
    *,
    data: Mapping[str, Any] = DATA,
    ids: Sequence[int] | None = (1, 2, 3),
    drop: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A finished run; `drop` leaves settings out, `extra` adds what is no `TrainConfig` setting."""
    folder.mkdir(parents=True)
    config = {
        **TrainConfig(loss=loss, seed=seed, **settings).as_dict(),
        "encoder": "TextEncoder(bert, pooling='mean', max_length=48, dim=384)",
        "encoder_name": "minilm",
        "max_length": 48,
        "data": dict(data),
        "bank": {"capacity": 90, "targets": loss == "gloss"},
        "versions": {"torch": f"2.{seed}"},
        "git_commit": f"{seed}{loss}",
        "finished": f"2024-01-0{seed + 1}",
        **(extra or {}),
    }
    for name in drop:
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(dict(metrics)))
    if ids is not None:
        pd.DataFrame({"id": ids, "label": "acq", "text": "t"}).to_csv(
            folder / "labels_used.csv", index=False
        )
    # What a run holds beside its numbers is no run of its own.
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def write_series(
    root: Path, name: str, values: Mapping[int, float], loss: str = "gloss", **settings: Any
) -> list[Path]:
    """Runs of one arm, a value of `test.macro_f1` a seed."""
    return [
        write_run(root / f"{name}-{seed}", loss, seed, {"test.macro_f1": value}, **settings)
        for seed, value in values.items()
    ]
