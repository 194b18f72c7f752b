"""Frozen layers: their output is computed once for a document and changes no embedding."""

from __future__ import annotations

import copy

import pytest
import torch

from gloss_graph.text import Corpus, TextEncoder
from gloss_graph.text import encoders as encoders_module
from text.tiny_models import FAMILIES, build_model, build_tokenizer

TEXTS = ["the edge", "a graph node reaches every edge", "two", "one label walks a graph"]
CORPUS = Corpus(TEXTS, [0, 0, 1, 1], list(range(4)), ["graph", "food"])
PAIRS = Corpus(TEXTS, [0, 0, 1, 1], list(range(4)), ["graph", "food"], texts_b=TEXTS[::-1])


def _encoder(family: str = "bert", layers: int | None = 1) -> TextEncoder:
    encoder = TextEncoder(
        build_model(family), build_tokenizer(family), pooling="mean", max_length=16
    )
    encoder.freeze(layers)
    return encoder


def _first_layer(encoder: TextEncoder) -> torch.nn.Module:
    return next(m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList))[0]


def _counted(layer: torch.nn.Module) -> list[int]:
    """Grows with every call whose output the layer computes itself."""
    inner = next(m for m in layer.modules() if not list(m.children()))
    calls: list[int] = []
    inner.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("corpus", [CORPUS, PAIRS], ids=["texts", "pairs"])
def test_kept_states_change_no_embedding(family: str, corpus: Corpus) -> None:
    encoder = _encoder(family).eval()
    before = encoder.embed(corpus, batch_size=2)
    calls = _counted(_first_layer(encoder))
    with encoder.keeping_states(corpus, batch_size=3) as kept:
        assert kept
        computed = len(calls)
        torch.testing.assert_close(encoder.embed(corpus, batch_size=2), before)
        assert len(calls) == computed
        # Another document takes its batch the whole way.
        mixed = encoder.encode([TEXTS[0], "every label"], corpus.texts_b and corpus.texts_b[:2])
        torch.testing.assert_close(mixed[0], before[0])
        assert len(calls) > computed
    torch.testing.assert_close(encoder.embed(corpus, batch_size=2), before)


def test_a_training_step_runs_all_layers() -> None:
    encoder = _encoder().train()
    batch = encoder.collate(encoder.items(CORPUS))

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        encoder.zero_grad()
        encoder(**batch).square().sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    whole = gradients()
    with encoder.keeping_states(CORPUS) as kept:
        assert kept
        encoder.embed(CORPUS)
        found = gradients()
    assert len(found) == len(whole) > 0
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one, other)


def test_states_are_not_kept_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    with _encoder(layers=0).keeping_states(CORPUS) as kept:
        assert not kept
    encoder = _encoder()
    with encoder.keeping_states(CORPUS.select([])) as kept:
        assert not kept
    monkeypatch.setattr(encoders_module, "MOST_BYTES", 100)
    with encoder.keeping_states(CORPUS) as kept:
        assert not kept


def test_a_model_that_hands_on_more_than_states_is_left_alone() -> None:
    encoder = _encoder("deberta").eval()
    # As T5 does with the bias of its positions.
    _first_layer(encoder).register_forward_hook(lambda _, __, output: (output[0], output[0]))
    before = encoder.embed(CORPUS)
    with encoder.keeping_states(CORPUS) as kept:
        assert not kept
        torch.testing.assert_close(encoder.embed(CORPUS), before)


def test_a_copy_made_meanwhile_has_the_states() -> None:
    encoder = _encoder().eval()
    with encoder.keeping_states(CORPUS):
        copied = copy.deepcopy(encoder)
        calls = _counted(_first_layer(copied))
        # What is kept already is not made again.
        with copied.keeping_states(CORPUS) as kept:
            assert kept
            torch.testing.assert_close(copied.embed(CORPUS), encoder.embed(CORPUS))
        assert not calls
        # States behind other layers do not serve.
        copied.freeze(2)
        torch.testing.assert_close(copied.embed(CORPUS), encoder.embed(CORPUS))
        assert calls
