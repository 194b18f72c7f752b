"""Batches that mix labeled and unlabeled documents in a fixed proportion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.processes import launched
from gloss_graph.training.config import TrainConfig


class MixedSampler(Sampler[int]):
    """Orders documents so that every block of `labeled + unlabeled` of them is one such mixture.

    Unlabeled documents pass once an epoch; labeled ones come round as often as needed, each round
    in a new order. Give the data loader `batch_size=labeled + unlabeled`.

    Args:
        labels: Class numbers of the documents, -1 = unlabeled.
        labeled: Labeled documents a batch.
        unlabeled: Unlabeled documents a batch; 0 leaves them out, and the labeled ones pass once
            an epoch.
        balanced: Draw labeled documents with equal shares of the classes.
        seed: Of all orders; with the epoch it fixes them.

    Raises:
        ValueError: No labeled document, or none without label though some are asked for.

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
        known = torch.tensor(list(labels), dtype=torch.long)
        self._labels = known
        self._known = (known >= 0).nonzero().squeeze(1)
        self._unknown = (known < 0).nonzero().squeeze(1)
        if self._known.numel() == 0:
            raise ValueError("'labels' must hold a labeled document (got none).")
        if unlabeled and self._unknown.numel() == 0:
            raise ValueError("'labels' must hold an unlabeled document for unlabeled > 0.")
        self.labeled, self.unlabeled = labeled, unlabeled
        self.balanced, self.seed, self.epoch = balanced, seed, 0

    @classmethod
    def of(cls, config: TrainConfig, labels: Sequence[int]) -> MixedSampler:
        """The batches of a run over documents with these labels."""
        mixes = config.loss_spec.uses_unlabeled and any(label < 0 for label in labels)
        return cls(
            labels,
            labeled=config.batch_size,
            unlabeled=config.unlabeled_batch_size if mixes else 0,
            balanced=config.class_balance,
            seed=config.seed,
        )

    @property
    def blocks(self) -> int:
        """Batches an epoch."""
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

    def _rounds(self, wanted: int, generator: torch.Generator) -> torch.Tensor:
        """`wanted` labeled positions, every one as often as the others (or its class as often)."""
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


def steps_of(config: TrainConfig, labels: Sequence[int]) -> int:
    """Optimizer steps of a run over documents with these labels (-1 = unlabeled).

    Several processes share the batches of an epoch.
    """
    if config.max_steps:
        return config.max_steps
    batches = math.ceil(MixedSampler.of(config, labels).blocks / launched())
    return math.ceil(config.epochs * math.ceil(batches / config.gradient_accumulation))


def _cycled(values: torch.Tensor, wanted: int, generator: torch.Generator) -> torch.Tensor:
    rounds = math.ceil(wanted / values.numel()) if wanted else 0
    orders = [
        values[torch.randperm(values.numel(), generator=generator)] for _ in range(max(1, rounds))
    ]
    return torch.cat(orders)[:wanted]
