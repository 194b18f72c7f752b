"""Tokenised corpora as datasets, and the batches the trainer sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gloss_graph.text import Corpus, TextEncoder


class TextDataset(Dataset[dict[str, Any]]):
    """A corpus, tokenised once.

    Items hold the tokens, `labels` (-1 = unlabeled) and `ids`, the stable document identity the
    memory bank needs.

    Args:
        corpus: The documents.
        encoder: Whose tokenizer to use.
    """

    def __init__(self, corpus: Corpus, encoder: TextEncoder) -> None:
        self.corpus = corpus
        self._features = encoder.tokenize(corpus.texts, corpus.texts_b)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            **self._features[index],
            "labels": self.corpus.labels[index],
            "ids": self.corpus.ids[index],
        }


class TextCollator:
    """Pads the tokens of a batch and stacks labels and ids.

    Args:
        encoder: Whose padding to use.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch of `input_ids`, `attention_mask`, ... (B, L), `labels` (B,) and `ids` (B,)."""
        batch = self._encoder.collate(items)
        batch["labels"] = torch.tensor([item["labels"] for item in items], dtype=torch.long)
        batch["ids"] = torch.tensor([item["ids"] for item in items], dtype=torch.long)
        return batch
