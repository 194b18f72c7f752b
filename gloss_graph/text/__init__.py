"""Documents to embeddings: corpora, readers and pretrained encoders."""

from gloss_graph.text.corpora import UNLABELED, Corpus, Splits, stratified_draw
from gloss_graph.text.docstrings import docstring_corpus
from gloss_graph.text.encoders import Features, TextEncoder, load_encoder, load_saved_encoder
from gloss_graph.text.features import FeatureEncoder, lexical_rows, read_features, with_features
from gloss_graph.text.lora import Adapters, add_lora
from gloss_graph.text.readers import read_splits, read_table

__all__ = [
    "UNLABELED",
    "Adapters",
    "Corpus",
    "FeatureEncoder",
    "Features",
    "Splits",
    "TextEncoder",
    "add_lora",
    "docstring_corpus",
    "lexical_rows",
    "load_encoder",
    "load_saved_encoder",
    "read_features",
    "read_splits",
    "read_table",
    "stratified_draw",
    "with_features",
]
