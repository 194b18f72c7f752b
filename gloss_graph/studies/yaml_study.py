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
from gloss_graph.training.config import setting_named

__all__ = ["KEYS", "read_study"]

#: Name of the corpus that needs no file.
DEMO = "demo"
_DEMO_DOCUMENTS = 2_000
_ENDINGS = ("csv", "tsv", "jsonl", "ndjson", "parquet")
#: What a file may say, and what that is.
KEYS = {
    "question": "one line, the title of the report",
    "factors": "setting: [values], or setting: low:high, low:high:log, low:high:step",
    "baseline": "setting: value, of factors and of settings that stay fixed",
    "design": "grid, one-at-a-time, latin-hypercube or optuna",
    "arms": "number of arms, for latin-hypercube and optuna",
    "seeds": "number of seeds, or a list",
    "metric": "what the question is about, macro_f1 unless told otherwise",
    "minimize": "true if less of it is better",
    "cost": "replay or full",
    "data": "demo, or a folder with train.csv and others, from the folder of the file",
    "train": "training file, in place of data",
    "val": "validation file",
    "test": "test file",
    "unlabeled": "file of documents without labels",
    "documents": "keep so many training documents",
    "text": "column of the texts",
    "label": "column of the labels",
    "encoder": "minilm, a hub id or a folder",
    "pooling": "cls, mean or last",
    "max_length": "tokens kept of a document",
}
_PARTS = ("train", "val", "test", "unlabeled")
_WORDS = {*_PARTS, "data", "text", "label", "encoder", "question", "design", "cost", "metric"}
_COUNTS = {"documents", "max_length", "arms"}


def read_study(path: str | os.PathLike[str], *, progress: bool = False, **overrides: Any) -> Study:
    """Read a study of text classifiers.

    Args:
        path: YAML file with the keys of `KEYS`; only `factors` must be there.
        progress: Show a bar while embeddings are recorded.
        **overrides: Values for keys, in place of those of the file; None is no override. A
            `data` given here counts from the current folder and replaces single files, too.

    Raises:
        ValueError: The file is missing or no YAML; a key that is not known (lists those that
            are); whatever is wrong with the study itself.

    Example:
        See `examples/ablations`.
    """
    path = Path(path)
    content = _content(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    _check_keys(given, "The override")
    merged = {**content, **given}
    _check_types(merged, str(path))
    if "factors" not in merged:
        raise ValueError(f"{path} must have 'factors', the settings to vary and their values.")
    design = str(merged.get("design", "grid"))
    here = Path() if "data" in given else path.parent
    files = {
        part: here / os.path.expanduser(str(merged[part]))
        for part in _PARTS
        if part in merged and "data" not in given
    }
    source = str(merged.get("data", DEMO))
    splits = read_data(
        source if source == DEMO else here / os.path.expanduser(source),
        documents=merged.get("documents"),
        files=files,
        text=str(merged.get("text", "text")),
        label=str(merged.get("label", "label")),
    )
    name, pooling = str(merged.get("encoder", "minilm")), merged.get("pooling")
    length = merged.get("max_length", 128)
    run: Any = TextRun(
        splits,
        lambda: load_encoder(name, pooling=pooling, max_length=length),
        cost=merged.get("cost", "replay"),
        encoder=encoder_identity(name, pooling=pooling, max_length=length),
        progress=progress,
    )
    return Study(
        factors=_numbers(merged["factors"], "factors"),
        baseline=_numbers(merged.get("baseline") or {}, "baseline"),
        run=run,
        design=design,
        arms=merged.get("arms"),
        seeds=merged.get("seeds", 5),
        metric=merged.get("metric"),
        minimize=merged.get("minimize", False),
        question=str(merged.get("question", "")),
        name=path.stem,
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist. Name a study file.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values; known keys are {sorted(KEYS)}.")
    _check_keys(content, str(path))
    return content


def _check_keys(content: Mapping[Any, Any], where: str) -> None:
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        raise ValueError(
            f"{where} has the unknown key {', '.join(map(repr, unknown))}. Known are "
            f"{sorted(KEYS)}; settings of the training go under 'factors' or 'baseline'."
        )


def _check_types(content: Mapping[str, Any], where: str) -> None:
    """Refuse values of another kind than their key takes; `Study` checks the rest."""
    for key in content.keys() & _WORDS:
        value = content[key]
        # A data set, a column or a folder may be called 20.
        plain = isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
        if not plain or not str(value).strip():
            raise ValueError(f"{where}: '{key}' must be a word (got {value!r:.60}).")
    for key in content.keys() & _COUNTS:
        try:
            check_positive_int(key, content[key])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not isinstance(content.get("minimize", False), bool):
        raise ValueError(
            f"{where}: 'minimize' must be true or false (got {content['minimize']!r:.60})."
        )
    if content.get("pooling") is not None:
        check_choice("pooling", content["pooling"], POOLINGS)


def _numbers(value: Any, where: str) -> dict[str, Any]:
    """A block of the file; YAML takes 1e-3 for a word."""
    if not isinstance(value, Mapping):
        raise ValueError(f"'{where}' must be a block 'setting: value' (got {value!r}).")
    return {_setting(str(name)): _number(inner) for name, inner in value.items()}


def _setting(name: str) -> str:
    """A setting by its name among all; `part.name` names one too."""
    return setting_named(name).name if "." in name else name


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_data(
    data: str | Path,
    *,
    documents: int | None = None,
    files: Mapping[str, Path] | None = None,
    text: str = "text",
    label: str = "label",
) -> Splits:
    """The documents of a study.

    Args:
        data: `"demo"`, the documentation of installed packages, or a folder with files `train`,
            `val`, `test` and `unlabeled` (CSV, TSV, JSONL or Parquet, also `.gz`), of which
            `train` must be there; without `val` a tenth of the training documents is drawn for it.
        documents: Keep so many training documents, an equal share of every class.
        files: Part -> file, instead of a folder.
        text: Column of the texts.
        label: Column of the labels.

    Raises:
        ValueError: No such folder, or no training file in it; two files for one part.
    """
    if documents is not None:
        check_positive_int("documents", documents)
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
    for part in ("train", "val", "test", "unlabeled"):
        names = [f"{part}.{ending}{packed}" for ending in _ENDINGS for packed in ("", ".gz")]
        there = [folder / name for name in names if (folder / name).is_file()]
        if len(there) > 1:
            listed = ", ".join(path.name for path in there)
            raise ValueError(f"'data' must hold one file a part ({folder} has {listed}).")
        if there:
            found[part] = there[0]
    if "train" not in found:
        raise ValueError(
            f"'data' must hold a training file, for example train.csv ({folder} has none)."
        )
    return found
