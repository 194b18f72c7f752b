from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gloss_graph.text import TextEncoder, load_encoder

from .tiny_models import FAMILIES, build_model, build_tokenizer

TEXTS = ["the graph", "a", "every node reaches the label", "one two", "the edge walks a graph"]
PAIRS = ["two", "every edge", "one", "a node", "the the the"]
POOLINGS = ["cls", "mean", "last"]
Checkpoint = Callable[[str], Path]


def reference(encoder: TextEncoder, text: str, text_b: str | None = None) -> torch.Tensor:
    """One document at a time, nothing padded, pooled by hand."""
    feature = encoder.tokenize([text], None if text_b is None else [text_b])[0]
    inputs = {name: torch.tensor([values]) for name, values in feature.items()}
    with torch.no_grad():
        states = encoder.model(**inputs).last_hidden_state[0]
    return {"cls": states[0], "mean": states.mean(0), "last": states[-1]}[encoder.pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooling_equals_one_by_one(checkpoint: Checkpoint, family: str, pooling: str) -> None:
    encoder = load_encoder(str(checkpoint(family)), pooling=pooling)  # type: ignore[arg-type]
    expected = torch.stack([reference(encoder, text) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=1e-5)

    # The same rows padded on the left, as tokenizers of decoders do.
    batch = encoder.collate(encoder.tokenize(TEXTS))
    lengths = batch["attention_mask"].sum(1).tolist()
    left = {
        name: torch.stack([row.roll(-n) for row, n in zip(rows, lengths, strict=True)])
        for name, rows in batch.items()
    }
    assert left["attention_mask"][:, -1].all()
    with torch.no_grad():
        torch.testing.assert_close(encoder(**left), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(checkpoint: Checkpoint, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)))
    embeddings = encoder.encode(TEXTS, PAIRS, batch_size=2)
    expected = torch.stack([reference(encoder, *pair) for pair in zip(TEXTS, PAIRS, strict=True)])
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(embeddings, encoder.encode(TEXTS), atol=1e-3)
    assert not torch.allclose(embeddings, encoder.encode(PAIRS, TEXTS), atol=1e-3)


def test_segments_reach_only_models_that_have_them(checkpoint: Checkpoint) -> None:
    for family in FAMILIES:
        encoder = load_encoder(str(checkpoint(family)))
        feature = encoder.tokenize(["the graph"], ["a node"])[0]
        assert ("token_type_ids" in feature) == (family == "bert")
    bert = load_encoder(str(checkpoint("bert")))
    batch = bert.collate(bert.tokenize(["the graph"], ["a node"]))
    without = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert not torch.allclose(bert(**batch), bert(**without))


def test_decoders_separate_pairs(checkpoint: Checkpoint) -> None:
    encoder = load_encoder("minilm")
    seen: list[object] = []

    class Recorder:
        pad_token_id = 0

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 0

        def __call__(self, first: list[str], second: list[str], **_: object) -> dict[str, object]:
            seen.append(second)
            return {"input_ids": [[1]], "token_type_ids": [[0]]}

    encoder.tokenizer = Recorder()
    encoder.tokenize(["good"], ["bad"])
    assert seen == [["\nbad"]]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_order_and_batches_do_not_matter(checkpoint: Checkpoint, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)))
    texts = [
        " ".join(["graph", "node", "edge", "one"][: 1 + n % 4] * (1 + n % 3)) for n in range(17)
    ]
    whole = encoder.encode(texts)
    assert whole.shape == (17, encoder.dim)
    assert not whole.requires_grad
    for batch_size in (1, 5, 64):
        torch.testing.assert_close(
            encoder.encode(texts, batch_size=batch_size), whole, atol=1e-5, rtol=1e-5
        )
    backwards = encoder.encode(texts[::-1], batch_size=4).flip(0)
    torch.testing.assert_close(backwards, whole, atol=1e-5, rtol=1e-5)


def test_encode_restores_modes_and_uses_no_dropout(checkpoint: Checkpoint) -> None:
    encoder = load_encoder(str(checkpoint("bert")))
    assert not encoder.training
    expected = encoder.encode(TEXTS)
    encoder.train()
    encoder.model.embeddings.eval()
    before = {name: module.training for name, module in encoder.named_modules()}
    assert torch.equal(encoder.encode(TEXTS), expected)
    assert {name: module.training for name, module in encoder.named_modules()} == before
    with pytest.raises(ValueError, match="'texts' must hold strings"):
        encoder.encode(["a", 5])  # type: ignore[list-item]
    assert {name: module.training for name, module in encoder.named_modules()} == before


def test_progress_goes_to_standard_error(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(str(checkpoint("bert")))
    assert torch.equal(encoder.encode(TEXTS, progress=True), encoder.encode(TEXTS))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_documents_and_corpora(checkpoint: Checkpoint, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)))
    assert encoder.encode([]).shape == (0, 16)
    embeddings = encoder.encode(["", "the graph"])
    assert embeddings.isfinite().all()
    with pytest.raises(ValueError, match="'features' must hold a document"):
        encoder.collate([])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_used_parameter(checkpoint: Checkpoint, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)), pooling="mean").train()
    encoder(**encoder.collate(encoder.tokenize(TEXTS, PAIRS))).square().sum().backward()
    unused = [name for name, value in encoder.named_parameters() if value.grad is None]
    assert unused == []


def test_gradient_checkpointing_gives_the_same_gradients(checkpoint: Checkpoint) -> None:
    encoder = load_encoder(str(checkpoint("bert"))).train().double()
    batch = encoder.collate(encoder.tokenize(TEXTS))
    gradients = []
    for switch in (encoder.gradient_checkpointing_enable, encoder.gradient_checkpointing_disable):
        switch()
        flags = [getattr(module, "gradient_checkpointing", False) for module in encoder.modules()]
        assert any(flags) == (not gradients)
        encoder.zero_grad()
        torch.manual_seed(0)  # the same dropout
        encoder(**batch)[:, 0].sum().backward()
        gradients.append([value.grad.clone() for value in encoder.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_float32_under_autocast(checkpoint: Checkpoint, pooling: str) -> None:
    encoder = load_encoder(str(checkpoint("bert")), pooling=pooling)  # type: ignore[arg-type]
    batch = encoder.collate(encoder.tokenize(TEXTS))
    exact = encoder(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(**batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0.1)
    encoder.double()
    assert encoder(**batch).dtype == torch.float64
    assert encoder.encode(TEXTS).dtype == torch.float64


def test_documents_are_cut(checkpoint: Checkpoint) -> None:
    encoder = load_encoder(str(checkpoint("bert")), max_length=8)
    lengths = [len(feature["input_ids"]) for feature in encoder.tokenize(["a " * 50, "a"])]
    assert lengths == [8, 3]
    pair = encoder.tokenize(["a " * 50], ["one two"])[0]["input_ids"]
    assert len(pair) == 8
    assert pair[-3:] == encoder.tokenize(["one two"])[0]["input_ids"][-3:]


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(checkpoint: Checkpoint, tmp_path: Path, family: str) -> None:
    encoder = load_encoder(str(checkpoint(family)), pooling="mean", max_length=9)
    folder = encoder.save(tmp_path / "deep" / "model")
    expected = encoder.encode(TEXTS, PAIRS)
    for loaded in (TextEncoder.load(folder), load_encoder(str(folder))):
        assert repr(loaded) == repr(encoder)
        assert not loaded.training
        assert torch.equal(loaded.encode(TEXTS, PAIRS), expected)
    assert load_encoder(str(folder), pooling="cls").pooling == "cls"
    assert load_encoder(str(folder), max_length=5).max_length == 5
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_save_replaces_its_own_folder_only(checkpoint: Checkpoint, tmp_path: Path) -> None:
    encoder = load_encoder(str(checkpoint("bert")))
    folder = encoder.save(tmp_path / "model")
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    encoder.save(folder)
    assert torch.equal(TextEncoder.load(folder).encode(TEXTS), encoder.encode(TEXTS))

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    encoder.save(foreign)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for name in ("other", "other/thesis.txt"):
        with pytest.raises(ValueError, match="holds something else"):
            encoder.save(tmp_path / name)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_failed_save_leaves_the_old_one(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(str(checkpoint("bert")))
    folder = encoder.save(tmp_path / "model")

    def fail(target: Path) -> None:
        (Path(target) / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(encoder.tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        encoder.save(folder)
    assert torch.equal(TextEncoder.load(folder).encode(TEXTS), encoder.encode(TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_load_refuses_foreign_folders(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for folder in (checkpoint("bert"), tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"saved by gloss_graph .*Use load_encoder"):
            TextEncoder.load(folder)
    (tmp_path / "encoder.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="unknown format 'other'"):
        TextEncoder.load(tmp_path)


def test_constructor_checks() -> None:
    model, tokenizer = build_model("bert"), build_tokenizer("bert")
    assert TextEncoder(model, tokenizer, pooling="mean").max_length == 32
    with pytest.raises(
        ValueError, match=r"'pooling' must be one of \['cls', 'last', 'mean'\] \(got 'max'"
    ):
        TextEncoder(model, tokenizer, pooling="max")  # type: ignore[arg-type]
    for length in (0, 33):
        with pytest.raises(ValueError, match=rf"between 1 and 32 .* \(got {length}\)"):
            TextEncoder(model, tokenizer, pooling="cls", max_length=length)
    roberta = TextEncoder(build_model("roberta"), build_tokenizer("roberta"), pooling="cls")
    assert roberta.max_length == 32  # two of its 34 positions belong to the padding token
    assert roberta.encode(["a " * 99]).isfinite().all()
    bare = build_tokenizer("gpt2")
    bare.eos_token = None
    with pytest.raises(ValueError, match=r"'tokenizer' must have a padding or an end-of-text"):
        TextEncoder(build_model("gpt2"), bare, pooling="last")
    model.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="got the encoder-decoder 'bert'"):
        TextEncoder(model, tokenizer, pooling="cls")


def test_texts_are_checked(checkpoint: Checkpoint) -> None:
    encoder = load_encoder(str(checkpoint("bert")))
    with pytest.raises(ValueError, match=r"'texts' must be a list of strings \(got str\)"):
        encoder.encode("the graph")
    with pytest.raises(ValueError, match=r"'texts_b' must hold one text per document \(got 1 for"):
        encoder.encode(TEXTS, ["a"])
    with pytest.raises(ValueError, match=r"'batch_size' must be at least 1 \(got 0\)"):
        encoder.encode(TEXTS, batch_size=0)
