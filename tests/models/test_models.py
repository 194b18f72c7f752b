"""TextGCN and BertGCN: their mathematics, what they learn, run folders, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from text.tiny_models import build_tokenizer
from torch import Tensor
from training.tiny import CLASSES, quick, run, tiny_corpus, tiny_encoder, tiny_splits
from transformers import BertConfig, BertModel

from gloss_graph.baselines import (
    BertGCNClassifier,
    BertGCNConfig,
    SymmetricGCNConv,
    TextGCN,
    TextGCNClassifier,
    TextGCNConfig,
    normalized_adjacency,
    train_graph_model,
    word_document_graph,
)
from gloss_graph.runs import compare_runs
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.training import TextClassifier

FILES = {
    "README.md",
    "config.json",
    "metrics.json",
    "history.csv",
    "classes.csv",
    "labels_used.csv",
}


def text_config(**settings: Any) -> TextGCNConfig:
    defaults = {"min_count": 1, "stop_words": False, "epochs": 15, "pictures": False}
    return TextGCNConfig(**{**defaults, **settings})


def bert_config(**settings: Any) -> BertGCNConfig:
    defaults = {"min_count": 1, "stop_words": False, "epochs": 2, "fine_tune_epochs": 1}
    defaults |= {"batch_size": 16, "pictures": False}
    return BertGCNConfig(**{**defaults, **settings})


def test_the_layers_are_the_formula_and_so_is_their_gradient() -> None:
    graph = word_document_graph(["a b", "b c d", "d a"], min_count=1, stop_words=())
    adjacency = normalized_adjacency(graph)
    model, dense = TextGCN(graph.num_nodes, 2, hidden=3).eval(), adjacency.to_dense()
    logits = model(adjacency)
    expected = dense @ (dense @ model.table).relu() @ model.second.lin.weight.t()
    assert torch.allclose(logits, expected, atol=1e-6)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((logits * weight).sum(), list(model.parameters()))
    wanted = torch.autograd.grad((expected * weight).sum(), list(model.parameters()))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_convolution_is_that_of_pyg() -> None:
    graph = word_document_graph(["a b", "b c d", "d a"], min_count=1, stop_words=())
    layer = SymmetricGCNConv(4, 2)
    x = torch.randn(graph.num_nodes, 4, generator=torch.Generator().manual_seed(1))
    from torch_geometric.nn import GCNConv

    plain = GCNConv(4, 2)
    plain.load_state_dict(layer.state_dict())
    expected = plain(x, graph.edge_index, graph.edge_weight)
    assert torch.allclose(layer(x, normalized_adjacency(graph)), expected, atol=1e-5)


def test_text_gcn_learns_topics_and_never_looks_at_test_labels() -> None:
    splits = tiny_splits()
    model = TextGCNClassifier(text_config()).fit(splits)
    assert splits.test is not None
    answer = model.predict_proba(splits.test)
    truth = torch.tensor(splits.test.labels)
    assert (answer.argmax(dim=1) == truth).float().mean() > 0.7
    shifted = replace(splits.test, labels=[(label + 1) % 3 for label in splits.test.labels])
    again = TextGCNClassifier(text_config()).fit(replace(splits, test=shifted))
    assert torch.equal(again.predict_proba(shifted), answer)


def test_text_gcn_stops_when_the_validation_loss_rises() -> None:
    model = TextGCNClassifier(text_config(epochs=200, patience=3, learning_rate=0.2))
    model.fit(tiny_splits())
    losses = [row["val_cross_entropy"] for row in model.history]
    assert model.steps == len(losses) < 200
    assert losses[-1] > sum(losses[-4:-1]) / 3


def test_documents_without_a_word_get_the_class_shares() -> None:
    splits = tiny_splits()
    assert splits.test is not None
    empty = replace(splits.test, texts=["; …", *splits.test.texts[1:]])
    with pytest.warns(UserWarning, match="1 of 63 documents hold no word"):
        model = TextGCNClassifier(text_config()).fit(replace(splits, test=empty))
    shares = torch.bincount(torch.tensor(splits.train.labels)) / len(splits.train)
    assert torch.allclose(model.predict_proba(empty)[0], shares)


@pytest.mark.parametrize("with_val", [True, False])
def test_fine_tuning_alone_embeds_what_it_is_scored_by(
    monkeypatch: pytest.MonkeyPatch, with_val: bool
) -> None:
    splits = tiny_splits() if with_val else replace(tiny_splits(), val=None)
    encoder, sizes = tiny_encoder(), []
    embed = encoder.embed

    def counted(corpus: Corpus, **options: Any) -> torch.Tensor:
        sizes.append(len(corpus))
        return embed(corpus, **options)

    monkeypatch.setattr(encoder, "embed", counted)
    config = bert_config(fine_tune_epochs=3, fine_tune_rate=1e-3, epochs=1)
    model = BertGCNClassifier(encoder, config).fit(splits)
    everyone = len(model.memory)
    assert sizes == [12 if with_val else 0] * 3 * with_val + [everyone] * 2
    whole = Corpus([], [], [], CLASSES)
    for part in splits.parts.values():
        whole = replace(
            whole,
            texts=whole.texts + part.texts,
            labels=whole.labels + part.labels,
            ids=whole.ids + part.ids,
        )
    assert torch.allclose(model.memory, embed(whole), atol=1e-5)


def test_new_documents_are_refused_by_text_gcn_and_labeled_by_the_encoder_of_bert_gcn() -> None:
    splits = tiny_splits()
    new = tiny_corpus(4, seed=9, first_id=500)
    text = TextGCNClassifier(text_config(epochs=2)).fit(splits)
    with pytest.raises(ValueError, match=r"got 4 others.*--unlabeled.*bert-gcn"):
        text.predict_proba(new)
    # The id of a known document is not enough.
    with pytest.raises(ValueError, match="others"):
        text.predict_proba(replace(new, ids=[0, 1, 2, 3]))
    bert = BertGCNClassifier(tiny_encoder(), bert_config(epochs=1)).fit(splits)
    head = bert.classifier.head(bert.encoder.embed(new)).softmax(dim=1)
    assert torch.allclose(bert.predict_proba(new), head, atol=1e-6)


@pytest.mark.parametrize("gnn", ["gcn", "gat"])
def test_bert_gcn_mixes_graph_and_encoder(gnn: str) -> None:
    splits = tiny_splits()
    config = bert_config(gnn=gnn, heads=2, hidden=4)
    model = BertGCNClassifier(tiny_encoder(), config).fit(splits)
    rows = model.encoder.embed(splits.train)
    # The memory is what the kept weights make of the documents.
    assert torch.allclose(model.memory[: len(splits.train)], rows, atol=1e-5)
    words = torch.zeros(model.graph.num_nodes - len(model.memory), model.encoder.dim)
    edges = normalized_adjacency(model.graph) if gnn == "gcn" else model.graph.edge_index
    graph = model.gnn(torch.cat([model.memory, words]), edges)[: len(splits.train)]
    expected = 0.7 * graph.softmax(dim=1) + 0.3 * model.classifier.head(rows).softmax(dim=1)
    assert torch.allclose(model.predict_proba(splits.train), expected, atol=1e-5)


def test_blocks_of_the_matrix_give_what_the_whole_gives() -> None:
    """Words have no rows and only some documents are asked for: less work, the same gradient."""
    model = BertGCNClassifier(tiny_encoder(), bert_config(epochs=1)).fit(tiny_splits())
    rows = torch.randn(model.memory.shape, generator=torch.Generator().manual_seed(0))
    words = torch.zeros(model.graph.num_nodes - len(rows), rows.size(1))
    weight = torch.randn(9, len(CLASSES), generator=torch.Generator().manual_seed(1))
    for chosen in (torch.tensor([5, 0, 44, 7, 8, 30, 2, 1, 9]), torch.arange(len(rows)).flip(0)):
        answers = []
        for blocks in (True, False):
            x = rows.clone().requires_grad_()
            if blocks:
                found = model.graph_logits(x, chosen)
            else:
                edges = normalized_adjacency(model.graph)
                found = model.gnn(torch.cat([x, words]), edges)[chosen]
            wanted = [x, *model.gnn.parameters()]
            gradient = torch.autograd.grad((found[:9] * weight).sum(), wanted)
            answers.append([found, *gradient])
        for one, other in zip(*answers, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("val", [12, 0])
def test_the_rows_that_fine_tuning_leaves_to_the_graph_are_all_new(val: int) -> None:
    """While the encoder trains alone only validation rows are made anew after an epoch."""
    splits = tiny_splits()
    splits = splits if val else replace(splits, val=None)
    model = BertGCNClassifier(tiny_encoder(), bert_config(fine_tune_epochs=3))
    seen: list[tuple[Tensor, Tensor]] = []
    logits = model.graph_logits

    def watched(rows: Tensor, chosen: Tensor) -> Tensor:
        if not seen:  # the first step with the graph, whose batch has rows of its step
            start = len(splits.train)
            parts = [part for part in (splits.val, splits.test) if part is not None]
            seen.append((rows[start:].detach(), torch.cat([model.embed(part) for part in parts])))
        return logits(rows, chosen)

    model.graph_logits = watched  # type: ignore[method-assign]
    model.fit(splits)
    memory, rows = seen[0]
    assert torch.allclose(memory, rows, atol=1e-5)
    assert len(model.history) == 5
    assert all(("val_accuracy" in row) == bool(val) for row in model.history)


def test_frozen_layers_stay_and_half_precision_is_near(tmp_path: Path) -> None:
    splits, encoder = tiny_splits(), tiny_encoder()
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    config = bert_config(freeze_layers=1, bf16=True, fine_tune_rate=1e-2)
    model = BertGCNClassifier(encoder, config).fit(splits)
    moved = {name for name, value in encoder.named_parameters() if not value.equal(before[name])}
    assert moved
    assert not any("embeddings" in name or "layer.0." in name for name in moved)
    assert model.memory.dtype == torch.float32
    exact = encoder.embed(splits.train)
    kept = model.memory[: len(splits.train)]
    assert torch.allclose(kept, exact, atol=0.1)
    assert not torch.equal(kept, exact)
    with pytest.raises(ValueError, match="'freeze_layers' must be at most"):
        BertGCNClassifier(tiny_encoder(), bert_config(freeze_layers=99)).fit(splits)


@pytest.mark.slow  # 110 million parameters
def test_bert_base_of_random_weights_trains_end_to_end(tmp_path: Path) -> None:
    size = BertConfig()
    assert (size.num_hidden_layers, size.hidden_size) == (12, 768)
    torch.manual_seed(0)
    tokenizer = build_tokenizer("bert")
    model = BertModel(BertConfig(vocab_size=len(tokenizer)))
    encoder = TextEncoder(model, tokenizer, pooling="cls", max_length=8)
    splits = tiny_splits(12, 6, 6)
    result = train_graph_model(
        splits, bert_config(epochs=1, batch_size=6), tmp_path / "run", encoder=encoder
    )
    assert len(result.history) == 2
    loaded = BertGCNClassifier.load(tmp_path / "run" / "model")
    assert loaded.memory.shape == (24, 768)
    again = loaded.predict_proba(splits.test).argmax(dim=1)
    assert again.tolist() == result.predictions["test"].tolist()


def test_both_are_the_same_again_under_one_seed() -> None:
    splits = tiny_splits()
    for make in (
        lambda seed: TextGCNClassifier(text_config(seed=seed)),
        lambda seed: BertGCNClassifier(tiny_encoder(), bert_config(seed=seed)),
    ):
        one, same, other = (make(s).fit(splits).predict_proba(splits.train) for s in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_run_folders_stand_beside_others_in_an_evaluation(tmp_path: Path) -> None:
    splits = tiny_splits()
    run(tmp_path / "ce", quick(loss="ce", max_steps=1, eval_steps=1, pictures=False), splits)
    text = train_graph_model(splits, text_config(), tmp_path / "text")
    bert = train_graph_model(splits, bert_config(), tmp_path / "bert", encoder=tiny_encoder())
    assert {path.name for path in (tmp_path / "text").iterdir()} == {
        *FILES,
        *("model", "predictions.csv"),
    }
    evaluation = compare_runs([tmp_path])
    assert set(evaluation.summary["arm"]) == {"ce", "text-gcn", "bert-gcn"}
    assert set(evaluation.tests["baseline"]) == {"ce"}
    metrics = json.loads((tmp_path / "text" / "metrics.json").read_text())
    assert metrics["test.accuracy"] == text.metrics["test.accuracy"]
    table = pd.read_csv(tmp_path / "bert" / "predictions.csv")
    assert len(table) == 63
    test = table[table["split"] == "test"]
    right = (test["label"] == test["predicted"]).mean()
    assert right == pytest.approx(bert.metrics["test.accuracy"])
    assert splits.test is not None
    for result, kind, folder in (
        (text, TextGCNClassifier, "text"),
        (bert, BertGCNClassifier, "bert"),
    ):
        model = tmp_path / folder / "model"
        loaded = kind.load(model)
        expected = result.model.predict_proba(splits.test)
        assert torch.allclose(loaded.predict_proba(splits.test), expected, atol=1e-5)
        with safe_open(model / "graph_model.safetensors", "pt") as stored:
            assert "edges" in stored.keys()  # noqa: SIM118
    assert TextClassifier.load(tmp_path / "bert" / "model").label_names == CLASSES
    with pytest.raises(ValueError, match="must be a bert-gcn model"):
        BertGCNClassifier.load(tmp_path / "text" / "model")


def test_unlabeled_documents_and_draws_of_labels(tmp_path: Path) -> None:
    config = text_config(labels_per_class=2)
    train_graph_model(replace(tiny_splits(), val=None), config, tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "labels_used.csv")) == 6
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    train = table[table["split"] == "train"]
    assert train["label"].isna().sum() == 30
    assert train["predicted"].notna().all()


def test_bad_input_is_named(tmp_path: Path) -> None:
    splits = tiny_splits()
    one = Splits(Corpus(["tea", "cup"], [0, 0], [0, 1], ["x"]))
    with pytest.raises(ValueError, match="at least two classes"):
        TextGCNClassifier(text_config()).fit(one)
    none = replace(splits.train, labels=[-1] * len(splits.train))
    with pytest.raises(ValueError, match="must hold a labeled document"):
        TextGCNClassifier(text_config()).fit(replace(splits, train=none))
    with pytest.raises(ValueError, match="a word that is kept"):
        TextGCNClassifier(text_config(min_count=999)).fit(splits)
    with pytest.raises(ValueError, match="'encoder' must be a text encoder"):
        train_graph_model(splits, bert_config(), tmp_path / "a")
    with pytest.raises(ValueError, match="'encoder' must be a text encoder"):
        train_graph_model(splits, text_config(), tmp_path / "a", encoder=tiny_encoder())
    for settings in ({"gnn": "sage"}, {"graph_weight": 1.5}, {"hidden": 0}, {"patience": 0}):
        with pytest.raises(ValueError, match=f"'{next(iter(settings))}' must be"):
            bert_config(**settings)
    assert not (tmp_path / "a").exists()


def test_labels_of_one_class_are_warned_of_and_still_train(tmp_path: Path) -> None:
    splits = tiny_splits()
    alone = replace(splits.train, labels=[0] * len(splits.train))
    with pytest.warns(UserWarning, match="No training document is labeled"):
        result = train_graph_model(
            replace(splits, train=alone, val=None), text_config(), tmp_path / "run"
        )
    assert (result.predictions["train"] == 0).all()
