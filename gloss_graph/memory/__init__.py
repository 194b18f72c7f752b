"""Room 1, remember: a bank of past embeddings with identities, ages and neighbour lists."""

from gloss_graph.memory.bank import MemoryBank
from gloss_graph.memory.indexes import HNSWSettings, IVFSettings, Search
from gloss_graph.memory.links import NeighborLists
from gloss_graph.memory.search import Nearest, SearchResult, nearest, nearest_others
from gloss_graph.memory.stats import BankStats

__all__ = [
    "BankStats",
    "HNSWSettings",
    "IVFSettings",
    "MemoryBank",
    "Nearest",
    "NeighborLists",
    "Search",
    "SearchResult",
    "nearest",
    "nearest_others",
]
