"""The parts that TextGCN and BertGCN share: settings, documents as nodes, scores and storage."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected
from transformers import set_seed

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.folders import newest_whole, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph._internal.timing import StageClock
from gloss_graph.analysis.measures import classification_scores
from gloss_graph.baselines.word_graph import (
    CLEANINGS,
    COUNTINGS,
    STOP_WORDS,
    cleaning_notes,
    word_document_graph,
)
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.config import DEVICES, check_label_draw

_TENSORS, SETTINGS_FILE = "graph_model.safetensors", "graph_model.json"
_FORMAT = "gloss_graph.graph_model.1"
_WEIGHTS = "weights."

#: Called before the first step and after each: steps done, and the most there will be.
Watch: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class GraphModelConfig:
    """Settings of both models.

    Attributes:
        window: Words of a sliding window.
        min_count: Words that are rarer in all documents together are left out.
        stop_words: Leave out English stop words. TextGCN takes `min_count=1, stop_words=False` for
            the short texts of MR.
        cleaning: "unicode" keeps the letters of every script; "published" those of ASCII alone,
            as the released code of TextGCN does.
        counting: Counting of co-occurrences, see `word_document_graph`.
        dropout: Dropout on the input of the last graph layer.
        epochs: The most passes over the training documents.
        patience: Epochs without gain before training stops, where there is a validation part.
        seed: Seed of weights, order and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        label_fraction: Share of the training labels that is used; None = all.
        labels_per_class: The same as a number per class.
        pictures: Record embeddings before, during and after training.
    """

    model: ClassVar[str]

    window: int = 20
    min_count: int = 5
    stop_words: bool = True
    counting: str = "pairs"
    cleaning: str = "unicode"
    dropout: float = 0.5
    epochs: int = 200
    patience: int = 10
    seed: int = 0
    device: str = "auto"
    label_fraction: float | None = None
    labels_per_class: int | None = None
    pictures: bool = True

    def __post_init__(self) -> None:
        least = {"window": 2, "min_count": 1, "epochs": 1, "patience": 1, "seed": 0}
        for name, minimum in least.items():
            check_positive_int(name, getattr(self, name), minimum)
        known = {"counting": COUNTINGS, "cleaning": CLEANINGS, "device": DEVICES}
        for name, choices in known.items():
            check_choice(name, getattr(self, name), choices)
        check_range("dropout", self.dropout, 0, 1, open_high=True)
        check_label_draw(self.label_fraction, self.labels_per_class)


class GraphModel:
    """Base of the two estimators: documents are nodes, recognized by id and text.

    Attributes:
        history: A row per epoch: losses and validation scores.
        clock: Seconds per stage.
        graph: The graph, after `fit`.
        label_names: Names of the C classes.
        labels: (N,) long, -1 outside the training part and where unlabeled.
        val_labels: (N,) long, the same of the validation part.
    """

    def __init__(self, config: GraphModelConfig) -> None:
        self.config = config
        self.history: list[dict[str, float]] = []
        self.clock = StageClock()
        self.steps = self.best_step = 0

    def begin(self, splits: Splits) -> Corpus:
        """Seed the process and build the graph of all parts; returns them in the order of nodes."""
        config, train, names = self.config, splits.train, splits.train.label_names
        expected = {
            "one class per document": not train.multilabel,
            "single texts": train.texts_b is None,
            "texts": train.features is None,
        }
        for what, found in expected.items():
            if not found:
                raise ValueError(f"'splits' must hold {what} for this model (got others).")
        if len(names) < 2:
            raise ValueError(
                f"'splits' must name at least two classes (got {names}). Check the column of the "
                "labels."
            )
        if max(train.labels, default=-1) < 0:
            raise ValueError("'splits.train' must hold a labeled document (got none). Label some.")
        set_seed(config.seed)
        self.label_names = names
        parts = splits.parts.values()
        corpus = Corpus(
            [text for part in parts for text in part.texts],
            [label for part in parts for label in part.labels],
            [id_ for part in parts for id_ in part.ids],
            names,
        )
        truth, place = torch.tensor(corpus.labels), torch.arange(len(corpus))
        last = len(train) + (0 if splits.val is None else len(splits.val))
        self.labels = torch.where(place < len(train), truth, -1)
        self.val_labels = torch.where((place >= len(train)) & (place < last), truth, -1)
        with self.clock.timed("graph"):
            self.graph = word_document_graph(
                corpus.texts,
                window=config.window,
                min_count=config.min_count,
                stop_words=STOP_WORDS if config.stop_words else (),
                counting=config.counting,
                cleaning=config.cleaning,
            )
        notes = cleaning_notes(corpus.texts, config.cleaning)
        if empty := len(self.graph.empty):  # they stay nodes
            notes.append(
                f"{empty} of {len(corpus)} documents hold no word that is kept, so the graph says "
                "nothing of them. Lower min_count or keep the stop words."
            )
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=3)
        self._identities = torch.tensor(_identities(corpus))
        return corpus

    def find(self, corpus: Corpus) -> Tensor:
        """(B,) long node of every document, -1 for one that was not in `fit`."""
        nodes = {(id_, text): node for node, (id_, text) in enumerate(self._identities.tolist())}
        return torch.tensor([nodes.get(pair, -1) for pair in _identities(corpus)]).long()

    def note_validation(self, spread: Tensor) -> dict[str, float]:
        """Add the scores of log-probabilities (N, C) on the validation part to the last epoch."""
        held_out = self.val_labels >= 0
        spread, labels = spread[held_out], self.val_labels[held_out]
        scores = classification_scores(spread.argmax(dim=1).numpy(), labels.numpy())
        row = {"cross_entropy": nn.functional.nll_loss(spread, labels).item(), **scores}
        self.history[-1] |= {f"val_{name}": value for name, value in row.items()}
        return row

    @contextmanager
    def watched(
        self, most: int, watch: Watch | None, progress: bool
    ) -> Iterator[Callable[[], None]]:
        """Show progress on standard error and call `watch`; yields a function to call per step."""
        if watch is not None:
            watch(0, most)
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
            task = bar.add_task(self.config.model, total=most)

            def tick() -> None:
                bar.advance(task)
                if watch is not None:
                    watch(self.steps, most)

            yield tick

    def write_graph_files(
        self, folder: Path, network: nn.Module, settings: dict[str, Any], **tensors: Tensor
    ) -> None:
        """Write a network, the graph and the identities of its documents into a folder."""
        graph, (ids, prints) = self.graph, self._identities.T
        once = graph.edge_index[0] < graph.edge_index[1]
        everything = {
            **network.state_dict(prefix=_WEIGHTS),
            "edges": graph.edge_index[:, once].int(),
            "weights": graph.edge_weight[once],
            "empty": torch.tensor(graph.empty, dtype=torch.long),
            "ids": ids,
            "prints": prints,
            **tensors,
        }
        plain = {name: value.detach().cpu().contiguous() for name, value in everything.items()}
        with atomic_write(folder / _TENSORS, overwrite=True) as draft:
            draft.write(save(plain))
        content = {"format": _FORMAT, "model": self.config.model, "config": asdict(self.config)}
        write_json(folder / SETTINGS_FILE, {**content, **settings, "words": graph.words})

    def place_graph(self, words: list[str], tensors: Mapping[str, Tensor]) -> None:
        """Take the graph and the identities of stored tensors."""
        self._identities = torch.stack([tensors["ids"], tensors["prints"]], dim=1)
        half, weights = tensors["edges"].long(), tensors["weights"]
        size = len(self._identities) + len(words)
        edges, weights = to_undirected(half, weights, num_nodes=size)
        self.graph = Data(
            edge_index=edges,
            edge_weight=weights,
            num_nodes=size,
            num_documents=len(self._identities),
            words=words,
            empty=tensors["empty"].tolist(),
        )


@contextmanager
def read_graph_model(
    folder: str | Path, model: str
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]]:
    """The settings, tensors and weights of a stored model; the errors of the block name it."""
    folder = newest_whole(folder)
    try:
        settings = read_object(folder / SETTINGS_FILE)
        if settings["format"] != _FORMAT or settings["model"] != model:
            raise ValueError(f"it holds {settings['model']!r}")
        tensors = load_file(folder / _TENSORS)
        named = [name for name in tensors if name.startswith(_WEIGHTS)]
        yield settings, tensors, {name.removeprefix(_WEIGHTS): tensors[name] for name in named}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"'folder' must be a {model} model saved by gloss_graph ({folder}: {error})."
        ) from error


def _identities(corpus: Corpus) -> list[tuple[int, int]]:
    """Id and digest of the text of every document."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in corpus.texts)
    numbers = (int.from_bytes(digest, "little", signed=True) for digest in digests)
    return list(zip(corpus.ids, numbers, strict=True))
