"""A run's summary, its settings, and the command that repeats it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from gloss_graph.baselines import CONFIGS, MODELS, BertGCNConfig, GraphModelConfig
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.losses import LOSSES

#: Parts of the data, and their names on a page.
PARTS = {"train": "training", "val": "validation", "test": "test"}


def summary(settings: Mapping[str, Any]) -> str:
    """Loss or model, encoder and data in one line."""
    loss, name = settings["loss"], str(settings["data"].get("name") or "documents")
    what = LOSSES[loss].help if loss in LOSSES else MODELS.get(loss, "a loss of its own")
    if settings.get("model") == "text-gcn":
        return f"{what}. Data {name}."
    encoder = settings.get("encoder_name") or settings.get("encoder") or "unknown"
    return f"{what if loss in MODELS else f'{loss}: {what}'}. Encoder {encoder}, data {name}."


def setting_values(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults of the settings of this kind of run, and their values in this run."""
    model = settings.get("model")
    kind: Any = CONFIGS.get(model, TrainConfig) if isinstance(model, str) else TrainConfig
    own = settings.get(str(model).replace("-", "_"), {})
    values = {**settings, **own} if isinstance(own, Mapping) else dict(settings)
    return {field.name: field.default for field in fields(kind)}, values


def _model_snippet(kind: type[GraphModelConfig], parts: str, options: str, encoder: str) -> str:
    """The same run of a graph model in Python."""
    encoded = kind is BertGCNConfig
    names = "load_encoder, read_splits" if encoded else "read_splits"
    given = f", encoder=load_encoder({encoder})" if encoded else ""
    return f"""from gloss_graph.baselines import {kind.__name__}, train_graph_model
from gloss_graph.text import {names}

splits = read_splits({parts})
config = {kind.__name__}({options})
train_graph_model(splits, config, "NEW_FOLDER"{given})"""


def repetition(settings: Mapping[str, Any]) -> tuple[str, str]:
    """The command of the run with a new folder, and the same in Python."""
    words = settings.get("command")
    command = ""
    if isinstance(words, Sequence) and not isinstance(words, str) and words:
        quoted = map(shlex.quote, _with_new_folder([str(word) for word in words]))
        command = " ".join(f"\\\n    {w}" if w.startswith("--") else w for w in quoted)
    known, values = setting_values(settings)
    options = ", ".join(
        f"{key}={values[key]!r}"
        for key, default in known.items()
        if key in values and (values[key] != default or key in ("loss", "seed"))
    )
    data = settings["data"]
    parts = ", ".join(f'"{part}.csv"' if part in data else "None" for part in PARTS)
    parts += ', separator=";"' if data.get("multilabel") else ""
    loading = [f"{key}={settings[key]!r}" for key in ("pooling", "max_length") if settings.get(key)]
    name = settings.get("encoder_name") or "YOUR_ENCODER"
    encoder = ", ".join([repr(name), *loading])
    if (model := settings.get("model")) in CONFIGS:
        return command, _model_snippet(CONFIGS[model], parts, options, encoder)
    snippet = f"""from gloss_graph.text import load_encoder, read_splits
from gloss_graph.training import TrainConfig, train_text

splits = read_splits({parts})
encoder = load_encoder({encoder})
config = TrainConfig({options})
train_text(splits, encoder, config, "NEW_FOLDER")"""
    return command, snippet


def _with_new_folder(words: list[str]) -> list[str]:
    """The words with another folder for the results, as a used one is refused."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--out" and not word.startswith("--out="):
            kept.append(word)
        skip = word == "--out"
    return [*kept, "--out", "NEW_FOLDER"]


def plain(value: Any) -> str:
    """A setting as text."""
    if value is None or value == "":
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str)
