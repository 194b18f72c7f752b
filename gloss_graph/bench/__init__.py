"""Measurements: what a step costs beside its alternatives, and propagation beside its peers."""

from gloss_graph.bench.endurance import memory_growth
from gloss_graph.bench.peers import corpus_table
from gloss_graph.bench.report import fitted_exponent, plot_stages, write_tables
from gloss_graph.bench.stages import StageSettings, stage_table
from gloss_graph.bench.turns import limited_threads

__all__ = [
    "StageSettings",
    "corpus_table",
    "fitted_exponent",
    "limited_threads",
    "memory_growth",
    "plot_stages",
    "stage_table",
    "write_tables",
]
