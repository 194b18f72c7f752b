"""The objective in a LightningModule."""

from __future__ import annotations

from gloss_graph._internal.extras import require

require("lightning", extra="lightning")

import math
from collections.abc import Mapping
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_range
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.processes import gather_rows, share_state, world_size
from gloss_graph.analysis.measures import classification_scores
from gloss_graph.objective import GraphGuidedObjective

__all__ = ["GraphGuidedModule"]


class GraphGuidedModule(lightning.LightningModule):
    """Encoder, head and `GraphGuidedObjective` as one LightningModule.

    Batches are mappings: the encoder's keyword arguments, `labels` (B,) (-1 = unlabeled) and
    `ids` (B,), the stable document identities; `frozen` (B, D') where the bank holds frozen
    features. `gloss_graph.training.TextCollator` makes them from texts.

    Every Lightning checkpoint holds bank and generator and loads with `weights_only=True`:
    `trainer.fit(..., ckpt_path=...)` continues with the bank as it was. Pass `encoder`, `objective`
    and `head` to `load_from_checkpoint`, with a bank of the same size.

    Logs `train_loss`, `train_graph_loss`, `train_cross_entropy`, `train_consistency`, and
    `val_accuracy`, `val_macro_f1` (`test_...`) of the head; without a head, of propagation over
    the bank. With several processes every bank takes the rows of all. All parts start in training
    mode; call `eval()` afterwards on parts that need no dropout.

    Args:
        encoder: Called with a batch's inputs as keyword arguments, returns embeddings (B, D).
        objective: The objective.
        head: (B, D) -> (B, C), for example `torch.nn.Linear`; None for standalone mode.
        learning_rate: Learning rate of the encoder (AdamW, linear decay after warm-up).
        head_learning_rate: Learning rate of the head.
        weight_decay: Weight decay of AdamW.
        warmup: Share of the steps with rising learning rate.
        reference: Make one more encoder pass per step, without dropout and gradient, for the rows
            of the bank and the targets.

    See also: `examples/07_lightning.py`; `GraphGuidedTrainer` for the Hugging Face Trainer.
    Override `configure_optimizers` for other optimizers.
    """

    def __init__(
        self,
        encoder: nn.Module,
        objective: GraphGuidedObjective,
        head: nn.Module | None = None,
        *,
        learning_rate: float = 5e-5,
        head_learning_rate: float = 5e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        reference: bool = False,
    ) -> None:
        super().__init__()
        if objective.multilabel:
            raise ValueError(
                "'objective' must be for class numbers here (got multilabel=True). Use "
                "GraphGuidedTrainer or your own loop for label sets."
            )
        check_range("learning_rate", learning_rate, 0, 1, open_low=True)
        check_range("head_learning_rate", head_learning_rate, 0, 1, open_low=True)
        check_range("weight_decay", weight_decay, 0, 1)
        check_range("warmup", warmup, 0, 1)
        self.encoder, self.objective, self.head = encoder, objective, head
        self.learning_rate, self.head_learning_rate = learning_rate, head_learning_rate
        self.weight_decay, self.warmup, self.reference = weight_decay, warmup, reference
        # Predicted classes, labels and ids of each batch of an evaluation.
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        # The objective stays equal on all processes; DDP would send the whole bank every step.
        buffers = objective.named_buffers("objective")
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in buffers]
        # Loaded encoders are in eval mode, and Lightning trains every part in the mode it is in.
        self.train()

    def forward(self, **inputs: Any) -> Tensor:
        """Logits (B, C) of a batch's inputs, embeddings (B, D) without a head."""
        embeddings: Tensor = self.encoder(**inputs)
        return embeddings if self.head is None else self.head(embeddings)

    def on_fit_start(self) -> None:
        """Start every process with the objective of process 0."""
        share_state(self.objective)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Loss of one batch; the bank takes it."""
        labels, inputs = _labels(batch), _inputs(batch)
        embeddings = self.encoder(**inputs)
        reference = None
        if self.reference:
            with torch.no_grad(), evaluating(self.encoder):
                reference = self.encoder(**inputs)
        loss: Tensor = self.objective(
            embeddings,
            labels,
            ids=batch.get("ids"),
            logits=None if self.head is None else self.head(embeddings),
            target_embeddings=reference,
            frozen=batch.get("frozen"),
        )
        for name, value in {"loss": loss.detach(), **self.objective.parts}.items():
            self.log(f"train_{name}", value, prog_bar=name == "loss", batch_size=labels.numel())
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Predict one batch."""
        labels, memory = _labels(batch), self.objective.memory
        if self.head is None and (memory is None or not bool(memory.labeled.any())):
            return  # nothing to propagate from yet
        ids = batch.get("ids")
        ids = torch.full_like(labels, -1) if ids is None else ids  # then every row counts
        self._seen.append((self.predict_step(batch, 0), labels, ids))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val_accuracy` and `val_macro_f1`."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log `test_accuracy` and `test_macro_f1`."""
        self._log_scores("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Predicted classes (B,) of one batch; it needs no labels."""
        found = self(**_inputs(batch))
        if self.head is None:
            ids, frozen = batch.get("ids"), batch.get("frozen")
            found = self.objective.predict(found, ids=ids, frozen=frozen)
        return found.argmax(dim=1)

    def _log_scores(self, split: str) -> None:
        if not self._seen:
            return
        columns = [gather_rows(torch.cat(part)) for part in zip(*self._seen, strict=True)]
        self._seen.clear()
        predicted, labels, ids = (column.cpu().numpy() for column in columns)
        if world_size() > 1 and (ids >= 0).all():
            # A sampler for several processes repeats documents to give all equally many.
            first = np.unique(ids, return_index=True)[1]
            predicted, labels = predicted[first], labels[first]
        if not (labels >= 0).any():
            return
        for name, value in classification_scores(predicted, labels).items():
            self.log(f"{split}_{name}", value, prog_bar=True, sync_dist=world_size() > 1)

    def configure_optimizers(self) -> Any:
        """AdamW with a rate for the encoder and one for the head; linear warm-up and decay."""
        parts = ((self.encoder, self.learning_rate), (self.head, self.head_learning_rate))
        groups = [
            {"params": [value for value in part.parameters() if value.requires_grad], "lr": rate}
            for part, rate in parts
            if part is not None
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            return optimizer
        rising = math.ceil(self.warmup * steps)

        def share(step: int) -> float:
            if step < rising:
                return (step + 1) / (rising + 1)
            return max(0.0, (steps - step) / max(1, steps - rising))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _labels(batch: Mapping[str, Any]) -> Tensor:
    if not isinstance(batch, Mapping) or batch.get("labels") is None:
        raise ValueError(
            "A batch must be a mapping with the encoder's inputs, 'labels' and 'ids'. The "
            "collate_fn of the DataLoader must pass them on."
        )
    return batch["labels"]


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name] for name in batch if name not in ("labels", "ids", "frozen")}
