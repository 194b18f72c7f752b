"""A memory bank of past embeddings with identities, ages and neighbor lists."""

from gloss_graph._internal.moved import moved_names
from gloss_graph.memory.bank import MemoryBank
from gloss_graph.memory.drift import AgeGroup, BankStats, Drift, MomentumEncoder
from gloss_graph.memory.eviction import (
    EVICTIONS,
    ClassBalanced,
    Eviction,
    FirstInFirstOut,
    Reservoir,
    Stalest,
)

__all__ = [
    "EVICTIONS",
    "AgeGroup",
    "BankStats",
    "ClassBalanced",
    "Drift",
    "Eviction",
    "FirstInFirstOut",
    "MemoryBank",
    "MomentumEncoder",
    "Reservoir",
    "Stalest",
]

__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.neighbors": [
            "DescentSettings",
            "IVFSettings",
            "Nearest",
            "NeighborLists",
            "Search",
            "SearchResult",
            "nearest",
            "nearest_others",
        ]
    },
)
