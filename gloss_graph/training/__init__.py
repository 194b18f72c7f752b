"""Room 5, train: the Hugging Face Trainer with a graph-guided objective."""

from gloss_graph.training.classifier import ClassifierOutput, TextClassifier
from gloss_graph.training.config import LOSSES, TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.metrics import classification_scores, macro_silhouette
from gloss_graph.training.run import RunResult, make_objective, train_text
from gloss_graph.training.state import load_objective, save_objective
from gloss_graph.training.trainer import GraphGuidedTrainer

__all__ = [
    "LOSSES",
    "ClassifierOutput",
    "GraphGuidedTrainer",
    "RunResult",
    "TextClassifier",
    "TextCollator",
    "TextDataset",
    "TrainConfig",
    "classification_scores",
    "load_objective",
    "macro_silhouette",
    "make_objective",
    "save_objective",
    "train_text",
]
