"""Settings of the graph models, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph.baselines.cleaning import CLEANINGS
from gloss_graph.baselines.word_graph import COUNTINGS
from gloss_graph.training.config import DEVICES, check_label_draw

MODELS = {
    "text-gcn": "TextGCN (Yao et al. 2019): a GCN over documents and words",
    "bert-gcn": "BertGCN (Lin et al. 2021): an encoder and a GNN over its embeddings",
}
GNNS = ("gcn", "gat")


@dataclass(frozen=True, kw_only=True)
class GraphModelConfig:
    """What both models share.

    Attributes:
        window: Words of a sliding window.
        min_count: Words seen less often in all documents together are left out.
        stop_words: Leave out English stop words. TextGCN takes `min_count=1, stop_words=False` for
            the short texts of MR.
        cleaning: "unicode" keeps the letters of every script; "published", as the released code of
            TextGCN, those of ASCII alone.
        counting: How meetings of words are counted, see `word_document_graph`.
        dropout: On what enters the last graph layer.
        epochs: Passes over the training documents, at most.
        patience: Epochs without gain to stop at, where there is a validation part.
        seed: Of weights, order and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        label_fraction: Share of the training labels that is used; None = all.
        labels_per_class: The same as a number a class.
        pictures: Record embeddings before, during and after training.
    """

    model: ClassVar[str]

    window: int = 20
    min_count: int = 5
    stop_words: bool = True
    counting: str = "pairs"
    cleaning: str = "unicode"
    dropout: float = 0.5
    epochs: int = 200
    patience: int = 10
    seed: int = 0
    device: str = "auto"
    label_fraction: float | None = None
    labels_per_class: int | None = None
    pictures: bool = True

    def __post_init__(self) -> None:
        check_positive_int("window", self.window, minimum=2)
        for name in ("min_count", "epochs", "patience"):
            check_positive_int(name, getattr(self, name))
        check_positive_int("seed", self.seed, minimum=0)
        check_choice("counting", self.counting, COUNTINGS)
        check_choice("cleaning", self.cleaning, CLEANINGS)
        check_choice("device", self.device, DEVICES)
        check_range("dropout", self.dropout, 0, 1, open_high=True)
        check_label_draw(self.label_fraction, self.labels_per_class)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class TextGCNConfig(GraphModelConfig):
    """Settings of TextGCN, by default the paper's.

    Attributes:
        hidden: Width of the hidden layer.
        learning_rate: Of Adam.

    The others are those of `GraphModelConfig`.
    """

    model: ClassVar[str] = "text-gcn"

    hidden: int = 200
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("hidden", self.hidden)
        check_range("learning_rate", self.learning_rate, 0, 1, open_low=True)


@dataclass(frozen=True, kw_only=True)
class BertGCNConfig(GraphModelConfig):
    r"""Settings of BertGCN, by default the paper's but for a shorter fine-tuning.

    Attributes:
        gnn: "gcn" or "gat", which ignores the weights of the edges and keeps a message an edge and
            head: E x 8 x 32 floats.
        hidden: Width of the hidden layer; None = 200 of "gcn", 32 a head of "gat".
        heads: Of "gat".
        graph_weight: \(\lambda\): the prediction is
            \(\lambda\) GNN + \((1 - \lambda)\) encoder head.
        learning_rate: Of the encoder and its linear head.
        head_learning_rate: Of the GNN.
        epochs: Of joint training.
        fine_tune_epochs: Passes in which encoder and head are trained alone first; 0 = none: the
            head is then a logistic regression on the embeddings.
        fine_tune_rate: Learning rate of these.
        batch_size: Labeled documents a step.
        eval_batch_size: Documents a forward pass of the encoder without gradient.
        freeze_layers: Embedding layer and first layers of the encoder that are not trained.
        bf16: Autocast encoder and linear head to bfloat16; the GNN stays in float32.

    The others are those of `GraphModelConfig`.
    """

    model: ClassVar[str] = "bert-gcn"

    gnn: str = "gcn"
    hidden: int | None = None
    heads: int = 8
    graph_weight: float = 0.7
    learning_rate: float = 1e-5
    head_learning_rate: float = 1e-3
    epochs: int = 50
    fine_tune_epochs: int = 10
    fine_tune_rate: float = 1e-4
    batch_size: int = 64
    eval_batch_size: int = 64
    freeze_layers: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("gnn", self.gnn, GNNS)
        if self.hidden is not None:
            check_positive_int("hidden", self.hidden)
        for name in ("heads", "batch_size", "eval_batch_size"):
            check_positive_int(name, getattr(self, name))
        for name in ("fine_tune_epochs", "freeze_layers"):
            check_positive_int(name, getattr(self, name), minimum=0)
        check_range("graph_weight", self.graph_weight, 0, 1)
        for name in ("learning_rate", "head_learning_rate", "fine_tune_rate"):
            check_range(name, getattr(self, name), 0, math.inf, open_low=True, open_high=True)


CONFIGS: dict[str, type[GraphModelConfig]] = {
    config.model: config for config in (TextGCNConfig, BertGCNConfig)
}
