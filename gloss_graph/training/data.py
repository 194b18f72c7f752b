"""Documents for training: datasets, batches, draws of labels, embeddings kept on disk."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.files import atomic_write, clear_drafts
from gloss_graph._internal.processes import launched
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.text import UNLABELED, Corpus, FeatureEncoder, Splits, TextEncoder
from gloss_graph.text.checkpoints import folder_digest
from gloss_graph.training.config import TrainConfig, check_label_draw

# ------------------------------------------------------------------ datasets and batches


class TextDataset(Dataset[dict[str, Any]]):
    """A corpus, tokenized once, or its features.

    Items hold the tokens, `labels` (-1 = unlabeled; for label sets a row of targets), `ids`, the
    stable document identity that the memory bank needs, and a row of `frozen` (N, D') if given.
    """

    def __init__(
        self, corpus: Corpus, encoder: TextEncoder | FeatureEncoder, frozen: Tensor | None = None
    ) -> None:
        if frozen is not None and len(frozen) != len(corpus):
            raise ValueError(
                f"'frozen' must hold one row per document (got {len(frozen)} for {len(corpus)})."
            )
        self.corpus, self.frozen = corpus, frozen
        self._labels: Any = label_tensor(corpus) if corpus.multilabel else corpus.labels
        self._features: Sequence[Mapping[str, Any]] = encoder.items(corpus)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        known = {"labels": self._labels[index], "ids": self.corpus.ids[index]}
        frozen = {} if self.frozen is None else {"frozen": self.frozen[index]}
        return {**self._features[index], **known, **frozen}


class TextCollator:
    """Pads the tokens of a batch and stacks labels and, unless `ids=False`, identities."""

    def __init__(self, encoder: TextEncoder | FeatureEncoder, *, ids: bool = True) -> None:
        self._encoder, self._ids = encoder, ids

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch of `input_ids`, `attention_mask`, ... (B, L), `labels` and `ids` (B,), `frozen`.

        For label sets `labels` is (B, C) float.
        """
        batch = self._encoder.collate(items)
        for name in ("labels", "ids", "frozen"):
            if name in items[0] and (name != "ids" or self._ids):
                batch[name] = torch.stack([torch.as_tensor(item[name]) for item in items])
        return batch


class MixedSampler(Sampler[int]):
    """Orders documents in blocks of `labeled` labeled and `unlabeled` unlabeled ones.

    Unlabeled documents pass once per epoch; labeled ones come round as often as needed, each round
    in a new order. Give the data loader `batch_size=labeled + unlabeled`.

    Args:
        labels: Class numbers of the documents, -1 = unlabeled.
        labeled: Labeled documents per batch.
        unlabeled: Those per batch; 0 leaves them out, and labeled ones pass once per epoch.
        balanced: Draw labeled documents with equal shares of the classes.
        seed: Fixes all orders, together with the epoch.

    Example:
        >>> sampler = MixedSampler([0, 1, -1, -1, -1], labeled=1, unlabeled=2)
        >>> [index < 2 for index in sampler]
        [True, False, False, True, False, False]
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        labeled: int,
        unlabeled: int,
        balanced: bool = False,
        seed: int = 0,
    ) -> None:
        check_positive_int("labeled", labeled)
        check_positive_int("unlabeled", unlabeled, minimum=0)
        self._labels = torch.tensor(list(labels), dtype=torch.long)
        self._known = (self._labels >= 0).nonzero().squeeze(1)
        self._unknown = (self._labels < 0).nonzero().squeeze(1)
        if not len(self._known):
            raise ValueError("'labels' must hold a labeled document (got none).")
        if unlabeled and not len(self._unknown):
            raise ValueError("'labels' must hold an unlabeled document for unlabeled > 0.")
        self.labeled, self.unlabeled = labeled, unlabeled
        self.balanced, self.seed, self.epoch = balanced, seed, 0

    @classmethod
    def of(cls, config: TrainConfig, labels: Sequence[int]) -> MixedSampler:
        """The batches of a run over documents with these labels."""
        mixes = config.loss_spec.uses_unlabeled and min(labels) < 0
        return cls(
            labels,
            labeled=config.batch_size,
            unlabeled=config.unlabeled_batch_size if mixes else 0,
            balanced=config.class_balance,
            seed=config.seed,
        )

    @property
    def blocks(self) -> int:
        """Batches per epoch."""
        if self.unlabeled:
            return math.ceil(len(self._unknown) / self.unlabeled)
        return math.ceil(len(self._known) / self.labeled)

    def __len__(self) -> int:
        return self.blocks * (self.labeled + self.unlabeled)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        known = self._rounds(self.blocks * self.labeled, generator)
        unknown = torch.empty(0, dtype=torch.long)
        if self.unlabeled:
            order = torch.randperm(len(self._unknown), generator=generator)
            # The last block is filled from the front.
            unknown = self._unknown[order[torch.arange(self.blocks * self.unlabeled) % len(order)]]
        parts = known.view(-1, self.labeled), unknown.view(self.blocks, self.unlabeled)
        yield from torch.cat(parts, dim=1).flatten().tolist()

    def _rounds(self, wanted: int, generator: torch.Generator) -> Tensor:
        """`wanted` labeled positions, each as often as the others (or its class as often)."""
        if not self.balanced:
            return _cycled(self._known, wanted, generator)
        classes = self._labels[self._known].unique()
        turns = _cycled(classes, wanted, generator)
        drawn = torch.empty_like(turns)
        for label in classes.tolist():
            places = (turns == label).nonzero().squeeze(1)
            members = (self._labels == label).nonzero().squeeze(1)
            drawn[places] = _cycled(members, len(places), generator)
        return drawn


def _cycled(values: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    rounds = max(1, math.ceil(wanted / len(values)))
    orders = [values[torch.randperm(len(values), generator=generator)] for _ in range(rounds)]
    return torch.cat(orders)[:wanted]


def steps_of(config: TrainConfig, labels: Sequence[int]) -> int:
    """Optimizer steps of a run over documents with these labels (-1 = unlabeled)."""
    if config.max_steps:
        return config.max_steps
    # Several processes share the batches of an epoch.
    batches = math.ceil(MixedSampler.of(config, labels).blocks / launched())
    return math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def label_tensor(corpus: Corpus) -> Tensor:
    """Labels as objectives take them: (N,) long, or targets (N, C) float of label sets."""
    if corpus.multilabel:
        return torch.from_numpy(corpus.targets)
    return torch.tensor(corpus.labels, dtype=torch.long)


# ------------------------------------------------------------------ labels


def draw_labels(
    corpus: Corpus, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> list[int]:
    """Choose the documents that keep their label: their positions in ascending order.

    Draws a `fraction` of the labeled documents of every class, at least one, or `per_class` of them
    (all of a smaller class). It depends on the seed alone: every method sees the same documents.

    Example:
        >>> corpus = Corpus(["a", "b", "c"], [0, 0, 1], [0, 1, 2], ["x", "y"])
        >>> len(draw_labels(corpus, per_class=1))
        2
    """
    if corpus.multilabel:
        raise ValueError("'corpus' must hold class numbers to draw labels of (got label sets).")
    if (fraction is None) == (per_class is None):
        raise ValueError("Give either 'fraction' or 'per_class' (got both or neither).")
    check_label_draw(fraction, per_class)
    labels = np.asarray(corpus.labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    for label in range(corpus.num_classes):
        members = np.flatnonzero(labels == label)
        wanted = per_class if fraction is None else max(1, round(fraction * members.size))
        drawn += rng.permutation(members)[:wanted].tolist()
    return sorted(drawn)


def hide_labels(corpus: Corpus, kept: Sequence[int]) -> Corpus:
    """The same documents with the labels of all but the `kept` positions hidden."""
    shown = set(kept)
    if corpus.label_sets is not None:
        sets = [found if i in shown else None for i, found in enumerate(corpus.label_sets)]
        return replace(corpus, label_sets=sets)
    labels = [label if i in shown else UNLABELED for i, label in enumerate(corpus.labels)]
    return replace(corpus, labels=labels)


def with_few_labels(
    splits: Splits, *, fraction: float | None, per_class: int | None, seed: int
) -> Splits:
    """The splits with only the training labels that `draw_labels` draws; all without a setting."""
    if fraction is None and per_class is None:
        return splits
    kept = draw_labels(splits.train, fraction=fraction, per_class=per_class, seed=seed)
    return replace(splits, train=hide_labels(splits.train, kept))


def with_unlabeled(splits: Splits, unlabeled: Corpus) -> Splits:
    """Add documents to the training part, with ids above all others and their labels dropped.

    A text may also occur in the validation or test part: it carries no label.
    """
    train = splits.train
    if (train.texts_b is None) != (unlabeled.texts_b is None):
        raise ValueError("'unlabeled' must hold pairs exactly if the training documents do.")
    if train.features is not None or unlabeled.features is not None:
        raise ValueError("'splits' must get its features after the unlabeled documents join it.")
    first = splits.next_id
    joined = replace(
        train,
        texts=train.texts + unlabeled.texts,
        labels=train.labels + [UNLABELED] * len(unlabeled),
        ids=train.ids + list(range(first, first + len(unlabeled))),
        texts_b=None if train.texts_b is None else train.texts_b + (unlabeled.texts_b or []),
        label_sets=train.label_sets and train.label_sets + [None] * len(unlabeled),
    )
    return replace(splits, train=joined)


# ------------------------------------------------------------------ embeddings kept on disk


def cache_folder() -> Path:
    """Folder for embeddings: `GLOSS_GRAPH_CACHE`, else `gloss-graph` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("GLOSS_GRAPH_CACHE") or f"{base}/gloss-graph").expanduser()


def encoder_identity(
    name: str, *, pooling: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """Name and options that tell an encoder of `load_encoder` from others.

    A folder keeps its name when another model is saved there, so a digest of its files is added.

    Example:
        >>> encoder_identity("minilm", max_length=64)
        {'encoder': 'minilm', 'pooling': None, 'max_length': 64}
    """
    found: dict[str, Any] = {"encoder": name, "pooling": pooling, "max_length": max_length}
    folder = Path(name).expanduser()
    if name != "minilm" and folder.is_dir():
        found["files"] = folder_digest(folder)
    return found


def recorded_embeddings(
    parts: Mapping[str, Corpus],
    make_encoder: Callable[[], TextEncoder],
    identity: Mapping[str, Any] | None,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Embeddings (N, D) of every part by a frozen encoder; computed once, then read.

    They are kept in the `folder`, by default in the user's cache, under the `identity` of the
    encoder, see `encoder_identity`; without an identity nothing is kept.
    """
    file: Path | None = None
    if identity:
        content = repr([documents_digest(parts.values()), sorted(identity.items())])
        key = hashlib.sha256(content.encode()).hexdigest()[:20]
        file = Path(folder or cache_folder()) / "embeddings" / f"{key}.safetensors"
        with suppress(SafetensorError, OSError):
            stored = load_file(file)
            if all(_fits(stored.get(name), part) for name, part in parts.items()):
                return {name: stored[name] for name in parts}
    encoder = make_encoder().eval()
    rows = {
        name: encoder.embed(part, batch_size=64, progress=progress).float().contiguous()
        for name, part in parts.items()
    }
    if file is None:
        return rows
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Drafts of all names: the embeddings of a killed process may never be needed again.
        clear_drafts(file.parent)
        with atomic_write(file, overwrite=True) as draft:
            draft.write(save(rows))
    except OSError as error:
        warnings.warn(
            f"The embeddings are not kept for the next time, as {file.parent} cannot be written "
            f"({error.strerror or error}). Name another folder in GLOSS_GRAPH_CACHE.",
            UserWarning,
            stacklevel=2,
        )
    return rows


def _fits(rows: Tensor | None, part: Corpus) -> bool:
    """Whether recorded rows are finite ones of the documents."""
    if rows is None or rows.dim() != 2 or len(rows) != len(part):
        return False
    return rows.is_floating_point() and bool(rows.isfinite().all())
