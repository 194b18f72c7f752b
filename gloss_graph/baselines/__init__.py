"""Systems to compare with: TextGCN and BertGCN, over one graph of documents and words."""

from gloss_graph._internal.extras import require

require("transformers", extra="text")
require("pandas", extra="analysis")

from gloss_graph.baselines.bert_gcn import BertGCNClassifier, BertGCNConfig, GraphHead
from gloss_graph.baselines.graph_model import GraphModelConfig
from gloss_graph.baselines.run import CONFIGS, MODELS, GraphModelResult, train_graph_model
from gloss_graph.baselines.text_gcn import (
    SymmetricGCNConv,
    TextGCN,
    TextGCNClassifier,
    TextGCNConfig,
)
from gloss_graph.baselines.word_graph import (
    STOP_WORDS,
    clean_documents,
    normalized_adjacency,
    word_document_graph,
)

__all__ = [
    "CONFIGS",
    "MODELS",
    "STOP_WORDS",
    "BertGCNClassifier",
    "BertGCNConfig",
    "GraphHead",
    "GraphModelConfig",
    "GraphModelResult",
    "SymmetricGCNConv",
    "TextGCN",
    "TextGCNClassifier",
    "TextGCNConfig",
    "clean_documents",
    "normalized_adjacency",
    "train_graph_model",
    "word_document_graph",
]
