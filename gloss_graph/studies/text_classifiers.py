"""Studies of text classifiers: their trials, and the short YAML files that describe them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.folders import scratch_folder
from gloss_graph._internal.limits import read_yaml
from gloss_graph._internal.timing import stage_seconds
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.studies.study import Study
from gloss_graph.text import (
    FeatureEncoder,
    Splits,
    TextEncoder,
    docstring_corpus,
    load_encoder,
    read_splits,
    read_table,
    stratified_draw,
)
from gloss_graph.text.encoders import POOLINGS
from gloss_graph.text.tables import SUFFIXES
from gloss_graph.training import (
    RunResult,
    TrainConfig,
    encoder_identity,
    make_objective,
    recorded_embeddings,
    train_text,
    with_unlabeled,
)
from gloss_graph.training.config import (
    FEATURE_RATES,
    SETTINGS,
    check_value,
    read_settings,
    setting_named,
)

#: How a trial trains.
COSTS = {
    "replay": "a small adapter trained on recorded embeddings of a frozen encoder",
    "full": "the whole encoder trained",
}
#: Settings that a study cannot vary: every arm runs with all seeds.
NO_FACTORS = ("seed", "pictures")
_MEASURED_BATCHES = 24
# Name of the corpus that needs no file.
_DEMO = "demo"
_DEMO_DOCUMENTS = 2_000
_PARTS = ("train", "val", "test", "unlabeled")
_WORDS = (*_PARTS, "data", "text", "label", "encoder", "question", "design", "cost", "metric")
_COUNTS = ("documents", "max_length", "arms")
# Keys that a study takes as they are.
_OF_STUDY = ("design", "arms", "seeds", "metric", "minimize")
_KEYS = sorted({*_WORDS, *_COUNTS, *_OF_STUDY, "factors", "baseline", "pooling"})


_LORA = {"lora_alpha", "lora_dropout", "lora_targets"}
# Settings of transformers, which an adapter of features has no use for.
_ENCODER_ONLY = _LORA | {"bf16", "gradient_checkpointing", "freeze_layers", "lora_rank"}
# The last line is of the head that propagates over the training documents, of every loss.
_ALWAYS = {
    *("loss", "mode", "select", "device", "bf16", "eval_batch_size"),
    *("label_fraction", "labels_per_class", "warm_start_steps"),
    *("k", "bandwidth", "bandwidth_scale", "rule", "normalization", "align"),
}
_TRAINING = {
    *("batch_size", "gradient_accumulation", "learning_rate", "warmup", "weight_decay"),
    *("max_steps", "class_balance", "gradient_checkpointing"),
}
# Settings of parts that count by a rule of their own or of the loss.
_RULED = {
    *("eta", "hops", "refresh_every", "consistency_weight", "contrast_weight"),
    *("half_life", "restandardize", "memory_start", "memory_ramp"),
}


def used_settings(config: TrainConfig, *, unlabeled: bool) -> set[str]:
    """List the settings that the result of a training depends on."""
    spec, trains = config.loss_spec, config.trains
    warm = bool(config.warm_start_steps or spec.warm_start_steps)
    spreads = unlabeled and config.spreads
    over_bank = trains and spec.over_bank
    fills = spec.head_from_graph and not trains and config.anchor > 0
    contrasts = spreads or (over_bank and config.contrast_weight > 0)
    used = _ALWAYS | (spec.reads(config, unlabeled=unlabeled) if trains else set())
    rules: list[tuple[Any, set[str]]] = [
        (config.rule != "spreading", {"eta"}),
        (spec.fits_head, {"max_steps"}),
        (unlabeled, {"graph_start_steps"}),
        # The in-batch forms have no frozen view.
        (unlabeled and not spec.in_batch, {"anchor"}),
        # Without training `gloss` does as it says.
        (trains or (unlabeled and not spec.head_from_graph), {"refit_head"}),
        (warm or spreads, {"batch_size"}),
        # The rate of the stage on the corpus follows it.
        (warm or (spreads and config.graph_start_rate is None), {"warm_start_rate"}),
        (spreads, {"unlabeled_batch_size", "graph_start_rate"}),
        (unlabeled and contrasts, {"graph_start_classes"}),
        (trains or warm or spreads, {"freeze_layers", "lora_rank"}),
        ((trains or warm or spreads) and config.lora_rank, _LORA),
        (trains, _TRAINING),
        (trains and config.max_steps is None, {"epochs"}),
        (trains and not config.keeps_last, {"patience", "eval_steps"}),
        (trains and config.mode == "integrated", {"head_learning_rate", "dropout"}),
        (over_bank, {"contrast_weight"}),
        # Filled all the same, to predict over.
        (unlabeled and fills, {"memory_size", "eviction"}),
    ]
    used |= {name for counts, names in rules if counts for name in names}
    # Settings of parts that no rule names count where they are not at their default.
    parts = {"graph": True, "propagation": True, "contrast": contrasts, "staleness": over_bank}
    parts["consistency"] = over_bank and unlabeled
    ruled = _RULED | (set() if config.rule == "spreading" else {"alpha"})
    return used | {
        name
        for name, one in SETTINGS.items()
        if parts.get(one.part) and name not in ruled and getattr(config, name) != one.default
    }


class TextRun:
    """`(config, seed) -> metrics` of a text classifier, with settings of `TrainConfig`.

    Args:
        splits: Documents; scored on the test part, or the validation part without one.
        make_encoder: Loads the untrained encoder.
        cost: A key of `COSTS`. `full` trains the encoder; `replay` trains a `FeatureEncoder`
            (a residual MLP) on its embeddings, recorded once, through the same code.
        encoder: Description that tells the encoder from others, see `encoder_identity`; without it
            embeddings are kept in memory only, and all trials of a folder are assumed to use one
            encoder.
        progress: Show a bar while embeddings are recorded.

    Raises:
        ValueError: No labeled document to score on, or label sets.
    """

    name = "train_text"
    metric = "macro_f1"
    shown = ("macro_f1", "hidden_loss", "seconds_per_step")
    lower_is_better = (
        *("hidden_loss", "train_hidden_loss", "leak", "unreachable_share"),
        *("seconds_per_step", "seconds_train"),
    )
    titles: ClassVar[dict[str, str]] = {
        "accuracy": "accuracy, %",
        "macro_f1": "macro-F1, %",
        "macro_silhouette": "macro silhouette",
        "propagation_accuracy": "accuracy by propagation, %",
        "propagation_macro_f1": "macro-F1 by propagation, %",
        "hidden_loss": "hidden-label loss, held out",
        "train_hidden_loss": "hidden-label loss, training",
        "leak": "leak: held-out minus training loss",
        "unreachable_share": "rows no label reaches, %",
        "seconds_per_step": "seconds per step",
        "seconds_train": "seconds of training",
        "steps": "steps",
    }

    def __init__(
        self,
        splits: Splits,
        make_encoder: Callable[[], TextEncoder],
        *,
        cost: str = "replay",
        encoder: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> None:
        check_choice("cost", cost, COSTS)
        if splits.train.multilabel:
            raise ValueError("'splits' must hold class numbers (got label sets).")
        self.splits, self.make_encoder, self.cost = splits, make_encoder, cost
        self.progress = progress
        self.part = "test" if splits.test is not None else "val"
        held_out = splits.test or splits.val
        if held_out is None or not sum(held_out.class_counts):
            raise ValueError("'splits' must have a test or validation part with labels to score.")
        self._encoder_identity = dict(encoder or {})
        digest = documents_digest(splits.parts.values())
        self.identity = {"cost": cost, "documents": digest, **self._encoder_identity}
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in splits.parts.items())
        self.about = (
            f"Cost {cost}: {COSTS[cost]}. Documents of {splits.train.name or 'the corpus'!r}: "
            f"{sizes}, {splits.train.num_classes} classes. Encoder: "
            f"{self._encoder_identity.get('encoder', 'given')}. Scores: {self.part} documents."
        )
        self.glossary = {name: one.help for name, one in SETTINGS.items()}
        self.tolerated = _ENCODER_ONLY if cost == "replay" else set()
        self._rows: dict[str, Tensor] | None = None

    def resolve(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return every setting of a training except the seed, defaults included."""
        whole = self._config(config, 0).as_dict()
        return {name: value for name, value in whole.items() if name not in NO_FACTORS}

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse settings that no training accepts; a `ValueError` names the setting."""
        known = [name for name in SETTINGS if name not in NO_FACTORS]
        if unknown := sorted(config.keys() - set(known)):
            raise ValueError(
                f"{', '.join(map(repr, unknown))} is no setting of a training. Known are {known}."
            )
        for name, value in config.items():
            check_value(name, value)
        if not self._config(config, 0).keeps_last and self.splits.val is None:
            raise ValueError("the data have no validation part, which picks the best step.")

    def used(self, config: Mapping[str, Any]) -> set[str]:
        """Return the settings that the result of a configuration depends on."""
        made = self._config(config, 0)
        unlabeled = made.few_labels or min(self.splits.train.labels) < 0
        return used_settings(made, unlabeled=unlabeled) - self.tolerated

    def __call__(self, config: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Train and score."""
        made, splits, frozen = self._config(config, seed), self.splits, self.prepare()
        encoder: TextEncoder | FeatureEncoder
        if self.cost == "full":
            encoder = self.make_encoder()
        else:
            rows = {name: table.numpy() for name, table in frozen.items()}
            parts = {name: replace(p, features=rows[name]) for name, p in splits.parts.items()}
            splits = replace(splits, **parts)
            encoder = FeatureEncoder.scaled_to(rows["train"], seed=seed)
            frozen = {name: table * encoder.scale for name, table in frozen.items()}
        if made.keeps_last and self.part != "val":
            splits = replace(splits, val=None)  # nothing looks at it
        with scratch_folder() as folder, warnings.catch_warnings():
            # Advice about settings that an arm tries on purpose.
            for message in ("Graph skill", *([] if made.ids else [".*ids.*"])):
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            result = train_text(splits, encoder, made, folder, frozen=frozen, save_steps=0)
            return self._metrics(result, made, frozen)

    def _config(self, config: Mapping[str, Any], seed: int) -> TrainConfig:
        settings = {**(FEATURE_RATES if self.cost == "replay" else {}), **config}
        settings = {k: v for k, v in settings.items() if k not in self.tolerated}
        return TrainConfig(**{**settings, "seed": seed, "pictures": False})

    def prepare(self) -> dict[str, Tensor]:
        """Return the embeddings of every part, recorded unless they are known."""
        if self._rows is None:
            self._rows = recorded_embeddings(
                self.splits.parts, self.make_encoder, self._encoder_identity, progress=self.progress
            )
        return self._rows

    def _metrics(
        self, result: RunResult, config: TrainConfig, frozen: Mapping[str, Tensor]
    ) -> dict[str, float]:
        found, part, steps = result.metrics, self.part, result.metrics["steps"]
        scores = ("accuracy", "macro_f1")
        metrics = {name: found[f"{part}.{name}"] for name in (*scores, "macro_silhouette")}
        for name in scores:
            if f"{part}_propagation.{name}" in found:
                metrics[f"propagation_{name}"] = found[f"{part}_propagation.{name}"]
        loss, unreachable = self._held_out(result, config, frozen)
        metrics |= {"hidden_loss": loss, "unreachable_share": unreachable}
        # The last quarter of training, in which losses have settled.
        losses = [row["graph_loss"] for row in result.history if "graph_loss" in row]
        losses = losses[-max(1, len(losses) // 4) :]
        if losses and config.graph_weight > 0:
            metrics["train_hidden_loss"] = sum(losses) / len(losses)
            metrics["leak"] = loss - metrics["train_hidden_loss"]
        if (timed := sum(stage_seconds(found).values())) and steps:
            metrics["seconds_per_step"] = timed / steps
        return {**metrics, "seconds_train": found["seconds.train"], "steps": steps}

    @torch.no_grad()
    def _held_out(
        self, result: RunResult, config: TrainConfig, frozen: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """Hidden-label loss of held-out batches on the graph of the arm, and unreachable share.

        The bank holds only training documents, so no label of a held-out document is in it. An arm
        without a bank is measured batch by batch.
        """
        corpus, rows = self.splits.parts[self.part], result.embeddings[self.part]
        objective, spec = result.objective, config.loss_spec
        if spec.in_batch or config.memory_size == 0:
            on_graph = spec.in_batch or (spec.over_bank and spec.fills_bank)
            alone = replace(config, loss=config.loss if on_graph else "gloss", memory_size=0)
            classes, width = self.splits.train.num_classes, rows.size(1)
            objective = make_objective(alone, classes, width, 0, sample=rows, targets=False)
        objective.eval()
        joint = objective.memory is not None and objective.memory.dim > rows.size(1)
        labels, ids = torch.tensor(corpus.labels), torch.tensor(corpus.ids)
        order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(0))
        total, hidden, missed = 0.0, 0, 0
        for batch in order.split(config.batch_size)[:_MEASURED_BATCHES]:
            if batch.numel() < 2:
                continue
            out = objective(
                rows[batch],
                labels[batch],
                ids=ids[batch],
                frozen=frozen[self.part][batch] if joint else None,
                return_output=True,
            )
            count, lost = int(out.hidden.sum()), int(out.solver.unreachable)
            total += float(out.graph_loss) * (count - lost)
            hidden, missed = hidden + count, missed + lost
        scored = hidden - missed
        mean = total / scored if scored else math.nan
        return mean, missed / hidden if hidden else math.nan


def read_study(
    path: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    cost: str | None = None,
    data: str | os.PathLike[str] | None = None,
    documents: int | None = None,
    encoder: str | None = None,
    seeds: int | None = None,
    progress: bool = False,
) -> Study:
    """Read a study of text classifiers.

    The file must have `factors`, with values (`k: [8, 16]`) or a range (`eta: 0.01:1:log`) for
    each setting. It may have the `baseline`, and `design`, `arms`, `seeds`, `metric`, `minimize`
    and `question` of a `Study`; `cost`, as for `TextRun`; `data` (demo, or a folder with train.csv
    and others) or single files `train`, `val`, `test` and `unlabeled`, the columns `text` and
    `label`, and `documents`, the number of training documents to keep; `encoder` (minilm, a hub id
    or a folder), `pooling` and `max_length`. Files are relative to the folder of the study file.

    Settings are named as `k: 8`, `graph.k: 8` or `graph: {k: 8}`.

    Args:
        path: YAML file.
        config: Settings that the baseline of the file overrides.
        settings: Settings that override the baseline of the file.
        cost: Replaces the key of the file, as do the next four.
        data: Relative to the current folder; replaces single files, too.
        documents: As in the file.
        encoder: As in the file.
        seeds: As in the file.
        progress: Show a bar while embeddings are recorded.

    Raises:
        ValueError: No YAML file; an unknown key or setting; anything that `Study` refuses.
    """
    path = Path(path)
    given = {"cost": cost, "data": data, "documents": documents, "encoder": encoder, "seeds": seeds}
    content = read_yaml(path) | {key: value for key, value in given.items() if value is not None}
    _check_content(content, path)
    factors = _factors(_block(content["factors"], "factors"))
    baseline: dict[str, Any] = {}
    blocks = {"config": config, "baseline": content.get("baseline"), "settings": settings}
    for where, block in blocks.items():
        baseline |= read_settings(_block(block or {}, where), f"'{where}'")
    if data is not None:
        content = {key: value for key, value in content.items() if key not in _PARTS}
    splits = read_data(content, path.parent if data is None else Path())
    name = str(content.get("encoder", "minilm"))
    options = {"pooling": content.get("pooling"), "max_length": content.get("max_length", 128)}
    run = TextRun(
        splits,
        partial(load_encoder, name, **options),
        cost=content.get("cost", "replay"),
        encoder=encoder_identity(name, **options),
        progress=progress,
    )
    told: dict[str, Any] = {key: content[key] for key in _OF_STUDY if key in content}
    told |= {"question": str(content.get("question", "")), "name": path.stem}
    return Study(factors=factors, baseline=baseline, run=run, **told)


def _check_content(content: Mapping[str, Any], path: Path) -> None:
    """Refuse unknown keys and values of the wrong type; `Study` checks the rest."""
    if unknown := [str(key) for key in content if key not in _KEYS]:
        raise ValueError(
            f"{path} has the unknown key {', '.join(map(repr, unknown))}. Known are "
            f"{_KEYS}; settings of the training go under 'factors' or 'baseline'."
        )
    for key in content.keys() & {*_WORDS}:
        value = content[key]
        # A data set, a column or a folder may be called 20.
        plain = isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
        if not plain or not str(value).strip():
            raise ValueError(f"{path}: '{key}' must be a word (got {value!r:.60}).")
    try:
        for key in content.keys() & {*_COUNTS}:
            check_positive_int(key, content[key])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    minimize = content.get("minimize", False)
    if not isinstance(minimize, bool):
        raise ValueError(f"{path}: 'minimize' must be true or false (got {minimize!r:.60}).")
    if content.get("pooling") is not None:
        check_choice("pooling", content["pooling"], POOLINGS)
    if "factors" not in content:
        raise ValueError(f"{path} must have 'factors', the settings to vary and their values.")


def _block(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"'{where}' must be a block 'setting: value' (got {value!r}).")
    return value


def _factors(block: Mapping[str, Any]) -> dict[str, Any]:
    """Values to try by the name of the setting, each value read as a setting."""
    found: dict[str, Any] = {}
    for name, tried in block.items():
        nested = isinstance(tried, Mapping)
        inner = {f"{name}.{key}": v for key, v in tried.items()} if nested else {str(name): tried}
        for key, values in inner.items():
            setting = setting_named(key).name
            if setting in found:
                raise ValueError(f"'factors' must name a setting once (got {setting!r} twice).")
            if isinstance(values, list):
                values = [read_settings({key: v}, "'factors'")[setting] for v in values]
            found[setting] = values
    return found


def read_data(content: Mapping[str, Any], here: Path) -> Splits:
    """Read the documents that a study file names, relative to the folder `here`.

    Only a training file is required; without `val` a tenth of its documents is drawn for it.
    """
    documents, source = content.get("documents"), str(content.get("data", _DEMO))
    found = {p: here / os.path.expanduser(str(content[p])) for p in _PARTS if p in content}
    if not found and source == _DEMO:
        return docstring_corpus(max_documents=documents or _DEMO_DOCUMENTS)
    found = found or _files(here / os.path.expanduser(source))
    if "train" not in found:
        raise ValueError(
            f"'data' must hold a training file, for example train.csv (got {sorted(found)})."
        )
    text, label = (str(content.get(name, name)) for name in ("text", "label"))
    val, test = found.get("val"), found.get("test")
    splits = read_splits(found["train"], val, test, text=text, label=label, val_fraction=0.1)
    if documents is not None and documents < len(splits.train):
        kept = stratified_draw(splits.train.labels, documents / len(splits.train))
        splits = replace(splits, train=splits.train.select(kept))
    if "unlabeled" in found:
        splits = with_unlabeled(splits, read_table(found["unlabeled"], text=text, label=None))
    return splits


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(
            f"'data' must be {_DEMO!r} or a folder with train.csv and others ({folder} is none)."
        )
    found: dict[str, Path] = {}
    for part in _PARTS:
        files = [file for end in SUFFIXES if (file := folder / f"{part}{end}").is_file()]
        if len(files) > 1:
            listed = ", ".join(path.name for path in files)
            raise ValueError(f"'data' must hold one file per part ({folder} has {listed}).")
        if files:
            found[part] = files[0]
    return found
