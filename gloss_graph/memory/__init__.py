"""Room 1, remember: a bank of past embeddings with identities, ages and neighbour lists."""

from gloss_graph.memory.bank import MemoryBank
from gloss_graph.memory.drift import AgeGroup, Drift
from gloss_graph.memory.eviction import (
    EVICTIONS,
    ClassBalanced,
    Eviction,
    FirstInFirstOut,
    Reservoir,
    Stalest,
)
from gloss_graph.memory.indexes import DescentSettings, HNSWSettings, IVFSettings, Search
from gloss_graph.memory.links import NeighborLists
from gloss_graph.memory.momentum import MomentumEncoder
from gloss_graph.memory.search import Nearest, SearchResult, nearest, nearest_others
from gloss_graph.memory.stats import BankStats

__all__ = [
    "EVICTIONS",
    "AgeGroup",
    "BankStats",
    "ClassBalanced",
    "DescentSettings",
    "Drift",
    "Eviction",
    "FirstInFirstOut",
    "HNSWSettings",
    "IVFSettings",
    "MemoryBank",
    "MomentumEncoder",
    "Nearest",
    "NeighborLists",
    "Reservoir",
    "Search",
    "SearchResult",
    "Stalest",
    "nearest",
    "nearest_others",
]
