"""Which finished runs belong together: same data, same settings but for the seed."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What of a run's `config.json` is no setting of an arm: the pairing, the place, what follows from
# other settings, and what makes a block of runs on the same data.
_RECORD = (
    *("command", "files", "contents", "defaults", "versions"),
    *("python", "git_commit", "finished", "device"),
)
_NOT_SETTINGS = ("seed", "data", "bank", "model", *_RECORD)
# Settings of graph models stand under their name.
_MODELS = ("text_gcn", "bert_gcn")
_LABELS = ("label_fraction", "labels_per_class")
_SIZES = ("train", "val", "test")
# Runs record the defaults of their version; those of version 0.1.0, which has these, do not.
# fmt: off
_FIRST_DEFAULTS: dict[str, Any] = {
    "loss": "gloss", "mode": "integrated", "epochs": 3.0, "max_steps": None, "batch_size": 32,
    "eval_batch_size": 64, "gradient_accumulation": 1, "learning_rate": 5e-05,
    "head_learning_rate": 0.005, "warmup": 0.1, "weight_decay": 0.01, "dropout": 0.1, "patience":
    10, "eval_steps": None, "seed": 0, "bf16": False, "gradient_checkpointing": False,
    "memory_size": None, "memory_bits": None, "search": "auto", "hops": None, "eviction": "fifo",
    "half_life": None, "memory_start": 0, "memory_ramp": 0, "restandardize": False,
    "refresh_rows": 0, "refresh_rows_every": 10, "k": 16, "bandwidth": "sqrt", "bandwidth_scale":
    1.0, "visible_fraction": 0.5, "memory_visible_fraction": 1.0, "ids": True, "graph_weight":
    0.3, "temperature": 0.1, "margin": 0.2, "eta": None, "rule": "harmonic", "normalization":
    "hub", "label_fraction": None, "labels_per_class": None, "unlabeled_batch_size": 32,
    "consistency_weight": 1.0, "refresh_every": None, "anchor": 0.5, "align": 0.5,
    "warm_start_steps": 0, "graph_start_steps": 0, "graph_start_classes": "auto",
    "warm_start_rate": 2e-05, "graph_start_rate": None, "refit_head": False, "class_balance":
    False, "freeze_layers": 0, "lora_rank": 0, "lora_alpha": 16.0, "lora_dropout": 0.1,
    "lora_targets": None, "teacher_decay": 0.0, "select": "auto", "device": "auto", "pictures":
    True,
}
# fmt: on


@dataclass(frozen=True)
class Block:
    """Runs on the same data may be compared: name, classes, sizes and number of labels.

    Attributes:
        data: Name of the corpus.
        classes: Its class names.
        sizes: Documents of the training, validation and test part; None without the part.
        labels: Value of `label_fraction` and of `labels_per_class`.
    """

    data: str
    classes: tuple[str, ...]
    sizes: tuple[Any, ...]
    labels: tuple[Any, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Block:
        """The block of a run by its settings."""
        data = settings["data"]
        return cls(
            str(data["name"]) or "data",
            tuple(map(str, data["classes"])),
            tuple(data.get(part) for part in _SIZES),
            tuple(settings.get(name) for name in _LABELS),
        )

    @property
    def few_labels(self) -> bool:
        """Whether a draw of the labels was used."""
        return self.labels != (None, None)


def block_names(blocks: Sequence[Block]) -> dict[Block, str]:
    """A name for every block: the data's, with sizes where two share it, and the label draw."""
    names = {}
    for block in dict.fromkeys(blocks):
        parts = []
        alike = {other for other in blocks if other.data == block.data}
        if len({(other.classes, other.sizes) for other in alike}) > 1:
            sizes = [f"{part} {n}" for part, n in zip(_SIZES, block.sizes, strict=True) if n]
            parts = [f"{len(block.classes)} classes", *sizes]
        draw = zip(_LABELS, block.labels, strict=True)
        parts += [f"{name}={_shown(value)}" for name, value in draw if value is not None]
        names[block] = f"{block.data} ({', '.join(parts)})" if parts else block.data
    shared = list(names.values())
    # Same sizes, other classes.
    return {
        block: f"{name} #{place}" if shared.count(name) > 1 else name
        for place, (block, name) in enumerate(names.items(), start=1)
    }


def arm_names(
    settings: Sequence[Mapping[str, Any]],
    blocks: Sequence[Block],
    by: Sequence[str] | None = None,
) -> list[str]:
    """Name the arm of every run.

    By default an arm is its loss and every other setting in which two runs of a block differ;
    settings at `TrainConfig`'s default are left out of the name.

    Args:
        settings: `config.json` of every run.
        blocks: Its block.
        by: Settings that make the arms instead, as `loss` or `bank.capacity`.

    Raises:
        ValueError: A setting in `by` that a run does not have, or that pairs the runs.

    Example:
        >>> plain = {"loss": "gloss", "k": 16, "data": {"name": "R8", "classes": ["a", "b"]}}
        >>> runs = [plain, {**plain, "k": 8}]
        >>> arm_names(runs, [Block.of(run) for run in runs])
        ['gloss', 'gloss, k=8']
    """
    flat, defaults = [_flat(run) for run in settings], _defaults(settings)
    if by is not None:
        _check_keys(by, flat, defaults)
        return [", ".join(_part(key, run, defaults) for key in by) for run in flat]
    keys = ["loss", *differing(flat, blocks)]
    names = []
    for run in flat:
        parts = [_part("loss", run, defaults)]
        for key in keys[1:]:
            value = _value(key, run, defaults) if _has(key, run) else None
            if value is not None and _same(value) != _same(defaults.get(key)):
                parts.append(_part(key, run, defaults))
        names.append(", ".join(parts))
    return names


def differing(settings: Sequence[Mapping[str, Any]], blocks: Sequence[Hashable]) -> list[str]:
    """Settings besides the loss in which two runs of one block differ, in their order."""
    flat, defaults = [_flat(run) for run in settings], _defaults(settings)
    found = []
    for key in dict.fromkeys(key for run in flat for key in run):
        room = key.partition(".")[0]
        if room in (*_NOT_SETTINGS, *_LABELS, "loss") or key == _encoder_key(flat):
            continue
        seen: dict[Hashable, set[Hashable]] = {}
        for run, block in zip(flat, blocks, strict=True):
            if _has(key, run):
                seen.setdefault(block, set()).add(_same(_value(key, run, defaults)))
        if any(len(values) > 1 for values in seen.values()):
            found.append(key)
    return found


def _encoder_key(flat: Sequence[Mapping[str, Any]]) -> str:
    """Of the encoder's name and its description the one that is not needed."""
    return "encoder" if all(run.get("encoder_name") for run in flat) else "encoder_name"


def _check_keys(
    by: Sequence[str], flat: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> None:
    if not by or "seed" in by:
        raise ValueError(f"'by' must name settings other than 'seed', which pairs (got {by!r}).")
    for key in by:
        if key not in defaults and not all(key in run for run in flat):
            shared = set.intersection(*(set(run) for run in flat))
            odd = set(_NOT_SETTINGS) - {"bank"}
            known = sorted(key for key in shared if key.partition(".")[0] not in odd)
            raise ValueError(
                f"'by' must name settings of every run's config.json (got {key!r}). They have "
                f"{', '.join(known)}."
            )


def _defaults(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Default of every setting, as the runs recorded them."""
    found = dict(_FIRST_DEFAULTS)
    for run in settings:
        found |= run.get("defaults") or {}
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _has(key: str, run: Mapping[str, Any]) -> bool:
    """Whether a run has a setting; a graph model has none of the others' training."""
    return key in run or ("model" not in run and key.partition(".")[0] not in _MODELS)


def _value(key: str, run: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """A setting; a run older than the setting has its default."""
    return run.get(key, defaults.get(key))


def _same(value: Any) -> Hashable:
    """Equal for equal settings: 3 and 3.0 are, 1 and true are not."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return json.dumps(value, sort_keys=True)


def _part(key: str, run: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    shown = _shown(_value(key, run, defaults))
    return shown if key == "loss" else f"{key}={shown}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)
