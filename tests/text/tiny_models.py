"""Tiny models with random weights and real tokenizers, one per family."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

WORDS = ["a", "the", "graph", "node", "edge", "label", "walks", "reaches", "every", "one", "two"]
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = ("bert", "roberta", "distilbert", "deberta", "deberta-v2")
DECODERS = ("gpt2", "llama", "qwen2", "qwen3")
FAMILIES = (*ENCODERS, *DECODERS)
# Families whose tokenizers put the same special tokens.
_TOKENIZERS = {"distilbert": "bert", "deberta": "bert", "deberta-v2": "bert"}


def build_tokenizer(family: str) -> PreTrainedTokenizerBase:
    family = _TOKENIZERS.get(family, family)
    if family.startswith("qwen"):
        return build_qwen_tokenizer()
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


def build_qwen_tokenizer() -> Qwen2Tokenizer:
    """Pairs of bytes merged up to whole words; transformers reads no other kind for the family."""
    merges = [(word[:end], word[end]) for word in WORDS for end in range(1, len(word))]
    merges = [*dict.fromkeys(merges), *(("\u0120", word) for word in WORDS)]
    letters = sorted({letter for word in WORDS for letter in word})
    tokens = ["<|endoftext|>", "\u010a", "\u0120", *letters, *map("".join, merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges)


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
    # Positions reach these only through attention, which must not be near uniform.
    sharp = {"initializer_range": 0.3}
    if family.startswith("deberta"):
        # As the published checkpoints: positions are relative to each other, no segments.
        options = {
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["c2p", "p2c"],
            **sharp,
        }
        if family == "deberta":
            return DebertaModel(DebertaConfig(**SIZES, **options))
        return DebertaV2Model(DebertaV2Config(**SIZES, **options))
    options = {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 32}
    if family.startswith("qwen"):
        options = {**SIZES, **options, **sharp, "vocab_size": 100}
        if family == "qwen2":
            return Qwen2Model(Qwen2Config(**options))
        return Qwen3Model(Qwen3Config(**options, head_dim=8))
    return LlamaModel(LlamaConfig(**SIZES, **{**options, "num_key_value_heads": 2}))
