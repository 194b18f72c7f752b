"""Propagation over a corpus as a classifier: predictions, explanations, and its prospects."""

from gloss_graph.inference.head import GraphClassifier, PropagationHead
from gloss_graph.inference.predictor import MODES, BankInference, Explanation
from gloss_graph.inference.propagation_classifier import PropagationClassifier
from gloss_graph.inference.skill import GraphSkill, graph_skill

__all__ = [
    "MODES",
    "BankInference",
    "Explanation",
    "GraphClassifier",
    "GraphSkill",
    "PropagationClassifier",
    "PropagationHead",
    "graph_skill",
]
