"""Settings of a training run: its losses and recipes, and all it is told, by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.settings import Dimension, Range, nearest_name, settings_of
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.propagation.settings import PropagationSettings
from gloss_graph.step.settings import Consistency, GraphContrast, Staleness

RECIPES: dict[str, dict[str, Any]] = {
    # Contrast over a bank of the corpus, with the classes that views of it agree on; the head is
    # fitted to labels and graph at the end.
    "few-labels": {
        "loss": "gloss",
        "batch_size": 16,
        "unlabeled_batch_size": 48,
        "graph_start_steps": None,
        "warm_start_rate": 5e-5,  # the stage over the corpus has twice as much
        "max_steps": 0,
        "anchor": 0.0,
        "freeze_layers": None,
    },
    # Cross-entropy and graph loss together, over all documents.
    "full-labels": {"loss": "gloss", "epochs": 3.0, "select": "last"},
}
"""Settings of a recipe by name; chosen on unlabeled training and on validation documents."""
FEATURE_RATES = {"learning_rate": 1e-3, "warm_start_rate": 1e-3}
"""Learning rates of an adapter of features, which starts as the identity."""
MODES = ("integrated", "standalone")
DEVICES = ("auto", "cpu", "cuda", "mps")

# ------------------------------------------------------------------ losses


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """Properties of a loss, so that code never compares names.

    Attributes:
        help: A line for people.
        module: Kind of its module; None = the classifier's cross-entropy alone.
        form: Constructor of the in-batch objective, which has a fixed bandwidth.
        settings: Settings that its steps always read.
        needs_head: It trains a classifier, so it has no standalone mode.
        trains: Head and encoder are trained together; otherwise only the contrastive stages run.
        fits_head: Without a training step the head can be fitted to the embeddings.
        head_from_graph: A fitted head also learns from propagated labels.
        weighted: `graph_weight` weighs it against cross-entropy.
        uses_unlabeled: Unlabeled documents take part in its steps.
        label_sets: It is defined for documents of several classes.
        over_bank: Its graph holds the bank.
        fills_bank: Every step writes its bank.
        frozen_targets: Targets are solved once, over the embeddings before training, so that its
            bank cannot predict after training.
        reference: When to make a second forward pass without dropout: "never", "unlabeled" = with
            unlabeled documents, "always".
        teacher_decay: Default decay of the teacher; 0 = no teacher.
        warm_start_steps: Default number of contrastive steps.
        searched: Settings that a search tries by default.
    """

    help: str
    module: Literal["objective", "metric", "pseudo-labels"] | None = None
    form: Literal["published", "released"] | None = None
    settings: tuple[str, ...] = ()
    needs_head: bool = False
    trains: bool = True
    fits_head: bool = False
    head_from_graph: bool = False
    weighted: bool = False
    uses_unlabeled: bool = False
    label_sets: bool = False
    over_bank: bool = False
    fills_bank: bool = False
    frozen_targets: bool = False
    reference: Literal["never", "unlabeled", "always"] = "never"
    teacher_decay: float = 0.0
    warm_start_steps: int = 0
    searched: tuple[str, ...] = ("bandwidth", "visible_fraction", "graph_weight", "learning_rate")

    @property
    def in_batch(self) -> bool:
        """Whether its graph holds one batch and no bank."""
        return self.form is not None

    def reads(self, config: TrainConfig, *, unlabeled: bool) -> set[str]:
        """Settings that its training steps read, with or without unlabeled documents."""
        integrated, used = config.mode == "integrated", set(self.settings)
        if integrated and self.weighted:
            used.add("graph_weight")
        if unlabeled and self.uses_unlabeled:
            used |= {"unlabeled_batch_size"} | ({"consistency_weight"} if integrated else set())
        if unlabeled and self.reference != "never":
            used.add("teacher_decay")
        if not (self.fills_bank or (self.frozen_targets and unlabeled)):
            return used
        used.add("memory_size")
        if config.memory_size == 0:
            return used
        used |= {"eviction", "ids"}
        if self.frozen_targets and config.ids:
            return used  # the bank is solved once and looked up by id from then on
        # Rows are encoded again by the teacher, if there is one.
        refreshed = {"teacher_decay", "refresh_rows_every"} if config.refresh_rows else set()
        used |= {"refresh_rows", *refreshed}
        if self.over_bank:
            used |= {"search", "hops", "half_life", "memory_start", "memory_ramp", "restandardize"}
            if not self.frozen_targets:
                used.add("memory_visible_fraction")
                if unlabeled and integrated and config.ids:
                    used.add("refresh_every")
        return used


_metric_loss = partial(LossSpec, module="metric", weighted=True)
_paper_loss = partial(LossSpec, module="objective", settings=("visible_fraction",), weighted=True)
LOSSES: Mapping[str, LossSpec] = {
    "ce": LossSpec(
        help="cross-entropy",
        needs_head=True,
        fits_head=True,
        label_sets=True,
        searched=("learning_rate",),
    ),
    "gloss": LossSpec(
        help="graph-guided loss over the memory bank",
        module="objective",
        settings=("visible_fraction",),
        fits_head=True,
        head_from_graph=True,
        weighted=True,
        uses_unlabeled=True,
        label_sets=True,
        over_bank=True,
        fills_bank=True,
        reference="unlabeled",
    ),
    "static-lp": LossSpec(
        help="labels propagated once over frozen embeddings, then soft-label training",
        module="objective",
        needs_head=True,
        uses_unlabeled=True,
        over_bank=True,
        frozen_targets=True,
        searched=("bandwidth", "learning_rate", "consistency_weight"),
    ),
    "pseudo-label": LossSpec(
        help="confident predictions of a moving-average teacher",
        module="pseudo-labels",
        needs_head=True,
        uses_unlabeled=True,
        reference="always",
        teacher_decay=0.98,
        searched=("learning_rate", "consistency_weight"),
    ),
    "scl": _metric_loss(help="supervised contrastive loss", settings=("temperature",)),
    "triplet": _metric_loss(help="batch-all triplet margin loss", settings=("margin",)),
    "cosine": _metric_loss(help="squared error of the cosine of all pairs"),
    "xbm-scl": _metric_loss(
        help="supervised contrastive loss over a cross-batch memory",
        settings=("temperature",),
        fills_bank=True,
    ),
    "setfit": LossSpec(
        help="contrastive warm start, then a balanced logistic head",
        needs_head=True,
        trains=False,
        fits_head=True,
        warm_start_steps=60,
        searched=("warm_start_rate",),
    ),
    "gloss-published": _paper_loss(help="the paper's in-batch form", form="published"),
    "gloss-released": _paper_loss(
        help="the in-batch form of the paper's released code", form="released"
    ),
}
"""Properties of every loss by name."""

# ------------------------------------------------------------------ settings

PARTS: dict[str, type] = {
    "graph": KNNGraph,
    "propagation": PropagationSettings,
    "consistency": Consistency,
    "contrast": GraphContrast,
    "staleness": Staleness,
}
"""Parts that a configuration holds; `part.name` names a setting of one."""

# Their default depends on the number of steps.
_BY_LENGTH = ("consistency_start", "consistency_ramp", "refresh_every")
_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "None": type(None)}

Check = Callable[[str, Any], None]
_COUNT: Check = check_positive_int
_COUNT_OR_0: Check = partial(check_positive_int, minimum=0)
_SHARE: Check = partial(check_range, low=0, high=1)
_SHARE_BELOW_1: Check = partial(check_range, low=0, high=1, open_high=True)
_RATE: Check = partial(check_range, low=0, high=1, open_low=True)
_POSITIVE: Check = partial(check_range, low=0, high=math.inf, open_low=True, open_high=True)


@dataclass(frozen=True)
class ConfigSetting:
    """One setting of a training run."""

    name: str  #: Among all settings, of its flag and in `config.json`.
    part: str  #: That holds it, "" for a setting that only training has.
    field: str  #: Its name there.
    default: Any
    help: str
    search: Dimension | None
    kinds: tuple[type, ...]  #: Types of its values in a file or on a command line.
    group: str  #: Heading under which commands list it.
    check: Check | None = None  #: Parts check themselves.


def _setting(
    group: str, default: Any, help: str, check: Check | None = None, *, search: Any = None
) -> Any:
    metadata = {"help": help, "search": search, "group": group, "check": check}
    return field(default=default, metadata=metadata)


_training, _memory, _graph, _few_labels, _adapters = (
    partial(_setting, group) for group in ("Training", "Memory", "Graph", "Few labels", "Adapters")
)


def _one_of(*names: str) -> Check:
    return partial(check_choice, known=names)


def _check_eviction(name: str, value: Any) -> None:
    from gloss_graph.memory import EVICTIONS

    check_choice(name, value, EVICTIONS)


def _kinds(annotation: str) -> tuple[type, ...]:
    """The plain types in an annotation; callables cannot be written into a file."""
    words = dict.fromkeys(re.findall(r"\w+", annotation))
    return tuple(_PLAIN[word] for word in words if word in _PLAIN)


def _flat_name(part: str, name: str) -> str:
    """Name among all settings, where that in the part would not say what it is."""
    if part == "contrast" or (part == "consistency" and name in ("weight", "start", "ramp")):
        return f"{part}_{name}"
    return {"warmup_steps": "memory_start", "ramp_steps": "memory_ramp"}.get(name, name)


def _part_settings() -> Iterator[ConfigSetting]:
    for part, kind in PARTS.items():
        for name, one in settings_of(kind).items():
            flat, kinds = _flat_name(part, name), _kinds(one.annotation)
            default, help = one.default, one.help
            if flat == "contrast_weight":
                default = 0.0  # joint training has the term only where it is asked for
            if flat in _BY_LENGTH:
                default, kinds = None, (*kinds, type(None))
                help = f"{help.rstrip('.')}; none = by the number of steps."
            yield ConfigSetting(flat, part, name, default, help, one.search, kinds, part.title())


_OF_PARTS = {one.name: one for one in _part_settings()}


def _of_part(part: str) -> dict[str, ConfigSetting]:
    """The settings of a part by their name in it."""
    return {one.field: one for one in _OF_PARTS.values() if one.part == part}


_PartSettings: Any = make_dataclass(
    "_PartSettings",
    [(name, Any, field(default=one.default)) for name, one in _OF_PARTS.items()],
    frozen=True,
    kw_only=True,
)


def check_label_draw(label_fraction: float | None, labels_per_class: int | None) -> None:
    """Raise unless at most one is given, and in its range."""
    if label_fraction is not None and labels_per_class is not None:
        raise ValueError("Give either 'label_fraction' or 'labels_per_class' (got both).")
    if label_fraction is not None:
        _RATE("label_fraction", label_fraction)
    if labels_per_class is not None:
        _COUNT("labels_per_class", labels_per_class)


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class TrainConfig(_PartSettings):
    """Every setting of a training run.

    Pass the settings of a part, such as `graph` or `staleness`, as that part,
    `graph=KNNGraph(k=30)`, or by name, `k=30`. `SETTINGS` explains each setting.

    Args:
        graph: How documents are connected.
        propagation: How labels propagate.
        consistency: The loss term of unlabeled documents.
        contrast: The contrast over the classes of the graph.
        staleness: What is done about stored rows that have aged.
        **settings: Values by name.

    Raises:
        TypeError: An unknown setting, or a part of another class.
        ValueError: A value out of range, or a setting that contradicts its part.

    Example:
        >>> config = TrainConfig(k=30, graph=KNNGraph(k=30, hops=2))
        >>> config.graph.k, config.hops
        (30, 2)
    """

    loss: str = _training("gloss", f"Loss: {', '.join(LOSSES)}.", _one_of(*LOSSES))
    mode: str = _training(
        "integrated",
        "integrated: with cross-entropy; standalone: the loss alone, then a linear probe.",
        _one_of(*MODES),
    )
    epochs: float = _training(3.0, "Passes over the training documents.", _POSITIVE)
    max_steps: int | None = _training(
        None, "Optimizer steps, overriding `epochs`; 0: only fit the head (ce, gloss, setfit)."
    )
    batch_size: int = _training(32, "Documents per step and process.", _COUNT)
    eval_batch_size: int = _training(64, "Documents per forward pass in evaluation.", _COUNT)
    gradient_accumulation: int = _training(1, "Micro-batches per step.", _COUNT)
    learning_rate: float = _training(
        5e-5,
        "Learning rate of the encoder; 1e-3 for features unless set; about 1e-3 suits LoRA.",
        _RATE,
        search=Range(1e-5, 5e-5, step=1e-5),
    )
    head_learning_rate: float = _training(5e-3, "Learning rate of the linear head.", _RATE)
    warmup: float = _training(0.1, "Share of the steps with a rising learning rate.", _SHARE)
    weight_decay: float = _training(0.01, "Weight decay of AdamW.", _SHARE)
    dropout: float = _training(0.1, "Dropout on the embedding before the head.", _SHARE_BELOW_1)
    patience: int = _training(10, "Evaluations without a better score before the end.", _COUNT)
    eval_steps: int | None = _training(None, "Steps between evaluations; none = an epoch.", _COUNT)
    seed: int = _training(0, "Seed of everything random.", _COUNT_OR_0)
    bf16: bool = _training(False, "Run the encoder in bfloat16 autocast.")
    gradient_checkpointing: bool = _training(False, "Recompute activations: less memory, slower.")
    memory_size: int | None = _memory(
        None, "Rows of the bank; none = one per document, at most 65,536.", _COUNT_OR_0
    )
    search: str = _memory(
        "auto",
        "Search of the bank: exact, descent or ivf; auto = by its size.",
        _one_of("auto", "exact", "descent", "ivf"),
    )
    eviction: str = _memory(
        "fifo", "Row to evict: fifo, stalest, class-balanced or reservoir.", _check_eviction
    )
    refresh_rows: int = _memory(
        0, "Stalest rows of the bank to encode again at a time; 0 = none.", _COUNT_OR_0
    )
    refresh_rows_every: int = _memory(10, "Steps between these times.", _COUNT)
    bandwidth_scale: float = _graph(1.0, "Factor of the bandwidth.", _POSITIVE)
    visible_fraction: float = _graph(
        0.5, "γ, share of the labels that stay visible.", _SHARE, search=Range(0.1, 0.9)
    )
    memory_visible_fraction: float = _memory(1.0, "Share of the bank's labels shown.", _SHARE)
    ids: bool = _memory(True, "Tell documents apart, so that none meets its past copy.")
    graph_weight: float = _training(
        0.3, "λ, weight against cross-entropy.", _SHARE, search=Range(0.1, 0.9)
    )
    temperature: float = _training(0.1, "Temperature of the contrastive losses.", _POSITIVE)
    margin: float = _training(0.2, "Margin of the triplet loss.", _POSITIVE)
    label_fraction: float | None = _few_labels(None, "Share of the labels to use, a seeded draw.")
    labels_per_class: int | None = _few_labels(None, "Labels per class to use, a seeded draw.")
    unlabeled_batch_size: int = _few_labels(32, "Unlabeled documents per step.", _COUNT_OR_0)
    anchor: float = _few_labels(
        0.5, "Weight of the frozen similarity in the graph.", _SHARE, search=Range(0.0, 1.0)
    )
    warm_start_steps: int = _few_labels(
        0, "Contrastive steps on the labeled documents before training.", _COUNT_OR_0
    )
    graph_start_steps: int | None = _few_labels(
        0,
        "Contrastive steps over a bank of the corpus after these; none = by the number of labels.",
        _COUNT_OR_0,
    )
    graph_start_classes: str = _few_labels(
        "auto",
        "Views that find their classes: agreed (embeddings), co-training (words too) or auto.",
        _one_of("auto", "co-training", "agreed"),
    )
    warm_start_rate: float = _few_labels(
        2e-5,
        "Learning rate of the steps on the labels; 1e-3 for features unless set.",
        _RATE,
        search=Range(1e-6, 1e-4, log=True),
    )
    graph_start_rate: float | None = _few_labels(
        None, "Learning rate of the steps on the corpus; none = twice as high.", _RATE
    )
    refit_head: bool = _few_labels(False, "Fit the head again at the end, on the graph too.")
    class_balance: bool = _few_labels(False, "Draw labeled documents with equal class shares.")
    freeze_layers: int | None = _adapters(
        0,
        "First layers of the encoder, embeddings included, that are not trained; none = half.",
        _COUNT_OR_0,
    )
    lora_rank: int = _adapters(0, "Rank of low-rank adapters (LoRA); 0 = none.", _COUNT_OR_0)
    lora_alpha: float = _adapters(16.0, "Scale of the adapters, divided by the rank.", _POSITIVE)
    lora_dropout: float = _adapters(0.1, "Dropout on the input of the adapters.", _SHARE_BELOW_1)
    lora_targets: str | None = _adapters(
        None, "Adapted layers, as query,value or all-linear; none = by the family."
    )
    teacher_decay: float = _few_labels(0.0, "Decay of a mean teacher; 0 = none.", _SHARE_BELOW_1)
    select: str = _training(
        "auto",
        "Step that is kept: best, last or auto (last with few labels).",
        _one_of("auto", "best", "last"),
    )
    device: str = _training("auto", "Device: auto, cpu, cuda or mps.", _one_of(*DEVICES))
    pictures: bool = _training(True, "Record embeddings before and during training, and draw them.")

    def __init__(
        self,
        *,
        graph: KNNGraph | None = None,
        propagation: PropagationSettings | None = None,
        consistency: Consistency | None = None,
        contrast: GraphContrast | None = None,
        staleness: Staleness | None = None,
        **settings: Any,
    ) -> None:
        for name in settings.keys() - SETTINGS.keys():
            hint = nearest_name(name, SETTINGS)
            raise TypeError(f"TrainConfig has no setting {name!r}. {hint}")
        values = DEFAULTS | settings
        given = graph, propagation, consistency, contrast, staleness
        for (part, kind), value in zip(PARTS.items(), given, strict=True):
            if value is None:
                continue
            if not isinstance(value, kind):
                raise TypeError(f"'{part}' must be a {kind.__name__} (got {type(value).__name__}).")
            for inner, one in _of_part(part).items():
                values[one.name] = inside = getattr(value, inner)
                if settings.get(one.name, inside) != inside:
                    raise ValueError(
                        f"'{one.name}' is {settings[one.name]!r}, but {inside!r} in '{part}'. "
                        "Give it once."
                    )
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()
        for part in PARTS:
            object.__setattr__(self, part, self._part(part))
        self._check_bandwidth()

    if TYPE_CHECKING:  # made of the settings, so no fields
        graph: KNNGraph
        propagation: PropagationSettings
        consistency: Consistency
        contrast: GraphContrast
        staleness: Staleness

    @property
    def loss_spec(self) -> LossSpec:
        """Properties of the loss."""
        return LOSSES[self.loss]

    @property
    def few_labels(self) -> bool:
        """Whether only a draw of the labels is used."""
        return self.label_fraction is not None or self.labels_per_class is not None

    @property
    def spreads(self) -> bool:
        """Whether there is a contrastive stage over the corpus."""
        return self.graph_start_steps != 0

    @property
    def trains(self) -> bool:
        """Whether head and encoder are trained together, after the contrastive stages."""
        return self.loss_spec.trains and self.max_steps != 0

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last step are kept."""
        if self.select == "auto":
            return self.few_labels or not self.trains
        return self.select == "last"

    def flat(self) -> dict[str, Any]:
        """Plain values by name, ready for JSON."""
        return {name: getattr(self, name) for name in SETTINGS}

    as_dict = flat

    @classmethod
    def from_flat(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Make a configuration of what `flat` returned, ignoring other keys."""
        values = {name: value for name, value in settings.items() if name in SETTINGS}
        if values.get("graph_start_classes") == "propagated":  # up to version 0.2
            values["graph_start_classes"] = "agreed"
        return cls(**values)

    def __repr__(self) -> str:
        values = self.flat().items()
        changed = [f"{name}={value!r}" for name, value in values if value != DEFAULTS[name]]
        return f"TrainConfig({', '.join(changed)})"

    def _check(self) -> None:
        for one in SETTINGS.values():
            value = getattr(self, one.name)
            if one.check is not None and not (value is None and type(None) in one.kinds):
                one.check(one.name, value)
        check_label_draw(self.label_fraction, self.labels_per_class)
        if self.max_steps is not None:
            least = 0 if self.loss_spec.fits_head else 1
            check_positive_int("max_steps", self.max_steps, minimum=least)
        if self.mode == "standalone" and self.loss_spec.needs_head:
            raise ValueError(f"'mode' must be 'integrated' for loss={self.loss!r}.")
        named = self.lora_targets
        if named is not None and (not isinstance(named, str) or not named.strip(" ,")):
            raise ValueError(f"'lora_targets' must be layers, as query,value (got {named!r}).")

    def _part(self, part: str) -> Any:
        """The part that the settings describe; errors use the names of the settings."""
        values = {}
        for inner, one in _of_part(part).items():
            value = getattr(self, one.name)
            if callable(value):
                raise ValueError(
                    f"'{one.name}' must be a number or a name here (got {value!r}). "
                    "Pass a function to GraphGuidedObjective."
                )
            if value is not None or one.name not in _BY_LENGTH:
                values[inner] = value
        try:
            return PARTS[part](**values)
        except ValueError as error:
            inner, _, problem = str(error).removeprefix("'").partition("'")
            named = _of_part(part).get(inner)
            raise ValueError(f"'{named.name}'{problem}" if named else str(error)) from error

    def _check_bandwidth(self) -> None:
        if self.memory_size != 0 and self.loss_spec.over_bank:
            from gloss_graph.graph.bandwidth import check_fits_bank

            check_fits_bank(self.bandwidth)
        rule, scale = self.bandwidth, self.bandwidth_scale
        if rule == "local" and scale != 1:
            raise ValueError(f"'bandwidth_scale' must be 1 for bandwidth='local' (got {scale}).")
        if self.loss_spec.in_batch and isinstance(rule, str) and rule != "sqrt":
            loss = f"loss={self.loss!r}"
            raise ValueError(f"'bandwidth' of {loss} must be a number or 'sqrt' (got {rule!r}).")


SETTINGS: dict[str, ConfigSetting] = {
    one.name: ConfigSetting(
        one.name, "", one.name, one.default, kinds=_kinds(str(one.type)), **one.metadata
    )
    for one in fields(TrainConfig)
    if one.metadata
} | _OF_PARTS
"""Every setting of a training run by name: commands and searches read them here."""
DEFAULTS: dict[str, Any] = {name: one.default for name, one in SETTINGS.items()}
"""Default of every setting."""


def recipe_settings(name: str, *, few_labels: bool) -> dict[str, Any]:
    """Settings of a recipe; `auto` is `few-labels` or `full-labels`.

    Documents of several classes have no contrastive stages: for them `few_labels` is False.
    """
    check_choice("recipe", name, ("auto", *RECIPES))
    if name == "auto":
        name = "few-labels" if few_labels else "full-labels"
    return dict(RECIPES[name])


def check_multilabel(config: TrainConfig) -> None:
    """Raise a `ValueError` that names a setting without meaning for label sets."""
    if not config.loss_spec.label_sets:
        fine = [name for name, spec in LOSSES.items() if spec.label_sets]
        raise ValueError(f"'loss' must be one of {fine} for label sets (got {config.loss!r}).")
    refused = {
        "mode": ("standalone", "must be 'integrated'"),
        "rule": ("poisson", "must be 'harmonic' or 'spreading'"),
        "bandwidth": ("interclass_min", "must not be 'interclass_min'"),
        "eviction": ("class-balanced", "must not be 'class-balanced'"),
        "max_steps": (0, "must be at least 1"),
    }
    for name, (value, rule) in refused.items():
        if getattr(config, name) == value:
            raise ValueError(f"'{name}' {rule} for label sets (got {value!r}).")
    unset = ("warm_start_steps", "graph_start_steps", "refit_head", "class_balance")
    for name in (*unset, "label_fraction", "labels_per_class"):
        if (value := getattr(config, name)) != DEFAULTS[name]:
            raise ValueError(f"'{name}' is not defined for label sets (got {value}). Leave it out.")


def setting_named(name: str) -> ConfigSetting:
    """The setting of a name, `half_life` or `staleness.half_life`; suggests the nearest one."""
    part, dot, inner = name.partition(".")
    if dot and part not in PARTS:
        raise ValueError(
            f"{name!r} must be a setting of a training; there is no part {part!r}. "
            f"{nearest_name(part, PARTS)}"
        )
    known, asked = (_of_part(part), inner) if dot else (SETTINGS, name)
    if asked not in known:
        whose = f"'{part}'" if dot else "a training"
        hint = nearest_name(asked, known)
        raise ValueError(f"{name!r} must be a setting of {whose}, one of {list(known)}. {hint}")
    return known[asked]


def check_value(name: str, value: Any) -> None:
    """Raise a `ValueError` unless the value has a type that the setting takes."""
    kinds = setting_named(name).kinds
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"'{name}' must be {names} (got {value!r}).")


def read_settings(given: Mapping[str, Any], where: str = "settings") -> dict[str, Any]:
    """Settings of a file, `graph.k: 8` or `graph: {k: 8}`, by their names in `SETTINGS`."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        inner = value if isinstance(value, Mapping) else {None: value}
        for key, inside in inner.items():
            key = str(name) if key is None else f"{name}.{key}"
            try:
                one = setting_named(key)
                if isinstance(inside, str) and float in one.kinds:
                    # YAML reads 1e-3 as a string.
                    with suppress(ValueError):
                        inside = float(inside)
                check_value(one.name, inside)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if one.name in found and found[one.name] != inside:
                raise ValueError(
                    f"{where}: {key!r} is {inside!r}, but {found[one.name]!r} was given for the "
                    "same setting. Give it once."
                )
            found[one.name] = inside
    return found


def parse_value(name: str, text: str) -> float | int | str | bool | None:
    """A value of a setting from a word of a command line."""
    one, shown = setting_named(name), name.rpartition(".")[2]
    kinds = one.kinds
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float, str):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    words = {bool: "true or false", type(None): "none", int: "a whole number", float: "a number"}
    raise ValueError(f"'{shown}' must be {' or '.join(words[k] for k in kinds)} (got {text!r}).")
