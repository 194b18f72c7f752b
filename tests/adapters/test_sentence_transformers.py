"""The objective in SentenceTransformerTrainer, against a plain loop."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, different, snapshot
from processes import together
from text.tiny_models import WORDS, build_model, build_tokenizer
from torch import Tensor, nn
from training.tiny import (
    CLASSES,
    DIM,
    GradientRecorder,
    StopAt,
    tiny_corpus,
    without_dropout,
)

from gloss_graph import GraphGuidedObjective, MemoryBank

REASON = 'needs the extra: pip install "gloss-graph[sentence-transformers]"'
sentence_transformers = pytest.importorskip("sentence_transformers", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)

from gloss_graph.adapters.sentence_transformers import (  # noqa: E402
    OBJECTIVE_FILE,
    GraphGuidedLoss,
    ObjectiveCheckpoint,
    document_ids,
)

WEIGHT = 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as from the hub."""
    path = tmp_path_factory.mktemp("bert")
    build_model("bert").save_pretrained(path)
    build_tokenizer("bert").save_pretrained(path)
    return path


def tiny_model(folder: Path, *, dropout: bool = False) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(folder), max_seq_length=12)
    modules = [transformer, Pooling(DIM, "mean")]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    return model if dropout else without_dropout(model)


def tiny_loss(model: Any, *, head: bool = True, capacity: int = 16, **settings: Any) -> Any:
    settings = {"graph_weight": WEIGHT, "seed": 0, **settings}
    bank = MemoryBank(capacity, DIM, k=4)
    objective = GraphGuidedObjective(len(CLASSES), memory=bank, k=4, **settings)
    torch.manual_seed(1)
    return GraphGuidedLoss(model, objective, nn.Linear(DIM, len(CLASSES)) if head else None)


def table(size: int = 24, **columns: list[Any]) -> Any:
    corpus = tiny_corpus(size)
    return datasets.Dataset.from_dict({"text": corpus.texts, "label": corpus.labels, **columns})


def make_trainer(out: Path, loss: Any, *callbacks: Any, data: Any = None, **settings: Any) -> Any:
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 6,
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
    args = sentence_transformers.SentenceTransformerTrainingArguments(
        output_dir=str(out), **{**defaults, **settings}
    )
    return sentence_transformers.SentenceTransformerTrainer(
        loss.model,
        args,
        train_dataset=table() if data is None else data,
        eval_dataset=table(9),
        loss=loss,
        callbacks=list(callbacks),
    )


def keep_inputs(loss: Any) -> list[tuple[dict[str, Any], Tensor]]:
    """The features and labels of every call, as the Trainer gave them."""
    seen: list[tuple[dict[str, Any], Tensor]] = []
    loss.register_forward_pre_hook(
        lambda module, args: seen.append(({**args[0][0]}, args[1].clone()))
    )
    return seen


@pytest.mark.parametrize("head", [True, False])
def test_training_is_the_plain_loop(tmp_path: Path, folder: Path, head: bool) -> None:
    """Losses, gradients, weights and bank of four steps of plain SGD."""
    loss = tiny_loss(tiny_model(folder), head=head)
    twin = copy.deepcopy(loss)
    recorder, seen = GradientRecorder(), keep_inputs(loss)
    trainer = make_trainer(tmp_path, loss, recorder, optim="sgd", learning_rate=0.1)
    trainer.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin.train()
    assert len(seen) == 4
    for step, (features, labels) in enumerate(seen):
        optimizer.zero_grad()
        rows = twin.model(dict(features))["sentence_embedding"]
        ids = document_ids(features, labels)
        expected = twin.objective(rows, labels, ids=ids)
        if head:
            cross_entropy = F.cross_entropy(twin.head(rows), labels)
            expected = WEIGHT * expected + (1 - WEIGHT) * cross_entropy
        expected.backward()
        found = recorder.steps[step]
        for name, parameter in twin.model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
        optimizer.step()
        logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert logged[step] == pytest.approx(expected.item(), abs=1e-4)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(loss.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert len(loss.objective.memory) == 16
    if head:
        torch.manual_seed(1)
        assert not torch.equal(loss.head.weight, nn.Linear(DIM, len(CLASSES)).weight)


def test_a_short_training_learns(tmp_path: Path, folder: Path) -> None:
    """Thirty steps over two epochs: the head gets plain topics right, the bank stays one a text."""
    loss = tiny_loss(tiny_model(folder, dropout=True), capacity=64)
    make_trainer(tmp_path, loss, max_steps=30).train()
    corpus = tiny_corpus(24)
    with torch.no_grad():
        rows = loss.model.encode(corpus.texts, convert_to_tensor=True)
        hits = loss.head(rows).argmax(dim=1) == torch.tensor(corpus.labels)
    assert float(hits.float().mean()) > 0.8
    unique = {(text, label) for text, label in zip(corpus.texts, corpus.labels, strict=True)}
    assert len(loss.objective.memory) == len(unique)


def features_of(model: Any, texts: list[str]) -> dict[str, Any]:
    return model.preprocess(texts)


def test_ids_are_those_of_the_texts(folder: Path) -> None:
    model = tiny_model(folder)
    labels = torch.tensor([0, 1, 0, -1])
    texts = ["a graph", "the node walks one two", "a graph", "a graph"]
    ids = document_ids(features_of(model, texts), labels)
    assert ids.dtype == torch.long
    assert int(ids.min()) >= 0
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 3, "another label is another document"
    alone = document_ids(features_of(model, texts[:1]), labels[:1])
    assert alone[0] == ids[0], "padding must not count"
    # Fixed for all time: a bank of another run must know its documents again.
    assert document_ids({"input_ids": torch.tensor([[2, 5, 3]])}, torch.tensor([1])).tolist() == [
        KNOWN_ID
    ]
    many = ["a " + " ".join(random.Random(i).choices(WORDS, k=9)) for i in range(200)]
    hashed = document_ids(features_of(model, many), torch.zeros(200, dtype=torch.long))
    assert len(set(hashed.tolist())) == len(set(many))


KNOWN_ID = 1347040658984694716


def test_ids_may_travel_in_the_labels(tmp_path: Path, folder: Path) -> None:
    corpus = tiny_corpus(24)
    pairs = [[label, 700 + number] for number, label in enumerate(corpus.labels)]
    loss = tiny_loss(tiny_model(folder), capacity=64)
    make_trainer(tmp_path, loss, data=table(label=pairs)).train()
    assert sorted(loss.objective.memory.ids.tolist()) == list(range(700, 724))


def test_unlabeled_texts_and_targets(tmp_path: Path, folder: Path) -> None:
    labels = [label if number < 9 else -1 for number, label in enumerate(tiny_corpus(24).labels)]
    settings = {"consistency_start": 2, "consistency_ramp": 1, "refresh_every": 2}
    loss = tiny_loss(tiny_model(folder), capacity=64, **settings)
    texts = tiny_corpus(24).texts
    count = loss.prefill(texts, torch.tensor(labels))
    before = sorted(loss.objective.memory.ids.tolist())
    make_trainer(tmp_path, loss, data=table(label=labels)).train()
    assert len(loss.objective.memory) == count
    assert sorted(loss.objective.memory.ids.tolist()) == before, "the same ids as in training"
    assert float(loss.objective.parts["consistency"]) > 0


def test_prefill_stores_calm_embeddings(folder: Path) -> None:
    model = tiny_model(folder, dropout=True).train()
    loss = tiny_loss(model, capacity=64)
    corpus = tiny_corpus(24)
    ids = torch.tensor(corpus.ids)
    assert loss.prefill(corpus.texts, torch.tensor(corpus.labels), ids=ids, batch_size=7) == 24
    assert model.training
    expected = F.normalize(model.encode(corpus.texts, convert_to_tensor=True), dim=1)
    torch.testing.assert_close(loss.objective.memory.embeddings, expected, rtol=1e-4, atol=1e-5)
    assert loss.objective.memory.ids.tolist() == corpus.ids


def test_evaluation_leaves_the_training_alone(tmp_path: Path, folder: Path) -> None:
    """With and without evaluations between the steps: the same weights, bank and generator."""
    states = []
    for every in (0, 1):
        loss = tiny_loss(tiny_model(folder))
        settings = {"eval_strategy": "steps", "eval_steps": 1} if every else {}
        trainer = make_trainer(tmp_path / str(every), loss, **settings)
        trainer.train()
        evaluations = [row for row in trainer.state.log_history if "eval_loss" in row]
        assert len(evaluations) == 4 * every
        states.append(snapshot(loss))
    assert different(*states) == []


@pytest.mark.parametrize("stop", [2, 3])
def test_resumed_training_equals_uninterrupted(tmp_path: Path, folder: Path, stop: int) -> None:
    def trainer(name: str, *callbacks: Any, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        loss = tiny_loss(tiny_model(folder, dropout=True), seed=seed)
        with torch.no_grad():
            loss.head.weight.mul_(1 + seed)
        made = make_trainer(
            tmp_path / name, loss, ObjectiveCheckpoint(loss), *callbacks, max_steps=6
        )
        torch.manual_seed(0)
        return made

    whole = trainer("whole")
    whole.train()
    trainer("parts", StopAt(stop)).train()
    assert (tmp_path / "parts" / f"checkpoint-{stop}" / OBJECTIVE_FILE).is_file()
    second = trainer("parts", seed=9)
    second.train(resume_from_checkpoint=True)
    assert_same_state(second.loss.state_dict(), whole.loss.state_dict())


def test_the_bank_of_another_run_is_not_taken_on(tmp_path: Path, folder: Path) -> None:
    """A checkpoint of another folder has no bank in this one, whose own is of other weights."""

    def trainer(name: str, steps: int, seed: int) -> Any:
        loss = tiny_loss(tiny_model(folder, dropout=True), seed=seed)
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps, "seed": seed}
        return make_trainer(tmp_path / name, loss, ObjectiveCheckpoint(loss), **settings)

    for seed, name in enumerate(("first", "second")):
        trainer(name, 2, seed).train()
    again = trainer("second", 3, 0)
    with pytest.raises(ValueError, match=r"second.checkpoint-2.* belongs to a model of other"):
        again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    trainer("first", 3, 0).train(resume_from_checkpoint=True)


def test_the_best_model_comes_with_its_bank(tmp_path: Path, folder: Path) -> None:
    loss = tiny_loss(tiny_model(folder))
    trainer = make_trainer(
        tmp_path,
        loss,
        ObjectiveCheckpoint(loss),
        learning_rate=1.0,  # so that the first checkpoint is the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    other = tiny_loss(tiny_model(folder))
    other.load(Path(best) / OBJECTIVE_FILE)
    assert_same_state(loss.objective.state_dict(), other.objective.state_dict())
    assert_same_state(loss.head.state_dict(), other.head.state_dict())
    assert int(other.objective.targets.steps) == trainer.state.best_global_step


def test_resuming_without_the_objective_is_refused(tmp_path: Path, folder: Path) -> None:
    first = tiny_loss(tiny_model(folder))
    make_trainer(tmp_path, first, StopAt(2)).train()
    loss = tiny_loss(tiny_model(folder))
    trainer = make_trainer(tmp_path, loss, ObjectiveCheckpoint(loss))
    with pytest.raises(ValueError, match=r"no readable objective state .*checkpoint-2"):
        trainer.train(resume_from_checkpoint=True)


def test_the_model_card_tells_of_the_loss(tmp_path: Path, folder: Path) -> None:
    loss = tiny_loss(tiny_model(folder))
    make_trainer(tmp_path, loss, max_steps=1).train()
    loss.model.save_pretrained(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "GraphGuidedLoss" in card
    assert "2604.25853" in card
    assert '"visible_fraction": 0.5' in card


def test_bad_input(folder: Path) -> None:
    model = tiny_model(folder)
    loss = tiny_loss(model)
    features, labels = features_of(model, ["a graph", "the node"]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"must be one column of texts \(got 2\)"):
        loss([features, features], labels)
    with pytest.raises(ValueError, match="must have a column 'label'"):
        loss([features], None)
    with pytest.raises(ValueError, match=r"\[label, id\] per row"):
        loss([{"pixel_values": torch.zeros(2, 3)}], labels)
    with pytest.raises(ValueError, match=r"\[label, id\] per row"):
        loss([{"input_ids": torch.zeros(1, 9, dtype=torch.long)}], labels)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.2"):
        loss([features], labels + 5)
    assert len(loss.objective.memory) == 0
    with pytest.raises(ValueError, match=r"dimension 16 \(got 3\)"):
        GraphGuidedLoss(model, GraphGuidedObjective(3, memory=MemoryBank(4, 3)))
    with pytest.raises(ValueError, match="one label per text"):
        loss.prefill(["a"], labels)
    with pytest.raises(ValueError, match="must have a 'memory'"):
        GraphGuidedLoss(model, GraphGuidedObjective(3)).prefill(["a"], labels[:1])


def work(rank: int, folder: Path) -> dict[str, Any]:
    """A training in which every process has another head and bank at first."""
    loss = tiny_loss(tiny_model(folder / "bert"))
    with torch.no_grad():
        loss.head.weight.mul_(1 + rank)
    if rank == 1:
        loss.prefill(tiny_corpus(3).texts, torch.tensor([0, 1, 2]))
    trainer = make_trainer(folder / "out", loss, ObjectiveCheckpoint(loss))
    trainer.train()
    return {
        "head": snapshot(loss.head),
        "objective": snapshot(loss.objective),
        "model": snapshot(trainer.model),
        "wrapped": type(loss.model).__name__,
    }


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """The head too, which DistributedDataParallel does not know of."""
    build_model("bert").save_pretrained(tmp_path / "bert")
    build_tokenizer("bert").save_pretrained(tmp_path / "bert")
    first, second = together(work, tmp_path)
    assert first["wrapped"] == "DistributedDataParallel"
    for part in ("head", "objective", "model"):
        assert different(first[part], second[part]) == [], part
    assert len(set(first["objective"]["memory.slot_ids"].tolist()) - {-1}) == 16
