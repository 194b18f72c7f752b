"""The graph of a whole corpus, from a run, a bank, an encoder and a file, or plain features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import (
    check_index_vector,
    check_matrix,
    check_positive_int,
    check_range,
)
from gloss_graph._internal.limits import read_tensors
from gloss_graph._internal.precision import unit_rows
from gloss_graph.graph import KNNGraph
from gloss_graph.graph.bandwidth import BandwidthRule, estimate_bandwidth, local_scales
from gloss_graph.graph.kernels import Kernel, weigh
from gloss_graph.graph.links import symmetrize_links
from gloss_graph.memory import MemoryBank
from gloss_graph.neighbors.corpus import corpus_neighbors
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
from gloss_graph.text.readers import read_again
from gloss_graph.text.tables import has_column

Documents = Corpus | str | Path | None
Encoder = TextEncoder | FeatureEncoder | str | None
Source = Tensor | np.ndarray | MemoryBank | Corpus | str | Path


class _Rows(NamedTuple):
    """N documents: `rows` (N, D) floating, `labels` (N,) long with -1 for none, `ids` (N,) long."""

    rows: Tensor
    labels: Tensor
    ids: Tensor
    texts: list[str] | None = None
    label_names: list[str] | None = None


@torch.no_grad()
def document_graph(
    source: Source,
    labels: Any = None,
    ids: Any = None,
    *,
    texts: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    documents: Documents = None,
    encoder: Encoder = None,
    text: str = "text",
    label: str | None = None,
    text_b: str | None = None,
    max_length: int | None = None,
    k: int = 16,
    symmetrize: str = "union",
    kernel: str | Kernel = "gaussian",
    bandwidth: float | str | BandwidthRule = "sqrt",
    min_weight: float = 0.0,
    normalize_embeddings: bool = True,
    keep_features: bool = False,
    exact_up_to: int = 50_000,
    probes: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Data:
    r"""Build the k-nearest-neighbor graph of a whole corpus, with its texts and labels.

    Edges and weights are those of `build_document_graph`. Up to `exact_up_to` documents every pair
    is compared; beyond, FAISS's inverted file finds nearly all neighbors (`recall` says how many).
    The same input gives the same graph.

    | source                                    | documents                                        |
    | ----------------------------------------- | ------------------------------------------------ |
    | a run folder                              | the training documents in the run's memory bank  |
    | a run folder, with `documents`            | other documents, embedded by its trained encoder |
    | `MemoryBank`, or a file of its state      | the stored rows                                  |
    | a table or `Corpus`, with `encoder`       | the documents, embedded by the encoder           |
    | (N, D) array, tensor, or a features file  | the rows, with `documents` for texts and labels  |

    The texts of a run are read again from its training files if these have not changed; the rows
    of a run with frozen features are the joint rows, learned and frozen. A bank's state is a
    `.safetensors` or `.pt` file of a bank or an objective, as `memory/` of a run holds. A features
    file is one that `read_features` takes, except `.parquet`, which is a table of documents here.

    Args:
        source: One of the table above.
        labels: (N,) integers, -1 = unlabeled; they replace those of the source.
        ids: (N,) distinct integers >= 0; they replace those of the source.
        texts: N strings; they replace those of the source.
        label_names: C class names; they replace those of the source.
        documents: Table or corpus, for a run or for features.
        encoder: `"minilm"`, a hub id, a folder or an encoder, for a table or corpus.
        text: Column of the texts.
        label: Column of the labels, by default `label` if there is one.
        text_b: Column of the second texts of pairs.
        max_length: Tokens kept per document, by default the encoder's.
        k: Neighbors per document. With k >= N - 1 all documents are connected.
        symmetrize: `"union"`: an edge if either document lists the other; `"mutual"`: if both do.
        kernel: Kernel of the edge weights, as in `build_document_graph`.
        bandwidth: \(\sigma\), a number or a rule, as in `build_document_graph`.
        min_weight: Edges of a smaller weight are dropped; documents may become isolated.
        normalize_embeddings: L2-normalize rows first.
        keep_features: Keep the rows (N, D) as `x`.
        exact_up_to: Most documents for an exact search.
        probes: Cells of the inverted file compared per document, by default 1 in 16.
        seed: Seed of the inverted file, and of the sample that measures its recall.
        progress: Show progress bars.

    Returns:
        `Data` with `edge_index` (2, E), undirected, coalesced, no self-loops; `edge_weight` (E,);
        `y`, `doc_id` and `seed_mask` (labeled) (N,); `in_degree` (N,), how many documents list one
        among their k, before edges are made undirected or dropped; `bandwidth`, NaN for `"local"`;
        `text` and `label_names`, if known; `k`, `symmetrize`, `min_weight`, `search` (`"exact"` or
        `"ivf"`) and `recall`. Documents that are all equal are connected to k others each, with
        weight 1.

    Raises:
        ValueError: Settings out of range; files, lengths or names that do not fit; features that
            are not finite; texts that are not strings.
        OSError: A missing file.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> data = document_graph(x, [0, -1, 1], texts=["tea", "cup", "train"], k=1, bandwidth=1.0)
        >>> data.edge_index.tolist(), data.text[1]
        ([[0, 1, 1, 2], [1, 0, 2, 1]], 'cup')

    See also: `write_graph`, for the result; `build_document_graph`, for a batch with gradient.
    """
    settings = KNNGraph(
        k=k,
        kernel=kernel,
        bandwidth=bandwidth,
        symmetrize=symmetrize,
        normalize=bool(normalize_embeddings),
    )
    check_range("min_weight", min_weight, 0.0, 1.0)
    check_positive_int("exact_up_to", exact_up_to, 0)
    if probes is not None:
        check_positive_int("probes", probes)
    columns = {"text": text, "label": label, "text_b": text_b}
    # Texts that the caller gives need not be read again.
    found = _read(source, documents, encoder, columns, max_length, texts is None, progress)
    size = len(found.rows)
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
    names, top = found.label_names, int(found.labels.max()) if size else -1
    if names is not None and top >= len(names):
        raise ValueError(
            f"'label_names' must name every class (got {len(names)} names for class {top}). Add "
            "the missing names."
        )
    check_matrix("source", found.rows, normalized=normalize_embeddings)
    rows = found.rows.float()
    x = unit_rows(rows) if normalize_embeddings else rows
    neighbors = corpus_neighbors(
        x, k, exact_up_to=exact_up_to, probes=probes, seed=seed, progress=progress
    )
    squared = neighbors.squared_distances
    listed = squared.isfinite()
    targets = neighbors.indices[listed]
    edge_index, link = symmetrize_links(listed.nonzero()[:, 0], targets, size, symmetrize)
    sigma, squared_sigma = x.new_tensor(torch.nan), x.new_ones(())
    if size and bandwidth == "local":
        squared_sigma = local_scales(squared)[edge_index].prod(dim=0)
    elif size:
        sigma = estimate_bandwidth(bandwidth, x, found.labels)
        squared_sigma = sigma.square()
    weight = weigh(settings.weight, squared[listed].index_select(0, link), squared_sigma)
    kept = weight >= min_weight
    data = Data(
        edge_index=edge_index[:, kept],
        edge_weight=weight[kept],
        y=found.labels,
        num_nodes=size,
        doc_id=found.ids,
        seed_mask=found.labels >= 0,
        in_degree=torch.bincount(targets, minlength=size),
        bandwidth=sigma,
    )
    known = {"text": found.texts, "label_names": names, "x": rows if keep_features else None}
    data.update({name: value for name, value in known.items() if value is not None})
    data.k, data.symmetrize, data.min_weight = k, symmetrize, float(min_weight)
    data.search, data.recall = neighbors.search, neighbors.recall
    return data


def _read(
    source: Source,
    documents: Documents,
    encoder: Encoder,
    columns: dict[str, Any],
    max_length: int | None,
    with_texts: bool,
    progress: bool,
) -> _Rows:
    """Rows, labels, ids and texts of a source; `document_graph` lists the combinations."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is not None and path.is_dir():
        _left_out("a run has one", encoder=encoder)
        return _of_run(path, documents, columns, with_texts, progress)
    bank = None
    if isinstance(source, MemoryBank):
        targets = source.num_classes is not None
        bank = _of_bank(source.embeddings, source.labels, source.ids, targets)
    elif path is not None and path.suffix in (".npy", ".pt", ".safetensors"):
        bank = _saved_bank(path)
        source = torch.from_numpy(read_features(path)) if bank is None else source
    if bank is not None:
        _left_out("a bank holds embedded documents", encoder=encoder, documents=documents)
        return bank
    if isinstance(source, (Tensor, np.ndarray)):
        _left_out("features are embeddings", encoder=encoder)
        rows = torch.as_tensor(source).detach().cpu()
        check_matrix("source", rows)
        if documents is None:
            return _Rows(rows, torch.full((len(rows),), -1), torch.arange(len(rows)))
        corpus = read_corpus(documents, columns)
        if len(corpus) != len(rows):
            raise ValueError(
                f"'documents' must have one document per row of features (got {len(corpus)} for "
                f"{len(rows)})."
            )
        return _of_corpus(corpus, rows)
    if isinstance(source, (Corpus, str, Path)):
        _left_out("the source is the documents", documents=documents)
        return _embedded(read_corpus(source, columns), encoder, max_length, progress)
    raise TypeError(
        "'source' must be features, a MemoryBank, a Corpus or a path (got "
        f"{type(source).__name__})."
    )


def _left_out(why: str, **values: Any) -> None:
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"'{name}' must be left out here: {why}.")


def _embedded(corpus: Corpus, encoder: Encoder, max_length: int | None, progress: bool) -> _Rows:
    if encoder is None and corpus.features is not None:
        return _of_corpus(corpus, torch.from_numpy(corpus.features))
    if encoder is None:
        raise ValueError(
            "'encoder' must be given for documents without features. Try encoder='minilm'."
        )
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, max_length=max_length)
    return _of_corpus(corpus, encoder.embed(corpus, progress=progress))


def _of_corpus(corpus: Corpus, rows: Tensor) -> _Rows:
    labels, ids, names = torch.tensor(corpus.labels), torch.tensor(corpus.ids), corpus.label_names
    return _Rows(rows, labels, ids, _joined(corpus.texts, corpus.texts_b), names or None)


def _joined(texts: list[str], texts_b: list[str] | None) -> list[str]:
    """The texts (N) to show, of pairs both with a line break between them."""
    if texts_b is None:
        return texts
    return [f"{one}\n{two}" for one, two in zip(texts, texts_b, strict=True)]


def _of_bank(rows: Tensor, labels: Tensor, ids: Tensor, targets: bool) -> _Rows:
    if targets:
        raise ValueError("'source' must be a bank of class numbers (got one of label sets).")
    rows = rows.detach().cpu().float()
    labels, ids = labels.detach().cpu().long().clone(), ids.detach().cpu().long().clone()
    if ids.numel() and int(ids.min()) < 0:
        ids = torch.arange(rows.size(0))  # no identities were given, so positions name the rows
    return _Rows(rows, labels, ids)


def _saved_bank(path: Path) -> _Rows | None:
    """The bank in a file of tensors, alone or within an objective; None for other tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"'source' must be a file or a run folder ({path} is neither).")
    state: Any = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if any(name.endswith("slot_ids") for name in names):
                    state = {name: file.get_tensor(name) for name in names}
        elif path.suffix == ".pt":
            state = read_tensors(path)
    except Exception as error:  # damaged files raise errors without a common base
        raise ValueError(f"'source' cannot be read from {path} ({error}).") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return None
    prefixes = [name.removesuffix("slot_ids") for name in state if name.endswith("slot_ids")]
    if not prefixes:
        return None
    state = {name.removeprefix(prefixes[0]): value for name, value in state.items()}
    try:
        if "rows.codes" in state:
            raise ValueError("of a bank with 'bits', which version 0.2 removed; fill it again")
        if missing := sorted({"rows", "slot_labels", "slot_ids", "count"} - set(state)):
            raise ValueError(f"it lacks {missing}")
        rows, labels, ids = (state[name] for name in ("rows", "slot_labels", "slot_ids"))
        check_matrix("rows", rows)
        check_index_vector("slot_labels", labels, len(rows))
        check_index_vector("slot_ids", ids, len(rows))
        count = int(state["count"])
        if not 0 <= count <= len(rows):
            raise ValueError(f"it counts {count} of {len(rows)} rows")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"'source' must be the state of a MemoryBank ({path}: {error})."
        ) from error
    return _of_bank(rows[:count], labels[:count], ids[:count], "slot_targets" in state)


def _of_run(
    folder: Path, documents: Documents, columns: dict[str, Any], with_texts: bool, progress: bool
) -> _Rows:
    run, settings = RunFolder(folder), _run_settings(folder)
    names = settings["data"]["classes"]
    if documents is not None:
        corpus = read_corpus(documents, columns, names)
        return _embedded(corpus, load_saved_encoder(run.model), None, progress)
    found = _saved_bank(run.objective)
    if found is None:
        raise ValueError(f"'source' holds no bank ({folder}). Name 'documents' to embed.")
    texts = _training_texts(run, settings, found.ids.tolist()) if with_texts else None
    return found._replace(texts=texts, label_names=names)


def class_names(folder: Path) -> list[str]:
    """Names of the classes of a run."""
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


def _training_texts(run: RunFolder, settings: dict[str, Any], ids: list[int]) -> list[str]:
    """Texts of a run's training documents; "" with a warning for those that are unknown."""
    try:
        used = run.read_labels_used()
    except (OSError, ValueError) as error:
        raise ValueError(f"'source' must be a whole run folder ({run.path}: {error}).") from error
    # Of labeled documents; the others are read again from files.
    known = dict(zip(used.ids, _joined(used.texts, used.texts_b), strict=True))
    files, problems = settings.get("files"), []
    if not isinstance(files, list) or not files:
        files, problems = [], [f"{run.path} does not say which files its documents are from."]
    for described in files:
        try:
            corpus = read_again(described)
            known.update(zip(corpus.ids, _joined(corpus.texts, corpus.texts_b), strict=True))
        except (OSError, ValueError) as error:
            problems.append(str(error))
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
    source: Corpus | str | Path, columns: dict[str, Any], names: list[str] | None = None
) -> Corpus:
    """Read a table; without a named label column, the column `label` if there is one."""
    if isinstance(source, Corpus):
        corpus = source
    else:
        if columns["label"] is None and has_column(source, "label"):
            columns = {**columns, "label": "label"}
        known = None if columns["label"] is None else names
        corpus = read_table(source, **columns, label_names=known)
    if corpus.multilabel:
        raise ValueError(
            "'documents' must have one label each (got label sets). Leave the label column out."
        )
    return corpus


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
