"""A made-up corpus, a tiny classifier and a short training of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text.tiny_models import WORDS, build_model, build_tokenizer
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.analysis import classification_scores
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.training import (
    GraphGuidedTrainer,
    RunResult,
    TextClassifier,
    TextCollator,
    TextDataset,
    TrainConfig,
    train_text,
)

CLASSES = ["graphs", "labels", "numbers"]
DIM = 16
MAX_LENGTH = 12
_TOPICS = (WORDS[2:5], WORDS[5:8], WORDS[8:11])


def tiny_corpus(size: int, *, seed: int = 0, first_id: int = 0, topical: float = 0.7) -> Corpus:
    """Documents of 4 to 9 words, of which a share names the topic; classes take turns."""
    source = random.Random(seed)
    labels = [number % len(CLASSES) for number in range(size)]
    texts = [
        " ".join(
            source.choice(_TOPICS[label] if source.random() < topical else WORDS)
            for _ in range(source.randint(4, 9))
        )
        for label in labels
    ]
    return Corpus(texts, labels, list(range(first_id, first_id + size)), CLASSES, name="tiny")


def tiny_splits(train: int = 36, val: int = 12, test: int = 15, *, seed: int = 0) -> Splits:
    return Splits(
        tiny_corpus(train, seed=seed),
        tiny_corpus(val, seed=seed + 1, first_id=train),
        tiny_corpus(test, seed=seed + 2, first_id=train + val) if test else None,
    )


def tiny_encoder(family: str = "bert") -> TextEncoder:
    model, tokenizer = build_model(family), build_tokenizer(family)
    return TextEncoder(model, tokenizer, pooling="mean", max_length=MAX_LENGTH)


def tiny_classifier(family: str = "bert", *, dropout: bool = True, seed: int = 0) -> TextClassifier:
    """A classifier; without dropout every forward pass gives the same numbers."""
    model = TextClassifier(tiny_encoder(family), CLASSES, dropout=0.1, seed=seed)
    if not dropout:
        without_dropout(model)
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout_prob", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def tiny_objective(capacity: int = 64, *, seed: int = 0, **settings: Any) -> GraphGuidedObjective:
    bank = MemoryBank(capacity, DIM, k=4)
    return GraphGuidedObjective(len(CLASSES), memory=bank, k=4, seed=seed, **settings)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    """Training arguments without reports, checkpoints and gradient clipping unless asked for."""
    defaults: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 5,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(folder), **{**defaults, **settings})


class RecordingCollator:
    """A collator that keeps every batch it made."""

    def __init__(self, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]]) -> None:
        self.collate = collate
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate(items)
        self.batches.append({name: value.clone() for name, value in batch.items()})
        return batch


class GradientRecorder(TrainerCallback):
    """Keeps the gradients every optimizer step is made from."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(gradients(kwargs["model"]))


class StopAt(TrainerCallback):
    """Ends a training after some step, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            control.should_training_stop = control.should_save = True


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.grad.detach().clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }


def scores(prediction: Any) -> dict[str, float]:
    logits = np.asarray(prediction.predictions)
    return classification_scores(logits.argmax(axis=1), np.asarray(prediction.label_ids))


def make_trainer(
    folder: Path,
    model: nn.Module,
    objective: GraphGuidedObjective | None,
    *,
    documents: Corpus | None = None,
    evaluated: Corpus | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    sgd: bool = False,
    embed: Any = None,
    compute_metrics: Any = scores,
    **settings: Any,
) -> GraphGuidedTrainer:
    """A trainer over the tiny corpus, whose collator records the batches."""
    encoder = model.encoder if isinstance(model, TextClassifier) else tiny_encoder()
    optimizers: tuple[Any, Any] = (None, None)
    if sgd:
        optimizers = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    trainer = GraphGuidedTrainer(
        model,
        arguments(folder, **settings),
        objective=objective,
        embed=embed,
        train_dataset=TextDataset(documents or tiny_corpus(24), encoder),
        eval_dataset=None if evaluated is None else TextDataset(evaluated, encoder),
        data_collator=RecordingCollator(TextCollator(encoder)),
        compute_metrics=compute_metrics,
        optimizers=optimizers,
        callbacks=list(callbacks),
    )
    return trainer


def quick(**settings: Any) -> TrainConfig:
    defaults = {"max_steps": 4, "batch_size": 8, "eval_steps": 2, "k": 4, "learning_rate": 1e-3}
    return TrainConfig(**{**defaults, **settings})


def run(out: Path, config: TrainConfig | None = None, splits: Splits | None = None) -> RunResult:
    return train_text(splits or tiny_splits(), tiny_encoder(), config or quick(), out)
