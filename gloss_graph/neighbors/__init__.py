"""Nearest neighbors: exact and approximate search, neighbor lists, their adjacency."""

from gloss_graph.neighbors.exact import Nearest, SearchResult, nearest, nearest_others
from gloss_graph.neighbors.lists import NeighborLists
from gloss_graph.neighbors.settings import DescentSettings, HNSWSettings, IVFSettings, Search

__all__ = [
    "DescentSettings",
    "HNSWSettings",
    "IVFSettings",
    "Nearest",
    "NeighborLists",
    "Search",
    "SearchResult",
    "nearest",
    "nearest_others",
]
