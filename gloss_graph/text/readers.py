"""Tables of documents on disk to corpora."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gloss_graph.text.corpora import SEPARATOR, UNLABELED, Corpus, Splits, stratified_draw
from gloss_graph.text.tables import Column, Table, read_columns

__all__ = ["read_splits", "read_table"]


class _Rows(NamedTuple):
    """A file's documents with their labels still as strings, None where there is none.

    `sets` are label sets, where these are read; `labels` then hold None.
    """

    path: Path
    texts: list[str]
    texts_b: list[str] | None
    labels: list[str | None]
    places: list[str]
    sets: list[list[str] | None] | None = None
    separator: str = SEPARATOR


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

    The suffix names the format: ``.csv``, ``.tsv``, ``.jsonl`` and ``.ndjson`` (each also with
    ``.gz``) or ``.parquet``. Text files are UTF-8, with or without a byte order mark.

    Texts are taken as they are: ``NA`` or ``null`` is a text like any other. Labels are read as
    strings without surrounding space, so ``0`` and ``00`` are two classes; numbers of JSON and
    Parquet become the strings that write them (a whole number without a decimal point). An empty
    label, a JSON null, an absent JSON key or a Parquet null makes a document unlabeled (-1). A
    ``-1`` in the file is a class like any other, with a warning that asks whether it is meant so.

    Args:
        path: The file.
        text: Column of the documents; None for documents without text, whose place in the file
            then stands for it.
        label: Column of the labels; None reads every document as unlabeled.
        text_b: Column of the second texts where documents are pairs. Never guessed: without it
            the documents are single texts, whatever columns the file has.
        label_names: The known classes in the order of their numbers. By default the distinct
            labels of the file, in numerical order if all are whole numbers and sorted otherwise.
        first_id: Identity of the first document; the others count on in the order of the file.
        quoting: Whether ``"`` encloses fields of a CSV or TSV file. False for files that quote
            nothing and use the character freely, such as GLUE's.
        allow_empty: Whether documents without a visible character are kept. By default they are
            an error that names the rows, for an encoder returns the same vector for all of them.
        separator: What separates the labels of a document of several classes; the corpus then has
            ``label_sets``. JSON and Parquet may hold lists instead. A document of no class is
            written as the bare separator or an empty list; an empty value is unlabeled. None: one
            label per document.

    Returns:
        The corpus, named after the file.

    Raises:
        ValueError: If the file is missing, empty, of an unknown format, malformed or not UTF-8;
            if a column is missing (the message lists those found); if a text is null, or empty
            without ``allow_empty``; if a label is not among ``label_names``.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "reviews.csv")
        ...     _ = file.write_text("text,label\nfine film,pos\nNA,neg\nno idea,\n")
        ...     corpus = read_table(file)
        >>> corpus.texts, corpus.labels, corpus.label_names
        (['fine film', 'NA', 'no idea'], [1, 0, -1], ['neg', 'pos'])
    """
    rows = _read_rows(
        path,
        text=text,
        label=label,
        text_b=text_b,
        quoting=quoting,
        allow_empty=allow_empty,
        separator=separator,
    )
    names = _label_names(rows) if label_names is None else list(label_names)
    return _corpus(rows, names, first_id, "'label_names'")


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

    Ids count through the training, validation and test file in this order. Without ``val`` a
    share of the labeled training documents is drawn, stratified by class (see
    :func:`~gloss_graph.text.stratified_draw`); classes with one member stay in the training part,
    and so do unlabeled documents.

    Args:
        train: The training file; it may hold unlabeled documents beside labeled ones.
        val: The validation file, or None to draw one.
        test: The test file, or None.
        text: Column of the documents, in every file; None as in :func:`read_table`.
        label: Column of the labels, in every file.
        text_b: Column of the second texts, in every file.
        val_fraction: Share of the labeled training documents to draw where ``val`` is None; 0
            draws none.
        seed: Of the draw.
        quoting: As in :func:`read_table`.
        allow_empty: As in :func:`read_table`.
        separator: As in :func:`read_table`. A drawn validation part is then not stratified.

    Returns:
        The parts; ``val`` is None only with ``val_fraction=0``.

    Raises:
        ValueError: As :func:`read_table`; also if the training file has fewer than two classes, or
            another file has a label that the training file lacks (the message names both).
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"'val_fraction' must be at least 0 and below 1 (got {val_fraction}). Try 0.1, or 0 "
            "for no validation part."
        )

    def rows_of(path: str | Path) -> _Rows:
        return _read_rows(
            path,
            text=text,
            label=label,
            text_b=text_b,
            quoting=quoting,
            allow_empty=allow_empty,
            separator=separator,
        )

    train_rows = rows_of(train)
    names = _label_names(train_rows)
    if len(names) < 2:
        raise ValueError(
            f"'train' must hold documents of at least two classes (got {len(names)} in "
            f"{train_rows.path}, column {label!r}). Label more documents, or name another column."
        )
    train_corpus = _corpus(train_rows, names, 0, "the training labels")
    splits = Splits(train_corpus)
    if val is not None:
        known = f"the labels of {train_rows.path}"
        splits = Splits(train_corpus, _corpus(rows_of(val), names, splits.next_id, known))
    elif val_fraction > 0:
        drawn = stratified_draw(train_corpus.labels, val_fraction, seed=seed)
        kept = sorted(set(range(len(train_corpus))).difference(drawn))
        splits = Splits(train_corpus.select(kept), train_corpus.select(drawn))
    if test is not None:
        known = f"the labels of {train_rows.path}"
        test_corpus = _corpus(rows_of(test), names, splits.next_id, known)
        splits = Splits(splits.train, splits.val, test_corpus)
    return splits


def _read_rows(
    path: str | Path,
    *,
    text: str | None,
    label: str | None,
    text_b: str | None,
    quoting: bool,
    allow_empty: bool,
    separator: str | None,
) -> _Rows:
    if separator is not None and not separator.strip():
        raise ValueError(f"'separator' must hold a visible character (got {separator!r}). Try ';'.")
    wanted = [name for name in (text, text_b, label) if name is not None]
    if len(set(wanted)) < len(wanted):
        raise ValueError(
            f"'text', 'text_b' and 'label' must name different columns (got {wanted}). Leave out "
            "'text_b' for single texts, or pass label=None for documents without labels."
        )
    table = read_columns(path, wanted, quoting=quoting)
    sets = None
    if separator is not None:
        sets = _label_sets(table, label, separator)
    labels: list[str | None] = [None] * len(table.places)
    if label is not None and separator is None:
        labels = [
            _label(table.path, label, value, place)
            for value, place in zip(table.columns[label], table.places, strict=True)
        ]
    _note_minus_one(table.path, label, labels, sets)
    return _Rows(
        path=table.path,
        texts=list(table.places)
        if text is None
        else _texts(table.path, text, table.columns[text], table.places, allow_empty),
        texts_b=None
        if text_b is None
        else _texts(table.path, text_b, table.columns[text_b], table.places, allow_empty),
        labels=labels,
        places=table.places,
        sets=sets,
        separator=separator or SEPARATOR,
    )


def _texts(
    path: Path, name: str, column: Column, places: list[str], allow_empty: bool
) -> list[str]:
    texts: list[str] = []
    empty: list[str] = []
    for value, place in zip(column, places, strict=True):
        if not isinstance(value, str):
            found = "null" if value is None else type(value).__name__
            raise ValueError(
                f"{path}: column {name!r} must hold strings (got {found} at {place}). Write the "
                "text as a string, or remove the row."
            )
        if not value.strip():
            empty.append(place)
        texts.append(_unicode(path, name, value, place))
    if empty and not allow_empty:
        listed = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"{path}: column {name!r} must not be empty (got {len(empty)} empty texts: {listed}). "
            "Remove the rows, or pass allow_empty=True to keep them."
        )
    return texts


def _unicode(path: Path, name: str, value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{path}: column {name!r} must hold valid Unicode (got half of a surrogate pair "
            f"at {place}). Correct the escape sequence."
        ) from None
    return value


def _label(path: Path, name: str, value: object, place: str) -> str | None:
    """The string of a label value, None where there is none."""
    if value is None or value != value:  # NaN, the null of tables that went through pandas
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float):
        return _unicode(path, name, str(value).strip(), place) or None
    raise ValueError(
        f"{path}: column {name!r} must hold one label per document (got "
        f"{type(value).__name__} at {place}). Write it as a string or a number."
    )


def _label_sets(table: Table, name: str | None, separator: str) -> list[list[str] | None]:
    """The strings of every document's labels, None where there is no value."""
    if name is None:
        return [None] * len(table.places)
    sets: list[list[str] | None] = []
    for value, place in zip(table.columns[name], table.places, strict=True):
        if isinstance(value, str):
            parts: list[object] | None = list(value.split(separator)) if value.strip() else None
        elif isinstance(value, list):
            parts = value
        else:
            one = _label(table.path, name, value, place)
            parts = None if one is None else [one]
        if parts is None:
            sets.append(None)
            continue
        found = [_label(table.path, name, part, place) for part in parts]
        if None in found and isinstance(value, list):
            raise ValueError(
                f"{table.path}: column {name!r} must hold lists of labels (got an empty one at "
                f"{place}). Write null for an unlabeled document and [] for one of no class."
            )
        sets.append(list(dict.fromkeys(label for label in found if label is not None)))
    return sets


def _note_minus_one(
    path: Path, name: str | None, labels: list[str | None], sets: list[list[str] | None] | None
) -> None:
    """Ask about a class that stands for "no label" in memory, and in many files."""
    named = [[label] for label in labels] if sets is None else [members or [] for members in sets]
    number = sum(bool({"-1", "-1.0"}.intersection(members)) for members in named)
    if number:
        warnings.warn(
            f"{path}: {number:,} documents have the label '-1' in column {name!r}. Does it mean "
            "unlabeled? It is read as the name of a class. For unlabeled documents leave the "
            "label empty.",
            UserWarning,
            stacklevel=4,
        )


def _label_names(rows: _Rows) -> list[str]:
    names = sorted({label for label in rows.labels if label is not None})
    if rows.sets is not None:
        names = sorted({label for members in rows.sets for label in members or ()})
    try:
        # Class numbers then equal the labels of files that number their classes from 0.
        return sorted(names, key=int) if all(str(int(name)) == name for name in names) else names
    except ValueError:
        return names


def _corpus(rows: _Rows, names: list[str], first_id: int, known: str) -> Corpus:
    numbers = {name: number for number, name in enumerate(names)}
    given = [[] if label is None else [label] for label in rows.labels]
    if rows.sets is not None:
        given = [members or [] for members in rows.sets]
    for members, place in zip(given, rows.places, strict=True):
        label = next((label for label in members if label not in numbers), None)
        if label is not None:
            shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
            raise ValueError(
                f"{rows.path}: label {label!r} at {place} is not among {known} ({shown}). Correct "
                "it, leave it empty for an unlabeled document, or give the class training "
                "documents."
            )
    labels = [numbers[members[0]] if members else UNLABELED for members in given]
    sets: list[list[int] | None] | None = None
    if rows.sets is not None:
        sets = [None if s is None else [numbers[label] for label in s] for s in rows.sets]
    return Corpus(
        rows.texts,
        labels,
        list(range(first_id, first_id + len(labels))),
        names,
        rows.texts_b,
        rows.path.name.split(".")[0],
        label_sets=sets,
        separator=rows.separator,
    )
