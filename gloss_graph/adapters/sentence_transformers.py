"""The objective as a loss of Sentence Transformers."""

from __future__ import annotations

from gloss_graph._internal.extras import require

require("sentence_transformers", "datasets", extra="sentence-transformers")

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.processes import is_main, mean_over_processes, share_state, wait_for_all
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.training.checkpoints import (
    OBJECTIVE_FILE,
    check_model,
    load_objective,
    save_objective,
)

_CITATION = """
@misc{aditya2026gloss,
    title={G-Loss: Graph-Guided Fine-Tuning of Language Models},
    author={Sharma Aditya and Agarwal Vinti and Kumar Rajesh},
    year={2026},
    eprint={2604.25853},
    archivePrefix={arXiv},
    primaryClass={cs.CL}
}
"""
__all__ = ["OBJECTIVE_FILE", "GraphGuidedLoss", "ObjectiveCheckpoint", "document_ids"]


def document_ids(features: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Stable identities (B,) of tokenized texts: the same tokens and label, the same id.

    A 63-bit hash of the `input_ids` (B, L) under the `attention_mask` (B, L), if there is one, and
    of the label: independent of padding, order, process and run. A text that occurs with two labels
    is two documents; texts that differ only beyond the model's longest sequence are one.
    """
    tokens = features.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.size(0) != labels.numel():
        raise ValueError(
            "'features' must hold 'input_ids' with one row per document to tell documents apart "
            f"(got {sorted(features)}). Put ids into the label column: [label, id] per row."
        )
    mask = features.get("attention_mask")
    kept = torch.ones_like(tokens) if mask is None else mask
    rows = zip(tokens.cpu().long(), kept.cpu().bool(), labels.tolist(), strict=True)
    numbers = []
    for row, real, label in rows:
        content = np.array([*row[real].tolist(), label], dtype="<i8")
        digest = hashlib.blake2b(content.tobytes(), digest_size=8).digest()
        numbers.append(int.from_bytes(digest, "little") >> 1)
    return torch.tensor(numbers, dtype=torch.long, device=labels.device)


class GraphGuidedLoss(nn.Module):
    r"""A `GraphGuidedObjective` as a loss for `SentenceTransformerTrainer`.

    Datasets have one column of texts and a column `label` with class numbers, -1 = unlabeled, as
    for `BatchAllTripletLoss`. The Trainer passes only tokens and labels to a loss, so a document's
    identity is the hash of its tokens, see `document_ids`. To pass ids, make the label a pair
    `[label, id]` (with the default batch sampler).

    With a `head` the loss is \(\lambda L_G + (1 - \lambda) L_{CE}\) and the Trainer optimizes the
    head too; without one the encoder is trained by \(L_G\) alone. Evaluation stores nothing. The
    Trainer's checkpoints hold only the model: add `ObjectiveCheckpoint` to its callbacks to keep
    bank, generator and head with them. With several processes banks and head stay equal.

    Args:
        model: The SentenceTransformer that is trained.
        objective: The objective; its bank has `dim` D.
        head: (B, D) -> (B, C), for example `torch.nn.Linear`; None for standalone mode.

    See also: `examples/06_sentence_transformers.py`; `GraphGuidedTrainer` for classifiers.
    """

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer,
        objective: GraphGuidedObjective,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        dim, memory = model.get_embedding_dimension(), objective.memory
        if memory is not None and dim is not None and memory.dim != dim:
            raise ValueError(
                f"'objective' must have a bank of the model's dimension {dim} (got {memory.dim})."
            )
        # The Trainer replaces `model` by its wrapper for several processes.
        self.model = model
        self.objective = objective
        self.head = head
        self._shared = False
        for parameter in () if head is None else head.parameters():
            parameter.register_hook(mean_over_processes)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None) -> Tensor:
        """Loss of a batch, which the bank stores afterwards when training.

        There is one column, the tokens of B texts; the labels are (B,) integer classes, -1 =
        unlabeled, or (B, 2) pairs of class and id.
        """
        columns = list(sentence_features)
        if len(columns) != 1:
            raise ValueError(
                f"'sentence_features' must be one column of texts (got {len(columns)}). Remove "
                "the other columns of the dataset, ids too: put them into the labels."
            )
        if labels is None:
            raise ValueError("The dataset must have a column 'label' (-1 = unlabeled).")
        features = dict(columns[0])
        if labels.dim() == 2 and labels.size(1) == 2:
            labels, ids = labels.unbind(dim=1)
        else:
            labels = labels.reshape(-1)
            ids = document_ids(features, labels)
        self.objective.train(self.model.training)
        if self.model.training and not self._shared:
            # Once, before the first step of several processes.
            share_state(self._kept())
            self._shared = True
        embeddings = self.model(features)["sentence_embedding"]
        logits = None if self.head is None else self.head(embeddings)
        return self.objective(embeddings, labels, ids=ids, logits=logits)

    def _kept(self) -> nn.ModuleDict:
        """State outside the model."""
        parts = {"objective": self.objective, "head": self.head}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def prefill(
        self,
        texts: Sequence[str],
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        prompt: str | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> int:
        """Fill the bank with N texts as the model embeds them now; returns its number of rows.

        Labels (N,) are integer, -1 = unlabeled. Without `ids` (N,) they are hashed as in training,
        where a `prompt` of the Trainer counts.
        """
        memory = self.objective.memory
        if memory is None:
            raise ValueError("'objective' must have a 'memory' to fill (got None).")
        if labels.shape != (len(texts),):
            got = f"{tuple(labels.shape)} for {len(texts)}"
            raise ValueError(f"'labels' must hold one label per text (got {got}).")

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for rows in torch.arange(len(texts)).split(batch_size):
                features = self.model.preprocess([texts[row] for row in rows], prompt=prompt)
                names = document_ids(features, labels[rows]) if ids is None else ids[rows]
                features = batch_to_device(features, self.model.device)
                yield self.model(features)["sentence_embedding"], labels[rows], names

        with evaluating(self.model):
            return memory.prefill(batches(), lambda rows: rows, progress=progress)

    def save(self, file: str | Path) -> Path:
        """Write bank, generator and head to one safetensors file, with a digest of the model."""
        return save_objective(self._kept(), file, model=self.whole_model())

    def load(self, file: str | Path) -> None:
        """Restore what `save` wrote; nothing is changed unless all of it fits."""
        load_objective(self._kept(), file)

    def whole_model(self) -> nn.Module | None:
        """The model that is trained; None where a process holds only a part of it."""
        model: nn.Module = getattr(self.model, "module", self.model)
        weights = model.parameters()
        partly = any(isinstance(value, DTensor) or not value.numel() for value in weights)
        return None if partly else model

    def get_config_dict(self) -> dict[str, Any]:
        """Settings for the model card."""
        objective, graph = self.objective, self.objective.graph
        return {
            "num_classes": objective.num_classes,
            "memory": None if objective.memory is None else objective.memory.capacity,
            "k": graph.k,
            "bandwidth": getattr(graph.bandwidth, "__name__", graph.bandwidth),
            "rule": objective.propagation.rule,
            "normalization": objective.propagation.normalization,
            "visible_fraction": objective.visible_fraction,
            "graph_weight": None if self.head is None else objective.graph_weight,
        }

    @property
    def citation(self) -> str:
        """BibTeX of the paper."""
        return _CITATION


class ObjectiveCheckpoint(TrainerCallback):
    """Keeps bank, generator and head of a `GraphGuidedLoss` in the Trainer's checkpoints.

    They are restored when training resumes from a checkpoint in the output folder, and with the
    best model; a bank of a model with other weights is refused. Without this callback a resumed
    training starts with the bank it was given.
    """

    def __init__(self, loss: GraphGuidedLoss) -> None:
        self._loss = loss

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write the file into the checkpoint."""
        if is_main():
            self._loss.save(_file(args, state))

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Restore, where training resumes."""
        if state.global_step > 0:
            file, model = _file(args, state), self._loss.whole_model()
            if model is not None:
                # The Trainer does not say which folder it resumed from.
                check_model(model, file)
            self._loss.load(file)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Restore with the best model."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            wait_for_all()  # until process 0 has written it
            self._loss.load(Path(state.best_model_checkpoint) / OBJECTIVE_FILE)


def _file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / OBJECTIVE_FILE
