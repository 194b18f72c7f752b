"""Nearest neighbors: exact and approximate search, neighbor lists, their adjacency."""

from gloss_graph.neighbors.corpus import knn_graph
from gloss_graph.neighbors.exact import Nearest, SearchResult, nearest, nearest_others
from gloss_graph.neighbors.inverted_lists import IVFSettings
from gloss_graph.neighbors.lists import NeighborLists
from gloss_graph.neighbors.search import DescentSettings, Search

__all__ = [
    "DescentSettings",
    "IVFSettings",
    "Nearest",
    "NeighborLists",
    "Search",
    "SearchResult",
    "knn_graph",
    "nearest",
    "nearest_others",
]
