"""Document graphs to and from NetworkX, to SciPy, and as GraphML, GEXF, JSON, CSV and Parquet."""

from __future__ import annotations

from gloss_graph.export.graph_arrays import EDGE_KINDS, edge_homophily, to_scipy
from gloss_graph.export.graph_files import (
    FORMATS,
    read_graph,
    read_networkx,
    write_csr,
    write_graph,
    write_graphml,
    write_tables,
)
from gloss_graph.export.networkx_graphs import from_networkx, to_networkx

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
