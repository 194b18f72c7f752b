"""Sources of the rows of a document graph: arrays, a bank, an encoder and a file, a run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gloss_graph._internal.checks import check_matrix
from gloss_graph._internal.limits import read_tensors
from gloss_graph.memory import MemoryBank
from gloss_graph.runs import RunFolder
from gloss_graph.text import (
    Corpus,
    FeatureEncoder,
    TextEncoder,
    load_encoder,
    load_saved_encoder,
    read_features,
    read_table,
)
from gloss_graph.text.corpora import string_list
from gloss_graph.text.readers import joined_texts, read_again
from gloss_graph.text.tables import has_column

__all__ = ["Source", "SourceRows", "class_names", "read_corpus", "read_source"]

Source = Tensor | np.ndarray | MemoryBank | Corpus | str | Path
_FEATURES = (".npy", ".pt", ".safetensors")
_BANK = {"slot_labels", "slot_ids", "count"}


class SourceRows(NamedTuple):
    """N documents: `rows` (N, D) floating, `labels` (N,) long with -1 for none, `ids` (N,) long.

    `texts` (N) and the class names are None if unknown.
    """

    rows: Tensor
    labels: Tensor
    ids: Tensor
    texts: list[str] | None
    label_names: list[str] | None


def read_source(
    source: Source,
    *,
    documents: Corpus | str | Path | None,
    encoder: TextEncoder | FeatureEncoder | str | None,
    labels: Any,
    ids: Any,
    texts: Sequence[str] | None,
    label_names: Sequence[str] | None,
    columns: dict[str, str | None],
    max_length: int | None,
    progress: bool,
) -> SourceRows:
    """Collect rows, labels, ids and texts; `document_graph` lists the combinations.

    Raises:
        TypeError: A source of another kind.
        ValueError: Files, lengths or settings that do not fit.
    """
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and path.is_dir():
        _only_with(encoder is None, "encoder", "a run has one")
        found = _of_run(path, documents, columns, texts is None, progress)
    elif path is not None and path.suffix in _FEATURES:
        _only_with(encoder is None, "encoder", "features are embeddings")
        bank = _saved_bank(path)
        if bank is not None:
            _only_with(documents is None, "documents", "a bank holds its documents")
            found = bank
        else:
            found = _of_rows(torch.from_numpy(read_features(path)), documents, columns)
    elif isinstance(source, MemoryBank):
        _only_with(encoder is None and documents is None, "documents", "a bank holds its documents")
        targets = source.num_classes is not None
        found = _of_bank(source.embeddings, source.labels, source.ids, targets)
    elif isinstance(source, (Tensor, np.ndarray)):
        _only_with(encoder is None, "encoder", "features are embeddings")
        rows = torch.as_tensor(source).detach().cpu()
        found = _of_rows(rows, documents, columns)
    elif isinstance(source, Corpus) or path is not None:
        _only_with(documents is None, "documents", "the source is the documents")
        corpus = source if isinstance(source, Corpus) else read_corpus(source, columns, None)
        found = _of_corpus(corpus, _embedded(corpus, encoder, max_length, progress))
    else:
        raise TypeError(
            "'source' must be features, a MemoryBank, a Corpus or a path (got "
            f"{type(source).__name__})."
        )
    return _overridden(found, labels, ids, texts, label_names)


def _only_with(fine: bool, name: str, why: str) -> None:
    if not fine:
        raise ValueError(f"'{name}' must be left out here: {why}.")


def _of_rows(
    rows: Tensor, documents: Corpus | str | Path | None, columns: dict[str, str | None]
) -> SourceRows:
    check_matrix("source", rows)
    size = rows.size(0)
    if documents is None:
        return SourceRows(rows, torch.full((size,), -1), torch.arange(size), None, None)
    corpus = documents if isinstance(documents, Corpus) else read_corpus(documents, columns, None)
    if len(corpus) != size:
        raise ValueError(
            f"'documents' must have one document per row of features (got {len(corpus)} for "
            f"{size})."
        )
    return _of_corpus(corpus, rows)


def _of_corpus(corpus: Corpus, rows: Tensor) -> SourceRows:
    _one_label(corpus)
    names = corpus.label_names or None
    labels, ids = torch.tensor(corpus.labels), torch.tensor(corpus.ids)
    return SourceRows(rows, labels, ids, joined_texts(corpus), names)


def _one_label(corpus: Corpus) -> None:
    if corpus.multilabel:
        raise ValueError(
            "'documents' must have one label each (got label sets). Leave the label column out."
        )


def _of_bank(rows: Tensor, labels: Tensor, ids: Tensor, targets: bool) -> SourceRows:
    if targets:
        raise ValueError("'source' must be a bank of class numbers (got one of label sets).")
    rows = rows.detach().cpu().float()
    labels, ids = labels.detach().cpu().clone(), ids.detach().cpu().clone()
    if ids.numel() and int(ids.min()) < 0:
        ids = torch.arange(rows.size(0))  # no identities were given, so positions name the rows
    return SourceRows(rows, labels, ids, None, None)


def _saved_bank(path: Path) -> SourceRows | None:
    """The bank in a file of tensors, alone or within an objective; None for other tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"'source' must be a file or a run folder ({path} is neither).")
    state: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                if any(name.endswith("slot_ids") for name in names):
                    state = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"'source' cannot be read from {path} ({error}).") from error
    elif path.suffix == ".pt":
        try:
            loaded = read_tensors(path)
        except Exception as error:  # damaged files raise errors without a common base
            raise ValueError(f"'source' cannot be read from {path} ({error}).") from error
        named = isinstance(loaded, dict) and all(isinstance(name, str) for name in loaded)
        state = loaded if named else {}
    prefix = next((n.removesuffix("slot_ids") for n in state if n.endswith("slot_ids")), None)
    if prefix is None:
        return None
    try:
        if f"{prefix}rows.codes" in state:
            raise ValueError(
                "it is of a bank with 'bits', which version 0.2 removed; fill it again"
            )
        rows = state.get(f"{prefix}rows")
        if rows is not None:
            check_matrix("rows", rows)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"'source' must be the state of a MemoryBank ({path}: {error})."
        ) from error
    missing = sorted(name for name in _BANK if prefix + name not in state)
    if rows is None or missing:
        missing += ["rows"] if rows is None else []
        raise ValueError(f"'source' must be the state of a MemoryBank ({path} lacks {missing}).")
    _check_slots(path, state, prefix, len(rows))
    count = int(state[prefix + "count"])
    labels, ids = (state[prefix + name][:count] for name in ("slot_labels", "slot_ids"))
    return _of_bank(rows[:count], labels, ids, prefix + "slot_targets" in state)


def _check_slots(path: Path, state: dict[str, Any], prefix: str, size: int) -> None:
    """Raise for a bank whose labels, ids or count do not fit its rows."""
    shapes = {"slot_labels": (size,), "slot_ids": (size,), "count": ()}
    for name, shape in shapes.items():
        value = state[prefix + name]
        if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != shape:
            raise ValueError(
                f"'source' must be the state of a MemoryBank ('{name}' in {path} does not go with "
                f"its {size} rows)."
            )
    count = int(state[prefix + "count"])
    if not 0 <= count <= size:
        raise ValueError(
            f"'source' must be the state of a MemoryBank ({path} counts {count} of {size} rows)."
        )


def _of_run(
    folder: Path,
    documents: Corpus | str | Path | None,
    columns: dict[str, str | None],
    with_texts: bool,
    progress: bool,
) -> SourceRows:
    names = class_names(folder)
    if documents is not None:
        encoder = load_saved_encoder(RunFolder(folder).model)
        corpus = documents
        if not isinstance(corpus, Corpus):
            corpus = read_corpus(corpus, columns, names)
        return _of_corpus(corpus, _embedded(corpus, encoder, None, progress))
    found = _saved_bank(RunFolder(folder).objective)
    if found is None:
        raise ValueError(f"'source' holds no bank ({folder}). Name 'documents' to embed.")
    texts = _training_texts(folder, found.ids.tolist()) if with_texts else None
    return found._replace(texts=texts, label_names=names)


def class_names(folder: Path) -> list[str]:
    """Names of the classes of a run.

    Raises:
        ValueError: Not a run folder.
    """
    return list(_run_settings(folder)["data"]["classes"])


def _run_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = RunFolder(folder).settings()
        names = settings["data"]["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its config.json has no list of classes")
        RunFolder(folder).check_digests(settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'source' must be a folder written by gloss-graph train ({folder}: {error})."
        ) from error
    return settings


def _training_texts(folder: Path, ids: list[int]) -> list[str]:
    """Texts of a run's training documents; "" with a warning for those that are unknown.

    The run holds the texts of its labeled documents. The others are read from the training files
    if these have not changed.
    """
    try:
        used = RunFolder(folder).read_labels_used()
    except (OSError, ValueError) as error:
        raise ValueError(f"'source' must be a whole run folder ({folder}: {error}).") from error
    shown = used.texts
    if used.texts_b is not None:
        shown = [f"{one}\n{two}" for one, two in zip(shown, used.texts_b, strict=True)]
    known: dict[int, str] = dict(zip(used.ids, shown, strict=True))
    files = _run_settings(folder).get("files")
    listed = files if isinstance(files, list) else []
    problems = [] if listed else [f"{folder} does not say which files its documents are from."]
    for described in listed:
        try:
            corpus = read_again(described)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        else:
            known.update(zip(corpus.ids, joined_texts(corpus), strict=True))
    missing = sum(id_ not in known for id_ in ids)
    if missing and problems:
        warnings.warn(
            f"The texts of {missing:,} of {len(ids):,} documents are left empty: "
            f"{' '.join(problems)} Put back the file as it was in training, or name 'texts'; "
            "other documents go to 'documents' (--input).",
            UserWarning,
            stacklevel=6,
        )
    return [known.get(id_, "") for id_ in ids]


def read_corpus(
    file: str | Path | Any, columns: dict[str, str | None], names: list[str] | None
) -> Corpus:
    """Read a table; without a named label column, the column `label` if there is one."""
    label = columns["label"]
    if label is None and has_column(file, "label"):
        label = "label"
    return read_table(
        file,
        text=columns["text"],
        label=label,
        text_b=columns["text_b"],
        label_names=names if label is not None else None,
    )


def _embedded(
    corpus: Corpus,
    encoder: TextEncoder | FeatureEncoder | str | None,
    max_length: int | None,
    progress: bool,
) -> Tensor:
    _one_label(corpus)
    if encoder is None:
        if corpus.features is None:
            raise ValueError(
                "'encoder' must be given for documents without features. Try encoder='minilm'."
            )
        return torch.from_numpy(corpus.features)
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, max_length=max_length)
    return encoder.embed(corpus, progress=progress)


def _overridden(
    found: SourceRows,
    labels: Any,
    ids: Any,
    texts: Sequence[str] | None,
    label_names: Sequence[str] | None,
) -> SourceRows:
    size = found.rows.size(0)
    if labels is not None:
        found = found._replace(labels=_integers("labels", labels, size, -1))
    if ids is not None:
        found = found._replace(ids=_integers("ids", ids, size, 0))
    if texts is not None:
        found = found._replace(texts=string_list("texts", texts))
    if label_names is not None:
        found = found._replace(label_names=string_list("label_names", label_names))
    if found.texts is not None and len(found.texts) != size:
        raise ValueError(f"'texts' must hold one per document (got {len(found.texts)} for {size}).")
    names = found.label_names
    if names is not None and size and int(found.labels.max()) >= len(names):
        raise ValueError(
            f"'label_names' must name every class (got {len(names)} names for class "
            f"{int(found.labels.max())}). Add the missing names."
        )
    return found


def _integers(name: str, values: Any, size: int, low: int) -> Tensor:
    column = torch.as_tensor(values).detach().cpu()
    if column.shape != (size,) or (size and column.dtype.is_floating_point):
        raise ValueError(
            f"'{name}' must hold one integer per document (got {column.dtype} of the shape "
            f"{tuple(column.shape)} for {size} documents)."
        )
    if size and int(column.min()) < low:
        raise ValueError(f"'{name}' must be at least {low} (got {int(column.min())}).")
    return column.long()
