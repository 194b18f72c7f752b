"""The objective in a LightningModule, against a plain loop."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_state, different, snapshot
from processes import WORLD, together
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training.tiny import (
    CLASSES,
    DIM,
    RecordingCollator,
    tiny_corpus,
    tiny_encoder,
    without_dropout,
)

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.analysis import classification_scores
from gloss_graph.training import TextCollator, TextDataset, hide_labels

lightning = pytest.importorskip(
    "lightning", reason='needs the extra: pip install "gloss-graph[lightning]"'
)

from gloss_graph.adapters.lightning import GraphGuidedModule  # noqa: E402

# Lightning's advice.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .* does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]
WEIGHT = 0.3


def tiny_module(*, head: bool = True, dropout: bool = False, seed: int = 0, **settings: Any) -> Any:
    capacity = settings.pop("capacity", 16)
    options = {"graph_weight": WEIGHT, **settings.pop("objective", {})}
    bank = MemoryBank(capacity, DIM, k=4)
    objective = GraphGuidedObjective(len(CLASSES), memory=bank, k=4, seed=seed, **options)
    encoder = (tiny_encoder() if dropout else without_dropout(tiny_encoder())).eval()
    torch.manual_seed(seed)
    linear = nn.Linear(DIM, len(CLASSES)) if head else None
    settings = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, **settings}
    return GraphGuidedModule(encoder, objective, linear, **settings)


def batches(module: Any, corpus: Any = None, size: int = 6, **options: Any) -> DataLoader:
    data = TextDataset(corpus or tiny_corpus(24), module.encoder)
    collate = RecordingCollator(TextCollator(module.encoder))
    return DataLoader(data, batch_size=size, collate_fn=collate, **options)


class Gradients(lightning.Callback):
    """Losses, and gradients as the optimizer sees them."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        named = module.named_parameters()
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def make_trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    defaults = {
        "max_steps": 4,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), **{**defaults, **settings}
    )


@pytest.mark.parametrize("head", [True, False])
def test_training_is_the_plain_loop(tmp_path: Path, head: bool) -> None:
    """Losses, gradients, weights and bank of four steps of AdamW."""
    module = tiny_module(head=head, warmup=0.0)
    twin = copy.deepcopy(module).train()
    recorder, loader = Gradients(), batches(module)
    make_trainer(tmp_path, recorder).fit(module, loader)
    groups = [{"params": twin.encoder.parameters()}]
    if head:
        groups.append({"params": twin.head.parameters()})
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.01)
    assert len(recorder.losses) == 4
    for step, batch in enumerate(loader.collate_fn.batches[:4]):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 4)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "ids")}
        rows = twin.encoder(**inputs)
        expected = twin.objective(rows, batch["labels"], ids=batch["ids"])
        if head:
            cross_entropy = F.cross_entropy(twin.head(rows), batch["labels"])
            expected = WEIGHT * expected + (1 - WEIGHT) * cross_entropy
        optimizer.zero_grad()
        expected.backward()
        assert recorder.losses[step] == pytest.approx(expected.item(), abs=1e-5)
        for name, parameter in twin.named_parameters():
            if parameter.grad is not None:
                found = recorder.gradients[step][name]
                torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)
        optimizer.step()
    assert torch.equal(module.objective.memory.ids, twin.objective.memory.ids)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", [True, False])
def test_a_short_training_learns_and_is_scored(tmp_path: Path, head: bool) -> None:
    module = tiny_module(head=head, dropout=True, capacity=24)
    trainer = make_trainer(tmp_path, max_steps=40)
    held_out = tiny_corpus(15, seed=1, first_id=24)
    loader = batches(module, held_out, size=4)
    # The check of the validation loop before training meets an empty bank.
    trainer.fit(module, batches(module, shuffle=True), loader)
    assert len(module.objective.memory) == 24, "validation must store nothing"
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {"train_loss", "train_graph_loss", "train_cross_entropy", "train_consistency"} < set(
        logged
    )
    assert logged["val_accuracy"] > 0.8
    predicted = torch.cat(trainer.predict(module, loader))
    scores = classification_scores(predicted.numpy(), torch.tensor(held_out.labels).numpy())
    assert logged["val_macro_f1"] == pytest.approx(scores["macro_f1"])
    assert logged["val_accuracy"] == pytest.approx(scores["accuracy"])
    (tested,) = trainer.test(module, loader, verbose=False)
    assert tested["test_macro_f1"] == pytest.approx(scores["macro_f1"])


def test_validation_leaves_the_training_alone(tmp_path: Path) -> None:
    states = []
    for every in (False, True):
        module = tiny_module()
        settings = {"val_check_interval": 1} if every else {}
        trainer = make_trainer(tmp_path, **settings)
        trainer.fit(module, batches(module), batches(module, tiny_corpus(9)) if every else None)
        states.append(snapshot(module))
    assert different(*states) == []


def test_checkpoint_is_plain_and_keeps_the_bank(tmp_path: Path) -> None:
    """Bit for bit, without pickled classes, in a module made anew."""
    module = tiny_module()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, batches(module))
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    content = torch.load(file, weights_only=True)
    assert "objective.memory.rows" in content["state_dict"]
    parts = tiny_module(seed=5)
    loaded = GraphGuidedModule.load_from_checkpoint(
        file,
        weights_only=True,
        encoder=parts.encoder,
        objective=parts.objective,
        head=parts.head,
    )
    assert_same_state(loaded.state_dict(), module.state_dict())
    assert torch.equal(
        loaded.objective.generator.get_state(), module.objective.generator.get_state()
    )
    ids = module.objective.memory.ids
    assert torch.equal(loaded.objective.memory.slots_of(ids), torch.arange(16))


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    """Bank, targets, generator, weights, optimizer: three epochs, stopped after the second."""
    corpus = hide_labels(tiny_corpus(24), range(9))
    settings = {"consistency_start": 2, "consistency_ramp": 2, "refresh_every": 3}

    def fitted(epochs: int, **options: Any) -> tuple[Any, Any]:
        module = tiny_module(seed=options.pop("seed", 0), reference=True, objective=settings)
        # A schedule depends on the length of the training: the same for all here.
        module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-2)
        trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=epochs)
        trainer.fit(module, batches(module, corpus), **options)
        return module, trainer

    whole, _ = fitted(3)
    _, first = fitted(2)
    file = tmp_path / "two.ckpt"
    first.save_checkpoint(file)
    resumed, trainer = fitted(3, seed=5, ckpt_path=file, weights_only=True)
    assert trainer.global_step == 12
    assert_same_state(resumed.state_dict(), whole.state_dict())
    assert int(whole.objective.targets.solved_at) > 3


def test_reference_pass_fills_the_bank_without_dropout(tmp_path: Path) -> None:
    module = tiny_module(dropout=True, reference=True, learning_rate=1e-9)
    loader = batches(module)
    make_trainer(tmp_path, max_steps=1).fit(module, loader)
    assert module.encoder.training, "though it was loaded in eval mode"
    rows = F.normalize(module.encoder.encode(tiny_corpus(24).texts[:6]), dim=1)
    torch.testing.assert_close(module.objective.memory.embeddings, rows, rtol=1e-4, atol=1e-4)


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    module = tiny_module(warmup=0.5, learning_rate=0.1, head_learning_rate=0.2)
    rates: list[list[float]] = []

    class Rates(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])

    make_trainer(tmp_path, Rates()).fit(module, batches(module))
    expected = [1 / 3, 2 / 3, 1.0, 0.5]
    assert [rate[0] for rate in rates] == pytest.approx([0.1 * share for share in expected])
    assert [rate[1] for rate in rates] == pytest.approx([0.2 * share for share in expected])


def test_bad_input(tmp_path: Path) -> None:
    module = tiny_module()
    with pytest.raises(ValueError, match="A batch must be a mapping"):
        module.training_step((torch.zeros(2), torch.zeros(2)), 0)
    with pytest.raises(ValueError, match="A batch must be a mapping"):
        module.validation_step({"input_ids": torch.zeros(2, 3)}, 0)
    for setting, value in (("learning_rate", 0.0), ("head_learning_rate", 2.0), ("warmup", -0.1)):
        with pytest.raises(ValueError, match=f"'{setting}'"):
            tiny_module(**{setting: value})
    # Documents without any label cannot be scored, and need not stop a training.
    trainer = make_trainer(tmp_path, max_steps=1)
    blank = hide_labels(tiny_corpus(9), [])
    trainer.fit(module, batches(module), batches(module, blank))
    assert "val_accuracy" not in trainer.callback_metrics


def work(rank: int, folder: Path) -> dict[str, Any]:
    # By these Lightning knows torchrun.
    os.environ.update(TORCHELASTIC_RUN_ID="test", GROUP_RANK="0")
    module = tiny_module(head=True)
    if rank == 1:
        module.objective.memory.enqueue(torch.eye(DIM)[:3], ids=torch.arange(3) + 90)
    held_out = tiny_corpus(9, seed=1, first_id=24)
    trainer = make_trainer(
        folder,
        devices=WORLD,
        strategy="ddp_find_unused_parameters_true",
        max_epochs=2,
        max_steps=-1,
    )
    trainer.fit(module, batches(module, size=4), batches(module, held_out, size=4))
    buffers = set(module._ddp_params_and_buffers_to_ignore)
    return {
        "state": snapshot(module),
        "scores": {k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k},
        "world": trainer.world_size,
        "ignored": "objective.memory.rows" in buffers,
    }


@pytest.mark.slow
def test_two_processes_train_one_module(tmp_path: Path) -> None:
    first, second = together(work, tmp_path)
    assert first["world"] == WORLD
    assert first["ignored"]
    assert different(first["state"], second["state"]) == []
    assert sorted(first["state"]["objective.memory.slot_ids"].tolist())[0] >= 0
    assert first["scores"] == second["scores"]
    # Nine documents, though the sampler makes ten of them.
    assert 9 * first["scores"]["val_accuracy"] == pytest.approx(
        round(9 * first["scores"]["val_accuracy"]), abs=1e-4
    )
