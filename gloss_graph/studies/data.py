"""Documents of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.text import (
    Splits,
    docstring_corpus,
    read_splits,
    read_table,
    stratified_draw,
)
from gloss_graph.training import with_unlabeled

__all__ = ["DEMO", "read_data"]

#: Name of the corpus that needs no file.
DEMO = "demo"
_DEMO_DOCUMENTS = 2_000
_ENDINGS = ("csv", "tsv", "jsonl", "ndjson", "parquet")


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
        files: Part -> file, in place of a folder.
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
