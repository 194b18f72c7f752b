"""Tokenised corpora as datasets, and the batches the trainer sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gloss_graph.text import Corpus, FeatureEncoder, TextEncoder
from gloss_graph.training.multilabel import label_tensor


class TextDataset(Dataset[dict[str, Any]]):
    """A corpus, tokenised once, or its features.

    Items hold the tokens, `labels` (-1 = unlabeled; of label sets a row of targets) and `ids`, the
    stable document identity the memory bank needs.

    Args:
        corpus: The documents.
        encoder: Whose inputs to make.
        frozen: (N, D') features that travel with the documents, optional.

    Raises:
        ValueError: Another number of features than documents.
    """

    def __init__(
        self, corpus: Corpus, encoder: TextEncoder | FeatureEncoder, frozen: Tensor | None = None
    ) -> None:
        if frozen is not None and frozen.size(0) != len(corpus):
            raise ValueError(
                f"'frozen' must hold one row a document (got {frozen.size(0)} for {len(corpus)})."
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
    """Pads the tokens of a batch and stacks labels and ids.

    Args:
        encoder: Whose padding to use.
        ids: Pass identities on.
    """

    def __init__(self, encoder: TextEncoder | FeatureEncoder, *, ids: bool = True) -> None:
        self._encoder, self._ids = encoder, ids

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch of `input_ids`, `attention_mask`, ... (B, L), `labels` and `ids` (B,), `frozen`.

        Of label sets `labels` is (B, C) float.
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
