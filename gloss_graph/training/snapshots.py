"""Embeddings for the pictures of a run: before and after training, and a batch in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.folders import write_json
from gloss_graph._internal.labels import stratified_sample
from gloss_graph._internal.limits import read_object
from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.checkpoints import ends_epoch, has_ended

_ROWS, _NAMES = "data.safetensors", "data.json"
_FORMAT = "gloss_graph.snapshots.1"
_DOCUMENTS = 1000
#: Epochs whose end is recorded, at most; of more, every second, third, ...
_EPOCHS = 100
_PER_CLASS = 4


class _Embeds(Protocol):
    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor: ...


class FixedBatch(TrainerCallback):
    """Encodes the same few documents at the start of a training, on its way and at its end.

    A training gives the same numbers with and without it. The documents, `size` at most, are
    labeled ones, equally many per class, of the largest classes if need be, four each. There are
    at most `moments` passes on the way, denser at first; `warm_start` records the start too.
    """

    def __init__(
        self,
        encoder: _Embeds,
        corpus: Corpus,
        *,
        size: int = 64,
        moments: int = 4,
        warm_start: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        check_positive_int("moments", moments, minimum=0)
        self._corpus = corpus.select(_labeled_sample(corpus, size, balanced=True, seed=seed))
        self.labels, self.ids = torch.tensor(self._corpus.labels), torch.tensor(self._corpus.ids)
        #: Embeddings (B, D) of each pass, by its name: `"start"`, `"step 12"`, ...
        self.passes: dict[str, Tensor] = {}
        #: Embeddings (B, D) at ends of epochs; 0 is the start of the training.
        self.epochs: dict[float, Tensor] = {}
        self.seconds = 0.0
        self._encoder, self._batch_size = encoder, batch_size
        self._moments, self._warm_start = moments, warm_start
        self._steps: set[int] = set()
        self._every = 1
        self._last_epoch: float | None = None

    def take(self, name: str) -> None:
        """Encode the documents as of now."""
        self.passes[name] = self._encoded()

    def finish(self, name: str) -> None:
        """Encode the documents with the weights that are kept."""
        self.take(name)
        if self._last_epoch is not None:
            self.epochs[self._last_epoch] = self.passes[name]

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Choose the steps."""
        moments = self._moments
        new = state.global_step == 0 and state.is_world_process_zero
        if self._warm_start and moments:
            if new:
                self.take("warm start")
            moments -= 1
        if self.passes and new:
            self.epochs[0.0] = list(self.passes.values())[-1]
        self._every = max(1, -(-state.num_train_epochs // _EPOCHS))
        if (ended := has_ended(state)) or ends_epoch(state):
            # Its checkpoint may have been written just before.
            self._note_epoch(args, state, last=ended)
        last = max(state.max_steps, 0)
        shares = [((i + 1) / (moments + 1)) ** 1.5 for i in range(moments)]
        self._steps = {max(1, round(share * last)) for share in shares} - {last}

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Encode at a chosen step."""
        if state.global_step in self._steps and state.is_world_process_zero:
            self.take(f"step {state.global_step:,}")

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Encode after an epoch."""
        self._note_epoch(args, state, last=control.should_training_stop)

    def _note_epoch(self, args: TrainingArguments, state: TrainerState, *, last: bool) -> None:
        epoch, complete = round(state.epoch or 0.0, 6), state.global_step >= state.max_steps
        skipped = round(epoch) % self._every and not (last or complete)
        if not state.is_world_process_zero or skipped or epoch in self.epochs:
            return
        if complete and not args.load_best_model_at_end:
            # `finish` encodes these weights.
            self._last_epoch = epoch
            return
        taken = self.passes.get(f"step {state.global_step:,}")
        self.epochs[epoch] = self._encoded() if taken is None else taken

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keep the passes so far."""
        tensors = {f"rows.{i}": rows for i, rows in enumerate(self.passes.values())}
        tensors |= {f"epoch_rows.{i}": rows for i, rows in enumerate(self.epochs.values())}
        notes = {"names": list(self.passes), "epochs": list(self.epochs), "last": self._last_epoch}
        return tensors, notes

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Take the passes that were kept."""
        self.passes = {name: tensors[f"rows.{i}"] for i, name in enumerate(notes["names"])}
        self.epochs = {e: tensors[f"epoch_rows.{i}"] for i, e in enumerate(notes["epochs"])}
        self._last_epoch = notes["last"]

    def _encoded(self) -> Tensor:
        start = time.perf_counter()
        rows = self._encoder.embed(self._corpus, batch_size=self._batch_size)
        self.seconds += time.perf_counter() - start
        return rows


class Snapshots:
    """Records a run for its pictures.

    Made before training, when it embeds up to 1,000 labeled documents of the test part (else of
    the validation part, else of the training part) and the fixed batch. Known embeddings (N, D)
    before training are `frozen`, by split; `warm_start` tells of stages before the training.
    """

    def __init__(
        self,
        encoder: _Embeds,
        splits: Splits,
        frozen: Mapping[str, Tensor],
        *,
        warm_start: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        start = time.perf_counter()
        self._embed = partial(encoder.embed, batch_size=batch_size)
        self._splits = parts = splits.parts
        labeled = [
            part for part in ("test", "val") if part in parts and sum(parts[part].class_counts) >= 2
        ]
        self._name = next(iter(labeled), "train")
        self._batch_name = "val" if "val" in labeled else "train"
        batch = parts[self._batch_name]
        self._chosen = _labeled_sample(parts[self._name], _DOCUMENTS, seed=seed)
        self._some = parts[self._name].select(self._chosen)
        self._before = self._rows(frozen)
        #: The callback to give the Trainer.
        self.batch = FixedBatch(
            encoder, batch, warm_start=warm_start, batch_size=batch_size, seed=seed
        )
        self.batch.seconds = time.perf_counter() - start
        self.batch.take("start")

    @property
    def seconds(self) -> float:
        """Time spent on recording so far, which does not count as training."""
        return self.batch.seconds

    def write(
        self, out: Path, embeddings: Mapping[str, Tensor], metrics: Mapping[str, float]
    ) -> None:
        """Write `pictures/` into a run folder, with the encoder as it is now for the end.

        `embeddings` (N, D) at the end are known ones by split; `steps` and `best_step` of the
        `metrics` name the last pass over the batch.
        """
        batch, steps = self.batch, int(metrics.get("steps", 0))
        best = int(metrics.get("best_step", steps))
        batch.finish("end" if best == steps else f"end, kept step {best:,}")
        folder = RunFolder(out).pictures
        folder.mkdir(exist_ok=True)
        tensors = {
            "before": _compact(self._before),
            "after": _compact(self._rows(embeddings)),
            "labels": torch.tensor(self._some.labels),
            "ids": torch.tensor(self._some.ids),
            "batch": _compact(torch.stack([*batch.passes.values()])),
            "batch_labels": batch.labels,
            "batch_ids": batch.ids,
        }
        if batch.epochs:
            tensors["epochs"] = _compact(torch.stack([*batch.epochs.values()]))
        names = {
            "format": _FORMAT,
            "label_names": self._some.label_names,
            "split": self._name,
            "split_size": len(self._splits[self._name]),
            "batch_split": self._batch_name,
            "moments": list(batch.passes),
            "epochs": list(batch.epochs),
            "class_counts": {
                name: [*part.class_counts, len(part) - sum(part.class_counts)]
                for name, part in self._splits.items()
            },
        }
        with atomic_write(folder / _ROWS, overwrite=True) as draft:
            draft.write(save(tensors))
        write_json(folder / _NAMES, names)

    def _rows(self, known: Mapping[str, Tensor]) -> Tensor:
        """Rows of the chosen documents, from those of the split or by the encoder as of now."""
        if self._name in known:
            return known[self._name][torch.from_numpy(self._chosen)]
        return self._embed(self._some)


@dataclass(frozen=True)
class SnapshotData:
    """A record of `Snapshots`: N documents, B of the fixed batch, C classes.

    Attributes:
        label_names: C names.
        split: Part of the documents: `train`, `val` or `test`.
        split_size: Documents of that part.
        before: (N, D) float32 unit rows of the encoder before training.
        after: (N, D) the same after training.
        labels: (N,) int64.
        ids: (N,) int64.
        batch_split: Part of the batch.
        moments: Name of each pass -> (B, D) unit rows, in order.
        batch_labels: (B,) int64.
        epochs: Epochs passed -> (B, D) unit rows of the batch then, in order; 0 is the start of
            the training. Records of older versions have none.
        class_counts: Split name -> documents of each class and, last, without label; C + 1 values.
    """

    label_names: list[str]
    split: str
    split_size: int
    before: Tensor
    after: Tensor
    labels: Tensor
    ids: Tensor
    batch_split: str
    moments: dict[str, Tensor]
    batch_labels: Tensor
    epochs: dict[float, Tensor]
    class_counts: dict[str, list[int]]


def load_snapshots(folder: str | Path) -> SnapshotData | None:
    """Read the record of a run folder; None where the run made none.

    Raises:
        ValueError: The record is damaged or of another format.
    """
    folder = RunFolder(folder).pictures
    if not (folder / _NAMES).exists() and not (folder / _ROWS).exists():
        return None
    damages = OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError
    try:
        return _record(read_object(folder / _NAMES), load_file(folder / _ROWS))
    except (*damages, SafetensorError) as error:
        raise ValueError(
            f"'{folder.name}' of a run must be what training wrote ({folder}: {error}). Remove it "
            "to do without the pictures."
        ) from error


def _record(names: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SnapshotData:
    if names["format"] != _FORMAT:
        raise ValueError(f"unknown format {names['format']!r}")
    before, after, batch = (tensors[key].float() for key in ("before", "after", "batch"))
    labels, batch_labels = tensors["labels"], tensors["batch_labels"]
    classes, moments = (list(map(str, names[key])) for key in ("label_names", "moments"))
    epochs = list(map(float, names.get("epochs", ())))
    epoch_rows = tensors["epochs"].float() if epochs else batch[:0]
    size = batch_labels.numel()
    fits = (
        before.dim() == after.dim() == 2
        and before.size(0) == after.size(0) == labels.numel() > 0
        and batch.shape[:2] == (len(moments), size)
        and epoch_rows.shape[:2] == (len(epochs), size)
        and epochs == sorted(set(epochs))
        and int(torch.cat([labels, batch_labels]).max()) < len(classes)
        and all(bool(rows.isfinite().all()) for rows in (before, after, batch, epoch_rows))
    )
    if not fits:
        raise ValueError("its tensors do not fit together")
    counts = {str(part): list(map(int, found)) for part, found in names["class_counts"].items()}
    return SnapshotData(
        label_names=classes,
        split=str(names["split"]),
        split_size=int(names["split_size"]),
        before=before,
        after=after,
        labels=labels,
        ids=tensors["ids"],
        batch_split=str(names["batch_split"]),
        moments=dict(zip(moments, batch, strict=True)),
        batch_labels=batch_labels,
        epochs=dict(zip(epochs, epoch_rows, strict=True)),
        class_counts={p: found for p, found in counts.items() if len(found) == len(classes) + 1},
    )


def _labeled_sample(
    corpus: Corpus, size: int, *, balanced: bool = False, seed: int = 0
) -> np.ndarray:
    """Positions of up to `size` labeled documents, of any if none is labeled."""
    labels = np.asarray(corpus.labels, dtype=np.int64)
    known = np.flatnonzero(labels >= 0) if (labels >= 0).any() else np.arange(labels.size)
    if balanced:
        # A class of one or two documents has no block to see.
        found, counts = np.unique(labels[known], return_counts=True)
        largest = found[np.argsort(-counts, kind="stable")][: max(1, size // _PER_CLASS)]
        known = known[np.isin(labels[known], largest)]
    return known[stratified_sample(labels[known], size, balanced=balanced, seed=seed)]


def _compact(rows: Tensor) -> Tensor:
    """Unit rows in half precision: the angles are what the pictures show."""
    return torch.nn.functional.normalize(rows.float(), dim=-1).half().contiguous()
