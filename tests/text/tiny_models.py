"""Tiny models with random weights and real tokenizers, one per family."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

WORDS = ["a", "the", "graph", "node", "edge", "label", "walks", "reaches", "every", "one", "two"]
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama")


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>"],
        "gpt2": ["<|endoftext|>"],
        "llama": ["<unk>", "<s>", "</s>"],
    }[family]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    unknown = special[0] if family in ("gpt2", "llama") else special[1 if family == "bert" else 3]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair, names = {
        "bert": (
            "[CLS] $A [SEP]",
            "[CLS] $A [SEP] $B:1 [SEP]:1",
            {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        ),
        "roberta": (
            "<s> $A </s>",
            "<s> $A </s> </s> $B </s>",
            {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"},
        ),
        "gpt2": (None, None, {"eos_token": "<|endoftext|>"}),
        "llama": ("<s> $A", "<s> $A <s> $B", {"bos_token": "<s>", "eos_token": "</s>"}),
    }[family]
    if single is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=pair,
            special_tokens=[(token, vocabulary[token]) for token in special],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, **names)


def build_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "bert":
        return BertModel(BertConfig(**SIZES, intermediate_size=32, max_position_embeddings=32))
    if family == "roberta":
        config = RobertaConfig(
            **SIZES, intermediate_size=32, max_position_embeddings=34, type_vocab_size=1
        )
        return RobertaModel(config)
    if family == "distilbert":
        config = DistilBertConfig(
            vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32
        )
        return DistilBertModel(config)
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=0
        )
        return GPT2Model(config)
    config = LlamaConfig(
        **SIZES, intermediate_size=32, num_key_value_heads=2, max_position_embeddings=32
    )
    return LlamaModel(config)
