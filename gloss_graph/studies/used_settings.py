"""Which settings a training depends on, and what they mean."""

from __future__ import annotations

import re

from gloss_graph.losses import METRIC_LOSSES
from gloss_graph.training import TrainConfig
from gloss_graph.training.setup import USES_UNLABELED

__all__ = ["ENCODER_ONLY", "GRAPH_LOSSES", "NO_FACTORS", "glossary", "used_settings"]

GRAPH_LOSSES = ("gloss", "gloss-published", "gloss-released")
#: Settings that are no matter of a study: seeds are an axis of their own.
NO_FACTORS = ("seed", "pictures")

_LORA = frozenset(("lora_alpha", "lora_dropout", "lora_targets"))
_SPREADING = frozenset(("unlabeled_batch_size", "graph_start_classes", "graph_start_rate"))
#: Settings of transformers, which an adapter of features has no use for.
ENCODER_ONLY = _LORA | {"bf16", "gradient_checkpointing", "freeze_layers", "lora_rank"}

# The second half is of the head that propagates over the training documents, of every loss.
_ALWAYS = frozenset(
    (
        *("loss", "mode", "select", "device", "bf16", "eval_batch_size"),
        *("label_fraction", "labels_per_class", "warm_start_steps"),
        *("k", "bandwidth", "bandwidth_scale", "rule", "normalization", "align"),
    )
)
_TRAINING = frozenset(
    (
        *("batch_size", "gradient_accumulation", "learning_rate", "warmup", "weight_decay"),
        *("max_steps", "class_balance", "gradient_checkpointing"),
    )
)
# Of the linear head, and how a loss weighs beside its cross-entropy.
_INTEGRATED = frozenset(("head_learning_rate", "dropout"))
_REFRESH = frozenset(("refresh_rows", "refresh_rows_every"))
# How a step's graph uses the bank.
_GRAPH = frozenset(
    (
        *("search", "hops", "half_life", "memory_start", "memory_ramp"),
        *("restandardize", "memory_visible_fraction"),
    )
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
    warm = bool(config.warm_start_steps) or loss == "setfit"
    spreads = unlabeled and config.graph_start_steps > 0
    if config.rule != "spreading":
        used.add("eta")
    if loss in ("setfit", "ce", "gloss"):
        used.add("max_steps")
    if unlabeled:
        used.add("graph_start_steps")
        # The in-batch forms have no frozen view.
        used |= set() if loss.startswith("gloss-") else {"anchor"}
    if config.trains or (unlabeled and loss != "gloss"):
        used.add("refit_head")  # without training `gloss` does as it says
    if warm or spreads:
        used |= {"batch_size"}
        # The rate of the stage on the corpus follows it.
        used |= {"warm_start_rate"} if warm or config.graph_start_rate is None else set()
        used |= _SPREADING if spreads else set()
    if config.trains or warm or spreads:
        used |= {"freeze_layers", "lora_rank"} | (_LORA if config.lora_rank else set())
    if config.trains:
        used |= _TRAINING | ({"epochs"} if config.max_steps is None else set())
        used |= set() if config.keeps_last else {"patience", "eval_steps"}
        used |= _of_loss(config, unlabeled)
    elif loss == "gloss" and unlabeled and config.anchor > 0:
        used |= {"memory_size", "eviction"}  # filled all the same, to predict over
    return used


def _of_loss(config: TrainConfig, unlabeled: bool) -> set[str]:
    """What the steps of a training read for their loss."""
    loss, integrated = config.loss, config.mode == "integrated"
    used = set(_INTEGRATED) if integrated else set()
    if loss in GRAPH_LOSSES:
        used.add("visible_fraction")
    if integrated and loss in (*GRAPH_LOSSES, *METRIC_LOSSES):
        used.add("graph_weight")
    if loss in ("scl", "xbm-scl"):
        used.add("temperature")
    if loss == "triplet":
        used.add("margin")
    drawn = unlabeled and loss in USES_UNLABELED
    if drawn:
        used.add("unlabeled_batch_size")
    if drawn and integrated:
        used.add("consistency_weight")
    if loss == "pseudo-label" and unlabeled:
        used.add("teacher_decay")
    if loss == "static-lp" and unlabeled:
        # Targets are solved for once, over the bank; without ids every step's graph makes its own.
        used.add("memory_size")
        if config.memory_size != 0:
            used |= {"eviction", "ids"}
            if not config.ids:
                used |= (_GRAPH | _refreshed(config)) - {"memory_visible_fraction"}
    if loss in ("gloss", "xbm-scl"):
        used.add("memory_size")
        if config.memory_size != 0:
            used |= {"eviction", "ids"} | _refreshed(config)
            used |= _GRAPH if loss == "gloss" else set()
    if loss == "gloss" and unlabeled:
        used.add("teacher_decay")
        if integrated and config.ids and config.memory_size != 0:
            used.add("refresh_every")
    return used


def _refreshed(config: TrainConfig) -> set[str]:
    """Of rows that are encoded again: by the teacher, if there is one."""
    return {"teacher_decay", *_REFRESH} if config.refresh_rows else {"refresh_rows"}


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
