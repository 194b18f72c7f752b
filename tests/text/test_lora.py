"""Low-rank adapters: what they train, what merging leaves, what is refused."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gloss_graph.text import TextEncoder, add_lora, load_encoder

from .tiny_models import FAMILIES

peft = pytest.importorskip("peft", reason="the extra lora is not installed")

TEXTS = ["the graph", "a", "every node reaches the label", "one two"]
Checkpoint = Callable[[str], Path]
TARGETS = {
    "bert": {"query", "value"},
    "roberta": {"query", "value"},
    "distilbert": {"q_lin", "v_lin"},
    "deberta": {"in_proj"},
    "deberta-v2": {"query_proj", "value_proj"},
    "gpt2": {"c_attn"},
    "llama": {"q_proj", "v_proj"},
    "qwen2": {"q_proj", "v_proj"},
    "qwen3": {"q_proj", "v_proj"},
}


def made(checkpoint: Checkpoint, family: str = "bert") -> TextEncoder:
    return load_encoder(str(checkpoint(family)))


def shaken(encoder: TextEncoder) -> TextEncoder:
    """Adapters as after some training."""
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return encoder


def last(names: tuple[str, ...]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_every_family(checkpoint: Checkpoint, family: str) -> None:
    """Nothing changes at first, only adapters are trained, merging is W + alpha / r B A."""
    encoder = made(checkpoint, family)
    before, state = encoder.encode(TEXTS), copy.deepcopy(encoder.state_dict())
    adapters = add_lora(encoder, 3, alpha=6.0)
    assert last(adapters.names) == TARGETS[family]
    assert len(adapters.names) == 2 * len(TARGETS[family])  # two layers
    assert torch.equal(encoder.encode(TEXTS), before)
    assert type(encoder.model) is type(made(checkpoint, family).model)
    assert repr(encoder).startswith(f"TextEncoder({encoder.model.config.model_type}, ")
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in trained)
    assert adapters.size == sum(
        value.numel() for name, value in encoder.named_parameters() if name in trained
    )
    encoder.train()
    encoder(**encoder.collate(encoder.tokenize(TEXTS))).square().sum().backward()
    grads = {name for name, value in encoder.named_parameters() if value.grad is not None}
    assert grads == trained
    encoder.eval()

    shaken(encoder)
    moved = encoder.encode(TEXTS)
    assert not torch.allclose(moved, before, atol=1e-3)
    layer = encoder.model.get_submodule(adapters.names[0])
    delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    adapters.merge()
    adapters.merge()
    torch.testing.assert_close(encoder.encode(TEXTS), moved, atol=1e-4, rtol=1e-4)
    after = encoder.state_dict()
    assert after.keys() == state.keys()
    assert all(value.requires_grad for value in encoder.parameters())
    name = f"model.{adapters.names[0]}.weight"
    change = after[name] - state[name]
    torch.testing.assert_close(change, delta.T if family == "gpt2" else delta, atol=1e-6, rtol=0)
    changed = {n for n in state if not torch.equal(after[n], state[n])}
    assert changed == {f"model.{name}.weight" for name in adapters.names}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_saving_writes_merged_weights(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """And leaves the adapters where they are; reading needs no peft."""
    encoder = made(checkpoint, family)
    adapters = add_lora(encoder, 2)
    rows = shaken(encoder).encode(TEXTS)
    folder = encoder.save(tmp_path / "model")
    assert adapters.size > 0
    assert torch.equal(encoder.encode(TEXTS), rows)
    assert not list(folder.glob("adapter*"))
    monkeypatch.setitem(sys.modules, "peft", None)
    loaded = TextEncoder.load(folder)
    torch.testing.assert_close(loaded.encode(TEXTS), rows, atol=1e-4, rtol=1e-4)
    assert repr(loaded) == repr(encoder)
    loaded.save(tmp_path / "again")


def test_the_first_adapters_hang_on_the_seed_alone(checkpoint: Checkpoint) -> None:
    found = []
    for seed, state in ((0, 1), (0, 2), (3, 1)):
        encoder = made(checkpoint)
        torch.manual_seed(state)
        expected = torch.Generator().manual_seed(state)
        adapters = add_lora(encoder, 2, seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
        found.append(encoder.model.get_submodule(adapters.names[0]).lora_A["default"].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_layers_by_name(checkpoint: Checkpoint) -> None:
    assert last(add_lora(made(checkpoint), 2, targets="key, output.dense").names) == {
        "key",
        "dense",
    }
    one = add_lora(made(checkpoint), 2, targets="layer.1.attention.self.query")
    assert one.names == ("encoder.layer.1.attention.self.query",)
    every = add_lora(made(checkpoint), 2, targets="all-linear").names
    assert last(every) == {"query", "key", "value", "dense"}
    assert not any("pooler" in name for name in every)


def test_frozen_layers_get_no_adapter(checkpoint: Checkpoint) -> None:
    encoder = made(checkpoint)
    for value in encoder.model.encoder.layer[0].parameters():
        value.requires_grad_(False)
    adapters = add_lora(encoder, 2)
    assert {name.split(".")[2] for name in adapters.names} == {"1"}
    adapters.merge()
    frozen = [name for name, value in encoder.named_parameters() if not value.requires_grad]
    assert frozen
    assert all(".layer.0." in name for name in frozen)
    encoder.requires_grad_(False)
    with pytest.raises(ValueError, match=r"must name a layer that is not frozen \(all 4 are\)"):
        add_lora(encoder, 2)


def test_recomputed_activations_give_the_same_gradients(checkpoint: Checkpoint) -> None:
    encoder = made(checkpoint).train()
    add_lora(encoder, 2, dropout=0.2)
    shaken(encoder).double()
    batch = encoder.collate(encoder.tokenize(TEXTS))
    found = []
    for switch in (encoder.gradient_checkpointing_enable, encoder.gradient_checkpointing_disable):
        switch()
        encoder.zero_grad()
        torch.manual_seed(0)
        encoder(**batch)[:, 0].sum().backward()
        found.append([v.grad.clone() for v in encoder.parameters() if v.requires_grad])
    torch.testing.assert_close(*found)
    assert any(bool(gradient.any()) for gradient in found[0])


def test_bfloat16_autocast(checkpoint: Checkpoint) -> None:
    encoder = made(checkpoint, "llama")
    add_lora(encoder, 2)
    exact = shaken(encoder).encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder.encode(TEXTS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.2, rtol=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "'rank' must be an integer of at least 1"),
        ({"rank": -2}, "'rank' must be an integer of at least 1"),
        ({"alpha": 0.0}, "'alpha' must be in"),
        ({"dropout": 1.0}, "'dropout' must be in"),
        ({"targets": "query,q_proj"}, r"\(got 'q_proj'; there are dense, key, query, value\)"),
        ({"targets": " , "}, "'lora_targets' must name linear layers"),
        ({"targets": "uery"}, "got 'uery'"),
    ],
)
def test_bad_settings(checkpoint: Checkpoint, options: dict[str, object], message: str) -> None:
    encoder = made(checkpoint)
    with pytest.raises(ValueError, match=message):
        add_lora(encoder, **{"rank": 2, **options})  # type: ignore[arg-type]
    assert all(value.requires_grad for value in encoder.parameters())


def test_adapters_twice(checkpoint: Checkpoint) -> None:
    encoder = made(checkpoint)
    adapters = add_lora(encoder, 2)
    with pytest.raises(ValueError, match="must have no adapters yet"):
        add_lora(encoder, 2)
    adapters.merge()
    assert adapters.size == 0
    assert add_lora(encoder, 4).size > 0


def test_families_without_a_default(checkpoint: Checkpoint) -> None:
    encoder = made(checkpoint)
    for layer in encoder.model.encoder.layer:
        attention = layer.attention.self
        attention.left, attention.right = attention.query, attention.value
        del attention.query, attention.value
    with pytest.raises(ValueError, match=r"'lora_targets' must be given .*: one or more of dense"):
        add_lora(encoder, 2)
    assert last(add_lora(encoder, 2, targets="left").names) == {"left"}
    assert isinstance(encoder.model.encoder.layer[0].attention.self.right, nn.Linear)


def test_without_peft(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'pip install "gloss-graph\[lora\]"'):
        add_lora(made(checkpoint), 2)
