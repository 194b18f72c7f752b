"""Studies of text classifiers as short YAML files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.limits import read_yaml
from gloss_graph.studies.study import Study
from gloss_graph.studies.text_classifiers import TextRun
from gloss_graph.text import (
    Splits,
    docstring_corpus,
    load_encoder,
    read_splits,
    read_table,
    stratified_draw,
)
from gloss_graph.text.encoders import POOLINGS
from gloss_graph.training import encoder_identity, with_unlabeled
from gloss_graph.training.config import read_settings, setting_named

#: Name of the corpus that needs no file.
DEMO = "demo"
_DEMO_DOCUMENTS = 2_000
_ENDINGS = ("csv", "tsv", "jsonl", "ndjson", "parquet")
_PARTS = ("train", "val", "test", "unlabeled")
_WORDS = (*_PARTS, "data", "text", "label", "encoder", "question", "design", "cost", "metric")
_COUNTS = ("documents", "max_length", "arms")
_KEYS = sorted((*_WORDS, *_COUNTS, "factors", "baseline", "seeds", "minimize", "pooling"))


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
        data: From the current folder; it replaces single files, too.
        documents: Number of training documents to keep.
        encoder: A short name, a hub id or a folder.
        seeds: Number of seeds.
        progress: Show a bar while embeddings are recorded.

    Raises:
        ValueError: The file is missing or no YAML; an unknown key or setting; anything that `Study`
            refuses.
    """
    path = Path(path)
    given: dict[str, Any] = {"cost": cost, "data": data, "documents": documents}
    given |= {"encoder": encoder, "seeds": seeds}
    content = _content(path) | {key: value for key, value in given.items() if value is not None}
    _check_types(content, path)
    if "factors" not in content:
        raise ValueError(f"{path} must have 'factors', the settings to vary and their values.")
    factors = _factors(_block(content["factors"], "factors"))
    baseline: dict[str, Any] = {}
    for where, block in (
        ("config", config),
        ("baseline", content.get("baseline")),
        ("settings", settings),
    ):
        baseline |= read_settings(_block(block or {}, where), f"'{where}'")
    here = Path() if data is not None else path.parent
    files = {
        part: here / os.path.expanduser(str(content[part]))
        for part in _PARTS
        if part in content and data is None
    }
    source = str(content.get("data", DEMO))
    splits = read_data(
        source if source == DEMO else here / os.path.expanduser(source),
        documents=content.get("documents"),
        files=files,
        text=str(content.get("text", "text")),
        label=str(content.get("label", "label")),
    )
    name, pooling = str(content.get("encoder", "minilm")), content.get("pooling")
    length = content.get("max_length", 128)
    run = TextRun(
        splits,
        lambda: load_encoder(name, pooling=pooling, max_length=length),
        cost=content.get("cost", "replay"),
        encoder=encoder_identity(name, pooling=pooling, max_length=length),
        progress=progress,
    )
    return Study(
        factors=factors,
        baseline=baseline,
        run=run,
        design=str(content.get("design", "grid")),
        arms=content.get("arms"),
        seeds=content.get("seeds", 5),
        metric=content.get("metric"),
        minimize=content.get("minimize", False),
        question=str(content.get("question", "")),
        name=path.stem,
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist. Name a study file.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values; known keys are {_KEYS}.")
    unknown = [str(key) for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{path} has the unknown key {', '.join(map(repr, unknown))}. Known are "
            f"{_KEYS}; settings of the training go under 'factors' or 'baseline'."
        )
    return content


def _check_types(content: Mapping[str, Any], path: Path) -> None:
    """Refuse values of another kind than their key takes; `Study` checks the rest."""
    for key in _WORDS:
        value = content.get(key, "absent")
        # A data set, a column or a folder may be called 20.
        plain = isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
        if not plain or not str(value).strip():
            raise ValueError(f"{path}: '{key}' must be a word (got {value!r:.60}).")
    for key in _COUNTS:
        try:
            check_positive_int(key, content.get(key, 1))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if not isinstance(content.get("minimize", False), bool):
        raise ValueError(
            f"{path}: 'minimize' must be true or false (got {content['minimize']!r:.60})."
        )
    if content.get("pooling") is not None:
        check_choice("pooling", content["pooling"], POOLINGS)


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


def read_data(
    data: str | Path,
    *,
    documents: int | None = None,
    files: Mapping[str, Path] | None = None,
    text: str = "text",
    label: str = "label",
) -> Splits:
    """Read the documents of a study, of which `documents` for training are kept.

    `data` is "demo" or a folder with files `train`, `val`, `test` and `unlabeled` (CSV, TSV, JSONL
    or Parquet, also `.gz`), `files` are single ones instead. Only `train` is required; without
    `val` a tenth of the training documents is drawn for it.
    """
    if not files and str(data) == DEMO:
        return docstring_corpus(max_documents=documents or _DEMO_DOCUMENTS)
    found = dict(files) if files else _files(Path(data))
    train, val, test = (found.get(part) for part in ("train", "val", "test"))
    if train is None:
        raise ValueError(f"'data' must name a training file (got {sorted(found)}).")
    splits = read_splits(train, val, test, text=text, label=label, val_fraction=0.1)
    if documents is not None and documents < len(splits.train):
        kept = stratified_draw(splits.train.labels, documents / len(splits.train))
        splits = replace(splits, train=splits.train.select(kept))
    if "unlabeled" in found:
        splits = with_unlabeled(splits, read_table(found["unlabeled"], text=text, label=None))
    return splits


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(
            f"'data' must be {DEMO!r} or a folder with train.csv and others ({folder} is none)."
        )
    found: dict[str, Path] = {}
    for part in _PARTS:
        names = [f"{part}.{ending}{packed}" for ending in _ENDINGS for packed in ("", ".gz")]
        files = [folder / name for name in names if (folder / name).is_file()]
        if len(files) > 1:
            listed = ", ".join(path.name for path in files)
            raise ValueError(f"'data' must hold one file per part ({folder} has {listed}).")
        if files:
            found[part] = files[0]
    if "train" not in found:
        raise ValueError(
            f"'data' must hold a training file, for example train.csv ({folder} has none)."
        )
    return found
