"""Settings of a training run: those of its parts, and those that only a training has."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.search_space import Dimension, Range
from gloss_graph._internal.settings import nearest_name, settings_of
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.propagation.settings import PropagationSettings
from gloss_graph.step.settings import Consistency, Staleness
from gloss_graph.training.losses import LOSSES, LossSpec

MODES = {
    "integrated": "λ L + (1 - λ) cross-entropy, best validation macro-F1",
    "standalone": "L alone, best validation macro-silhouette, then a linear probe",
}
DEVICES = ("auto", "cpu", "cuda", "mps")
GRAPH_CLASSES = ("auto", "co-training", "agreed", "propagated")
BANK_SEARCHES = ("auto", "exact", "descent", "ivf")
PARTS: dict[str, type] = {
    "graph": KNNGraph,
    "propagation": PropagationSettings,
    "consistency": Consistency,
    "staleness": Staleness,
}
"""Parts that a configuration holds; `part.name` names a setting of one."""

# What a setting of a part is called among all settings where its own name would not say it.
_FLAT_NAMES = {
    ("consistency", "weight"): "consistency_weight",
    ("consistency", "start"): "consistency_start",
    ("consistency", "ramp"): "consistency_ramp",
    ("staleness", "warmup_steps"): "memory_start",
    ("staleness", "ramp_steps"): "memory_ramp",
}
_PLAIN: dict[str, type] = {
    **{kind.__name__: kind for kind in (int, float, str, bool)},
    **dict.fromkeys(("None", "NoneType"), type(None)),
}
# Unless they are given they follow from the length of the training.
_BY_LENGTH = ("consistency_start", "consistency_ramp", "refresh_every")


@dataclass(frozen=True)
class ConfigSetting:
    """One setting of a training.

    Attributes:
        name: Name among all settings, that of the flag and of the key in `config.json`.
        part: Part it belongs to, "" for a setting that only a training has.
        field: Its name in that part.
        default: Its default.
        help: What it is, in a sentence.
        search: What a search tries for it, None where no range is declared.
        kinds: Types of its values in a file or on a command line.
        group: Heading under which commands list it.
    """

    name: str
    part: str
    field: str
    default: Any
    help: str
    search: Dimension | None
    kinds: tuple[type, ...]
    group: str


def _setting(default: Any, group: str, help: str, search: Dimension | None = None) -> Any:
    return field(default=default, metadata={"help": help, "search": search, "group": group})


def _kinds(annotation: str) -> tuple[type, ...]:
    """The plain types an annotation names; callables cannot be written into a file."""
    words = re.findall(r"\w+", annotation)
    return tuple(dict.fromkeys(_PLAIN[word] for word in words if word in _PLAIN))


def _part_settings() -> Iterator[ConfigSetting]:
    names = [name for part in PARTS.values() for name in settings_of(part)]
    for part, kind in PARTS.items():
        for name, one in settings_of(kind).items():
            flat = name if names.count(name) == 1 else f"{part}_{name}"
            flat = _FLAT_NAMES.get((part, name), flat)
            default, help, kinds = one.default, one.help, _kinds(one.annotation)
            if flat in _BY_LENGTH:
                default, kinds = None, (*kinds, type(None))
                help = f"{help.rstrip('.')}; none = by the number of steps."
            yield ConfigSetting(flat, part, name, default, help, one.search, kinds, part.title())


_OF_PARTS = {one.name: one for one in _part_settings()}
_PartSettings: Any = make_dataclass(
    "_PartSettings",
    [(name, Any, field(default=one.default)) for name, one in _OF_PARTS.items()],
    frozen=True,
    kw_only=True,
)


def check_label_draw(label_fraction: float | None, labels_per_class: int | None) -> None:
    """Raise unless at most one is given, and in its range.

    Raises:
        ValueError: Names the setting.
    """
    if label_fraction is not None and labels_per_class is not None:
        raise ValueError("Give either 'label_fraction' or 'labels_per_class' (got both).")
    if label_fraction is not None:
        check_range("label_fraction", label_fraction, 0, 1, open_low=True)
    if labels_per_class is not None:
        check_positive_int("labels_per_class", labels_per_class)


@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class TrainConfig(_PartSettings):
    """Everything a run depends on besides data and encoder.

    The settings of the parts `graph`, `propagation`, `consistency` and `staleness` are passed as
    the part, `graph=KNNGraph(k=30)`, or by name, `k=30`. `SETTINGS` says what each setting means.

    Args:
        graph: How documents are connected.
        propagation: How labels propagate.
        consistency: The term of the documents without a label.
        staleness: What is done about stored rows that have aged.
        **settings: Values by name; see `SETTINGS`.

    Raises:
        TypeError: An unknown setting, or a part of another class.
        ValueError: A value out of range, or a setting that contradicts its part.

    Example:
        >>> config = TrainConfig(k=30, graph=KNNGraph(k=30, hops=2))
        >>> config.graph.k, config.hops
        (30, 2)
    """

    loss: str = _setting("gloss", "Training", f"Loss: {', '.join(LOSSES)}.")
    mode: str = _setting(
        "integrated",
        "Training",
        "integrated: with cross-entropy; standalone: the loss alone, then a linear probe.",
    )
    epochs: float = _setting(3.0, "Training", "Passes over the training documents.")
    max_steps: int | None = _setting(
        None,
        "Training",
        "Optimizer steps, overriding `epochs`; 0: fit the linear head only (ce, gloss, setfit).",
    )
    batch_size: int = _setting(32, "Training", "Documents per step and process.")
    eval_batch_size: int = _setting(64, "Training", "Documents per forward pass in evaluation.")
    gradient_accumulation: int = _setting(1, "Training", "Micro-batches per step.")
    learning_rate: float = _setting(
        5e-5,
        "Training",
        "Learning rate of the encoder; 1e-3 for features unless set; about 1e-3 suits LoRA.",
        Range(1e-5, 5e-5, step=1e-5),
    )
    head_learning_rate: float = _setting(5e-3, "Training", "Learning rate of the linear head.")
    warmup: float = _setting(0.1, "Training", "Share of the steps with a rising learning rate.")
    weight_decay: float = _setting(0.01, "Training", "Weight decay of AdamW.")
    dropout: float = _setting(0.1, "Training", "Dropout on the embedding before the head.")
    patience: int = _setting(
        10, "Training", "Evaluations without a better score before training stops."
    )
    eval_steps: int | None = _setting(
        None, "Training", "Steps between evaluations; none = every epoch."
    )
    seed: int = _setting(0, "Training", "Seed of everything random.")
    bf16: bool = _setting(False, "Training", "Run the encoder in bfloat16 autocast.")
    gradient_checkpointing: bool = _setting(
        False, "Training", "Recompute activations in the backward pass, trading time for memory."
    )
    memory_size: int | None = _setting(
        None, "Memory", "Rows of the bank; none = one per document, at most 65,536."
    )
    search: str = _setting(
        "auto", "Memory", "Search of the bank: exact, descent or ivf; auto = by its size."
    )
    eviction: str = _setting(
        "fifo",
        "Memory",
        "Row that leaves a full bank: fifo, stalest, class-balanced or reservoir.",
    )
    refresh_rows: int = _setting(
        0, "Memory", "Stalest rows of the bank to encode again at a time; 0 = none."
    )
    refresh_rows_every: int = _setting(10, "Memory", "Steps between these times.")
    bandwidth_scale: float = _setting(1.0, "Graph", "Factor of the bandwidth.")
    visible_fraction: float = _setting(
        0.5, "Graph", "γ, share of the labels that stay visible.", Range(0.1, 0.9)
    )
    memory_visible_fraction: float = _setting(
        1.0, "Memory", "Share of the bank's labels that a step shows."
    )
    ids: bool = _setting(True, "Memory", "Keep documents from meeting their own past copy.")
    graph_weight: float = _setting(
        0.3,
        "Training",
        "λ, weight of the graph or metric loss against cross-entropy.",
        Range(0.1, 0.9),
    )
    temperature: float = _setting(0.1, "Training", "Temperature of the contrastive losses.")
    margin: float = _setting(0.2, "Training", "Margin of the triplet loss.")
    label_fraction: float | None = _setting(
        None, "Few labels", "Use this share of the training labels, a seeded draw."
    )
    labels_per_class: int | None = _setting(
        None, "Few labels", "Use this many labels per class, a seeded draw."
    )
    unlabeled_batch_size: int = _setting(32, "Few labels", "Unlabeled documents per step.")
    anchor: float = _setting(
        0.5, "Few labels", "Weight of the frozen similarity in the graph.", Range(0.0, 1.0)
    )
    warm_start_steps: int = _setting(
        0, "Few labels", "Contrastive steps on the labeled documents before training."
    )
    graph_start_steps: int = _setting(
        0,
        "Few labels",
        "Contrastive steps on the corpus after these, with the classes that the graph finds.",
    )
    graph_start_classes: str = _setting(
        "auto", "Few labels", "Classes of these steps: auto, co-training, agreed or propagated."
    )
    warm_start_rate: float = _setting(
        2e-5,
        "Few labels",
        "Learning rate of the steps on the labels; 1e-3 for features unless set.",
        Range(1e-6, 1e-4, log=True),
    )
    graph_start_rate: float | None = _setting(
        None, "Few labels", "Learning rate of the steps on the corpus; none = twice as high."
    )
    refit_head: bool = _setting(
        False, "Few labels", "Fit the linear head again at the end, on propagated labels too."
    )
    class_balance: bool = _setting(
        False, "Few labels", "Draw labeled documents with equal shares of the classes."
    )
    freeze_layers: int = _setting(
        0, "Adapters", "First layers of the encoder, embeddings included, that are not trained."
    )
    lora_rank: int = _setting(0, "Adapters", "Rank of low-rank adapters (LoRA); 0 = none.")
    lora_alpha: float = _setting(16.0, "Adapters", "Scale of the adapters, divided by the rank.")
    lora_dropout: float = _setting(0.1, "Adapters", "Dropout on the input of the adapters.")
    lora_targets: str | None = _setting(
        None, "Adapters", "Adapted layers, as query,value or all-linear; none = by the family."
    )
    teacher_decay: float = _setting(
        0.0, "Few labels", "Decay of a moving-average teacher; 0 = none."
    )
    select: str = _setting(
        "auto", "Training", "Step that is kept: best, last or auto (last with few labels)."
    )
    device: str = _setting("auto", "Training", "Device: auto, cpu, cuda or mps.")
    pictures: bool = _setting(
        True, "Training", "Record embeddings before and during training, and draw them."
    )

    def __init__(
        self,
        *,
        graph: KNNGraph | None = None,
        propagation: PropagationSettings | None = None,
        consistency: Consistency | None = None,
        staleness: Staleness | None = None,
        **settings: Any,
    ) -> None:
        for name in settings.keys() - SETTINGS.keys():
            hint = nearest_name(name, SETTINGS)
            raise TypeError(f"TrainConfig has no setting {name!r}. {hint}")
        values = {name: one.default for name, one in SETTINGS.items()} | settings
        given = (graph, propagation, consistency, staleness)
        for (part, kind), value in zip(PARTS.items(), given, strict=True):
            if value is None:
                continue
            if not isinstance(value, kind):
                raise TypeError(f"'{part}' must be a {kind.__name__} (got {type(value).__name__}).")
            for name, one in _OF_PARTS.items():
                if one.part != part:
                    continue
                inside = getattr(value, one.field)
                if name in settings and settings[name] != inside:
                    raise ValueError(
                        f"'{name}' is {settings[name]!r}, but {inside!r} in '{part}'. Give it once."
                    )
                values[name] = inside
        for name, found in values.items():
            object.__setattr__(self, name, found)
        self._check()

    @property
    def graph(self) -> KNNGraph:
        """How documents are connected."""
        return KNNGraph(**self._part("graph"))

    @property
    def propagation(self) -> PropagationSettings:
        """How labels propagate."""
        return PropagationSettings(**self._part("propagation"))

    @property
    def consistency(self) -> Consistency:
        """The term of the documents without a label."""
        return Consistency(**self._part("consistency"))

    @property
    def staleness(self) -> Staleness:
        """What is done about stored rows that have aged."""
        return Staleness(**self._part("staleness"))

    def _part(self, part: str) -> dict[str, Any]:
        values = {
            one.field: getattr(self, name) for name, one in _OF_PARTS.items() if one.part == part
        }
        by_length = [one.field for name, one in _OF_PARTS.items() if name in _BY_LENGTH]
        return {k: v for k, v in values.items() if not (v is None and k in by_length)}

    def _check_part(self, part: str) -> None:
        try:
            PARTS[part](**self._part(part))
        except ValueError as error:
            # Under the name that was given.
            text = str(error)
            for name, one in _OF_PARTS.items():
                if one.part == part and text.startswith(f"'{one.field}'"):
                    text = f"'{name}'{text.removeprefix(repr(one.field))}"
            raise ValueError(text) from error

    def flat(self) -> dict[str, Any]:
        """Plain values by name, ready for JSON."""
        return {name: getattr(self, name) for name in SETTINGS}

    as_dict = flat

    @classmethod
    def from_flat(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Read what `flat` gave, as `config.json` holds it; other keys are left out."""
        return cls(**{name: value for name, value in settings.items() if name in SETTINGS})

    def __repr__(self) -> str:
        changed = [
            f"{name}={value!r}"
            for name, value in self.flat().items()
            if value != SETTINGS[name].default
        ]
        return f"TrainConfig({', '.join(changed)})"

    def _check(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        check_choice("mode", self.mode, MODES)
        if self.mode == "standalone" and self.loss_spec.needs_head:
            raise ValueError(
                f"'mode' must be 'integrated' for loss={self.loss!r}, which trains a classifier "
                f"(got {self.mode!r})."
            )
        for name in ("temperature", "margin", "bandwidth_scale"):
            value = getattr(self, name)
            check_range(name, value, 0, math.inf, open_low=True, open_high=True)
        check_range("epochs", self.epochs, 0, math.inf, open_low=True, open_high=True)
        for name in ("batch_size", "eval_batch_size", "gradient_accumulation", "patience"):
            check_positive_int(name, getattr(self, name))
        if self.eval_steps is not None:
            check_positive_int("eval_steps", self.eval_steps)
        if self.max_steps is not None:
            least = 0 if self.loss_spec.fits_head else 1
            check_positive_int("max_steps", self.max_steps, minimum=least)
        if self.memory_size is not None:
            check_positive_int("memory_size", self.memory_size, minimum=0)
        self._check_memory()
        for name in ("learning_rate", "head_learning_rate"):
            check_range(name, getattr(self, name), 0, 1, open_low=True)
        shares = ("warmup", "weight_decay", "graph_weight")
        for name in (*shares, "visible_fraction", "memory_visible_fraction"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("dropout", self.dropout, 0, 1, open_high=True)
        self._check_few_labels()
        self._check_adapters()
        check_choice("device", self.device, DEVICES)
        check_choice("search", self.search, BANK_SEARCHES)
        check_positive_int("seed", self.seed, minimum=0)
        for name in _OF_PARTS:
            if callable(getattr(self, name)):
                raise ValueError(
                    f"'{name}' must be a number or a name here (got {getattr(self, name)!r}). "
                    "Give a function of your own to GraphGuidedObjective."
                )
        for part in PARTS:
            self._check_part(part)
        if self.memory_size != 0 and self.loss_spec.over_bank:
            from gloss_graph.graph.bandwidth import check_fits_bank

            check_fits_bank(self.bandwidth)
        if self.bandwidth == "local" and self.bandwidth_scale != 1:
            raise ValueError(
                f"'bandwidth_scale' must be 1 for bandwidth='local' (got {self.bandwidth_scale})."
            )
        named = isinstance(self.bandwidth, str) and self.bandwidth != "sqrt"
        if self.loss_spec.in_batch and named:
            raise ValueError(
                f"'bandwidth' of loss={self.loss!r} must be a number or 'sqrt' "
                f"(got {self.bandwidth!r})."
            )

    def _check_memory(self) -> None:
        from gloss_graph.memory import EVICTIONS

        check_choice("eviction", self.eviction, EVICTIONS)
        check_positive_int("refresh_rows", self.refresh_rows, minimum=0)
        check_positive_int("refresh_rows_every", self.refresh_rows_every)

    def _check_few_labels(self) -> None:
        check_label_draw(self.label_fraction, self.labels_per_class)
        for name in (
            "unlabeled_batch_size",
            "warm_start_steps",
            "graph_start_steps",
            "freeze_layers",
        ):
            check_positive_int(name, getattr(self, name), minimum=0)
        check_range("anchor", self.anchor, 0, 1)
        check_range("warm_start_rate", self.warm_start_rate, 0, 1, open_low=True)
        if self.graph_start_rate is not None:
            check_range("graph_start_rate", self.graph_start_rate, 0, 1, open_low=True)
        check_range("teacher_decay", self.teacher_decay, 0, 1, open_high=True)
        check_choice("graph_start_classes", self.graph_start_classes, GRAPH_CLASSES)
        check_choice("select", self.select, ("auto", "best", "last"))

    def _check_adapters(self) -> None:
        check_positive_int("lora_rank", self.lora_rank, minimum=0)
        check_range("lora_alpha", self.lora_alpha, 0, math.inf, open_low=True, open_high=True)
        check_range("lora_dropout", self.lora_dropout, 0, 1, open_high=True)
        targets = self.lora_targets
        if targets is not None and (not isinstance(targets, str) or not targets.strip(" ,")):
            raise ValueError(
                "'lora_targets' must be names of layers, comma-separated, or None for the "
                f"family's own (got {targets!r})."
            )

    @property
    def loss_spec(self) -> LossSpec:
        """The facts of the loss."""
        return LOSSES[self.loss]

    @property
    def few_labels(self) -> bool:
        """Whether only a draw of the labels is used."""
        return self.label_fraction is not None or self.labels_per_class is not None

    @property
    def trains(self) -> bool:
        """Whether head and encoder are trained together, after the contrastive stages."""
        return self.loss_spec.trains and self.max_steps != 0

    @property
    def fits_on_graph(self) -> bool:
        """Whether a head that is fitted learns from what the graph propagates, too."""
        return self.loss_spec.head_from_graph or self.refit_head

    @property
    def keeps_last(self) -> bool:
        """Whether the weights of the last step are kept."""
        few = self.few_labels or not self.trains
        return self.select == "last" or (self.select == "auto" and few)


def _all_settings() -> dict[str, ConfigSetting]:
    own = {
        one.name: ConfigSetting(
            one.name,
            "",
            one.name,
            one.default,
            one.metadata["help"],
            one.metadata["search"],
            _kinds(str(one.type)),
            one.metadata["group"],
        )
        for one in fields(TrainConfig)
        if one.name not in _OF_PARTS
    }
    return {**own, **_OF_PARTS}


SETTINGS: dict[str, ConfigSetting] = _all_settings()
"""Every setting of a training by its name: the one place that commands and searches ask."""
DEFAULTS: dict[str, Any] = {name: one.default for name, one in SETTINGS.items()}
"""Default of every setting."""


def setting_named(name: str) -> ConfigSetting:
    """The setting of a name, `half_life` or `staleness.half_life`.

    Raises:
        ValueError: An unknown part or setting; names the nearest one.
    """
    part, dot, inner = name.partition(".")
    if not dot:
        if name in SETTINGS:
            return SETTINGS[name]
        known = list(SETTINGS)
        raise ValueError(
            f"{name!r} must be a setting of a training, one of {known}. {nearest_name(name, known)}"
        )
    if part not in PARTS:
        raise ValueError(
            f"{name!r} must name a setting of a training; there is no part {part!r}. "
            f"{nearest_name(part, PARTS)}"
        )
    inside = {one.field: one for one in _OF_PARTS.values() if one.part == part}
    if inner not in inside:
        raise ValueError(
            f"{name!r} must name a setting of '{part}', one of {list(inside)}. "
            f"{nearest_name(inner, inside)}"
        )
    return inside[inner]


def check_value(name: str, value: Any) -> None:
    """Raise unless a setting may have the type of a value.

    Raises:
        ValueError: Names the types it may have.
    """
    kinds = setting_named(name).kinds
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"'{name}' must be {names} (got {value!r}).")


def read_settings(given: Mapping[str, Any], where: str = "settings") -> dict[str, Any]:
    """Settings as a file holds them, by their names in `SETTINGS`.

    Args:
        given: `{"k": 8}`, `{"graph.k": 8}` or `{"graph": {"k": 8}}`.
        where: What errors call the place.

    Raises:
        ValueError: An unknown part or setting, with the nearest name; a value of a wrong type; two
            values for one setting.

    Example:
        >>> read_settings({"graph": {"k": 8}, "staleness.half_life": 20, "loss": "ce"})
        {'k': 8, 'half_life': 20, 'loss': 'ce'}
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            inner = {f"{name}.{key}": inside for key, inside in value.items()}
        else:
            inner = {str(name): value}
        for key, inside in inner.items():
            try:
                one = setting_named(key)
                inside = _number(inside, one.kinds)
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


def _number(value: Any, kinds: tuple[type, ...]) -> Any:
    """YAML takes 1e-3 for a word."""
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_value(name: str, text: str) -> float | int | str | bool | None:
    """A value from the words of a command line.

    Raises:
        ValueError: An unknown setting, or a word that is no value of it.
    """
    one, shown = setting_named(name), name.rpartition(".")[2]
    kinds = one.kinds
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float, str):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    words = {bool: "true or false", type(None): "none", int: "a whole number", float: "a number"}
    raise ValueError(f"'{shown}' must be {' or '.join(words[k] for k in kinds)} (got {text!r}).")
