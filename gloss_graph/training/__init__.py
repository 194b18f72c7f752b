"""Training of text classifiers with a graph-guided objective."""

from typing import TYPE_CHECKING

from gloss_graph._internal.extras import require

require("transformers", "accelerate", extra="text")
require("pandas", "matplotlib", extra="analysis")

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
    from gloss_graph.training.checkpoints import load_objective, save_objective
    from gloss_graph.training.classifier import ClassifierOutput, TextClassifier
    from gloss_graph.training.config import LOSSES, MODES, RECIPES, LossSpec, TrainConfig
    from gloss_graph.training.data import (
        MixedSampler,
        TextCollator,
        TextDataset,
        draw_labels,
        encoder_identity,
        hide_labels,
        recorded_embeddings,
        with_unlabeled,
    )
    from gloss_graph.training.estimator import Decision, GraphGuidedClassifier, Reason
    from gloss_graph.training.outcome import set_scores
    from gloss_graph.training.predict import Prediction, Run
    from gloss_graph.training.run import RunResult, train_text
    from gloss_graph.training.setup import make_loss, make_objective
    from gloss_graph.training.snapshots import FixedBatch, SnapshotData, Snapshots, load_snapshots
    from gloss_graph.training.stages import contrastive_warm_start
    from gloss_graph.training.trainer import BankRefresh, GraphGuidedTrainer

__all__ = [
    "LOSSES",
    "MODES",
    "RECIPES",
    "BankRefresh",
    "ClassifierOutput",
    "Decision",
    "FixedBatch",
    "GraphGuidedClassifier",
    "GraphGuidedTrainer",
    "LossSpec",
    "MixedSampler",
    "Prediction",
    "Reason",
    "Run",
    "RunResult",
    "SnapshotData",
    "Snapshots",
    "TextClassifier",
    "TextCollator",
    "TextDataset",
    "TrainConfig",
    "contrastive_warm_start",
    "draw_labels",
    "encoder_identity",
    "hide_labels",
    "load_objective",
    "load_snapshots",
    "make_loss",
    "make_objective",
    "recorded_embeddings",
    "save_objective",
    "set_scores",
    "train_text",
    "with_unlabeled",
]

# Loaded on first use: settings are read without torch. Names that moved stay importable.
_HOMES = {
    "training.checkpoints": "load_objective save_objective",
    "training.classifier": "ClassifierOutput TextClassifier",
    "training.config": "LOSSES MODES RECIPES LossSpec TrainConfig",
    "training.data": "MixedSampler TextCollator TextDataset draw_labels encoder_identity "
    "hide_labels recorded_embeddings with_unlabeled",
    "training.estimator": "Decision GraphGuidedClassifier Reason",
    "training.outcome": "set_scores",
    "training.predict": "Prediction Run",
    "training.run": "RunResult train_text",
    "training.setup": "make_loss make_objective",
    "training.snapshots": "FixedBatch SnapshotData Snapshots load_snapshots",
    "training.stages": "contrastive_warm_start",
    "training.trainer": "BankRefresh GraphGuidedTrainer",
    "runs": "Evaluation FinishedRun METRICS PairedTest compare_runs find_runs holm paired_test "
    "read_run",
    "studies": "Choice Range SEARCH_SPACE TuneResult parse_choice parse_range search_space "
    "tune_text",
    "analysis": "classification_scores macro_silhouette micro_silhouette silhouette_scores",
}
__getattr__ = moved_names(
    __name__, {f"gloss_graph.{home}": names.split() for home, names in _HOMES.items()}
)
