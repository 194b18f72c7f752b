"""From embeddings to a sparse, weighted document graph."""

from gloss_graph.graph.bandwidth import BANDWIDTH_NAMES, estimate_bandwidth, local_scales
from gloss_graph.graph.build import build_document_graph
from gloss_graph.graph.kernels import KERNELS, cosine_kernel, gaussian_kernel
from gloss_graph.graph.links import symmetrize_links
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import visible_split

__all__ = [
    "BANDWIDTH_NAMES",
    "KERNELS",
    "KNNGraph",
    "build_document_graph",
    "cosine_kernel",
    "estimate_bandwidth",
    "gaussian_kernel",
    "local_scales",
    "symmetrize_links",
    "visible_split",
]
