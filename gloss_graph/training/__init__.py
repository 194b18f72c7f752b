"""Room 5, train: the Hugging Face Trainer with a graph-guided objective."""

from gloss_graph.training.classifier import ClassifierOutput, TextClassifier
from gloss_graph.training.config import LOSSES, TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.labels import draw_labels, hide_labels, with_unlabeled
from gloss_graph.training.metrics import classification_scores, macro_silhouette
from gloss_graph.training.predict import Prediction, Run
from gloss_graph.training.run import RunResult, train_text
from gloss_graph.training.sampler import MixedSampler
from gloss_graph.training.setup import make_loss, make_objective
from gloss_graph.training.snapshots import FixedBatch, SnapshotData, Snapshots, load_snapshots
from gloss_graph.training.state import load_objective, save_objective
from gloss_graph.training.trainer import GraphGuidedTrainer
from gloss_graph.training.warmstart import contrastive_warm_start

__all__ = [
    "LOSSES",
    "ClassifierOutput",
    "FixedBatch",
    "GraphGuidedTrainer",
    "MixedSampler",
    "Prediction",
    "Run",
    "RunResult",
    "SnapshotData",
    "Snapshots",
    "TextClassifier",
    "TextCollator",
    "TextDataset",
    "TrainConfig",
    "classification_scores",
    "contrastive_warm_start",
    "draw_labels",
    "hide_labels",
    "load_objective",
    "load_snapshots",
    "macro_silhouette",
    "make_loss",
    "make_objective",
    "save_objective",
    "train_text",
    "with_unlabeled",
]
