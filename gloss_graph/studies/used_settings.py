"""Which settings a training depends on, and what they mean."""

from __future__ import annotations

from gloss_graph.training import LOSSES, TrainConfig
from gloss_graph.training.config import SETTINGS

__all__ = ["ENCODER_ONLY", "GRAPH_LOSSES", "NO_FACTORS", "glossary", "used_settings"]

GRAPH_LOSSES = tuple(
    name for name, spec in LOSSES.items() if spec.in_batch or (spec.over_bank and spec.fills_bank)
)
#: Settings that are no matter of a study: seeds are an axis of their own.
NO_FACTORS = ("seed", "pictures")

_LORA = frozenset(("lora_alpha", "lora_dropout", "lora_targets"))
_STALENESS = ("half_life", "restandardize", "memory_start", "memory_ramp")
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


def used_settings(config: TrainConfig, *, unlabeled: bool) -> set[str]:
    """Settings that the result of a training depends on.

    Args:
        config: All settings.
        unlabeled: Whether there are documents without label.

    Example:
        >>> "memory_size" in used_settings(TrainConfig(loss="ce"), unlabeled=False)
        False
    """
    spec, used = config.loss_spec, set(_ALWAYS)
    warm = bool(config.warm_start_steps or spec.warm_start_steps)
    spreads = unlabeled and config.graph_start_steps > 0
    if config.rule != "spreading":
        used.add("eta")
    if spec.fits_head:
        used.add("max_steps")
    if unlabeled:
        used.add("graph_start_steps")
        # The in-batch forms have no frozen view.
        used |= set() if spec.in_batch else {"anchor"}
    if config.trains or (unlabeled and not spec.head_from_graph):
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
        used |= set(_INTEGRATED) if config.mode == "integrated" else set()
        used |= spec.reads(config, unlabeled=unlabeled)
    elif spec.head_from_graph and unlabeled and config.anchor > 0:
        used |= {"memory_size", "eviction"}  # filled all the same, to predict over
    return used | _other_part_settings(config, unlabeled)


def _other_part_settings(config: TrainConfig, unlabeled: bool) -> set[str]:
    """Settings of parts that no rule above names, where they are not at their default."""
    spec, parts = config.loss_spec, {"graph", "propagation"}
    if config.trains and spec.over_bank:
        parts |= {"staleness"} | ({"consistency"} if unlabeled else set())
    ruled = {"eta", "hops", "refresh_every", "consistency_weight", *_STALENESS}
    if config.rule != "spreading":
        ruled.add("alpha")
    return {
        name
        for name, one in SETTINGS.items()
        if one.part in parts and name not in ruled and getattr(config, name) != one.default
    }


def glossary() -> dict[str, str]:
    """Setting -> what it is, in a sentence."""
    return {name: one.help for name, one in SETTINGS.items()}
