"""Every family of encoders and decoders from a checkpoint to predictions of a loaded run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from text.tiny_models import DECODERS, ENCODERS, build_model, build_tokenizer

from gloss_graph.text import load_encoder
from gloss_graph.text.checkpoints import quiet_transformers
from gloss_graph.training import Run, TextClassifier, TrainConfig, train_text

from .tiny import MAX_LENGTH, quick, tiny_splits


def checkpoint(folder: Path, family: str) -> Path:
    """As a checkpoint of the hub lies in a folder; MiniLM is a BERT that declares its pooling."""
    kind = "bert" if family == "minilm" else family
    with quiet_transformers():
        build_model(kind).save_pretrained(folder)
        build_tokenizer(kind).save_pretrained(folder)
    if family == "minilm":
        (folder / "1_Pooling").mkdir()
        declared = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(declared))
    return folder


def trained_and_read_again(tmp_path: Path, family: str, config: TrainConfig) -> None:
    source = checkpoint(tmp_path / "source", family)
    encoder = load_encoder(str(source), max_length=MAX_LENGTH)
    expected = "last" if family in DECODERS else "mean" if family == "minilm" else "cls"
    assert encoder.pooling == expected
    splits = tiny_splits()
    result = train_text(splits, encoder, config, tmp_path / "run")
    start = load_encoder(str(source), max_length=MAX_LENGTH)
    before, after = start.state_dict(), result.model.encoder.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)

    texts, rows = splits.test.texts, result.embeddings["test"]
    model = TextClassifier.load(tmp_path / "run" / "model")
    assert repr(model.encoder) == repr(start)
    torch.testing.assert_close(model.encoder.encode(texts), rows, atol=1e-5, rtol=1e-5)
    answer = Run(tmp_path / "run").predict(texts)
    with torch.no_grad():
        linear = result.model.head(rows).softmax(dim=1)
    torch.testing.assert_close(answer.linear, linear, atol=1e-5, rtol=1e-5)
    assert answer.linear.argmax(dim=1).tolist() == result.predictions["test"].tolist()


@pytest.mark.parametrize("family", [*ENCODERS, "minilm", *DECODERS])
def test_a_family_from_checkpoint_to_predictions(tmp_path: Path, family: str) -> None:
    trained_and_read_again(tmp_path, family, quick(max_steps=2, pictures=False))


# `text/test_lora.py` gives every family its adapters.
@pytest.mark.parametrize("family", ["bert", "deberta", "gpt2", "qwen3"])
def test_a_family_with_adapters(tmp_path: Path, family: str) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    config = quick(max_steps=2, pictures=False, lora_rank=2, learning_rate=1e-2)
    trained_and_read_again(tmp_path, family, config)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_without_padding_token_takes_its_end_token(tmp_path: Path, family: str) -> None:
    """Its last token is pooled, and a batch's padding changes no row."""
    assert build_tokenizer(family).pad_token is None
    encoder = load_encoder(str(checkpoint(tmp_path / "source", family)))
    assert encoder.tokenizer.pad_token == encoder.tokenizer.eos_token
    texts = ["the graph", "a node reaches every label of the graph", "two"]
    alone = torch.cat([encoder.encode([text]) for text in texts])
    torch.testing.assert_close(encoder.encode(texts), alone, atol=1e-5, rtol=1e-5)
    batch = encoder.collate(encoder.tokenize(texts))
    assert batch["attention_mask"].sum(dim=1).tolist() == [
        len(feature["input_ids"]) for feature in encoder.tokenize(texts)
    ]
