"""Document graphs to and from NetworkX, GraphML, GEXF, JSON, CSV and Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names
from gloss_graph.export.from_networkx import from_networkx
from gloss_graph.export.graph_arrays import EDGE_KINDS, edge_homophily
from gloss_graph.export.graph_files import (
    FORMATS,
    read_graph,
    read_networkx,
    write_csr,
    write_graph,
    write_graphml,
)
from gloss_graph.export.to_networkx import to_networkx

if TYPE_CHECKING:
    from gloss_graph.export.tables import write_tables

__all__ = [
    "EDGE_KINDS",
    "FORMATS",
    "edge_homophily",
    "from_networkx",
    "read_graph",
    "read_networkx",
    "to_networkx",
    "write_csr",
    "write_graph",
    "write_graphml",
    "write_tables",
]

# Needs pyarrow, which the core does without.
__getattr__ = moved_names(__name__, {"gloss_graph.export.tables": ["write_tables"]})
