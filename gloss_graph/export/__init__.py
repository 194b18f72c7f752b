"""Document graphs to and from NetworkX, GraphML, GEXF, JSON, CSV and Parquet."""

from gloss_graph.export.from_networkx import from_networkx
from gloss_graph.export.graph_arrays import EDGE_KINDS, edge_homophily
from gloss_graph.export.graph_files import (
    FORMATS,
    read_graph,
    read_networkx,
    write_csr,
    write_graph,
)
from gloss_graph.export.graphml import write_graphml
from gloss_graph.export.tables import write_tables
from gloss_graph.export.to_networkx import to_networkx

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
