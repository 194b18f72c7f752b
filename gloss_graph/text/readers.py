"""Tables of documents on disk to corpora."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gloss_graph._internal.checks import misfit
from gloss_graph._internal.unicode import whole_text
from gloss_graph.text.corpora import SEPARATOR, UNLABELED, Corpus, Splits, stratified_draw
from gloss_graph.text.tables import Table, read_chunks, read_columns


def read_table(
    path: str | Path,
    *,
    text: str | None = "text",
    label: str | None = "label",
    text_b: str | None = None,
    label_names: Sequence[str] | None = None,
    first_id: int = 0,
    quoting: bool = True,
    allow_empty: bool = False,
    separator: str | None = None,
) -> Corpus:
    r"""Read one table of documents.

    The suffix names the format: `.csv`, `.tsv`, `.jsonl` and `.ndjson` (each also with `.gz`) or
    `.parquet`. Text files are UTF-8, with or without a byte order mark.

    Texts are taken as they are: `NA` or `null` is a text like any other. Labels are strings without
    surrounding space, so `0` and `00` are two classes; a whole number of JSON or Parquet has no
    decimal point. An empty label, a null or an absent JSON key makes a document unlabeled (-1).
    A `-1` in the file is the name of a class, with a warning.

    Args:
        path: The file; the corpus is named after it.
        text: Column of the documents; None names documents by their place in the file.
        label: Column of the labels; None reads every document as unlabeled.
        text_b: Column of the second texts where documents are pairs.
        label_names: The known classes in the order of their numbers. By default the distinct
            labels of the file, in numerical order if all are whole numbers and sorted otherwise.
        first_id: Identity of the first document; the others count on in the order of the file.
        quoting: Whether `"` encloses fields of a CSV or TSV file, False for files like GLUE's.
        allow_empty: Whether documents without a visible character are kept rather than refused.
        separator: Separates the labels of a document with several classes; the corpus then has
            `label_sets`. JSON and Parquet may hold lists instead. A document of no class is
            written as the bare separator or an empty list; an empty value is unlabeled. None: one
            label per document.

    Raises:
        ValueError: The file is missing, empty, of an unknown format, malformed or not UTF-8; a
            column is missing (the message lists those found); a text is null, or empty without
            `allow_empty`; a label is not among `label_names`.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "reviews.csv")
        ...     _ = file.write_text("text,label\nfine film,pos\nNA,neg\nno idea,\n")
        ...     corpus = read_table(file)
        >>> corpus.texts, corpus.labels, corpus.label_names
        (['fine film', 'NA', 'no idea'], [1, 0, -1], ['neg', 'pos'])
    """
    layout = _Layout(text, label, text_b, quoting, allow_empty, separator)
    return layout.read(path, label_names, first_id)


def read_splits(
    train: str | Path,
    val: str | Path | None = None,
    test: str | Path | None = None,
    *,
    text: str | None = "text",
    label: str = "label",
    text_b: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    quoting: bool = True,
    allow_empty: bool = False,
    separator: str | None = None,
) -> Splits:
    """Read the parts of a data set; the classes are those of the training file.

    Ids count through the training, validation and test file in this order. Without `val` the share
    `val_fraction` of the labeled training documents is drawn by `seed`, stratified by class unless
    documents have label sets (see `stratified_draw`); classes with one member stay in the training
    part, and 0 draws none. The other arguments are those of `read_table`, for every file.

    Returns:
        The parts; `val` is None only with `val_fraction=0`.

    Raises:
        ValueError: As `read_table`; the training file has fewer than two classes, or lacks a label
            of another file.
    """
    if not 0 <= val_fraction < 1:
        raise misfit("val_fraction", "be at least 0 and below 1", val_fraction, "Try 0.1.")
    layout = _Layout(text, label, text_b, quoting, allow_empty, separator)
    known = f"the labels of {train}"
    train_part, val_part, test_part = layout.read(train), None, None
    names = train_part.label_names
    if len(names) < 2:
        got = f"{len(names)} in {train}, column {label!r}"
        advice = "Label more documents, or name another column."
        raise misfit("train", "hold documents of at least two classes", got, advice)
    first_id = len(train_part)
    if val is not None:
        val_part = layout.read(val, names, first_id, known)
        first_id += len(val_part)
    elif val_fraction > 0:
        drawn = stratified_draw(train_part.labels, val_fraction, seed=seed)
        kept = sorted(set(range(len(train_part))).difference(drawn))
        train_part, val_part = train_part.select(kept), train_part.select(drawn)
    if test is not None:
        test_part = layout.read(test, names, first_id, known)
    return Splits(train_part, val_part, test_part)


def read_documents(
    path: str | Path, rows: int | None, *, text: str | None, text_b: str | None = None
) -> Iterator[tuple[Corpus, Table]]:
    """Documents as `read_table` reads them, without labels, `rows` at a time and with all columns.

    None reads all at once. Ids count through the file.
    """
    layout = _Layout(text, None, text_b)
    done = 0
    for table in read_chunks(path, rows, layout.columns):
        yield layout.corpus(table, first_id=done), table
        done += len(table.places)


def describe_file(
    file: str | Path, *, text: str | None, text_b: str | None, first_id: int = 0
) -> dict[str, Any]:
    """Describe a table in JSON types, so that `read_again` finds the same documents."""
    corpus = read_table(file, text=text, text_b=text_b, label=None)
    place = {"file": str(Path(file).resolve()), "text": text, "text_b": text_b}
    content = {"first_id": first_id, "rows": len(corpus), "texts_sha256": _digest(corpus)}
    return place | content


def read_again(described: Mapping[str, Any]) -> Corpus:
    """Read the documents of a described file, without labels; other texts are refused."""
    try:
        layout = _Layout(described["text"], None, described["text_b"])
        corpus = layout.read(described["file"], first_id=described["first_id"])
        same = _digest(corpus) == described["texts_sha256"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"The description of a file is damaged ({error}).") from error
    if not same:
        raise ValueError(f"{described['file']} holds other texts than it did.")
    return corpus


def _digest(corpus: Corpus) -> str:
    content = json.dumps([corpus.texts, corpus.texts_b], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class _Layout:
    """The arguments of `read_table` that say how a file is to be read."""

    text: str | None
    label: str | None
    text_b: str | None
    quoting: bool = True
    allow_empty: bool = False
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and not self.separator.strip():
            raise misfit("separator", "hold a visible character", repr(self.separator), "Try ';'.")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(
                f"'text', 'text_b' and 'label' must name different columns (got {self.columns}). "
                "Leave out 'text_b' for single texts; pass label=None without labels."
            )

    @property
    def columns(self) -> list[str]:
        """The columns that are named."""
        return [name for name in (self.text, self.text_b, self.label) if name is not None]

    def read(
        self,
        path: str | Path,
        names: Sequence[str] | None = None,
        first_id: int = 0,
        known: str = "'label_names'",
    ) -> Corpus:
        """Read a file; `known` says in a message where `names` are from."""
        table = read_columns(path, self.columns, quoting=self.quoting)
        return self.corpus(table, names, first_id, known)

    def corpus(
        self, table: Table, names: Sequence[str] | None = None, first_id: int = 0, known: str = ""
    ) -> Corpus:
        """The documents of a table; without `names` the classes are those found."""
        members: list[list[str] | None] = [None] * len(table.places)
        if self.label is not None:
            members = _label_lists(table, self.label, self.separator)
        names = _sorted_names(members) if names is None else list(names)
        numbers = {name: number for number, name in enumerate(names)}
        for labels, place in zip(members, table.places, strict=True):
            new = next((name for name in labels or () if name not in numbers), None)
            if new is not None:
                shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
                raise ValueError(
                    f"{table.path}: label {new!r} at {place} is not among {known} ({shown}). "
                    "Correct it, or leave it empty for an unlabeled document."
                )
        sets = [None if found is None else [numbers[name] for name in found] for found in members]
        return Corpus(
            list(table.places) if self.text is None else self._texts(table, self.text),
            [labels[0] if labels else UNLABELED for labels in sets],
            list(range(first_id, first_id + len(sets))),
            names,
            None if self.text_b is None else self._texts(table, self.text_b),
            table.path.name.split(".")[0],
            label_sets=None if self.separator is None else sets,
            separator=self.separator or SEPARATOR,
        )

    def _texts(self, table: Table, name: str) -> list[str]:
        texts: list[str] = []
        empty: list[str] = []
        for value, place in zip(table.values(name), table.places, strict=True):
            if not isinstance(value, str):
                found = "null" if value is None else type(value).__name__
                raise table.fault(name, "hold strings", f"{found} at {place}", "Remove the row.")
            if not value.strip():
                empty.append(place)
            texts.append(_checked_unicode(table, name, value, place))
        if empty and not self.allow_empty:
            listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            got = f"{len(empty)} empty texts: {listed}"
            advice = "Remove the rows, or pass allow_empty=True to keep them."
            raise table.fault(name, "not be empty", got, advice)
        return texts


def _checked_unicode(table: Table, name: str, value: str, place: str) -> str:
    if value != whole_text(value):
        got = f"half of a surrogate pair at {place}"
        raise table.fault(name, "hold valid Unicode", got, "Correct the escape sequence.")
    return value


def _label_lists(table: Table, name: str, separator: str | None) -> list[list[str] | None]:
    """The labels of every document, None where there is no value."""
    found: list[list[str] | None] = []
    for value, place in zip(table.columns[name], table.places, strict=True):
        listed = separator is not None and isinstance(value, list)
        parts = value if listed else [value]
        if separator is not None and isinstance(value, str) and value.strip():
            parts = value.split(separator)
        labels = [_label(table, name, part, place) for part in parts]
        if listed and None in labels:
            advice = "Write null for an unlabeled document and [] for one of no class."
            raise table.fault(name, "hold lists of labels", f"an empty one at {place}", advice)
        members = list(dict.fromkeys(label for label in labels if label is not None))
        # Of no class: an empty list, or nothing around a separator.
        found.append(members if members or listed or len(parts) > 1 else None)
    number = sum(bool({"-1", "-1.0"}.intersection(labels or ())) for labels in found)
    if number:
        warnings.warn(
            f"{table.path}: {number:,} documents have the label '-1' in column {name!r}. Does it "
            "mean unlabeled? It is read as the name of a class; leave the label empty instead.",
            UserWarning,
            stacklevel=5,
        )
    return found


def _label(table: Table, name: str, value: object, place: str) -> str | None:
    """The string of a label value, None where there is none."""
    if value is None or value != value:  # NaN, the null of tables that went through pandas
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float):
        return _checked_unicode(table, name, str(value).strip(), place) or None
    got = f"{type(value).__name__} at {place}"
    raise table.fault(name, "hold one label per document", got, "Write a string or a number.")


def _sorted_names(members: list[list[str] | None]) -> list[str]:
    names = sorted({name for labels in members for name in labels or ()})
    try:
        # Class numbers then equal the labels of files that number their classes from 0.
        return sorted(names, key=int) if all(str(int(name)) == name for name in names) else names
    except ValueError:
        return names
