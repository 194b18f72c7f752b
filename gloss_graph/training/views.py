"""Embeddings of the splits of a run, before training and as of now."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gloss_graph.text import FeatureEncoder, Splits, TextEncoder
from gloss_graph.training.config import TrainConfig


class Views:
    """Embeddings of the splits: `frozen`, before training, and `rows(name)`, as of now.

    Args:
        encoder: Of the run.
        splits: Its documents.
        config: Its settings; frozen embeddings are made only where `anchor` asks for them.
        given: Frozen embeddings from an earlier run, by split.
        progress: Show progress bars.

    Raises:
        ValueError: Another number of given rows than documents.
    """

    def __init__(
        self,
        encoder: TextEncoder | FeatureEncoder,
        splits: Splits,
        config: TrainConfig,
        given: Mapping[str, Tensor] | None,
        progress: bool,
    ) -> None:
        self._corpora = splits.parts
        self._encoder, self._config, self._progress = encoder, config, progress
        self.frozen: dict[str, Tensor] = {}
        unlabeled = any(label < 0 for label in splits.train.labels)
        if config.anchor > 0 and unlabeled and not config.loss_spec.in_batch:
            for name, corpus in self._corpora.items():
                rows = (given or {}).get(name)
                if rows is not None and rows.size(0) != len(corpus):
                    raise ValueError(
                        f"'frozen' must hold {len(corpus)} rows for {name!r} (got {rows.size(0)})."
                    )
                self.frozen[name] = self.rows(name) if rows is None else rows

    @property
    def dim(self) -> int:
        """Width of the frozen features, 0 where there are none."""
        return self.frozen["train"].size(1) if self.frozen else 0

    @property
    def start_rows(self) -> Tensor:
        """Embeddings (N, D) of the training documents before training."""
        return self.frozen["train"] if self.frozen else self.rows("train")

    def rows(self, name: str) -> Tensor:
        """Embeddings (N, D) of a split by the encoder as it is now, on the CPU."""
        corpus = self._corpora[name]
        device = next(self._encoder.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._config.bf16):
            size = self._config.eval_batch_size
            return self._encoder.embed(corpus, batch_size=size, progress=self._progress)
