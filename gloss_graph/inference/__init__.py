"""Propagation over a corpus as a classifier: predictions, their reasons, and its prospects."""

from gloss_graph.inference.head import HeadSettings, PropagationHead
from gloss_graph.inference.predictor import MODES, BankInference, Explanation, PropagationPredictor
from gloss_graph.inference.skill import GraphSkill, graph_skill

__all__ = [
    "MODES",
    "BankInference",
    "Explanation",
    "GraphSkill",
    "HeadSettings",
    "PropagationHead",
    "PropagationPredictor",
    "graph_skill",
]
