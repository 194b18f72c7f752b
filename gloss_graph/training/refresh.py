"""Stale rows of the bank, encoded again while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.processes import gather_rows, rank, world_size
from gloss_graph.graph.rows import joint_view
from gloss_graph.memory import MemoryBank

if TYPE_CHECKING:
    from gloss_graph.training.trainer import GraphGuidedTrainer


class BankRefresh(TrainerCallback):
    """Encodes the stalest rows of the bank again every so many steps, see `MemoryBank.refresh`.

    Made from the training documents by the model as it is, without dropout, or by its teacher
    where there is one. Uses no random number and nothing but the count of steps, so a training
    that is resumed goes on as if it had not stopped. With several processes each encodes a share
    and every bank takes the rows of all.

    Args:
        trainer: Whose objective has a bank and whose data set names its documents' ids.
        rows: How many rows each time.
        every: Steps between two times.

    Raises:
        ValueError: `rows` or `every` below 1; no bank.

    Example:
        trainer.add_callback(BankRefresh(trainer, rows=64, every=10))
    """

    def __init__(self, trainer: GraphGuidedTrainer, rows: int, every: int) -> None:
        check_positive_int("rows", rows)
        check_positive_int("every", every)
        self._trainer, self._rows, self._every = trainer, rows, every
        self._place: dict[int, int] | None = None
        self._bank()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """After the optimizer's step, before a checkpoint is written."""
        if state.global_step % self._every == 0:
            with self._trainer.seconds.timed("refresh"):
                self._bank().refresh(self.encode, self._rows)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """Rows (n, D) of the bank for training documents with these ids (n,), as of now.

        Raises:
            ValueError: An id that no training document has.
        """
        bank, trainer = self._bank(), self._trainer
        mine = ids.tensor_split(world_size())[rank()].tolist()
        places = [self._find(id_) for id_ in mine]
        size = trainer.args.per_device_eval_batch_size
        device = bank.rows.device
        rows = [
            self._encode_batch(places[start : start + size]).to(device)
            for start in range(0, len(places), size)
        ]
        return gather_rows(
            torch.cat([torch.empty(0, bank.dim, dtype=torch.float32, device=device), *rows])
        )

    def _encode_batch(self, places: list[int]) -> Tensor:
        trainer = self._trainer
        dataset, collate = trainer.train_dataset, trainer.data_collator
        batch = trainer._prepare_inputs(collate([dataset[place] for place in places]))
        frozen = batch.pop("frozen", None)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "ids")}
        with trainer.compute_loss_context_manager():
            rows = trainer.calm_embeddings(inputs).float()
        return joint_view(rows, frozen, getattr(trainer.objective, "frozen_weight", 0.0))

    def _find(self, id_: int) -> int:
        if self._place is None:
            documents = self._trainer.train_dataset
            corpus = getattr(documents, "corpus", None)
            own = [int(item["ids"]) for item in documents] if corpus is None else corpus.ids
            self._place = {name: place for place, name in enumerate(own)}
        if id_ not in self._place:
            raise ValueError(
                f"The bank holds document {id_}, which is none of the training documents, so it "
                "cannot be encoded again. Fill the bank with training documents only."
            )
        return self._place[id_]

    def _bank(self) -> MemoryBank:
        memory = getattr(self._trainer.objective, "memory", None)
        if not isinstance(memory, MemoryBank):
            raise ValueError("'trainer' must have an objective with a memory bank (got none).")
        return memory
