"""The documents of a graph model: all parts of the splits in one order, known again by id."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch_geometric.data import Data

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.folders import newest_whole, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph.baselines.cleaning import STOP_WORDS, cleaning_notes
from gloss_graph.baselines.config import GraphModelConfig
from gloss_graph.baselines.word_graph import word_document_graph
from gloss_graph.text import Corpus, Splits

_TENSORS, SETTINGS_FILE = "graph_model.safetensors", "graph_model.json"
_FORMAT = "gloss_graph.graph_model.1"
_WEIGHTS = "weights."


class Watch(Protocol):
    """Looks on while a model is fitted."""

    def begin(self) -> None:
        """The model is made, nothing is trained."""

    def step(self, step: int, most: int) -> None:
        """Optimiser step number `step` of at most `most` is done."""


class Documents:
    """N documents as nodes 0..N-1.

    Args:
        splits: Parts; the nodes are those of train, val, test in this order.

    Attributes:
        labels: (N,) long classes to train by: -1 outside the training part and where unlabeled.
        val_labels: (N,) long, the same of the validation part.
        corpus: All documents.
    """

    def __init__(self, splits: Splits) -> None:
        parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
        for what, found in (
            ("one class a document", splits.train.multilabel),
            ("single texts", splits.train.texts_b is not None),
            ("texts", splits.train.features is not None),
        ):
            if found:
                raise ValueError(f"'splits' must hold {what} for this model (got others).")
        first = len(splits.train)
        self.corpus = Corpus(
            [text for part in parts for text in part.texts],
            [label for part in parts for label in part.labels],
            [id_ for part in parts for id_ in part.ids],
            splits.train.label_names,
        )
        truth = torch.tensor(self.corpus.labels)
        self.labels, self.val_labels = torch.full_like(truth, -1), torch.full_like(truth, -1)
        self.labels[:first] = truth[:first]
        if splits.val is not None:
            held_out = slice(first, first + len(splits.val))
            self.val_labels[held_out] = truth[held_out]

    @property
    def prior(self) -> Tensor:
        """(C,) shares of the classes among the training labels."""
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=self.corpus.num_classes)
        return counts / counts.sum()


def check_classes(documents: Documents) -> None:
    """Refuse documents that no classifier can be trained on.

    Raises:
        ValueError: Label sets, pairs, fewer than two class names, or no label to train by.
    """
    if documents.corpus.num_classes < 2:
        raise ValueError(
            f"'splits' must name at least two classes (got {documents.corpus.label_names}). "
            "Check the column of the labels."
        )
    if not bool((documents.labels >= 0).any()):
        raise ValueError("'splits.train' must hold a labeled document (got none). Label some.")


def graph_of(documents: Documents, config: GraphModelConfig) -> Data:
    """The graph of the documents; warns of those without a word, which stay nodes.

    Raises:
        ValueError: No word is left.
    """
    graph = word_document_graph(
        documents.corpus.texts,
        window=config.window,
        min_count=config.min_count,
        stop_words=STOP_WORDS if config.stop_words else (),
        counting=config.counting,
        cleaning=config.cleaning,
    )
    for note in cleaning_notes(documents.corpus.texts, config.cleaning):
        warnings.warn(note, UserWarning, stacklevel=3)
    if graph.empty:
        warnings.warn(
            f"{len(graph.empty)} of {graph.num_documents} documents hold no word that is kept, so "
            "the graph says nothing of them. Lower min_count or keep the stop words.",
            UserWarning,
            stacklevel=3,
        )
    return graph


class Places:
    """Which node a document is.

    Args:
        ids: (N,) int64 identities.
        prints: (N,) int64 digests of the texts.
    """

    def __init__(self, ids: Tensor, prints: Tensor) -> None:
        self.ids, self.prints = ids, prints
        pairs = zip(ids.tolist(), prints.tolist(), strict=True)
        self._places = {pair: place for place, pair in enumerate(pairs)}

    @classmethod
    def of(cls, corpus: Corpus) -> Places:
        """The places of documents in their order."""
        prints = torch.tensor([_print(text) for text in corpus.texts], dtype=torch.long)
        return cls(torch.tensor(corpus.ids), prints)

    def find(self, corpus: Corpus) -> Tensor:
        """(B,) long node of every document, -1 for one the model was not fitted with."""
        keys = ((id_, _print(text)) for id_, text in zip(corpus.ids, corpus.texts, strict=True))
        return torch.tensor([self._places.get(key, -1) for key in keys], dtype=torch.long)


def _print(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Stored(NamedTuple):
    """What `read_graph_model` found: settings, tensors, weights of the network, its documents."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]
    graph: Data
    places: Places


def save_graph_model(
    folder: Path,
    config: GraphModelConfig,
    network: nn.Module,
    graph: Data,
    places: Places,
    *,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a network, its graph and the identities of its documents into an existing folder.

    Every file is written atomically; `settings` and `tensors` are the model's own.
    """
    weights = {f"{_WEIGHTS}{name}": value for name, value in network.state_dict().items()}
    beside = {"ids": places.ids, "prints": places.prints, **tensors}
    everything = {**weights, **_packed_graph(graph), **beside}
    plain = {name: value.detach().cpu().contiguous() for name, value in everything.items()}
    with atomic_write(folder / _TENSORS, overwrite=True) as draft:
        draft.write(save(plain))
    content = {"format": _FORMAT, "model": config.model, "config": config.as_dict()}
    write_json(folder / SETTINGS_FILE, {**content, **(settings or {}), "words": graph.words})


@contextmanager
def read_graph_model(folder: str | Path, model: str) -> Iterator[Stored]:
    """What `save_graph_model` wrote, on the CPU.

    Raises:
        ValueError: The folder is missing, damaged or holds something else, also where what is
            made of it in the block does not fit.
    """
    folder = newest_whole(folder)
    try:
        settings = read_object(folder / SETTINGS_FILE)
        if settings["format"] != _FORMAT or settings["model"] != model:
            raise ValueError(f"it holds {settings['model']!r}")
        tensors = load_file(folder / _TENSORS)
        weights = {
            name.removeprefix(_WEIGHTS): value
            for name, value in tensors.items()
            if name.startswith(_WEIGHTS)
        }
        places = Places(tensors["ids"], tensors["prints"])
        graph = _unpacked_graph(tensors, settings["words"], places.ids.numel())
        yield Stored(settings, tensors, weights, graph, places)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"'folder' must be a {model} model saved by gloss_graph ({folder}: {error})."
        ) from error


def _packed_graph(graph: Data) -> dict[str, Tensor]:
    """Every edge once, in little space."""
    once = graph.edge_index[0] < graph.edge_index[1]
    return {
        "edges": graph.edge_index[:, once].int(),
        "weights": graph.edge_weight[once],
        "empty": torch.tensor(graph.empty, dtype=torch.long),
    }


def _unpacked_graph(tensors: Mapping[str, Tensor], words: list[str], documents: int) -> Data:
    """The graph `_packed_graph` packed."""
    half, weights = tensors["edges"].long(), tensors["weights"]
    edges = torch.cat([half, half.flip(0)], dim=1)
    size = documents + len(words)
    order = (edges[0] * size + edges[1]).argsort()
    return Data(
        edge_index=edges[:, order],
        edge_weight=torch.cat([weights, weights])[order],
        num_nodes=size,
        num_documents=documents,
        words=words,
        empty=tensors["empty"].tolist(),
    )
