"""Room 5, train: the Hugging Face Trainer with a graph-guided objective."""

from gloss_graph._space import Choice, Range
from gloss_graph.training.classifier import ClassifierOutput, TextClassifier
from gloss_graph.training.config import LOSSES, MODES, TrainConfig
from gloss_graph.training.dataset import TextCollator, TextDataset
from gloss_graph.training.evaluation import METRICS, Evaluation, compare_runs
from gloss_graph.training.finished import FinishedRun, find_runs, read_run
from gloss_graph.training.labels import draw_labels, hide_labels, with_unlabeled
from gloss_graph.training.metrics import (
    classification_scores,
    macro_silhouette,
    micro_silhouette,
    silhouette_scores,
)
from gloss_graph.training.multilabel import set_scores
from gloss_graph.training.paired import PairedTest, holm, paired_test
from gloss_graph.training.predict import Prediction, Run
from gloss_graph.training.recorded import encoder_identity, recorded_embeddings
from gloss_graph.training.refresh import BankRefresh
from gloss_graph.training.run import RunResult, train_text
from gloss_graph.training.sampler import MixedSampler
from gloss_graph.training.setup import make_loss, make_objective
from gloss_graph.training.snapshots import FixedBatch, SnapshotData, Snapshots, load_snapshots
from gloss_graph.training.space import (
    SEARCH_SPACE,
    parse_choice,
    parse_range,
    parse_setting,
    search_space,
)
from gloss_graph.training.state import load_objective, save_objective
from gloss_graph.training.trainer import GraphGuidedTrainer
from gloss_graph.training.tuning import TuneResult, tune_text
from gloss_graph.training.warmstart import contrastive_warm_start

__all__ = [
    "LOSSES",
    "METRICS",
    "MODES",
    "SEARCH_SPACE",
    "BankRefresh",
    "Choice",
    "ClassifierOutput",
    "Evaluation",
    "FinishedRun",
    "FixedBatch",
    "GraphGuidedTrainer",
    "MixedSampler",
    "PairedTest",
    "Prediction",
    "Range",
    "Run",
    "RunResult",
    "SnapshotData",
    "Snapshots",
    "TextClassifier",
    "TextCollator",
    "TextDataset",
    "TrainConfig",
    "TuneResult",
    "classification_scores",
    "compare_runs",
    "contrastive_warm_start",
    "draw_labels",
    "encoder_identity",
    "find_runs",
    "hide_labels",
    "holm",
    "load_objective",
    "load_snapshots",
    "macro_silhouette",
    "make_loss",
    "make_objective",
    "micro_silhouette",
    "paired_test",
    "parse_choice",
    "parse_range",
    "parse_setting",
    "read_run",
    "recorded_embeddings",
    "save_objective",
    "search_space",
    "set_scores",
    "silhouette_scores",
    "train_text",
    "tune_text",
    "with_unlabeled",
]
