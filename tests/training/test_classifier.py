"""The classifier, its folder, its batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import assert_same_state
from text.tiny_models import FAMILIES

from gloss_graph.text import Corpus
from gloss_graph.training import TextClassifier, TextCollator, TextDataset

from .tiny import CLASSES, DIM, tiny_classifier, tiny_corpus, tiny_encoder


def logits(model: TextClassifier) -> torch.Tensor:
    corpus = tiny_corpus(7)
    with torch.no_grad():
        batch = model.encoder.collate(model.encoder.tokenize(corpus.texts))
        return model.eval()(**batch).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_classifier_gives_the_same_logits(tmp_path: Path, family: str) -> None:
    model = tiny_classifier(family)
    model.dropout.p = 0.25
    folder = model.save(tmp_path / "deep" / "model")
    # All files, the weights too, have the rights of the user's umask.
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    loaded = TextClassifier.load(folder)
    assert not any(module.training for module in loaded.modules())
    assert loaded.label_names == CLASSES
    assert loaded.dropout.p == 0.25
    assert repr(loaded.encoder) == repr(model.encoder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_a_half_precision_model_comes_back_in_float32(tmp_path: Path) -> None:
    model = tiny_classifier().to(torch.bfloat16)
    loaded = TextClassifier.load(model.save(tmp_path / "model"))
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    head = {name: value.float() for name, value in model.head.state_dict().items()}
    assert_same_state(loaded.head.state_dict(), head)


def test_saving_twice_replaces(tmp_path: Path) -> None:
    tiny_classifier(seed=0).save(tmp_path / "model")
    second = tiny_classifier(seed=1)
    second.save(str(tmp_path / "model"))
    assert torch.equal(TextClassifier.load(tmp_path / "model").head.weight, second.head.weight)


def test_names_of_classes_may_be_any_text(tmp_path: Path) -> None:
    names = ["žluťoučký 猫", "", 'a "quote"\n', "null"]
    model = TextClassifier(tiny_encoder(), names)
    assert TextClassifier.load(model.save(tmp_path / "model")).label_names == names


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("head.safetensors", None),
        ("head.safetensors", b""),
        ("head.safetensors", b"\x00" * 400),
        ("classifier.json", None),
        ("classifier.json", b"{"),
        ("classifier.json", b"[]"),
        ("classifier.json", b'{"label_names": ["a", "b", "c"]}'),
        ("classifier.json", b'{"label_names": 3, "dropout": 0.1}'),
        ("classifier.json", b'{"label_names": ["a", "b"], "dropout": 0.1}'),
        ("classifier.json", b'{"label_names": ["a", "b", "c"], "dropout": "x"}'),
        ("encoder.json", None),
        ("config.json", None),
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 400),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_folder(tmp_path: Path, file: str, content: bytes | None) -> None:
    folder = tiny_classifier().save(tmp_path / "model")
    assert (folder / file).is_file()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match="must be a classifier saved by gloss_graph") as caught:
        TextClassifier.load(folder)
    assert str(folder) in str(caught.value)


def test_a_truncated_head(tmp_path: Path) -> None:
    folder = tiny_classifier().save(tmp_path / "model")
    head = folder / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-8])
    with pytest.raises(ValueError, match="saved by gloss_graph"):
        TextClassifier.load(folder)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    encoder = tiny_encoder().save(tmp_path / "encoder")
    for folder in (encoder, tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="saved by gloss_graph"):
            TextClassifier.load(folder)


def test_foreign_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be new, empty or written by this method"):
        tiny_classifier().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("names", [[], ["one"]])
def test_fewer_than_two_classes(names: list[str]) -> None:
    with pytest.raises(ValueError, match="'label_names' must name at least two classes"):
        TextClassifier(tiny_encoder(), names)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range(dropout: float) -> None:
    with pytest.raises(ValueError, match=r"'dropout' must be in \[0, 1\)"):
        TextClassifier(tiny_encoder(), CLASSES, dropout=dropout)


def test_the_head_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = tiny_classifier(seed=5)
    torch.manual_seed(2)
    other = tiny_classifier(seed=5)
    assert_same_state(one.head.state_dict(), other.head.state_dict())
    assert not torch.equal(one.head.weight, tiny_classifier(seed=6).head.weight)


def test_dropout_is_before_the_head_only() -> None:
    """The embedding handed to the objective is the one an index would hold."""
    model = tiny_classifier(dropout=False)
    model.dropout.p = 0.9
    batch = model.encoder.collate(model.encoder.tokenize(["a graph", "one edge"]))
    trained, scored = model.train()(**batch), model.eval()(**batch)
    assert torch.equal(trained.embeddings, scored.embeddings)
    assert not torch.equal(trained.logits, scored.logits)
    assert trained.embeddings.shape == (2, DIM)
    assert trained["logits"] is trained.logits


def test_items_and_batches_carry_labels_and_ids() -> None:
    corpus = Corpus(["a graph walks", "edge", "two"], [2, -1, 0], [7, 9, 2**40], CLASSES)
    encoder = tiny_encoder()
    dataset, collate = TextDataset(corpus, encoder), TextCollator(encoder)
    assert len(dataset) == 3
    batch = collate([dataset[index] for index in range(3)])
    assert batch["labels"].tolist() == [2, -1, 0]
    assert batch["ids"].tolist() == [7, 9, 2**40]
    assert batch["labels"].dtype == batch["ids"].dtype == torch.long
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3, 3]
    single = collate([dataset[1]])
    assert torch.equal(single["input_ids"][0], batch["input_ids"][1, :3])
    json.dumps(dataset[0])


def test_pairs_of_texts() -> None:
    corpus = Corpus(["a graph", "edge"], [0, 1], [0, 1], CLASSES, texts_b=["one", "two walks"])
    encoder = tiny_encoder()
    batch = TextCollator(encoder)([TextDataset(corpus, encoder)[index] for index in range(2)])
    assert batch["token_type_ids"].max() == 1
