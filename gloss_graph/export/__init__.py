"""Document graphs to and from NetworkX, to SciPy, and as GraphML, GEXF, JSON, CSV and Parquet."""

from __future__ import annotations

from gloss_graph.export.data_to_networkx import to_networkx
from gloss_graph.export.graph_arrays import EDGE_KINDS, edge_homophily
from gloss_graph.export.graph_files import (
    FORMATS,
    read_graph,
    read_networkx,
    write_csr,
    write_graph,
    write_graphml,
    write_tables,
)
from gloss_graph.export.networkx_to_data import from_networkx
from gloss_graph.export.sparse_matrix import to_scipy

__all__ = [
    "EDGE_KINDS",
    "FORMATS",
    "edge_homophily",
    "from_networkx",
    "read_graph",
    "read_networkx",
    "to_networkx",
    "to_scipy",
    "write_csr",
    "write_graph",
    "write_graphml",
    "write_tables",
]
