"""Models, collators and batches of other shapes; evaluation; what goes wrong and how it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_state, snapshot
from sklearn.metrics import accuracy_score, f1_score
from text.tiny_models import FAMILIES, SIZES, build_tokenizer
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
)

from gloss_graph.training import GraphGuidedTrainer, TextCollator, TextDataset

from .tiny import (
    CLASSES,
    DIM,
    RecordingCollator,
    arguments,
    make_trainer,
    scores,
    tiny_classifier,
    tiny_corpus,
    tiny_encoder,
    tiny_objective,
)


class Rows(Dataset):
    """Items with the tokens, the given columns and one the model does not know."""

    def __init__(self, size: int = 16, columns: tuple[str, ...] = ("labels", "ids")) -> None:
        self.rows = TextDataset(tiny_corpus(size), tiny_encoder())
        self.columns = columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.rows[index]
        kept = {name: item[name] for name in ("input_ids", "token_type_ids", *self.columns)}
        return {**kept, "title": f"document {index}"}


class MeanOfWords(nn.Module):
    """A model that is no transformer; it answers with a dict, a tuple or bare embeddings."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.words = nn.Embedding(SIZES["vocab_size"], DIM)
        self.head = nn.Linear(DIM, len(CLASSES))
        self.answer = answer

    def forward(self, input_ids: Tensor) -> Any:
        embeddings = self.words(input_ids).mean(dim=1)
        return self.answer(embeddings, self.head(embeddings))


def sequence_classifier() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        **SIZES,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=len(CLASSES),
        output_hidden_states=True,
    )
    return AutoModelForSequenceClassification.from_config(config)


def first_token(outputs: Any, inputs: dict[str, Any]) -> Tensor:
    assert "labels" not in inputs
    return outputs.hidden_states[-1][:, 0]


def only(*names: str) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """A collator that passes some columns on."""
    collate = TextCollator(tiny_encoder())

    def call(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        blank = {"labels": 0, "ids": 0}
        full = collate([{"token_type_ids": [0] * len(i["input_ids"]), **blank, **i} for i in items])
        return {name: full[name] for name in names}

    return call


def trainer_of(folder: Path, model: nn.Module, objective: Any, **options: Any) -> Any:
    settings = {
        name: options.pop(name) for name in list(options) if hasattr(arguments(folder), name)
    }
    options.setdefault("train_dataset", Rows())
    options.setdefault("data_collator", only("input_ids", "labels", "ids"))
    return GraphGuidedTrainer(model, arguments(folder, **settings), objective=objective, **options)


# ------------------------------------------------------------------ evaluation


def test_evaluation_asks_the_classifier_and_leaves_the_bank_alone(tmp_path: Path) -> None:
    model, objective = tiny_classifier(), tiny_objective()
    corpus = tiny_corpus(13, seed=5, first_id=100)
    trainer = make_trainer(tmp_path, model, objective, evaluated=corpus)
    trainer.train()
    before, asked = snapshot(objective), []
    objective.register_forward_pre_hook(lambda *_: asked.append(1))
    metrics = trainer.evaluate()
    prediction = trainer.predict(trainer.eval_dataset)
    assert asked == []
    assert_same_state(objective.state_dict(), before)
    assert prediction.predictions.shape == (13, len(CLASSES))
    predicted = prediction.predictions.argmax(axis=1)
    assert metrics["eval_accuracy"] == pytest.approx(accuracy_score(corpus.labels, predicted))
    expected = f1_score(corpus.labels, predicted, average="macro", zero_division=0)
    assert metrics["eval_macro_f1"] == pytest.approx(expected)
    with torch.no_grad():
        logits = model.eval()(**model.encoder.collate(model.encoder.tokenize(corpus.texts))).logits
    np.testing.assert_allclose(prediction.predictions, logits.numpy(), rtol=1e-4, atol=1e-5)
    cross_entropy = torch.nn.functional.cross_entropy(logits, torch.tensor(corpus.labels))
    assert metrics["eval_loss"] == pytest.approx(cross_entropy.item(), rel=1e-4)


def test_documents_without_labels_are_predicted(tmp_path: Path) -> None:
    """Batches without `labels` still hold `ids`, which the model must not meet."""
    model = tiny_classifier()
    trainer = make_trainer(tmp_path, model, tiny_objective())
    trainer.data_collator = only("input_ids", "attention_mask", "token_type_ids", "ids")
    blank = trainer.predict(Rows(7, columns=("ids",)))
    assert blank.label_ids is None
    assert blank.predictions.shape == (7, len(CLASSES))
    trainer.data_collator = TextCollator(model.encoder)
    labeled = trainer.predict(Rows(7))
    np.testing.assert_allclose(blank.predictions, labeled.predictions, rtol=1e-5, atol=1e-6)
    assert labeled.label_ids.tolist() == tiny_corpus(7).labels
    trainer.data_collator = only("input_ids", "attention_mask", "ids")
    trainer.compute_metrics = None
    assert "eval_loss" not in trainer.evaluate(Rows(7, columns=("ids",)))


def test_unlabeled_rows_count_in_no_score(tmp_path: Path) -> None:
    corpus = tiny_corpus(9)
    half = type(corpus)(
        corpus.texts, [*corpus.labels[:5], -1, -1, -1, -1], corpus.ids, corpus.label_names
    )
    trainer = make_trainer(tmp_path, tiny_classifier(), None, evaluated=half)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] in {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert np.isfinite(metrics["eval_loss"])


class Scripted(TrainerCallback):
    """Snapshots of model and objective at every evaluation."""

    def __init__(self, objective: nn.Module) -> None:
        self.objective = objective
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((snapshot(kwargs["model"]), snapshot(self.objective)))


def test_early_stopping_restores_the_best_model_and_its_objective(tmp_path: Path) -> None:
    """Validation macro-F1 is best at the second of the evaluations; two worse ones end it."""
    script = iter([0.2, 0.6, 0.5, 0.4, 0.9, 0.9])
    model, objective = tiny_classifier(), tiny_objective(10)
    snapshots = Scripted(objective)
    trainer = make_trainer(
        tmp_path,
        model,
        objective,
        evaluated=tiny_corpus(6, first_id=50),
        compute_metrics=lambda prediction: {"macro_f1": next(script)},
        callbacks=[snapshots, EarlyStoppingCallback(2)],
        max_steps=12,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.global_step == 8
    assert trainer.state.best_global_step == 4
    assert len(snapshots.seen) == 4
    assert_same_state(model.state_dict(), snapshots.seen[1][0])
    assert_same_state(objective.state_dict(), snapshots.seen[1][1])
    assert objective.memory.slots_of(objective.memory.ids).tolist() == list(range(10))
    last = snapshots.seen[-1]
    assert not torch.equal(last[0]["head.weight"], model.head.weight)
    assert not torch.equal(last[1]["memory.rows"], objective.memory.rows)


def test_a_model_saved_by_hand_has_no_objective_beside_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", tiny_classifier(), tiny_objective())
    trainer.save_model(str(tmp_path / "model"))
    assert [file.name for file in (tmp_path / "model").glob("*objective*")] == []


# ------------------------------------------------------------------ columns, models


@pytest.mark.parametrize("remove", [True, False])
def test_labels_and_ids_survive_the_removal_of_unused_columns(tmp_path: Path, remove: bool) -> None:
    seen: list[set[str]] = []

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.append(set().union(*items))
        return TextCollator(tiny_encoder())(items)

    objective = tiny_objective()
    trainer_of(
        tmp_path,
        tiny_classifier(),
        objective,
        data_collator=collate,
        remove_unused_columns=remove,
    ).train()
    columns = {"input_ids", "token_type_ids", "labels", "ids"}
    assert seen[0] == (columns if remove else columns | {"title"})
    assert set(objective.memory.ids.tolist()) <= set(range(16))
    assert len(objective.memory) == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(tmp_path: Path, family: str) -> None:
    model, objective = tiny_classifier(family), tiny_objective()
    before = snapshot(model)
    make_trainer(tmp_path, model, objective).train()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert "head.weight" in changed
    assert any(name.startswith("encoder.model.") for name in changed)
    assert len(objective.memory) == 8


def test_a_sequence_classifier_of_transformers(tmp_path: Path) -> None:
    """The user's own model, tokenizer and padding collator; embeddings through `embed`."""
    model, objective = sequence_classifier(), tiny_objective()
    before = snapshot(model)

    def collate(items: list[dict[str, Any]]) -> Any:
        return DataCollatorWithPadding(build_tokenizer("bert"))(items)

    trainer = trainer_of(
        tmp_path,
        model,
        objective,
        embed=first_token,
        data_collator=collate,
        compute_metrics=scores,
        eval_dataset=Rows(10),
        eval_strategy="steps",
        eval_steps=1,
    )
    result = trainer.train()
    assert np.isfinite(result.training_loss)
    evaluated = [entry for entry in trainer.state.log_history if "eval_macro_f1" in entry]
    assert len(evaluated) == 2
    assert trainer.predict(Rows(5)).predictions.shape == (5, len(CLASSES))
    assert len(objective.memory) == 8
    changed = [n for n, value in model.state_dict().items() if not torch.equal(before[n], value)]
    assert any("embeddings" in name for name in changed)
    assert any("classifier" in name for name in changed)


@pytest.mark.parametrize(
    "answer",
    [
        lambda embeddings, logits: {"embeddings": embeddings, "logits": logits},
        lambda embeddings, logits: {"embeddings": embeddings},
    ],
    ids=["integrated", "standalone"],
)
def test_a_model_of_any_kind_that_answers_with_a_dict(tmp_path: Path, answer: Any) -> None:
    model, objective = MeanOfWords(answer), tiny_objective()
    trainer = trainer_of(tmp_path, model, objective, eval_dataset=Rows(6))
    trainer.train()
    integrated = "logits" in answer(None, None)
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert (entry["cross_entropy"] > 0) == integrated
    if not integrated:
        assert entry["loss"] == pytest.approx(entry["graph_loss"], abs=1e-4)
        assert trainer.evaluate()["eval_loss"] == 0.0
    width = len(CLASSES) if integrated else DIM
    assert trainer.predict(Rows(6)).predictions.shape == (6, width)
    assert bool(model.words.weight.grad is None or model.words.weight.isfinite().all())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_without_objective_it_is_the_trainer_of_transformers(
    tmp_path: Path, accumulation: int
) -> None:
    """The same losses and weights, dropout and shuffling included."""
    settings = {
        "max_steps": 6,
        "gradient_accumulation_steps": accumulation,
        "max_grad_norm": 1.0,
    }
    results = []
    for ours in (True, False):
        model = sequence_classifier()
        collator = RecordingCollator(
            only("input_ids", "attention_mask", *(("labels", "ids") if ours else ("labels",)))
        )
        args = arguments(tmp_path / str(ours), **settings)
        options = {"train_dataset": Rows(22), "data_collator": collator}
        trainer = (
            GraphGuidedTrainer(model, args, objective=None, **options)
            if ours
            else Trainer(model=model, args=args, **options)
        )
        # Bert's own loss is a mean over the micro-batch whatever else its forward takes.
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append((losses, snapshot(model), collator.batches))
    (ours, our_weights, our_batches), (theirs, their_weights, their_batches) = results
    for one, other in zip(our_batches, their_batches, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=2e-4)
    for name, value in their_weights.items():
        torch.testing.assert_close(our_weights[name], value, rtol=1e-3, atol=2e-5)


# ------------------------------------------------------------------ errors


def test_a_collator_that_drops_the_labels(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, tiny_classifier(), tiny_objective(), data_collator=only("input_ids", "ids")
    )
    trainer.data_collator = only("input_ids", "attention_mask", "ids")
    with pytest.raises(ValueError, match=r"no 'labels'.*collator must pass 'labels' and 'ids'"):
        trainer.train()


def test_a_collator_that_drops_the_ids_is_warned_about_label_leakage(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        tiny_classifier(),
        tiny_objective(),
        data_collator=only("input_ids", "attention_mask", "labels"),
    )
    with pytest.warns(UserWarning, match=r"without 'ids'.*label leakage"):
        trainer.train()


def test_a_model_without_embeddings_needs_embed(tmp_path: Path) -> None:
    model = MeanOfWords(lambda embeddings, logits: {"logits": logits})
    with pytest.raises(ValueError, match=r"no 'embeddings'. Pass embed=lambda outputs, inputs"):
        trainer_of(tmp_path, model, tiny_objective()).train()
    with pytest.raises(ValueError, match="no 'embeddings'"):
        trainer_of(tmp_path, model, tiny_objective(), embed=lambda out, inputs: None).train()


def test_neither_logits_nor_objective(tmp_path: Path) -> None:
    model = MeanOfWords(lambda embeddings, logits: {"embeddings": embeddings})
    with pytest.raises(ValueError, match="no 'logits' and there is no 'objective'"):
        trainer_of(tmp_path, model, None).train()


def test_another_loss_is_refused_rather_than_ignored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'label_smoothing_factor' and 'compute_loss_func'"):
        trainer_of(tmp_path, tiny_classifier(), None, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="'label_smoothing_factor' and 'compute_loss_func'"):
        trainer_of(tmp_path, tiny_classifier(), None, compute_loss_func=lambda *_: 0.0)


def test_bank_of_another_width(tmp_path: Path) -> None:
    objective = tiny_objective()
    model = MeanOfWords(lambda embeddings, logits: {"embeddings": embeddings[:, :5]})
    with pytest.raises(ValueError, match=r"columns|dim"):
        trainer_of(tmp_path, model, objective).train()
    assert len(objective.memory) == 0
