"""Documents for training: datasets, batches, and which documents keep their label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.processes import launched
from gloss_graph.text import UNLABELED, Corpus, FeatureEncoder, Splits, TextEncoder
from gloss_graph.training.config import TrainConfig, check_label_draw


class TextDataset(Dataset[dict[str, Any]]):
    """A corpus, tokenized once, or its features.

    Items hold the tokens, `labels` (-1 = unlabeled; for label sets a row of targets), `ids`, the
    stable document identity that the memory bank needs, and a row of `frozen` (N, D') if given.
    """

    def __init__(
        self, corpus: Corpus, encoder: TextEncoder | FeatureEncoder, frozen: Tensor | None = None
    ) -> None:
        if frozen is not None and frozen.size(0) != len(corpus):
            raise ValueError(
                f"'frozen' must hold one row per document (got {frozen.size(0)} for {len(corpus)})."
            )
        self.corpus, self.frozen = corpus, frozen
        self._labels = label_tensor(corpus)
        self._features: Sequence[Mapping[str, Any]] = encoder.items(corpus)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {
            **self._features[index],
            "labels": self._labels[index] if self.corpus.multilabel else self.corpus.labels[index],
            "ids": self.corpus.ids[index],
        }
        return item if self.frozen is None else {**item, "frozen": self.frozen[index]}


class TextCollator:
    """Pads the tokens of a batch and stacks labels and, unless `ids=False`, identities."""

    def __init__(self, encoder: TextEncoder | FeatureEncoder, *, ids: bool = True) -> None:
        self._encoder, self._ids = encoder, ids

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch of `input_ids`, `attention_mask`, ... (B, L), `labels` and `ids` (B,), `frozen`.

        For label sets `labels` is (B, C) float.
        """
        batch = self._encoder.collate(items)
        labels = [item["labels"] for item in items]
        sets = bool(labels) and isinstance(labels[0], Tensor)
        batch["labels"] = torch.stack(labels) if sets else torch.tensor(labels, dtype=torch.long)
        if self._ids:
            batch["ids"] = torch.tensor([item["ids"] for item in items], dtype=torch.long)
        if items and "frozen" in items[0]:
            batch["frozen"] = torch.stack([item["frozen"] for item in items])
        return batch


class MixedSampler(Sampler[int]):
    """Orders documents in blocks of `labeled` labeled and `unlabeled` unlabeled ones.

    Unlabeled documents pass once per epoch; labeled ones come round as often as needed, each round
    in a new order. Give the data loader `batch_size=labeled + unlabeled`.

    Args:
        labels: Class numbers of the documents, -1 = unlabeled.
        labeled: Labeled documents per batch.
        unlabeled: Unlabeled documents per batch; 0 leaves them out, and the labeled ones pass once
            per epoch.
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
        if self._known.numel() == 0:
            raise ValueError("'labels' must hold a labeled document (got none).")
        if unlabeled and self._unknown.numel() == 0:
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
            return math.ceil(self._unknown.numel() / self.unlabeled)
        return math.ceil(self._known.numel() / self.labeled)

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
            order = torch.randperm(self._unknown.numel(), generator=generator)
            # The last block is filled from the front.
            wanted = torch.arange(self.blocks * self.unlabeled) % order.numel()
            unknown = self._unknown[order[wanted]]
        for block in range(self.blocks):
            yield from known[block * self.labeled : (block + 1) * self.labeled].tolist()
            yield from unknown[block * self.unlabeled : (block + 1) * self.unlabeled].tolist()

    def _rounds(self, wanted: int, generator: torch.Generator) -> Tensor:
        """`wanted` labeled positions, each as often as the others (or its class as often)."""
        if not self.balanced:
            return _cycled(self._known, wanted, generator)
        classes = self._labels[self._known].unique()
        turns = _cycled(classes, wanted, generator)
        out = torch.empty(wanted, dtype=torch.long)
        for label in classes.tolist():
            places = (turns == label).nonzero().squeeze(1)
            members = self._known[self._labels[self._known] == label]
            out[places] = _cycled(members, places.numel(), generator)
        return out


def _cycled(values: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    rounds = max(1, math.ceil(wanted / values.numel()))
    orders = [values[torch.randperm(values.numel(), generator=generator)] for _ in range(rounds)]
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


def draw_labels(
    corpus: Corpus, *, fraction: float | None = None, per_class: int | None = None, seed: int = 0
) -> list[int]:
    """Choose the documents that keep their label: their positions in ascending order.

    Draws a `fraction` of the labeled documents of every class, at least one, or `per_class` of them
    (all of a smaller class). The draw depends on the seed alone, so that every method sees the same
    documents.

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
        drawn.extend(rng.permutation(members)[:wanted].tolist())
    return sorted(drawn)


def hide_labels(corpus: Corpus, kept: Sequence[int]) -> Corpus:
    """The same documents with the labels of all but the `kept` positions hidden."""
    shown = set(kept)
    if corpus.label_sets is not None:
        sets = [labels if i in shown else None for i, labels in enumerate(corpus.label_sets)]
        return replace(corpus, label_sets=sets)
    labels = [label if i in shown else UNLABELED for i, label in enumerate(corpus.labels)]
    return replace(corpus, labels=labels)


def with_few_labels(
    splits: Splits, *, fraction: float | None, per_class: int | None, seed: int
) -> Splits:
    """The splits with only the training labels that `draw_labels` draws; all if neither is set."""
    if fraction is None and per_class is None:
        return splits
    kept = draw_labels(splits.train, fraction=fraction, per_class=per_class, seed=seed)
    return replace(splits, train=hide_labels(splits.train, kept))


def with_unlabeled(splits: Splits, unlabeled: Corpus) -> Splits:
    """Add documents without labels to the training part, with ids above all others.

    Labels of the unlabeled documents are dropped. A text may also occur in the validation or test
    part: it carries no label.
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
