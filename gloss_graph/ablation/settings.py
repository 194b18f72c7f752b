"""Which settings a training depends on, and what they mean."""

from __future__ import annotations

import re
from dataclasses import fields

from gloss_graph.training import TrainConfig
from gloss_graph.training.setup import USES_UNLABELED

__all__ = ["ENCODER_ONLY", "GRAPH_LOSSES", "NO_FACTORS", "glossary", "used_settings"]

GRAPH_LOSSES = ("gloss", "gloss-published", "gloss-released")
#: Settings that are no matter of a study: seeds are an axis of their own.
NO_FACTORS = ("seed", "pictures")

_LORA = frozenset(("lora_alpha", "lora_dropout", "lora_targets"))
#: Settings of transformers, which an adapter of features has no use for.
ENCODER_ONLY = _LORA | {"bf16", "gradient_checkpointing", "freeze_layers", "lora_rank"}

# The second half is of the head that propagates over the training documents, of every loss.
_ALWAYS = frozenset(
    (
        "loss",
        "mode",
        "select",
        "device",
        "eval_batch_size",
        "label_fraction",
        "labels_per_class",
        "warm_start_steps",
        "k",
        "bandwidth",
        "bandwidth_scale",
        "rule",
        "normalization",
        "align",
    )
)
_TRAINING = frozenset(
    (
        "batch_size",
        "gradient_accumulation",
        "learning_rate",
        "head_learning_rate",
        "warmup",
        "weight_decay",
        "dropout",
        "max_steps",
        "class_balance",
        "refit_head",
        "bf16",
        "gradient_checkpointing",
        "freeze_layers",
        "lora_rank",
    )
)
_SOMETIMES = frozenset(
    (
        "epochs",
        "patience",
        "eval_steps",
        "eta",
        "warm_start_rate",
        "graph_start_steps",
        "anchor",
        "unlabeled_batch_size",
        "consistency_weight",
        "refresh_every",
        "teacher_decay",
        "temperature",
        "margin",
        "graph_weight",
        "visible_fraction",
    )
)
# All others are of the bank.
_BANK = frozenset(
    field.name
    for field in fields(TrainConfig)
    if field.name not in {*_ALWAYS, *_TRAINING, *_LORA, *_SOMETIMES, *NO_FACTORS}
)


def used_settings(config: TrainConfig, *, unlabeled: bool) -> set[str]:
    """Settings that the result of a training depends on.

    Args:
        config: All settings.
        unlabeled: Whether there are documents without label.

    Example:
        >>> "memory_size" in used_settings(TrainConfig(loss="ce"), unlabeled=False)
        False
    """
    loss, used = config.loss, set(_ALWAYS)
    if config.rule != "spreading":
        used.add("eta")
    if config.trains:
        used |= _TRAINING | ({"epochs"} if config.max_steps is None else set())
        used |= set() if config.keeps_last else {"patience", "eval_steps"}
        used |= _LORA if config.lora_rank else set()
    if loss in ("setfit", "ce", "gloss"):
        used.add("max_steps")
    if config.warm_start_steps or config.graph_start_steps or loss == "setfit":
        used |= {"warm_start_rate", "batch_size"}
    if loss in GRAPH_LOSSES:
        used |= {"graph_weight", "visible_fraction"}
    if loss in ("scl", "triplet", "cosine", "xbm-scl"):
        used.add("graph_weight")
    if loss in ("scl", "xbm-scl"):
        used.add("temperature")
    if loss == "triplet":
        used.add("margin")
    if loss in ("gloss", "xbm-scl"):
        used |= _BANK
    if unlabeled:
        used |= {"graph_start_steps", "anchor"}
        if loss in USES_UNLABELED:
            used |= {"unlabeled_batch_size", "consistency_weight"}
        if loss == "gloss":
            used |= {"refresh_every", "teacher_decay"}
    if loss == "pseudo-label":
        used.add("teacher_decay")
    return used


def glossary() -> dict[str, str]:
    """Setting -> what the documentation of `TrainConfig` says of it."""
    text = (TrainConfig.__doc__ or "").partition("Attributes:")[2]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, flags=re.MULTILINE)
    plain = {}
    for name, body in found:
        line = " ".join(body.split())
        for written, sign in ((r"\(\sigma\)", "σ"), (r"\(\gamma\)", "γ"), (r"\(\lambda\)", "λ")):
            line = line.replace(written, sign)
        plain[name] = line
    return plain
