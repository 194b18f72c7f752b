"""The former name of `gloss_graph.baselines`."""

from gloss_graph._internal.moved import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.baselines": [
            "BertGCNClassifier",
            "BertGCNConfig",
            "CONFIGS",
            "GraphHead",
            "GraphModelConfig",
            "GraphModelResult",
            "MODELS",
            "STOP_WORDS",
            "SymmetricGCNConv",
            "TextGCN",
            "TextGCNClassifier",
            "TextGCNConfig",
            "clean_documents",
            "normalized_adjacency",
            "train_graph_model",
            "word_document_graph",
        ]
    },
)
